-- dinov2.lua: the DINOv2 vision transformer. Modules are named as in Hugging Face's files.
-- Oquab et al. 2023, arXiv 2304.07193; registers: Darcet et al. 2023, arXiv 2309.16588.
local A = require "weft.args"
local nn = require "weft.nn"
local ops = require("weft.ops").functions
local initial = require "weft.nn.initial"
local scope = require("weft.scope").scope
local configs = require "weft.models.dinov2_config"
local keys = require "weft.models.dinov2_keys"
local pos_interp = require "weft.models.pos_interp"
local residual = require "weft.models.residual"
local weights = require "weft.models.weights"
local hub = require "weft.io.hub"
local disk = require "weft.files"
local create = require("weft.tensor").create
local weft_version_of = require("weft.core").lib.weft_version_of

-- What fills weights when training from scratch.
local function draws(config)
  return { weight = initial.trunc_normal(config.initializer_range), token = initial.normal(1e-6) }
end

-- --- embeddings
local PatchEmbeddings = nn.Module "PatchEmbeddings"

function PatchEmbeddings:init(c, how)
  self.patch = c.patch_size
  self.projection = nn.Conv2d(c.num_channels, c.hidden_size, { kernel = c.patch_size, stride = c.patch_size, init = how.weight })
end

---pixels [B, C, H, W] -> [B, H/p * W/p, d], rows of patches, patches a row
function PatchEmbeddings:forward(pixels)
  local shape, p = pixels.shape, self.patch
  if #shape ~= 4 then A.raise("dinov2: pixels [B, 3, H, W] are expected, got %d dims", #shape) end
  if shape[3] % p ~= 0 or shape[4] % p ~= 0 or shape[3] == 0 or shape[4] == 0 then
    A.raise("dinov2: pixels of %d x %d: height and width must be multiples of the patch, %d", shape[3], shape[4], p)
  end
  local y = self.projection(pixels)
  return y:flatten(3):transpose(2, 3), shape[3] / p, shape[4] / p
end

local Embeddings = nn.Module "Embeddings"

function Embeddings:init(c, how)
  local d, g = c.hidden_size, math.floor(c.image_size / c.patch_size)
  self.rule, self.cache, self.rate = c.pos_interp, {}, c.hidden_dropout_prob
  self:parameter("cls_token", { 1, 1, d }, how.token)
  if c.use_mask_token then self:parameter("mask_token", { 1, d }, initial.zeros) end
  if c.num_register_tokens > 0 then
    self:parameter("register_tokens", { 1, c.num_register_tokens, d }, how.token)
  end
  self.patch_embeddings = PatchEmbeddings(c, how)
  self:parameter("position_embeddings", { 1, 1 + g * g, d }, how.weight)
  if self.rate > 0 then self.dropout = nn.Dropout(self.rate) end
end

-- Positions for a grid. A frozen table is resized once for each size: the entry holds until the table
-- is another one or was written to.
function Embeddings:positions(h, w, rule)
  local t = self.position_embeddings
  if t.requires_grad then return (pos_interp.resize(t, h, w, rule)) end
  local at = ("%dx%d %s"):format(h, w, rule)
  local stamp = ("%s %s %d"):format(tostring(t.p), tostring(t.gen), weft_version_of(t.p))
  local entry = self.cache[at]
  if not entry or entry.stamp ~= stamp then
    local made = require("weft.autograd").no_grad(pos_interp.resize, t, h, w, rule)
    entry = { stamp = stamp, tensor = made == t and t or made:keep() }
    self.cache[at] = entry
  end
  return entry.tensor
end

---pixels [B, 3, H, W] -> [B, 1 + registers + N, d], grid
function Embeddings:forward(pixels, mask, rule)
  local x, h, w = self.patch_embeddings(pixels)
  local batch, d = x:size(1), x:size(3)
  if mask then
    if not self.mask_token then A.raise("dinov2: a mask was given, but this model has no mask token") end
    if mask:size(1) ~= batch or mask:size(-1) ~= h * w then
      A.raise("dinov2: mask [%s] does not fit %d pictures of %d patches", table.concat(mask.shape, ","), batch, h * w)
    end
    x = ops.where(mask:unsqueeze(3), self.mask_token, x)
  end
  local positions = self:positions(h, w, rule or self.rule)
  x = ops.cat({ self.cls_token:expand(batch, 1, d), x }, 2) + positions
  if self.register_tokens then
    -- registers have no position: they go in after positions were added
    local n = self.register_tokens:size(2)
    x = ops.cat({ x:narrow(2, 1, 1), self.register_tokens:expand(batch, n, d), x:narrow(2, 2, h * w) }, 2)
  end
  if self.dropout then x = self.dropout(x) end
  return x, { h = h, w = w }
