-- lora_linear.lua: a Linear with low-rank branches beside it, one an adapter:
-- y = W x + b + s B A dropout(x). Hu et al. 2021, arXiv 2106.09685; DoRA: Liu et al. 2024, arXiv 2402.09353.
local nn = require "weft.nn"
local A = require "weft.args"
local no_grad = require("weft.autograd").no_grad
local create = require("weft.tensor").create
local ops = require("weft.ops").functions
local initial = require "weft.nn.initial"

-- Holds one child an adapter, by its name.
local Adapters = nn.Module "Adapters"

-- The length of each row of W + dW.
local Magnitude = nn.Module "Magnitude"
function Magnitude:init(n) self:parameter("weight", { n }, initial.ones) end

local LoraLinear = nn.Module "LoraLinear"

---Wraps a Linear, with no adapter yet.
function LoraLinear:init(base)
  self.base_layer = base
  self.n_in, self.n_out = base.n_in, base.n_out
  self.lora_A, self.lora_B, self.lora_magnitude_vector = Adapters(), Adapters(), Adapters()
  self.settings = {}   -- by adapter: rank, alpha, scaling, factor, dropout, dora
  self.active = {}     -- names, in the order they are added
  self.disabled, self.merged = false, false
end

local inits = {
  default = function(n_in) return initial.kaiming(n_in) end,
  gaussian = function(_, rank) return initial.normal(1 / rank) end,
  random = function(n_in) return initial.kaiming(n_in) end,
  pissa = function(n_in) return initial.kaiming(n_in) end,
  olora = function(n_in) return initial.kaiming(n_in) end,
}

---A new adapter: A drawn, B zero, so that nothing changes yet.
---@param name string
---@param o table  rank, alpha, scaling, dropout, init, dora, lora_bias
function LoraLinear:add(name, o)
  local weight = self.base_layer.weight
  local function make()
    local a = nn.Linear(self.n_in, o.rank, { bias = false, init = inits[o.init](self.n_in, o.rank) })
    local b = nn.Linear(o.rank, self.n_out, { bias = o.lora_bias, init = o.init == "random" and initial.kaiming(o.rank) or initial.zeros })
    return a, b, o.dora and Magnitude(self.n_out) or nil
  end
  local a, b, m
  if weight.device == "meta" then a, b, m = nn.on_meta(make) else a, b, m = make() end
  if weight.dtype ~= "float32" then
    a:to(weight.dtype)
    b:to(weight.dtype)
    if m then m:to(weight.dtype) end
  end
  self.lora_A[name], self.lora_B[name] = a, b
  if m then self.lora_magnitude_vector[name] = m end
  self.settings[name] = { rank = o.rank, alpha = o.alpha, scaling = o.scaling, factor = 1, dropout = o.dropout,
    dora = o.dora, rslora = o.rslora }
end

function LoraLinear:remove(name)
  self.lora_A[name], self.lora_B[name], self.settings[name] = nil, nil, nil
  if self.lora_magnitude_vector[name] then self.lora_magnitude_vector[name] = nil end
  for i = #self.active, 1, -1 do
    if self.active[i] == name then table.remove(self.active, i) end
  end
end

---The factor of an adapter's branch.
function LoraLinear:scale_of(name)
  local s = self.settings[name]
  return s.scaling * s.factor
end

---s B A [out, in]
function LoraLinear:delta(name)
  return ops.matmul(self.lora_B[name].weight, self.lora_A[name].weight) * self:scale_of(name)
end

-- Lengths of the rows of W + dW: a constant of the gradient.
local function row_norms(self, name)
  return no_grad(function()
    return (ops.norm(self.base_layer.weight + self:delta(name), 2, 2))
  end)
end

---Sets DoRA's magnitudes so that nothing changes: to the row lengths of W + dW.
function LoraLinear:begin_magnitude(name)
  no_grad(function() self.lora_magnitude_vector[name].weight:copy_(row_norms(self, name)) end)
end

-- (m / n) (W x + s B A x) + b; with dropout both products see the dropped x.
local function dora(self, x, name, p)
  local base, a, b = self.base_layer, self.lora_A[name], self.lora_B[name]
  if p > 0 then x = ops.dropout(x, p, self:rng("lora_dropout/" .. name)) end
  local y = ops.lora_linear(x, base.weight, nil, a.weight, b.weight, self:scale_of(name), 0)
  y = y * (self.lora_magnitude_vector[name].weight / row_norms(self, name))
  return base.bias and y + base.bias or y
end

---x [..., in] -> [..., out]
function LoraLinear:forward(x)
  local active, base = self.active, self.base_layer
  if self.disabled or self.merged or #active == 0 then return (base(x)) end
  self:expect(x, self.n_in)
  local y
  for i = 1, #active do
    local name = active[i]
    local s, a, b = self.settings[name], self.lora_A[name], self.lora_B[name]
    local p = self.training and s.dropout or 0
    local scale = self:scale_of(name)
    if s.dora then
      local z = dora(self, x, name, p)
      -- beside another branch, only what it adds to the base
      y = y and y + (z - base(x)) or z
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

---Weight and bias with the active adapters added, computed in the weight's precision. Refuses a result
---that is not finite.
---@return weft.Tensor weight, weft.Tensor? bias
function LoraLinear:merged_weights()
  return no_grad(function()
    local base = self.base_layer
    local weight, bias = base.weight:detach(), base.bias and base.bias:detach()
    for _, name in ipairs(self.active) do
      local m = self.lora_magnitude_vector[name]
      if m and #self.active > 1 then A.raise("%s: DoRA adapters merge one at a time", self:where()) end
      weight = weight + self:delta(name)
      if m then weight = weight * (m.weight / row_norms(self, name)):unsqueeze(2) end
      local b = self.lora_B[name].bias
      if b then
        bias = bias or create.zeros { self.n_out, dtype = weight.dtype, device = weight.device }
        bias = bias + b * self:scale_of(name)
      end
    end
    if weight:isfinite():to("int32"):min():item() == 0 then
      A.raise("%s: merge: the merged weight is not finite", self:where())
    end
    return weight, bias
  end)
end

---Puts merged weights in place; the base's own stay beside them, untouched.
function LoraLinear:set_merged(weight, bias)
  local base = self.base_layer
  rawset(self, "kept", { weight = base.weight, bias = base.bias })
  base.weight = weight
  if bias then base.bias = bias end
  self.merged = true
end

---The base's own weights back: the same tensors as before, bit for bit.
function LoraLinear:unmerge()
  if not self.merged then return end
  local base, kept = self.base_layer, self.kept
  base.weight, base.bias = kept.weight, kept.bias
  rawset(self, "kept", nil)
  self.merged = false
end

function LoraLinear:describe()
  local parts = { ("%d -> %d"):format(self.n_in, self.n_out) }
  local names = {}
  for name in pairs(self.settings) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do
    local s = self.settings[name]
    parts[#parts + 1] = ("%s: r %d, alpha %g: x%.4g%s%s%s"):format(name, s.rank, s.alpha, self:scale_of(name),
      s.rslora and " rsLoRA" or "", s.dora and " DoRA" or "", s.dropout > 0 and (", dropout %g"):format(s.dropout) or "")
  end
  if self.merged then parts[#parts + 1] = "merged" end
  return table.concat(parts, "; ")
end

return LoraLinear
