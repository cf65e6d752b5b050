-- activation.lua: elementwise functions as modules.
local module = require "weft.nn.module"
local A = require "weft.args"
local ops = require("weft.ops").functions

local M = {}

---x * Phi(x): with the error function, or with approximate = "tanh" in the tanh form.
M.GELU = module.class("GELU", module.base)

---@param options? table approximate ("none" or "tanh")
function M.GELU:init(options)
  local o = A.options(options, { approximate = "none" }, "GELU")
  if o.approximate ~= "none" and o.approximate ~= "tanh" then
    A.raise("GELU: approximate: \"none\" or \"tanh\" is expected, got %s", tostring(o.approximate))
  end
  self.approximate = o.approximate
end
function M.GELU:forward(x)
  return (self.approximate == "tanh" and ops.gelu_tanh or ops.gelu)(x)
end
function M.GELU:describe() return self.approximate == "tanh" and "tanh" or "erf" end

---max(x, 0)
M.ReLU = module.class("ReLU", module.base)
function M.ReLU:forward(x) return (ops.relu(x)) end

---x * sigmoid(x)
M.SiLU = module.class("SiLU", module.base)
function M.SiLU:forward(x) return (ops.silu(x)) end

M.Tanh = module.class("Tanh", module.base)
function M.Tanh:forward(x) return (ops.tanh(x)) end

return M