end

-- --- one block
local SelfAttention = nn.Module "SelfAttention"

function SelfAttention:init(c, how)
  local d, o = c.hidden_size, { bias = c.qkv_bias, init = how.weight }
  self.heads, self.rate = c.num_attention_heads, c.attention_probs_dropout_prob
  self.query, self.key, self.value = nn.Linear(d, d, o), nn.Linear(d, d, o), nn.Linear(d, d, o)
end

local function split_heads(x, heads)
  return (x:reshape(x:size(1), x:size(2), heads, x:size(3) / heads):transpose(2, 3))
end

---x [B, N, d] -> [B, N, d]
function SelfAttention:forward(x)
  local q, k, v = split_heads(self.query(x), self.heads), split_heads(self.key(x), self.heads), split_heads(self.value(x), self.heads)
  local p = self.training and self.rate or 0
  local y = ops.scaled_dot_product_attention(q, k, v, nil, false, 0, p, p > 0 and self:rng "attention" or nil)
  return (y:transpose(2, 3):reshape(x.shape))
end

---What each position looks at: x [B, N, d] -> weights [B, heads, N, N]. For looking, not for training.
function SelfAttention:weights(x)
  local q, k = split_heads(self.query(x), self.heads), split_heads(self.key(x), self.heads)
  return (ops.softmax(ops.matmul(q, k:t()) * (q:size(4) ^ -0.5), -1))
end

local SelfOutput = nn.Module "SelfOutput"
function SelfOutput:init(c, how) self.dense = nn.Linear(c.hidden_size, c.hidden_size, { init = how.weight }) end
function SelfOutput:forward(x) return self.dense(x) end

local Attention = nn.Module "Attention"
function Attention:init(c, how) self.attention, self.output = SelfAttention(c, how), SelfOutput(c, how) end
function Attention:forward(x) return self.output(self.attention(x)) end

local MLP = nn.Module "MLP"
function MLP:init(c, how)
  local d, wide = c.hidden_size, configs.hidden_features(c)
  self.fc1, self.fc2 = nn.Linear(d, wide, { init = how.weight }), nn.Linear(wide, d, { init = how.weight })
end
function MLP:forward(x) return self.fc2(ops.gelu(self.fc1(x))) end

local SwiGLU = nn.Module "SwiGLU"
function SwiGLU:init(c, how)
  local d, wide = c.hidden_size, configs.hidden_features(c)
  self.wide = wide
  self.weights_in, self.weights_out = nn.Linear(d, 2 * wide, { init = how.weight }), nn.Linear(wide, d, { init = how.weight })
end
function SwiGLU:forward(x)
  local y = self.weights_in(x)
  return self.weights_out(ops.silu_gate(y:narrow(-1, 1, self.wide), y:narrow(-1, self.wide + 1, self.wide)))
end

local LayerScale = nn.Module "LayerScale"
function LayerScale:init(c) self:parameter("lambda1", { c.hidden_size }, initial.constant(c.layerscale_value)) end
function LayerScale:forward(x) return x * self.lambda1 end

local Layer = nn.Module "Layer"

function Layer:init(c, how)
  local d, eps = c.hidden_size, { eps = c.layer_norm_eps }
  self.norm1, self.attention, self.layer_scale1 = nn.LayerNorm(d, eps), Attention(c, how), LayerScale(c)
  self.norm2, self.mlp = nn.LayerNorm(d, eps), (c.use_swiglu_ffn and SwiGLU or MLP)(c, how)
  self.layer_scale2 = LayerScale(c)
  if c.drop_path_rate > 0 then self.drop_path = nn.DropPath(c.drop_path_rate) end
end

