-- merge.lua: adapters folded into the weights they sit beside, and taken out again.
local A = require "weft.args"
local adapters = require "weft.peft.adapters"
local no_grad = require("weft.autograd").no_grad

local M = {}

local function loras(holder)
  local list = {}
  for path, m in adapters.wrapped(holder) do
    if m.is_lora then list[#list + 1] = { path, m } end
  end
  return list
end

-- How far apart the results of one function are, before and after.
local function apart(before, after)
  local d, size = (after - before):abs(), before:abs():max():item()
  local report = { max = d:max():item(), mean = d:mean():item(), scale = size }
  return setmetatable(report, { __tostring = function(r)
    return ("merging changes the output by at most %.2g, %.2g on average (its largest value is %.3g)"):format(r.max, r.mean, r.scale)
  end })
end

-- Whether an adapter moves the output of a module that it sits on: by its product, its bias, or DoRA's lengths.
local function moves(m, name)
  local a, b = m:matrices(name)
  local function largest(t) return t:detach():to("float64"):abs():max():item() end
  local bias = m:branch_bias(name)
  if not (largest(a) == 0 or largest(b) == 0) or bias and largest(bias) ~= 0 then return true end
  return m.settings[name].dora and not (largest(m:row_factors(name) - 1) < 1e-3)
end

---Names of the active adapters that change nothing: every B is zero, as before any training. One that
---trains modules whole or biases of the base is never among them.
---@param model table
---@return string[]
function M.idle(model)
  local record, holder = adapters.record(model)
  local idle = {}
  for _, name in ipairs(record and adapters.active(holder) or {}) do
    local c = record.adapters[name]
    local changes = c.bias ~= "none" or c.modules_to_save ~= nil
    for _, item in ipairs(changes and {} or loras(holder)) do
      local m = item[2]
      changes = changes or m.settings[name] ~= nil and no_grad(moves, m, name)
    end
    if not changes then idle[#idle + 1] = name end
  end
  return idle
end

-- Raises where an active adapter changes nothing: `where` begins the error, `consequence` ends it.
function M.refuse_idle(model, where, consequence)
  local idle = M.idle(model)
  if #idle > 0 then
    A.raise("%s: the adapter %s changes nothing: every B is zero, so %s", where, table.concat(idle, ", "), consequence)
  end
end

---Folds the active adapters into the weights: forward then costs what the base costs. All or nothing: a
---merged weight that is not finite is an error that names it, and so is an adapter that changes nothing. The
---base's own tensors are kept aside.
---@param model table
---@param options? table  probe (a function that runs the model and returns a tensor: called before and after),
--- force (false: true merges also what changes nothing)
---@return table model, table? report  of the probe: max and mean difference, scale (the largest value); prints as a line
function M.merge(model, options)
  local o = A.options(options, { probe = A.none, force = false }, "peft.merge")
  local _, holder = adapters.need(model, nil, "merge")
  if not o.force then M.refuse_idle(holder, "peft.merge", "the base would come out of it; force = true merges it all the same") end
  local before = o.probe and no_grad(function() return (o.probe():detach():clone()) end)
  local list, weights = loras(holder), {}
  for i, item in ipairs(list) do
    local m = item[2]
    if m.merged then A.raise("peft.merge: %s is merged already", item[1]) end
    local ok, weight, bias = pcall(m.merged_weights, m)
    if not ok then A.raise("peft.merge: %s: %s", item[1], (tostring(weight):gsub("^.-:%d+: ", ""))) end
    weights[i] = { weight:keep(), bias and bias:keep() }
  end
  for i, item in ipairs(list) do item[2]:set_merged(weights[i][1], weights[i][2]) end
  local report = o.probe and no_grad(function() return (apart(before, o.probe())) end)
  return model, report or nil
end

---Takes merged adapters out again. The base is bit for bit what it was.
function M.unmerge(model)
  local _, holder = adapters.need(model, nil, "unmerge")
  for _, item in ipairs(loras(holder)) do item[2]:unmerge() end
  return model
end

---Merges, and puts plain modules in the place of the wrapped ones: a model without adapters.
---What peft.merge would refuse is refused here too; what is merged already is taken as it is.
function M.merge_and_unload(model)
  local record, holder = adapters.need(model, nil, "merge_and_unload")
  local merged = false
  for _, item in ipairs(loras(holder)) do merged = merged or item[2].merged end
  if not merged then M.merge(model) end
  for path, m in adapters.wrapped(holder) do
    if m.is_lora then
      -- an output layer that shares an adapted table keeps the table as it was
      if m.kept and holder.untie and m == holder:tied_to() then holder:untie(m:plain_weight()) end
      holder:set(path, m.base_layer)
    else
      local name = m.active[#m.active]
      holder:set(path, name and m.modules_to_save[name] or m.original_module)
    end
  end
  record.adapters, record.order = {}, {}
  rawset(holder, "_peft", nil)
  return model
end

---Every tensor of a model by its name without adapters: what merge_and_unload would leave. The model is
---not changed.
---@param model table
---@param buffers? boolean  also tensors that are no parameters
---@return table<string, weft.Tensor>
function M.merged_state(model, buffers)
  local state, inside = {}, nil
  local function put(path, tail, t) state[path == "" and tail or path .. "." .. tail] = t end
  for path, m in model:named_modules() do
    if not (inside and path:sub(1, #inside) == inside) then
      inside = nil
      if m.is_lora then
        inside = path .. "."
        local weight, bias = m.base_layer.weight, m.base_layer.bias
        if not m.merged and not m.disabled and #m.active > 0 then weight, bias = m:merged_weights() end
        put(path, "weight", weight)
        if bias then put(path, "bias", bias) end
      elseif m.type == "SavedModule" then
        inside = path .. "."
        local name = not m.disabled and m.active[#m.active]
        for tail, t in (name and m.modules_to_save[name] or m.original_module):named_parameters() do put(path, tail, t) end
      else
        for field, t in pairs(m._parameters) do put(path, field, t) end
        for field, t in pairs(buffers and m._buffers or {}) do put(path, field, t) end
      end
    end
  end
  return state
end

return M
