-- dropout.lua: elements to 0 with probability p in training, the others times 1 / (1 - p).
local module = require "weft.nn.module"
local A = require "weft.args"
local ops = require("weft.ops").functions

local Dropout = module.class("Dropout", module.base)

---@param p? number  0.5 by default; in [0, 1)
function Dropout:init(p)
  p = p == nil and 0.5 or p
  A.number(p, "Dropout", "p")
  if not (p >= 0 and p < 1) then A.raise("Dropout: p must lie in [0, 1), got %g", p) end
  self.p = p
end

---x in training with its own draws, keyed by this module's path; x itself in evaluation.
function Dropout:forward(x)
  if not self.training or self.p == 0 then return x end
  return (ops.dropout(x, self.p, self:rng "mask"))
end

function Dropout:describe() return ("p %g"):format(self.p) end

return Dropout
