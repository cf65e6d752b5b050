-- rms_norm.lua: x / sqrt(mean(x^2) + eps) * weight over the last dim. Zhang and Sennrich 2019.
local module = require "weft.nn.module"
local initial = require "weft.nn.initial"
local A = require "weft.args"
local ops = require("weft.ops").functions

local RMSNorm = module.class("RMSNorm", module.base)

---weight [width] of ones.
---@param width integer
---@param options? table eps (1e-6)
function RMSNorm:init(width, options)
  local o = A.options(options, { eps = 1e-6 }, "RMSNorm")
  self.width, self.eps = width, o.eps
  self:parameter("weight", { width }, initial.ones)
end

---x [..., width] -> the same shape
function RMSNorm:forward(x)
  self:expect(x, self.width)
  return (ops.rms_norm(x, self.weight, self.eps))
end

---x + m, and its norm, in one pass.
---@param x weft.Tensor
---@param m weft.Tensor
---@param scale? weft.Tensor  [width]: m is multiplied by it
---@return weft.Tensor sum, weft.Tensor normed
function RMSNorm:of_sum(x, m, scale)
  self:expect(x, self.width)
  local sum, normed = ops.add_rms_norm(x, scale and m * scale or m, self.weight, self.eps)
  return sum, normed
end

function RMSNorm:describe() return ("%d, eps %g"):format(self.width, self.eps) end

return RMSNorm
