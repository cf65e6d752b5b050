-- start.lua: what a run says before its first step: settings, device, what the data left out, the arithmetic of
-- its batches, parameters by part.
local config_of = require "weft.config"
local ffi = require "ffi"
local C = require("weft.core").lib

local M = {}

local function commas(n) return (require("weft.nn").commas(n)) end

-- What differs from the recipe's own values, as it would be typed.
local function changes(config)
  local flat, list = config_of.flat(config), {}
  for path in pairs(config_of.changed(config)) do
    local v = flat[path]
    if type(v) == "table" then
      local items = {}
      for i, x in ipairs(v) do items[i] = tostring(x) end
      v = "[" .. table.concat(items, ",") .. "]"
    end
    list[#list + 1] = ("%s=%s"):format(path, tostring(v))
  end
  table.sort(list)
  return #list > 0 and table.concat(list, " ") or "the recipe's own values"
end

local function device(o)
  if o.device ~= "cpu" then
    local what = C.weft_cuda_describe(C.weft_device_of(o.device))
    return ("%s, %s: %s"):format(o.device, o.dtype, what ~= nil and ffi.string(what) or "not here")
  end
  return ("cpu, %s: %s kernels, %s, %d threads"):format(o.dtype, ffi.string(C.weft_cpu_path()), ffi.string(C.weft_blas_name()), C.weft_threads())
end

---What there is to say of a part's adapters: PEFT's line, then one an adapter, without what trains: phases say
---that. Nothing of a part without.
---@return string[]
function M.adapter_lines(part)
  local peft = require "weft.peft"
  local ok, line = pcall(peft.describe, part)
  if not ok or not line then return {} end
  local lines = { line }
  for text in peft.summary(part):gmatch "[^\n]+" do lines[#lines + 1] = text:match "^(.*); [^;]*$" end
  return lines
end

---The start table.
function M:print_start()
  local o, log, model = self.options, self.log, self.model
  log:line("run %s", self.dir)
  log:line("recipe %s, seed %d; config: %s", self.recipe.path or self.recipe.name, o.seed, changes(self.config))
  log:line("device: %s", device(o))
  for _, w in ipairs(self.warnings or {}) do log:line("note: %s", w) end
  for _, line in ipairs(self.data.notes or {}) do log:line("%s", line) end
  for _, line in ipairs(model.notes and model:notes() or {}) do log:line("%s", line) end
  log:line("batch %d x accumulate %d = %d pictures a step; %d pictures, %d steps an epoch, %d epochs, %d steps",
    o.batch, o.accumulate, o.batch * o.accumulate, self.data.train:size(), o.steps_per_epoch, o.epochs, o.steps_per_epoch * o.epochs)
  if o.accumulate > 1 and model.left_out then
    log:line("accumulation adds no negatives: what is compared is compared within %d pictures and with the queue", o.batch)
  end
  for _, key in ipairs(model._order) do
    local child = model._children[key]
    if child and child:count() > 0 then log:line("  %-12s %14s parameters", key, commas(child:count())) end
  end
  for _, key in ipairs(model._order) do
    for _, line in ipairs(M.adapter_lines(model._children[key])) do log:line("%s: %s", key, line) end
  end
end

return M
