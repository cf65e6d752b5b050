-- fiber.lua: fusion in the backbone: a language model whose upper layers look at an image stream, and
-- the stream at them, each through a gate that starts at 0. One set of weights runs four ways: dual
-- (encode), fused (fuse), caption, and text alone. Dou et al. 2022, arXiv 2206.07643.
local A = require "weft.args"
local nn = require "weft.nn"
local initial = require "weft.nn.initial"
local scope = require("weft.scope").scope
local ops = require("weft.ops").functions
local create = require("weft.tensor").create
local pool = require "weft.models.pool"

-- --- one direction: x + gate * CrossAttention(norm(x), source)
local GatedCross = nn.Module "GatedCross"

function GatedCross:init(width, source_width, heads, norm, gate)
  if width % heads ~= 0 then A.raise("fiber: %d heads do not divide a width of %d", heads, width) end
  local o = { bias = false }
  self.heads, self.norm = heads, norm
  self.q_proj, self.k_proj = nn.Linear(width, width, o), nn.Linear(source_width, width, o)
  self.v_proj, self.o_proj = nn.Linear(source_width, width, o), nn.Linear(width, width, o)
  self:parameter("gate", { 1 }, initial.constant(gate))
end

local function split(x, heads)
  return (x:reshape(x:size(1), x:size(2), heads, x:size(3) / heads):transpose(2, 3))
end

---Keys and values of a source [B, M, source_width].
function GatedCross:look_at(source)
  return { k = split(self.k_proj(source), self.heads), v = split(self.v_proj(source), self.heads) }
end

---x [B, N, width]; seen from look_at; mask [B, M] bool, true for what may be looked at.
function GatedCross:forward(x, seen, mask)
  local keys = mask and mask:reshape(mask:size(1), 1, 1, mask:size(2)) or nil
  local y = ops.scaled_dot_product_attention(split(self.q_proj(self.norm(x)), self.heads), seen.k, seen.v, keys)
  return x + self.o_proj(y:transpose(2, 3):reshape(x.shape)) * self.gate
end

-- --- a block of the image stream
local ImageBlock = nn.Module "ImageBlock"

function ImageBlock:init(width, text_width, heads, wide, gate)
  self.norm1, self.attention = nn.LayerNorm(width), nn.MultiHeadAttention(width, heads)
  self.from_text = GatedCross(width, text_width, heads, nn.LayerNorm(width, { bias = false }), gate)
  self.norm2, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, wide), nn.Linear(wide, width)
end

local function block(self, x, text, mask)
  x = x + self.attention(self.norm1(x))
  if text then x = self.from_text(x, self.from_text:look_at(text), mask) end
  return x + self.fc2(ops.gelu(self.fc1(self.norm2(x))))
end

---x [B, P, width]; text [B, N, d] with its padding mask, or nil: the stream on its own.
function ImageBlock:forward(x, text, mask) return (scope(block, self, x, text, mask)) end

-- --- the fusion
local Fiber = nn.Module "Fiber"

