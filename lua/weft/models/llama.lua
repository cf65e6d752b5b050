-- llama.lua: a causal language model: RMSNorm, rotary positions (rotate-half), SwiGLU, tied embeddings.
-- Modules are named as in Hugging Face's files. Touvron et al. 2023, arXiv 2302.13971.
local ffi = require "ffi"
local A = require "weft.args"
local C = require("weft.core").lib
local nn = require "weft.nn"
local initial = require "weft.nn.initial"
local scope = require("weft.scope").scope
local ops = require("weft.ops").functions
local pool = require "weft.models.pool"
local residual = require "weft.models.residual"
local create = require("weft.tensor").create
local settings = require "weft.models.settings"

-- --- rotary positions
local Rotary = nn.Module "Rotary"

function Rotary:init(head_dim, theta)
  self.half, self.theta, self.length = head_dim / 2, theta, 0
end

-- cos and sin [length, half] of position * theta^(-2i / head_dim), worked out in double.
local function angles(self, length, like)
  local half = self.half
  local cos, sin = ffi.new("double[?]", length * half), ffi.new("double[?]", length * half)
  for i = 0, half - 1 do
    local rate = self.theta ^ (-i / half)
    for position = 0, length - 1 do
      cos[position * half + i], sin[position * half + i] = math.cos(position * rate), math.sin(position * rate)
    end
  end
  local shape = ffi.new("int64_t[2]", length, half)
  local function tensor(data)
    local t = C.weft_from(data, shape, 2, C.WEFT_FLOAT64)
    if t == nil then A.fail() end
    return (A.wrap(t):to({ dtype = like.dtype, device = like.device }):keep())
  end
  return tensor(cos), tensor(sin)
end

---Tables for positions first .. first + n - 1 (from 0), in the dtype and on the device of `like`.
function Rotary:tables(first, n, like)
  local kind = like.dtype .. like.device
  if self.kind ~= kind or self.length < first + n then
    local length = 64
    while length < first + n do length = length * 2 end
    local cos, sin = angles(self, length, like)
    rawset(self, "table", { cos = cos, sin = sin })
    self.kind, self.length = kind, length
  end
  return { cos = self.table.cos:narrow(1, first + 1, n), sin = self.table.sin:narrow(1, first + 1, n) }
end

-- --- one layer
local Attention = nn.Module "Attention"

function Attention:init(c)
  local d, o = c.width, { bias = false, init = initial.normal(c.init_std) }
  self.heads = c.heads
  self.q_proj, self.k_proj = nn.Linear(d, d, o), nn.Linear(d, d, o)
  self.v_proj, self.o_proj = nn.Linear(d, d, o), nn.Linear(d, d, o)
end

---x [B, N, d]; slot, if given, holds keys and values of what came before and takes those of x.
function Attention:forward(x, rotary, mask, slot)
  local batch, n, d = x:size(1), x:size(2), x:size(3)
  local function heads(y) return y:reshape(batch, n, self.heads, d / self.heads):transpose(2, 3) end
  local q = ops.rotary(heads(self.q_proj(x)), rotary.cos, rotary.sin)
  local k, v = ops.rotary(heads(self.k_proj(x)), rotary.cos, rotary.sin), heads(self.v_proj(x))
  if slot then
    if slot.k then k, v = ops.cat({ slot.k, k }, 3), ops.cat({ slot.v, v }, 3) end
    slot.k, slot.v = k, v
  end
  local y = ops.scaled_dot_product_attention(q, k, v, mask, true)
  return self.o_proj(y:transpose(2, 3):reshape(batch, n, d))
end

local MLP = nn.Module "MLP"

function MLP:init(c)
  local o = { bias = false, init = initial.normal(c.init_std) }
  self.gate_proj, self.up_proj = nn.Linear(c.width, c.ff, o), nn.Linear(c.width, c.ff, o)
  self.down_proj = nn.Linear(c.ff, c.width, o)
