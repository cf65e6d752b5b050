-- with.lua: adapters at another strength, or other ones, while a function runs.
local A = require "weft.args"
local adapters = require "weft.peft.adapters"

local M = {}

---Runs fn(...) with a model's adapters set otherwise, and sets them back, also when it fails.
---@param model table
---@param settings table  scale (as of peft.scale; 0: the base alone), active (names, as of peft.activate)
---@param fn function
---@return any ...  what fn returns
---
---    local vision = peft.lora(models.dinov2.new "tiny", { rank = 4 })
---    print(peft.with(vision, { scale = 0 }, function() return vision(weft.randn { 1, 3, 28, 28 }).cls.shape[2] end))
function M.with(model, settings, fn, ...)
  local o = A.options(settings, { scale = A.none, active = A.none }, "peft.with")
  if type(fn) ~= "function" then A.raise("peft.with: a function is expected, got %s", A.typename(fn)) end
  local _, holder = adapters.need(model, nil, "with")
  local active, factors = adapters.active(model), {}
  for _, m in adapters.wrapped(holder) do
    for name, s in pairs(m.settings or {}) do factors[#factors + 1] = { s, s.factor, name } end
  end
  local function back(ok, ...)
    for _, f in ipairs(factors) do f[1].factor = f[2] end
    if o.active ~= nil then adapters.activate(model, active) end
    if not ok then error((...), 0) end
    return ...
  end
  return back(pcall(function(...)
    if o.scale ~= nil then adapters.scale(model, o.scale) end
    if o.active ~= nil then adapters.activate(model, o.active) end
    return fn(...)
  end, ...))
end

return M
