-- linear.lua: y = x weight^T + bias.
local module = require "weft.nn.module"
local initial = require "weft.nn.initial"
local ops = require("weft.ops").functions

local Linear = module.class("Linear", module.base)

---weight [out, in], bias [out] unless bias = false.
---@param n_in integer
---@param n_out integer
---@param options? table bias (true), init (nn.initial.kaiming)
function Linear:init(n_in, n_out, options)
  local o = require("weft.args").options(options, { bias = true, init = initial.kaiming(n_in) }, "Linear")
  self.n_in, self.n_out = n_in, n_out
  self:parameter("weight", { n_out, n_in }, o.init)
  if o.bias then self:parameter("bias", { n_out }, options and options.init and initial.zeros or initial.kaiming(n_in)) end
end

---x [..., in] -> [..., out]
function Linear:forward(x)
  self:expect(x, self.n_in)
  return (ops.linear(x, self.weight, self.bias))
end

function Linear:describe() return ("%d -> %d"):format(self.n_in, self.n_out) end

return Linear
