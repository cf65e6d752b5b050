-- compare.lua: weft.compare: what a model's adapters change, module by module.
local A = require "weft.args"
local common = require "weft.probe.common"

local M = {}

local Compared = {}
Compared.__index = Compared

Compared.__tostring = function(self)
  local rows = {}
  for i, r in ipairs(self) do rows[i] = { r.path, r.type, ("%.4g"):format(r.size), ("%.4g"):format(r.change), ("%.3f %%"):format(100 * r.ratio) } end
  return common.text({ "module", "type", "|with|", "|with - without|", "ratio" }, rows, 2, { "type" })
end

local function tensor_of(value)
  if A.is_tensor(value) then return value end
  if type(value) == "table" then
    local names = {}
    for k, v in pairs(value) do
      if A.is_tensor(v) and v.dtype:find "float" then names[#names + 1] = tostring(k) end
    end
    table.sort(names)
    return names[1] and value[names[1]] or nil
  end
end

---Runs a model with its adapters and without, and says how much the results of its modules differ.
---@param model table  a module, or a run
---@param ... any  its inputs; a recipe's batch, for its losses; or a function to run
---@return table rows  { path, type, size, change, ratio }, in the order of their ends, which print as a table
function M.compare(model, ...)
  local run = type(model) == "table" and rawget(model, "recipe") and model or nil
  model = common.model(model, "compare")
  local adapters = require "weft.peft"
  local off, made, order = {}, {}, {}
  local which = "with"
  for path, m in model:named_modules() do
    off[#off + 1] = m:register_forward_hook(function(self, value)
      local t = tensor_of(value)
      if not t or not t.dtype:find "float" then return end
      if not made[path] then
        made[path] = { type = self.type }
        order[#order + 1] = path
      end
      made[path][which] = t:detach():clone():keep()
    end)
  end
  local inputs, n = { ... }, select("#", ...)
  local function pass() return common.total(model, run, unpack(inputs, 1, n)) end
  local ok, problem = pcall(common.aside, model, function()
    require("weft.autograd").no_grad(function()
      local random = require "weft.random"
      local draws = random.state()
      require("weft.scope").scope(function() pass() end)
      which = "without"
      random.load_state(draws)  -- the same negatives, the same noise
      require("weft.scope").scope(function() adapters.disable(model, function() pass() end) end)
    end)
  end)
  for _, remove in ipairs(off) do remove() end
  if not ok then error(problem, 0) end
  local rows = setmetatable({}, Compared)
  for _, path in ipairs(order) do
    local m = made[path]
    if m.with and m.without and table.concat(m.with.shape, ",") == table.concat(m.without.shape, ",") then
      local size, change = m.with:norm():item(), (m.with - m.without):norm():item()
      rows[#rows + 1] = { path = path == "" and "(all)" or path, type = m.type, size = size, change = change, ratio = size > 0 and change / size or 0 }
    end
  end
  return rows
end

return M
