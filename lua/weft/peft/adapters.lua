-- adapters.lua: what is on a model: which adapters, which are active, which train, how strong they are.
local A = require "weft.args"
local is_module = require("weft.nn.module").is_module
local commas = require("weft.nn.module").commas
local ops = require("weft.ops").functions

local M = {}

---The list of adapters that a model keeps; of a larger model around it, that of the only one inside.
---@param model table
---@param make? boolean  begin one where there is none
---@return table? record, table? model  the module that holds it
function M.record(model, make)
  if not is_module(model) then A.raise("peft: a module is expected, got %s", A.typename(model)) end
  local own = rawget(model, "_peft")
  if own then return own, model end
  if make then
    own = { adapters = {}, order = {} }
    rawset(model, "_peft", own)
    rawset(model, "lora_spectrum", function(self, ...) return (require("weft.peft.spectrum").spectrum(self, ...)) end)
    return own, model
  end
  local found, holder
  for _, m in model:named_modules() do
    if rawget(m, "_peft") then
      if found then A.raise("peft: several parts of this model have adapters; name the part") end
      found, holder = rawget(m, "_peft"), m
    end
  end
  return found, holder
end

-- The record, or an error; and that the named adapter (or any) is there.
local function need(model, name, where)
  local record, holder = M.record(model)
  if not record or next(record.adapters) == nil then A.raise("peft.%s: the model has no adapter", where) end
  if name ~= nil and not record.adapters[name] then
    A.raise("peft.%s: there is no adapter %s%s", where, tostring(name), A.suggest(tostring(name), { unpack(record.order) }))
  end
  return record, holder
end
M.need = need

