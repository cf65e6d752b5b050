-- drop_path.lua: whole samples of a residual branch to 0 with probability p in training, the others
-- times 1 / (1 - p). Huang et al. 2016 (stochastic depth).
local module = require "weft.nn.module"
local A = require "weft.args"
local create = require("weft.tensor").create
local ops = require("weft.ops").functions

local DropPath = module.class("DropPath", module.base)

---@param p? number  0 by default; in [0, 1)
function DropPath:init(p)
  p = p or 0
  A.number(p, "DropPath", "p")
  if not (p >= 0 and p < 1) then A.raise("DropPath: p must lie in [0, 1), got %g", p) end
  self.p = p
end

---x [B, ...]: one draw for each of the B samples
function DropPath:forward(x)
  if not self.training or self.p == 0 then return x end
  local shape = { x:size(1), dtype = x.dtype, device = x.device }
  for d = 2, x.ndim do shape[d] = 1 end
  return x * ops.dropout(create.ones(shape), self.p, self:rng "path")
end

function DropPath:describe() return ("p %g"):format(self.p) end

return DropPath