end

function MLP:forward(x) return self.down_proj(ops.silu_gate(self.gate_proj(x), self.up_proj(x))) end

local Layer = nn.Module "Layer"

function Layer:init(c)
  self.input_layernorm, self.self_attn = nn.RMSNorm(c.width, { eps = c.eps }), Attention(c)
  self.post_attention_layernorm, self.mlp = nn.RMSNorm(c.width, { eps = c.eps }), MLP(c)
  if c.dropout > 0 then self.dropout = nn.Dropout(c.dropout) end
end

local function attend(self, x, normed, norm, rotary, mask, slot)
  local a = self.self_attn(normed or self.input_layernorm(x), rotary, mask, slot)
  return residual(norm, x, self.dropout and self.dropout(a) or a)
end

local function feed(self, h, normed, norm)
  local m = self.mlp(normed or self.post_attention_layernorm(h))
  return residual(norm, h, self.dropout and self.dropout(m) or m)
end

---cross, if given, is called as cross(state after self-attention, state before it). Both halves run in
---scopes of their own: the tape alone says what backward keeps.
---@param x weft.Tensor
---@param rotary table
---@param mask? weft.Tensor
---@param slot? table
---@param cross? function
---@param normed? weft.Tensor  input_layernorm of x, where it is there already
---@param norm? table  the norm that follows this layer: what it makes of the result comes second
function Layer:forward(x, rotary, mask, slot, cross, normed, norm)
  local between = not cross and self.post_attention_layernorm or nil
  local h, n
  -- a slot keeps what attention makes
  if slot then h, n = attend(self, x, normed, between, rotary, mask, slot)
  else h, n = scope(attend, self, x, normed, between, rotary, mask) end
  if cross then h = cross(h, x) end
  local y, after = scope(feed, self, h, n, norm)
  if n then n:free() end
  return y, after
end

-- --- the stack
local Model = nn.Module "LlamaModel"

function Model:init(c)
  self.embed_tokens = nn.Embedding(c.vocab, c.width, { init = initial.normal(c.init_std) })
  local layers = {}
  for i = 1, c.layers do layers[i] = Layer(c) end
  self.layers = nn.ModuleList(layers)
  self.norm = nn.RMSNorm(c.width, { eps = c.eps })
  self.rotary = Rotary(c.width / c.heads, c.rope_theta)
end

local Llama = nn.Module "Llama"

local defaults = {
  vocab = A.required, width = A.required, layers = A.required, ff = A.required, heads = A.none,
  rope_theta = 10000, eps = 1e-6, tied = true, dropout = 0, init_std = 0.02,
}

local kinds = { vocab = "size", width = "size", layers = "layers", ff = "size", heads = "size", rope_theta = "positive",
  eps = "from_zero", tied = "boolean", dropout = "rate", init_std = "from_zero" }

---@param config table  vocab, width, layers, ff; heads (width / 64), rope_theta, eps, tied, dropout, init_std
function Llama:init(config)
  local c = A.options(config, defaults, "llama")
  settings.check("llama", c, kinds)
  c.heads = c.heads or math.max(1, math.floor(c.width / 64))
  if c.width % c.heads ~= 0 or (c.width / c.heads) % 2 ~= 0 then
    A.raise("llama: %d heads do not divide a width of %d into even parts", c.heads, c.width)
  end
  self.config = c
  self.model = Model(c)
  if not c.tied then self.lm_head = nn.Linear(c.width, c.vocab, { bias = false, init = initial.normal(c.init_std) }) end
end

function Llama:describe()
  local c = self.config
  return ("%d tokens, %d wide, %d layers, %d heads%s"):format(c.vocab, c.width, c.layers, c.heads, c.tied and ", tied" or "")
end