-- x + scale(m), and what `norm` makes of it.
local function add(self, x, m, scale, norm)
  local drops = self.drop_path and self.training
  if not drops and scale.lambda1 and not scale:listened() then return residual(norm, x, m, scale.lambda1) end
  m = scale(m)
  return residual(norm, x, drops and self.drop_path(m) or m)
end

local function attend(self, x, normed)
  return add(self, x, self.attention(normed or self.norm1(x)), self.layer_scale1, self.norm2)
end

local function feed(self, x, normed, norm) return add(self, x, self.mlp(normed), self.layer_scale2, norm) end

local function both(self, x, normed, norm)
  local h, n = scope(attend, self, x, normed)
  return scope(feed, self, h, n, norm)
end

---x [B, N, d] -> [B, N, d]. What a layer makes on its way is released as it goes: the tape alone says what
---backward keeps. A hook that is to hold on to a tensor of the inside calls keep() on it.
---@param x weft.Tensor
---@param normed? weft.Tensor  norm1 of x, where it is there already
---@param norm? table  the norm that follows this layer: what it makes of the result comes second
function Layer:forward(x, normed, norm)
  local y, after = scope(both, self, x, normed, norm)
  return y, after
end

local Encoder = nn.Module "Encoder"
function Encoder:init(c, how)
  local layers = {}
  for i = 1, c.num_hidden_layers do layers[i] = Layer(c, how) end
  self.layer = nn.ModuleList(layers)
end

-- --- the model
local Dinov2 = nn.Module "Dinov2"

---@param spec string|table  a size ("base", "base-registers", "tiny", ...) or keys of config.json
function Dinov2:init(spec)
  local c = configs.complete(spec)
  local how = draws(c)
  self.config = c
  self.embeddings, self.encoder = Embeddings(c, how), Encoder(c, how)
  self.layernorm = nn.LayerNorm(c.hidden_size, { eps = c.layer_norm_eps })
end

function Dinov2:describe()
  local c = self.config
  return ("%d wide, %d layers, positions by %s"):format(c.hidden_size, c.num_hidden_layers, c.pos_interp)
end

---@class weft.Dinov2Output
---@field last_hidden_state weft.Tensor  [B, 1 + registers + N, d], after the final norm
---@field pooler_output weft.Tensor      [B, d], the CLS position of it (cls is the same)
---@field cls weft.Tensor
---@field registers weft.Tensor?         [B, registers, d]
---@field patches weft.Tensor            [B, N, d]
---@field grid { h: integer, w: integer }
---@field hidden_states weft.Tensor[]?   before the final norm: embeddings, then each layer

