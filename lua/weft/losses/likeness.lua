-- likeness.lua: how alike captions are by the words they share: the cosine of their tf-idf vectors
-- (Salton and Buckley 1988) over token ids.
local module = require "weft.nn.module"
local autograd = require "weft.autograd"
local create = require("weft.tensor").create
local ops = require("weft.ops").functions

local Likeness = module.class("Likeness", module.base)

Likeness.wide = true

---@param vocab integer
function Likeness:init(vocab)
  self:register_buffer("weight", create.zeros { vocab })  -- inverse document frequency of each token
end

---Takes the weights of tokens: log of how rare each is. What stands in every caption weighs nothing.
---@param counts table  token id -> captions that have it
---@param n integer  captions
function Likeness:weigh(counts, n)
  local weight = create.zeros { self._buffers.weight:size(1) }
  local p = weight:data()
  for id, count in pairs(counts) do p[id] = math.log(n / count) end
  self._buffers.weight:copy_(weight)
  return self
end

---@param ids weft.Tensor  [B, L] int64
---@param mask weft.Tensor  [B, L], true where a token stands
---@return weft.Tensor  [B, B] in 0 .. 1, without gradient
function Likeness:forward(ids, mask)
  return autograd.no_grad(function()
    local weight = self._buffers.weight
    local each = ops.index_select(weight, ids:reshape { -1 }, 1):reshape { ids:size(1), ids:size(2) } * mask:to(weight.dtype)
    local bag = ops.scatter_add(create.zeros { ids:size(1), weight:size(1), device = weight.device, dtype = weight.dtype }, ids, each, 2)
    bag = ops.normalize(bag)
    return (ops.matmul(bag, bag:t()))
  end)
end

return Likeness
