-- lora_linear.lua: a Linear with low-rank branches beside it, one an adapter:
-- y = W x + b + s B A dropout(x). Hu et al. 2021, arXiv 2106.09685; DoRA: Liu et al. 2024, arXiv 2402.09353.
local module = require "weft.nn.module"
local nn = require "weft.nn"
local ops = require("weft.ops").functions
local initial = require "weft.nn.initial"
local LoraLayer = require "weft.peft.lora_layer"

local LoraLinear = module.class("LoraLinear", LoraLayer)

function LoraLinear:sizes(base) self.n_in, self.n_out, self.n_rows = base.n_in, base.n_out, base.n_out end

---A drawn, B zero; what a decomposition begins with comes later.
function LoraLinear:parts(o)
  local a = nn.Linear(self.n_in, o.rank, { bias = false,
    init = o.init == "gaussian" and initial.normal(1 / o.rank) or initial.kaiming(self.n_in) })
  local b = nn.Linear(o.rank, self.n_out, { bias = o.lora_bias, init = o.init == "random" and initial.kaiming(o.rank) or initial.zeros })
  return a, b
end

function LoraLinear.file_shapes(base, o, out)
  out["lora_A.weight"], out["lora_B.weight"] = { o.rank, base.n_in }, { base.n_out, o.rank }
  if o.lora_bias then out["lora_B.bias"] = { base.n_out } end
end

-- What DoRA makes of x: W x + b + (m / n - 1) W x~ + (m / n) s B A x~, where x~ is x with dropout in
-- training, and x else.
local function dora(self, x, y, name, p)
  local base, a, b = self.base_layer, self.lora_A[name], self.lora_B[name]
  local factors, scale = self:row_factors(name), self:scale_of(name)
  if p == 0 then
    local z = ops.lora_linear(x, base.weight, nil, a.weight, b.weight, scale, 0) * factors
    if base.bias then z = z + base.bias end
    -- beside another branch, only what it adds to the base
    return y and y + (z - base(x)) or z
  end
  local dropped = ops.dropout(x, p, self:rng("lora_dropout/" .. name))
  local branch = ops.linear(ops.linear(dropped, a.weight), b.weight) * scale
  return (y or base(x)) + ops.linear(dropped, base.weight) * (factors - 1) + branch * factors
end

---x [..., in] -> [..., out]
function LoraLinear:forward(x)
  local active, base = self.active, self.base_layer
  if self.observe then self.observe(x) end
  if self.disabled or self.merged or #active == 0 then return (base(x)) end
  self:expect(x, self.n_in)
  local y
  for i = 1, #active do
    local name = active[i]
    local s, a, b = self.settings[name], self.lora_A[name], self.lora_B[name]
    local p = self.training and s.dropout or 0
    local scale = self:scale_of(name)
    if s.dora then
      y = dora(self, x, y, name, p)
    elseif not y then
      y = ops.lora_linear(x, base.weight, base.bias, a.weight, b.weight, scale, p,
        p > 0 and self:rng("lora_dropout/" .. name) or nil)
    else
      local dropped = p > 0 and ops.dropout(x, p, self:rng("lora_dropout/" .. name)) or x
      y = y + ops.linear(ops.linear(dropped, a.weight), b.weight) * scale
    end
    if b.bias then y = y + b.bias * scale end
  end
  return y
end

return LoraLinear
