-- lora_layer.lua: what Linear, Conv2d and Embedding have in common once low-rank branches sit beside them,
-- one an adapter. Each weight is looked at as a matrix of rows, one an output: A is [r, n], B is [rows, r].
-- A class of its own gives parts(o), forward(x), and rows(w), unrows(m) where its weight is no such matrix.
local module = require "weft.nn.module"
local A = require "weft.args"
local no_grad = require("weft.autograd").no_grad
local nn = require "weft.nn"
local create = require("weft.tensor").create
local ops = require("weft.ops").functions
local initial = require "weft.nn.initial"

-- Holds one child or tensor an adapter, by its name.
local Adapters = nn.Module "Adapters"

-- What is merged is computed in float32 at least, and rounded once.
local half = { float16 = true, bfloat16 = true }
local function wide(t) return half[t.dtype] and t:to "float32" or t end

-- The length of each row of W + dW.
local Magnitude = nn.Module "Magnitude"
function Magnitude:init(n) self:parameter("weight", { n }, initial.ones) end

local LoraLayer = module.class("LoraLayer", module.base)

LoraLayer.is_lora = true
LoraLayer.a_name, LoraLayer.b_name = "lora_A", "lora_B"

---Wraps a module, with no adapter yet.
function LoraLayer:init(base)
  self.base_layer = base
  self[self.a_name], self[self.b_name], self.lora_magnitude_vector = Adapters(), Adapters(), Adapters()
  self.settings = {}   -- by adapter: rank, alpha, scaling, factor, dropout, dora
  self.active = {}     -- names, in the order they are added
  self.disabled, self.merged = false, false
  self:sizes(base)
end

---The weight, or one shaped like it, as a matrix of rows.
function LoraLayer.rows(_, w) return w end
---A matrix of rows in the weight's own shape.
function LoraLayer.unrows(_, m) return m end

---A new adapter, which changes nothing yet.
---@param name string
---@param o table  rank, alpha, scaling, dropout, init, dora, lora_bias
function LoraLayer:add(name, o)
  local weight = self.base_layer.weight
  local function make()
    self:put(name, self:parts(o))
    if o.dora then self.lora_magnitude_vector[name] = Magnitude(self.n_rows) end
  end
  if weight.device == "meta" then nn.on_meta(make)
  else
    make()
    if weight.dtype ~= "float32" or weight.device ~= "cpu" then
      local target = { dtype = weight.dtype, device = weight.device }
      for _, e in ipairs(self:tensors(name)) do e.owner[e.field] = e.tensor:detach():to(target):requires_grad_() end
    end
  end
  self.settings[name] = { rank = o.rank, alpha = o.alpha, scaling = o.scaling, factor = 1, dropout = o.dropout,
    dora = o.dora, rslora = o.rslora }
end

-- Modules that hold A and B; classes that keep tensors do otherwise.
function LoraLayer:put(name, a, b) self[self.a_name][name], self[self.b_name][name] = a, b end

function LoraLayer:remove(name)
  self[self.a_name][name], self[self.b_name][name], self.settings[name] = nil, nil, nil
  if self.lora_magnitude_vector[name] then self.lora_magnitude_vector[name] = nil end
  for i = #self.active, 1, -1 do
    if self.active[i] == name then table.remove(self.active, i) end
  end
end

---The factor of an adapter's branch.
function LoraLayer:scale_of(name)
  local s = self.settings[name]
  return s.scaling * s.factor
end

