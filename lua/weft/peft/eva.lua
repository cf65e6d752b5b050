-- eva.lua: adapters that begin in the directions in which a module's inputs vary most (EVA: Paischer et al.
-- 2024, arXiv 2410.07170). B is zero, so nothing changes yet.
local A = require "weft.args"
local adapters = require "weft.peft.adapters"
local no_grad = require("weft.autograd").no_grad
local scope = require("weft.scope").scope
local ops = require("weft.ops").functions

local M = {}

-- Sums over the rows of all inputs that pass: how many, their sum, their products.
local function watch(module)
  local sums = { n = 0 }
  rawset(module, "observe", function(x)
    no_grad(function()
      scope(function()
        local rows = x:detach():reshape(x:numel() / module.n_in, module.n_in):to "float64"
        local total, products = rows:sum(1), ops.matmul(rows:t(), rows)
        if sums.total then
          total, products = sums.total + total, sums.products + products
          sums.total:free()
          sums.products:free()
        end
        sums.n, sums.total, sums.products = sums.n + rows:size(1), total:keep(), products:keep()
      end)
    end)
  end)
  return sums
end

-- Principal directions as rows, and the part of the variance that each explains.
local function directions(sums)
  local mean = sums.total * (1 / sums.n)
  local spread = sums.products - ops.matmul(mean:unsqueeze(2), mean:unsqueeze(1)) * sums.n
  local _, s, vh = ops.svd(spread)
  local whole = s:sum():item()
  return vh, whole > 0 and s * (1 / whole) or s
end

-- Ranks of modules: as many directions as the budget has, the best explained of all modules first, one each.
local function share_out(list, rho)
  local budget, candidates = 0, {}
  for i, item in ipairs(list) do
    budget = budget + item.rank
    local most = math.min(math.floor(item.rank * rho + 0.5), item.parts:numel())
    local part = item.parts:narrow(1, 1, most):totable()
    for k = 2, most do candidates[#candidates + 1] = { i, part[k], k } end
    item.rank = 1
  end
  table.sort(candidates, function(a, b)
    if a[2] ~= b[2] then return a[2] > b[2] end
    return a[1] < b[1] or a[1] == b[1] and a[3] < b[3]
  end)
  for k = 1, math.min(budget - #list, #candidates) do
    local item = list[candidates[k][1]]
    item.rank = item.rank + 1
  end
end

---Fills A of an adapter made with init = "eva" from activations: run() is called once, and shall run the model
---over some batches. With rho above 1 ranks move to the modules whose inputs need more directions, up to rho
---times what they have; the scale of each branch stays.
---@param model table
---@param run function
---@param options? table  adapter (the first), rho (1)
---@return table model
---
---    local model = weft.nn.Sequential(weft.nn.Linear(8, 4))
---    peft.lora(model, { targets = { "0" }, rank = 2, init = "eva" })
---    peft.eva(model, function() model(weft.randn{ 64, 8 }) end)
function M.eva(model, run, options)
  local record, holder = adapters.need(model, options and options.adapter, "eva")
  local o = A.options(options, { adapter = record.order[1], rho = 1 }, "peft.eva")
  if type(run) ~= "function" then A.raise("peft.eva: a function that runs the model is expected, got %s", A.typename(run)) end
  if type(o.rho) ~= "number" or not (o.rho >= 1) then A.raise("peft.eva: rho: a number from 1 is expected, got %s", tostring(o.rho)) end
  if record.adapters[o.adapter].init ~= "eva" then
    A.raise("peft.eva: the adapter %s was not made with init = \"eva\"", o.adapter)
  end
  local list = {}
  for path, m in adapters.wrapped(holder) do
    if m.is_lora and m.settings[o.adapter] then
      if m.type ~= "LoraLinear" then A.raise("peft.eva: %s is a %s; EVA begins adapters on Linear", path, m.base_layer.type) end
      list[#list + 1] = { path = path, module = m, rank = m.settings[o.adapter].rank, sums = watch(m) }
    end
  end
  local ok, message = pcall(no_grad, run)
  for _, item in ipairs(list) do rawset(item.module, "observe", nil) end
  if not ok then error(message, 0) end
  no_grad(function()
    scope(function()
      for _, item in ipairs(list) do
        if item.sums.n < 2 then A.raise("peft.eva: %s saw %d inputs; at least 2 are needed", item.path, item.sums.n) end
        item.vectors, item.parts = directions(item.sums)
      end
      if o.rho > 1 then share_out(list, o.rho) end
      for _, item in ipairs(list) do
        local m, name = item.module, o.adapter
        local s = m.settings[name]
        if item.rank > item.vectors:size(1) then
          A.raise("peft.eva: %s: rank %d is more than its %d inputs have", item.path, item.rank, item.vectors:size(1))
        end
        if item.rank ~= s.rank then
          local active, trains = m.active, m.lora_A[name].weight.requires_grad
          local rank = item.rank
          local alpha = s.scaling * (s.rslora and math.sqrt(rank) or rank)
          local kept = { unpack(active) }
          m:remove(name)
          m:add(name, { rank = rank, alpha = alpha, scaling = s.scaling, dropout = s.dropout, init = "eva", dora = s.dora,
            rslora = s.rslora, lora_bias = record.adapters[name].lora_bias })
          m.settings[name].factor, m.active = s.factor, kept
          for _, e in ipairs(m:tensors(name)) do e.tensor:requires_grad_(trains) end
        end
        local a, b = m:matrices(name)
        m:set_matrices(name, item.vectors:narrow(1, 1, item.rank):to(a.dtype), b * 0)
        if s.dora then m:begin_magnitude(name) end
        item.sums.total:free()
        item.sums.products:free()
      end
    end)
  end)
  return model
end

return M
