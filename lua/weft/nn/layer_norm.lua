-- layer_norm.lua: (x - mean) / sqrt(var + eps) * weight + bias over the last dim. Ba et al. 2016.
local module = require "weft.nn.module"
local initial = require "weft.nn.initial"
local A = require "weft.args"
local ops = require("weft.ops").functions

local LayerNorm = module.class("LayerNorm", module.base)

---weight [width] of ones and bias [width] of zeros, unless weight = false or bias = false.
---@param width integer
---@param options? table eps (1e-5), weight (true), bias (true)
function LayerNorm:init(width, options)
  local o = A.options(options, { eps = 1e-5, weight = true, bias = true }, "LayerNorm")
  self.width, self.eps = width, o.eps
  if o.weight then self:parameter("weight", { width }, initial.ones) end
  if o.bias then self:parameter("bias", { width }, initial.zeros) end
end

---x [..., width] -> the same shape
function LayerNorm:forward(x)
  self:expect(x, self.width)
  return (ops.layer_norm(x, self.weight, self.bias, self.eps))
end

---x + m * scale, and its norm, in one pass.
---@param x weft.Tensor
---@param m weft.Tensor
---@param scale? weft.Tensor  [width]
---@return weft.Tensor sum, weft.Tensor normed
function LayerNorm:of_sum(x, m, scale)
  self:expect(x, self.width)
  local sum, normed = ops.add_layer_norm(x, m, scale, self.weight, self.bias, self.eps)
  return sum, normed
end

function LayerNorm:describe() return ("%d, eps %g"):format(self.width, self.eps) end

return LayerNorm