-- A padding mask [B, N] (bool, true: a token) over `before` cached positions as keys [B, 1, 1, M].
local function key_mask(mask, ids, before)
  if mask == nil then return nil end
  if mask.ndim ~= 2 or mask:size(1) ~= ids:size(1) or mask:size(2) ~= ids:size(2) + before then
    A.raise("llama: mask [%s] does not fit ids [%s]%s: true for each token, false for padding", table.concat(mask.shape, ","),
      table.concat(ids.shape, ","), before > 0 and (" after %d cached"):format(before) or "")
  end
  if mask.dtype ~= "bool" then mask = mask:ne(0) end
  return (mask:reshape(mask:size(1), 1, 1, mask:size(2)))
end

---An empty cache for generation: keys and values of what was read, layer by layer.
function Llama:cache()
  local slots = {}
  for i = 1, self.config.layers do slots[i] = {} end
  return { layers = slots, length = 0, fixed = {} }
end

---Final hidden states (after the last norm) of ids [B, N] -> [B, N, d]. Columns that are padding in
---every row are not computed: their states are 0.
---@param ids weft.Tensor  int64
---@param options? table  mask ([B, N] bool, true: a token), cross (called as cross(layer from 1, state
---  after self-attention, state before it) -> state), cache (of cache(); ids then follow what it holds)
function Llama:encode(ids, options)
  local o = A.options(options, { mask = A.none, cross = A.none, cache = A.none }, "encode")
  if ids.ndim ~= 2 then A.raise("llama: ids [B, N] are expected, got [%s]", table.concat(ids.shape, ",")) end
  local cache, before, n = o.cache, o.cache and o.cache.length or 0, ids:size(2)
  local mask, padding = key_mask(o.mask, ids, before), 0
  if mask and not cache then
    local longest = pool.longest(o.mask)
    padding, n = n - longest, longest
    if padding > 0 then ids, mask = ids:narrow(2, 1, n), mask:narrow(4, 1, n) end
  end
  local x = self.model.embed_tokens(ids)
  local rotary = self.model.rotary:tables(before, n, x)
  local layers, normed = self.model.layers, nil
  for i, layer in ipairs(layers) do
    local cross = o.cross and function(after, entry) return o.cross(i, after, entry) end or nil
    local next_, last = layers[i + 1], normed
    local norm = not layer:listened() and (next_ and next_.input_layernorm or not next_ and self.model.norm) or nil
    x, normed = layer(x, rotary, mask, cache and cache.layers[i] or nil, cross, normed, norm)
    if last then last:free() end
  end
  if cache then cache.length = before + n end
  local y = normed or self.model.norm(x)
  if padding > 0 then y = ops.pad(y, { 0, 0, 0, padding, 0, 0 }) end
  return y
end

---Scores over the vocabulary for final hidden states [..., d] -> [..., V].
function Llama:logits(hidden)
  if self.lm_head then return self.lm_head(hidden) end
  local table_of = self.model.embed_tokens
  -- an adapter on the table leaves the output layer that shares it alone, as in PEFT
  return (ops.linear(hidden, table_of.is_lora and table_of:plain_weight() or table_of.weight))
end

---@param ids weft.Tensor
---@param options? table  as encode
---@return { logits: weft.Tensor, last_hidden_state: weft.Tensor }
function Llama:forward(ids, options)
  local hidden = self:encode(ids, options)
  return { logits = self:logits(hidden), last_hidden_state = hidden }
end

-- --- the loss
-- Rows of the flattened hidden states [B * N] that predict a real token, and those tokens.
local function predictions(ids, mask)
  local batch, n = ids:size(1), ids:size(2)
  local id = ids:to({ dtype = "int64", device = "cpu" }):contiguous()
  local real = mask and mask:to({ dtype = "uint8", device = "cpu" }):contiguous() or nil
  local data, keep = id:data(), real and real:data()
  local rows, targets, count = ffi.new("int64_t[?]", batch * n + 1), ffi.new("int64_t[?]", batch * n + 1), 0
  for b = 0, batch - 1 do
    for i = 0, n - 2 do
      local at = b * n + i
      if not keep or (keep[at] ~= 0 and keep[at + 1] ~= 0) then
        rows[count], targets[count] = at, data[at + 1]
        count = count + 1
      end
    end
  end
  local shape = ffi.new("int64_t[1]", count)
  local function tensor(list)
    local t = C.weft_from(list, shape, 1, C.WEFT_INT64)
    if t == nil then A.fail() end
    return (A.wrap(t):to { device = ids.device })
  end
  return tensor(rows), tensor(targets), count