---The tensors of an adapter: { tail (what follows the module's path in files), tensor, owner, field, shape
---(in files) }. `owner[field]` is the tensor.
function LoraLayer:tensors(name)
  local list = {}
  local function put(tail, owner, field, shape)
    local t = owner[field]
    if t then list[#list + 1] = { tail = tail, tensor = t, owner = owner, field = field, shape = shape or t.shape } end
  end
  put("lora_A.weight", self.lora_A[name], "weight")
  put("lora_B.weight", self.lora_B[name], "weight")
  put("lora_B.bias", self.lora_B[name], "bias")
  local m = self.lora_magnitude_vector[name]
  if m then put("lora_magnitude_vector", m, "weight", self.magnitude_shape(self.base_layer)) end
  return list
end

---The shape of DoRA's magnitudes in files, of a base without adapters.
function LoraLayer.magnitude_shape(base) return { base.n_out } end

---A and B as matrices.
function LoraLayer:matrices(name)
  local a, b = self:ab(name)
  local r = self.settings[name].rank
  return a:reshape(r, a:numel() / r), b:reshape(self.n_rows, r)
end

---Sets A and B from matrices.
function LoraLayer:set_matrices(name, a, b)
  no_grad(function()
    local mine_a, mine_b = self:ab(name)
    mine_a:copy_(a:reshape(mine_a.shape))
    mine_b:copy_(b:reshape(mine_b.shape))
  end)
  for _, entry in ipairs(self:tensors(name)) do
    if entry.tensor.ndim > 1 then entry.owner._given[entry.field] = true end
  end
end

---The bias that lora_bias adds to B.
function LoraLayer:branch_bias(name) return self.lora_B[name].bias end

function LoraLayer:ab(name) return self.lora_A[name].weight, self.lora_B[name].weight end

---s B A as a matrix of rows, in float32 at least.
function LoraLayer:delta(name)
  local a, b = self:matrices(name)
  return ops.matmul(wide(b), wide(a)) * self:scale_of(name)
end

---Lengths of the rows of W + dW, in float32 at least: a constant of the gradient.
function LoraLayer:row_norms(name)
  return no_grad(function()
    return (ops.norm(self:rows(wide(self.base_layer.weight)) + self:delta(name), 2, 2))
  end)
end

---DoRA's factor of each row, m / |W + dW|, in the precision of m.
function LoraLayer:row_factors(name)
  local m = self.lora_magnitude_vector[name].weight
  return m / self:row_norms(name):to(m.dtype)
end

---Sets DoRA's magnitudes so that nothing changes: to the row lengths of W + dW.
function LoraLayer:begin_magnitude(name)
  no_grad(function() self.lora_magnitude_vector[name].weight:copy_(self:row_norms(name):to(self.base_layer.weight.dtype)) end)
end

---Weight and bias with the active adapters added, computed in float32 at least and rounded once. Refuses a
---result that is not finite.
---@return weft.Tensor weight, weft.Tensor? bias
function LoraLayer:merged_weights()
  return no_grad(function()
    local base = self.base_layer
    local dtype, bias = base.weight.dtype, base.bias and base.bias:detach()
    local weight = self:rows(wide(base.weight:detach()))
    for _, name in ipairs(self.active) do
      local dora = self.settings[name].dora
      if dora and #self.active > 1 then A.raise("%s: DoRA adapters merge one at a time", self:where()) end
      weight = weight + self:delta(name)
      if dora then weight = weight * (wide(self.lora_magnitude_vector[name].weight) / self:row_norms(name)):unsqueeze(2) end
      local b = self:branch_bias(name)
      if b then
        bias = bias and wide(bias) or create.zeros { self.n_rows, dtype = weight.dtype, device = weight.device }
        bias = bias + wide(b) * self:scale_of(name)
      end
    end
    weight = weight:to(dtype)
    if wide(weight):isfinite():to("int32"):min():item() == 0 then
      A.raise("%s: merge: the merged weight is not finite", self:where())
    end
    return self:unrows(weight):contiguous(), bias and bias:to(dtype)
  end)
end

---Puts merged weights in place; the base's own stay beside them, untouched.
function LoraLayer:set_merged(weight, bias)
  local base = self.base_layer
  rawset(self, "kept", { weight = base.weight, bias = base.bias })
  base.weight = weight
  if bias then base.bias = bias end
  self.merged = true
end

---The base's own weights back: the same tensors as before, bit for bit.
function LoraLayer:unmerge()
  if not self.merged then return end
  local base, kept = self.base_layer, self.kept
  base.weight, base.bias = kept.weight, kept.bias
  rawset(self, "kept", nil)
  self.merged = false
end

function LoraLayer:describe()
  local parts = { self.base_layer:describe() }
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

return LoraLayer