---@param pixels weft.Tensor  [B, 3, H, W], normalised; sides are multiples of the patch
---@param options? table  mask (bool [B, N]: patches replaced by the mask token), hidden_states (false),
---  pos_interp (rule for this call)
---@return weft.Dinov2Output
function Dinov2:forward(pixels, options)
  local o = A.options(options, { mask = A.none, hidden_states = false, pos_interp = A.none }, "dinov2")
  local x, grid = self.embeddings(pixels, o.mask, o.pos_interp)
  local states = o.hidden_states and { x } or nil
  local layers, normed = self.encoder.layer, nil
  for i, layer in ipairs(layers) do
    -- a layer adds up its result and takes the next one's norm in one pass; whoever listens sees the sum alone
    local after, before = layers[i + 1], normed
    x, normed = layer(x, normed, not layer:listened() and (after and after.norm1 or not after and self.layernorm) or nil)
    if before then before:free() end
    if states then states[#states + 1] = x end
  end
  local y = normed or self.layernorm(x)
  local n, registers = grid.h * grid.w, self.config.num_register_tokens
  local cls = y:select(2, 1)
  return {
    last_hidden_state = y, pooler_output = cls, cls = cls, grid = grid, hidden_states = states,
    registers = registers > 0 and y:narrow(2, 2, registers) or nil,
    patches = y:narrow(2, 2 + registers, n),
  }
end

---Attention weights of a layer (counted from 1; the last by default): [B, heads, N', N'].
---@param pixels weft.Tensor
---@param options? table layer
function Dinov2:attention(pixels, options)
  local last = self.config.num_hidden_layers
  local o = A.options(options, { layer = last }, "attention")
  if o.layer < 1 or o.layer > last then A.raise("attention: layer %s outside 1..%d", tostring(o.layer), last) end
  if pixels.ndim == 3 then pixels = pixels:unsqueeze(1) end
  local x = self.embeddings(pixels)
  for i, layer in ipairs(self.encoder.layer) do
    if i == o.layer then return (layer.attention.attention:weights(layer.norm1(x))) end
    x = layer(x)
  end
end

-- Files may lack a mask token, or hold one that the config has no use for.
local function with_mask_token(model, state)
  local mine, key = model.embeddings.mask_token, "embeddings.mask_token"
  if not mine then state[key] = nil
  elseif not state[key] then
    state[key] = mine.device == "meta" and create.zeros(mine.shape) or mine
  end
  return state
end

---Takes tensors under the names of any known stack. All or nothing; only the mask token may be missing.
---@param state table<string, weft.Tensor>
function Dinov2:load(state) return self:load_state_dict(with_mask_token(self, (keys.translate(state)))) end

-- A directory, or the name of a model in Hugging Face's local cache at a revision.
local function find_directory(name, revision)
  weights.check_path(name)
  local there = disk.is_dir(name)
  for _, file in ipairs { "config.json", "model.safetensors", "model.safetensors.index.json" } do
    if there and disk.exists(name .. "/" .. file) then return name end
  end
  if not there and disk.exists(name) then
    return nil, ("dinov2: %s is a file; the directory is expected in which config.json and model.safetensors lie"):format(name)
  end
  local cached = hub.find(name, revision)
  if cached then return cached end
  if there then return name end  -- and what it lacks is said by who reads it
  if not hub.is_name(name) then return nil, ("dinov2: %s: there is no such directory"):format(name) end
  local at = revision and " --revision " .. revision or ""
  return nil, ("dinov2: there is no directory %s, and it is not in %s%s; this downloads it:\n  weft fetch %s%s"):format(name, hub.folder(name),
    revision and " at the revision " .. revision or "", name, at)
end

local M = { sizes = configs.sizes, keys = keys, Dinov2 = Dinov2 }

---A new model with weights as at the start of training.
---    local model = models.dinov2.new "base"
---@param spec string|table
function M.new(spec) return (Dinov2(spec)) end

---A model as it lies on disk: config.json and model.safetensors (or shards and their index) in a
---directory, or the name of a model that Hugging Face's cache holds. float32 tensors share the file's
---pages; float16 and bfloat16 become float32. A classifier on top is left out, and the second value says so.
---Weights as the model's authors publish them have no config.json: their shapes tell the sizes.
---    local encoder, note = models.dinov2.from_pretrained "facebook/dinov2-base"
---@param name string
---@param overrides? table  config keys that win, such as pos_interp, drop_path_rate; and revision (of a name:
---  "main", another branch, a tag or a commit)
---@return table model, string? note
function M.from_pretrained(name, overrides)
  local o = {}
  for key, v in pairs(overrides or {}) do o[key] = v end
  local revision = o.revision
  o.revision = nil
  local dir, message = find_directory(name, revision)
  if not dir then A.raise("%s", message) end
  local notes, state, config = {}
  if disk.exists(dir .. "/config.json") then
    config, message = configs.read(dir .. "/config.json", o)
    if not config then A.raise("%s", message) end
    state = weights.read(dir)
  else
    state = weights.read(dir)
    config = configs.of_original(state, o)
    if not config then A.raise("dinov2: %s: there is no config.json in this directory", name) end
    notes[1] = ("%s: no config.json: sizes by the shapes of the original project's tensors, 64 numbers a head, positions by %s"):format(name,
      config.pos_interp)
  end
  local ours, left = keys.translate(state)
  local model = Dinov2.on_meta(Dinov2, config)
  weights.adopt(model, with_mask_token(model, ours), dir)
  rawset(model, "name", name)
  rawset(model, "directory", dir)
  if #left > 0 then notes[#notes + 1] = ("%s: left out: %s"):format(name, table.concat(left, ", ")) end
  return model:eval(), notes[1] and table.concat(notes, "\n") or nil
end

return setmetatable(M, { __call = function(_, spec) return (M.new(spec)) end })