end

-- The same with every position in its place, and -100 where there is nothing to predict: shapes that depend
-- on no value, so that a GPU is not waited for. Also how many there are: float32 [], at least 1.
local function padded(hidden, ids, mask)
  local batch, n = ids:size(1), ids:size(2) - 1
  local function part(t, from) return t:narrow(2, from, n):contiguous() end
  local targets = part(ids:to "int64", 2)
  local count = create.full { value = batch * n, device = ids.device }
  if mask then
    mask = mask.dtype == "bool" and mask or mask:ne(0)
    local real = ops.logical_and(part(mask, 1), part(mask, 2))
    targets = ops.where(real, targets, create.full { value = -100, dtype = "int64", device = ids.device })
    count = real:to("float32"):sum():maximum(1)
  end
  return part(hidden, 1):reshape(batch * n, hidden:size(3)), targets:reshape(batch * n), count
end

---Next-token loss of final hidden states: each position against the token after it, padding left out.
---@param hidden weft.Tensor  [B, N, d], from encode
---@param ids weft.Tensor     [B, N]
---@param options? table  mask ([B, N], true: a token), reduction (mean; sum; none: [count])
---@return weft.Tensor loss, integer? tokens  how many were predicted; nil on a GPU, where they are not counted here
function Llama:loss(hidden, ids, options)
  local o = A.options(options, { mask = A.none, reduction = "mean" }, "loss")
  local d = hidden:size(3)
  if ids.device ~= "cpu" and ids.device ~= "meta" and o.reduction ~= "none" and ids:size(2) > 1 then
    local rows, targets, count = padded(hidden, ids, o.mask)
    local sum = ops.cross_entropy(self:logits(rows), targets, -100, 0, "sum")
    if o.reduction == "sum" then return sum end
    return sum / count:to(sum.dtype)
  end
  local rows, targets, count
  if ids.device == "meta" then
    local all = ids:size(1) * (ids:size(2) - 1)
    count = math.ceil(all * (A.assumed and A.assumed.density or 1))
    targets = ids:narrow(2, 2, ids:size(2) - 1):reshape(all):narrow(1, 1, count)
    rows = require("weft.tensor").create.empty { count, dtype = "int64", device = "meta" }
    hidden = ops.index_select(hidden:reshape(-1, d), rows, 1)
  else
    rows, targets, count = predictions(ids, o.mask)
    if count == 0 then
      -- nothing to predict: a zero that still reaches every weight
      return hidden:narrow(2, 1, 1):sum() * 0, 0
    end
    hidden = ops.index_select(hidden:reshape(-1, d), rows, 1)
  end
  return ops.cross_entropy(self:logits(hidden), targets, -100, 0, o.reduction), count
end

---log p of each token given those before it: [B, N - 1], 0 for padding.
---@param ids weft.Tensor
---@param options? table  mask, cross
function Llama:log_probs(ids, options)
  local o = A.options(options, { mask = A.none, cross = A.none }, "log_probs")
  local n = ids:size(2) - 1
  local hidden = self:encode(ids, { mask = o.mask, cross = o.cross }):narrow(2, 1, n)
  local targets = ids:narrow(2, 2, n)
  local all = self:logits(hidden)
  local picked = ops.cross_entropy(all:reshape(-1, all:size(3)), targets:reshape(-1), -100, 0, "none"):reshape(targets.shape) * -1
  if not o.mask then return picked end
  return (picked:masked_fill(o.mask:narrow(2, 2, n):eq(0), 0))