-- Numbers of the fused layers, lowest first.
local function chosen(layers, total)
  if layers == "upper half" then layers = math.ceil(total / 2) end
  if layers == "all" then layers = total end
  local list = {}
  if type(layers) == "number" then
    for i = math.max(1, total - layers + 1), total do list[#list + 1] = i end
  elseif type(layers) == "table" then
    for i, layer in ipairs(layers) do list[i] = layer end
    table.sort(list)
  else
    A.raise('fiber: layers: "upper half", "all", a count or a list is expected, got %s', tostring(layers))
  end
  for i, layer in ipairs(list) do
    if layer < 1 or layer > total or layer % 1 ~= 0 or list[i - 1] == layer then
      A.raise("fiber: layers: %s is no layer of 1..%d, or is there twice", tostring(layer), total)
    end
  end
  return list
end

---@param language table   a models.llama; it stays a module of its own and is not counted here
---@param options? table   image_width (128), layers ("upper half", "all", how many, or a list), heads (the
---  language model's), image_heads (4), image_hidden (512), memory_width (image_width),
---  gate (0: both sides start alone; a small model from scratch leaves 0 very slowly, since what lies
---  behind a closed gate has no gradient)
function Fiber:init(language, options)
  local o = A.options(options, { image_width = 128, layers = "upper half", heads = language.config.heads,
    image_heads = 4, image_hidden = 512, memory_width = A.none, gate = 0 }, "fiber")
  local d = language.config.width
  rawset(self, "language", language)
  self.fused, self.at, self.image_width = chosen(o.layers, language.config.layers), {}, o.image_width
  local text, image = {}, {}
  for j, layer in ipairs(self.fused) do
    self.at[layer] = j
    text[j] = GatedCross(d, o.image_width, o.heads, nn.RMSNorm(d, { eps = language.config.eps }), o.gate)
    image[j] = ImageBlock(o.image_width, d, o.image_heads, o.image_hidden, o.gate)
  end
  self.text, self.image = nn.ModuleList(text), nn.ModuleList(image)
  if o.memory_width and o.memory_width ~= o.image_width then
    self.memory_proj = nn.Linear(o.memory_width, o.image_width)
  end
end

function Fiber:describe() return ("layers %s"):format(table.concat(self.fused, ", ")) end

local function check(self, V)
  if V.ndim ~= 3 or V:size(3) ~= self.image_width then
    A.raise("fiber: an image stream [B, P, %d] is expected, got [%s]", self.image_width, table.concat(V.shape, ","))
  end
end

---Dual pass: the language model alone. Final hidden states [B, N, d].
---@param options? table mask
function Fiber:encode(ids, options) return self.language:encode(ids, options) end

---Fused pass: text and image look at each other; each reads the other's state from before the step.
---@param V weft.Tensor    [B, P, image_width]
---@param ids weft.Tensor  [B, N]
---@param options? table   mask ([B, N] bool, true for tokens)
---@return { text: weft.Tensor, image: weft.Tensor, feature: weft.Tensor }  final states, and per pair
---  the state at EOS joined with the mean of the image stream: [B, d + image_width]
function Fiber:fuse(V, ids, options)
  local o = A.options(options, { mask = A.none }, "fuse")
  check(self, V)
  local mask = o.mask and (o.mask.dtype == "bool" and o.mask or o.mask:ne(0)) or nil
  local stream = V
  local text = self.language:encode(ids, { mask = mask, cross = function(layer, after, entry)
    local j = self.at[layer]
    if not j then return after end
    local cross = self.text[j]
    local y = scope(function() return cross(after, cross:look_at(stream)) end)
    stream = self.image[j](stream, entry, mask and mask:narrow(2, 1, entry:size(2)) or nil)
    return y
  end })
  local feature = ops.cat({ pool.last_token(text, mask), stream:mean(2) }, 2)
  return { text = text, image = stream, feature = feature }
end

---The image stream without text: what each fused layer sees. Nothing of the text gets in.
---@return weft.Tensor[] states  one a fused layer
function Fiber:streams(V)
  check(self, V)
  local states = { V }
  for j = 2, #self.fused do states[j] = self.image[j - 1](states[j - 1]) end
  return states
end

-- What the fused layers look at: the stream's states, and the memory's vector as one more token.
local function sources(self, V, z)
  local states = self:streams(V)
  if not z then return states end
  local token = (self.memory_proj and self.memory_proj(z) or z):unsqueeze(2)
  if token:size(3) ~= self.image_width then
    A.raise("fiber: a memory vector of %d joins a stream of %d; give memory_width", token:size(3), self.image_width)
  end
  for j, state in ipairs(states) do states[j] = ops.cat({ state, token }, 2) end
  return states
end

-- The hook of the caption pass.
local function captioner(self, V, z)
  local states = sources(self, V, z)
  return function(layer, after, _, cache)
    local j = self.at[layer]
    if not j then return after end
    local cross = self.text[j]
    local seen = cache and cache.fixed[j]
    if not seen then
      seen = cross:look_at(states[j])
      if cache then cache.fixed[j] = seen end
    end
    return cross(after, seen)
  end
end

---Final hidden states of the caption pass: causal, looking at V (and z), which see no text.
---@param V weft.Tensor   [B, P, image_width]
---@param z weft.Tensor?  [B, memory_width]
---@param options? table mask
function Fiber:caption_states(V, z, ids, options)
  local o = A.options(options, { mask = A.none }, "caption")
  local hook = captioner(self, V, z)
  return self.language:encode(ids, { mask = o.mask, cross = function(layer, after) return hook(layer, after) end })
end

---Next-token loss of captions given their pictures.
---@param options? table mask, reduction (mean, sum, none)
---@return weft.Tensor loss, integer tokens
function Fiber:caption(V, z, ids, options)
  local o = A.options(options, { mask = A.none, reduction = "mean" }, "caption")
  local hidden = self:caption_states(V, z, ids, { mask = o.mask })
  return self.language:loss(hidden, ids, o)
end

---Next-token loss of plain text.
---@param options? table mask, reduction
---@return weft.Tensor loss, integer tokens
function Fiber:plain(ids, options)
  local o = A.options(options, { mask = A.none, reduction = "mean" }, "plain")
  return self.language:loss(self.language:encode(ids, { mask = o.mask }), ids, o)
end

---Captions for pictures.
---@param V weft.Tensor   [B, P, image_width]
---@param z weft.Tensor?  [B, memory_width]
---@param options table   of models.generate, and bos (an id) or prompt ([B, N])
---@return table  ids, lengths, scores
function Fiber:generate(V, z, options)
  local o = {}
  for k, v in pairs(options or {}) do o[k] = v end
  local prompt, bos = o.prompt, o.bos
  o.prompt, o.bos = nil, nil
  if not prompt then
    if type(bos) ~= "number" then A.raise("fiber: generate wants bos (an id) or a prompt") end
    prompt = create.full { V:size(1), 1, value = bos, dtype = "int64", device = V.device }
  end
  return require("weft.autograd").no_grad(function()
    return require("weft.scope").scope(function()
      o.cross = captioner(self, V, z)
      return (self.language:generate(prompt, o))
    end)
  end)
end

return Fiber