---Iterates over (path, module) of what adapters wrapped: LoraLinear, LoraConv2d, LoraEmbedding and SavedModule.
function M.wrapped(model)
  local list = {}
  for path, m in model:named_modules() do
    if m.is_lora or m.type == "SavedModule" then list[#list + 1] = { path, m } end
  end
  local i = 0
  return function()
    i = i + 1
    if list[i] then return list[i][1], list[i][2] end
  end
end

---Names of the adapters, in the order they came.
function M.adapters(model)
  local record = M.record(model)
  return record and { unpack(record.order) } or {}
end

---Makes these adapters, and no others, take part in forward. What trains stays as it is.
---@param names string|string[]  none: {}
function M.activate(model, names)
  if type(names) == "string" then names = { names } end
  local _, holder = need(model, nil, "activate")
  for _, name in ipairs(names) do need(model, name, "activate") end
  for path, m in M.wrapped(holder) do
    if m.merged then A.raise("peft.activate: %s is merged; peft.unmerge first", path) end
  end
  for _, m in M.wrapped(holder) do
    m.active = {}
    for _, name in ipairs(names) do
      if m.is_lora and m.settings[name] or m.type == "SavedModule" and m.modules_to_save[name] then
        m.active[#m.active + 1] = name
      end
    end
  end
  return model
end

---Names of the adapters that take part in forward, in the order they came.
function M.active(model)
  local record, holder = M.record(model)
  local on, list = {}, {}
  if record then
    for _, m in M.wrapped(holder) do
      for _, name in ipairs(m.active) do on[name] = true end
    end
    for _, name in ipairs(record.order) do
      if on[name] then list[#list + 1] = name end
    end
  end
  return list
end

-- Every tensor that trains with an adapter: its own, its saved modules', and the biases it unfroze.
local function each_tensor(holder, name, config, fn)
  for _, m in M.wrapped(holder) do
    if m.type == "SavedModule" then
      if m.modules_to_save[name] then
        for _, t in m.modules_to_save[name]:named_parameters() do fn(t) end
      end
    elseif m.settings[name] then
      for _, entry in ipairs(m:tensors(name)) do fn(entry.tensor) end
      if config.bias == "lora_only" and m.base_layer.bias then fn(m.base_layer.bias) end
    end
  end
  if config.bias == "all" then
    for path, t in holder:named_parameters() do
      local mine = path:find("lora_", 1, true) or path:find("original_module", 1, true)
      if path:match "[^.]+$" == "bias" and not mine then fn(t) end
    end
  end
end

local function switch(model, name, on, where)
  local record, holder = need(model, name, where)
  for _, adapter in ipairs(record.order) do
    if name == nil or name == adapter then
      each_tensor(holder, adapter, record.adapters[adapter], function(t) t:requires_grad_(on) end)
    end
  end
  return model
end

---Stops training an adapter (or all). Whether it takes part in forward stays as it is.
function M.freeze(model, name) return (switch(model, name, false, "freeze")) end
---Lets an adapter (or all) train.
function M.unfreeze(model, name) return (switch(model, name, true, "unfreeze")) end

---Sets how strongly an adapter (or all) counts: s times what rank and alpha say; 0 is the base, 1 as trained.
---@param model table
---@param s number
---@param name? string
function M.scale(model, s, name)
  A.number(s, "peft.scale", "s")
  local _, holder = need(model, name, "scale")
  for path, m in M.wrapped(holder) do
    if m.merged then A.raise("peft.scale: %s is merged; peft.unmerge first", path) end
  end
  for _, m in M.wrapped(holder) do
    for adapter, settings in pairs(m.settings or {}) do
      if name == nil or name == adapter then settings.factor = s end
    end
  end
  return model
end

---Runs fn(...) without any adapter: the base alone. They are back afterwards, also when it fails.
function M.disable(model, fn, ...)
  local _, holder = need(model, nil, "disable")
  for path, m in M.wrapped(holder) do
    if m.merged then A.raise("peft.disable: %s is merged; peft.unmerge first", path) end
  end
  local before = {}
  for _, m in M.wrapped(holder) do before[m], m.disabled = m.disabled, true end
  local function back(ok, ...)
    for m, was in pairs(before) do m.disabled = was end
    if not ok then error((...), 0) end
    return ...
  end
  return back(pcall(fn, ...))
end

---Takes an adapter off. Without any left the model is what it was before.
function M.delete(model, name)
  local record, holder = need(model, name, "delete")
  if name == nil then A.raise("peft.delete: the name of an adapter is expected") end
  for path, m in M.wrapped(holder) do
    if m.merged then A.raise("peft.delete: %s is merged; peft.unmerge first", path) end
  end
  for path, m in M.wrapped(holder) do
    if m.is_lora then
      local start = m.settings[name] and m.settings[name].start
      if start then  -- what the adapter took out of the base goes back
        require("weft.autograd").no_grad(function()
          m.base_layer.weight = (m.base_layer.weight + m:unrows(ops.matmul(start.b, start.a) * m.settings[name].scaling)):keep()
        end)
      end
      if m.settings[name] then m:remove(name) end
      if next(m.settings) == nil then holder:set(path, m.base_layer) end
    elseif m.modules_to_save[name] then
      m:remove(name)
      if #m.modules_to_save:children() == 0 then holder:set(path, m.original_module) end
    end
  end
  record.adapters[name] = nil
  for i, other in ipairs(record.order) do
    if other == name then
      table.remove(record.order, i)
      break
    end
  end
  return model
end

---PEFT's line: `trainable params: ... || all params: ... || trainable%: ...`; nil for a model without adapters.
function M.describe(model)
  local record = M.record(model)
  if not record or next(record.adapters) == nil then return nil end
  local trainable, all = model:count(true), model:count()
  return ("trainable params: %s || all params: %s || trainable%%: %.4f"):format(commas(trainable), commas(all),
    100 * trainable / all)
end

---The factors that branches are multiplied with (alpha / rank, with rsLoRA alpha / sqrt(rank)), each once,
---the smallest first; empty where there is no adapter.
---@param model weft.Module
---@return number[]
function M.scales(model)
  local record, holder = M.record(model)
  local seen, out = {}, {}
  for name in pairs(record and record.adapters or {}) do
    for _, m in M.wrapped(holder) do
      local s = m.is_lora and m.settings[name] and m:scale_of(name)
      if s and not seen[s] then
        seen[s] = true
        out[#out + 1] = s
      end
    end
  end
  table.sort(out)
  return out
end

---One line an adapter: rank, alpha, effective scale, what it is on, whether it is active and trains.
function M.summary(model)
  local record, holder = need(model, nil, "summary")
  local lines = {}
  for _, name in ipairs(record.order) do
    local c, n, tails, scales = record.adapters[name], 0, {}, {}
    local active, trains = false, false
    for path, m in M.wrapped(holder) do
      if m.is_lora and m.settings[name] then
        n = n + 1
        local tail = path:match "[^.]+$"
        tails[tail] = (tails[tail] or 0) + 1
        scales[("x%.4g"):format(m:scale_of(name))] = true
        for _, a in ipairs(m.active) do active = active or a == name end
        trains = trains or m:tensors(name)[1].tensor.requires_grad
      end
    end
    local on, strengths = {}, {}
    for tail, count in pairs(tails) do on[#on + 1] = ("%s %d"):format(tail, count) end
    for s in pairs(scales) do strengths[#strengths + 1] = s end
    table.sort(on)
    table.sort(strengths)
    lines[#lines + 1] = ("adapter %s: r %d, alpha %g: %s%s; %d modules (%s); %s, %s"):format(name, c.rank, c.alpha,
      c.rslora and "rsLoRA " or "", table.concat(strengths, " "), n, table.concat(on, ", "),
      active and "active" or "not active", trains and "trains" or "frozen")
  end
  return table.concat(lines, "\n")
end

return M