end

-- --- generation
---Continues prompts of one length; see models.generate for options (max_new_tokens, eos, beams, ...).
---@param prompt weft.Tensor  [B, N] int64
---@param options? table  of models.generate, and cross: a function (layer, after, entry, cache)
---@return table  ids [B, N + new], lengths, scores
function Llama:generate(prompt, options)
  local o = {}
  for k, v in pairs(options or {}) do o[k] = v end
  local cross = o.cross
  o.cross = nil
  local function step(ids, cache)
    local hook = cross and function(layer, after, entry) return cross(layer, after, entry, cache) end or nil
    local hidden = self:encode(ids, { cache = cache, cross = hook })
    return self:logits(hidden:select(2, ids:size(2)))
  end
  return require("weft.models.generate").run(step, self:cache(), prompt, o)
end

---The table that the output layer shares; nil where it has weights of its own.
function Llama:tied_to() return not self.lm_head and self.model.embed_tokens or nil end

---Gives the output layer weights of its own.
function Llama:untie(weight)
  local c = self.config
  self.lm_head = nn.on_meta(function() return nn.Linear(c.width, c.vocab, { bias = false, init = initial.normal(c.init_std) }) end)
  self.lm_head.weight = weight:detach():clone():keep():requires_grad_(weight.requires_grad)
  local config = {}
  for key, v in pairs(c) do config[key] = v end
  config.tied = false
  self.config = config
end

-- --- files
local from_file = { vocab_size = "vocab", hidden_size = "width", num_hidden_layers = "layers", intermediate_size = "ff",
  num_attention_heads = "heads", rope_theta = "rope_theta", rms_norm_eps = "eps", tie_word_embeddings = "tied" }

---A model from a Hugging Face directory: config.json and model.safetensors.
---@param dir string
function Llama.from_pretrained(dir)
  local json = require "weft.io.json"
  local raw, message = json.read(dir .. "/config.json")
  if raw == nil then A.raise("%s", message) end
  if type(raw) ~= "table" or json.is_array(raw) then A.raise("%s/config.json: an object of settings is expected", dir) end
  for key, v in pairs(raw) do
    if v == json.null then raw[key] = nil end
  end
  local config = {}
  for theirs, ours in pairs(from_file) do config[ours] = raw[theirs] end
  -- newer files keep the rotary positions' settings in a table of their own
  local rope = raw.rope_parameters or raw.rope_scaling or {}
  if type(rope) ~= "table" then A.raise("llama: %s: rope_parameters: an object is expected, got %s", dir, A.typename(rope)) end
  config.rope_theta = rope.rope_theta or config.rope_theta
  local function only(what, v, known)
    if v ~= nil and v ~= known then A.raise("llama: %s: %s is %s; only %s is computed", dir, what, tostring(v), tostring(known)) end
  end
  only("rope_type", rope.rope_type or rope.type, "default")
  only("hidden_act", raw.hidden_act, "silu")
  only("attention_bias", raw.attention_bias, false)
  only("mlp_bias", raw.mlp_bias, false)
  if type(raw.num_attention_heads) == "number" and type(raw.hidden_size) == "number" then
    only("head_dim", raw.head_dim, raw.hidden_size / raw.num_attention_heads)
  end
  if raw.num_key_value_heads ~= nil and raw.num_key_value_heads ~= raw.num_attention_heads then
    A.raise("llama: %s: %s key heads for %s query heads; only one each is known", dir, tostring(raw.num_key_value_heads),
      tostring(raw.num_attention_heads))
  end
  local state
  state, message = require("weft.io.safetensors").load(dir .. "/model.safetensors")
  if not state then A.raise("%s", message) end
  if config.tied then state["lm_head.weight"] = nil end
  return Llama.unfilled(Llama, config):load_state_dict(state):eval()
end

return Llama
