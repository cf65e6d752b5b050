-- capture.lua: weft.capture: what modules made and what gradients came back to it, by name pattern.
local A = require "weft.args"
local common = require "weft.probe.common"

local M = {}

local Captured = {}
Captured.__index = Captured

local function spread_of(t)
  if not t.dtype:find "float" or t:numel() == 0 then return "-", "-" end
  local x = t:detach():to "float64"
  local mean = x:mean():item()
  return ("%.4g"):format(mean), ("%.4g"):format(math.sqrt(((x - mean) ^ 2):mean():item()))
end

Captured.__tostring = function(self)
  local rows = {}
  for i, name in ipairs(self) do
    local t, g = self[name], self.gradients and self.gradients[name]
    local mean, spread = spread_of(t)
    rows[i] = { name, "[" .. table.concat(t.shape, ",") .. "]", mean, spread, g and ("%.4g"):format(g:norm():item()) or "" }
  end
  return common.text({ "module", "output", "mean", "spread", self.gradients and "|gradient|" or "" }, rows, 2)
end

-- The tensors of a module's result: itself, or those of a table by field.
local function each(value, fn)
  if A.is_tensor(value) then fn("", value) elseif type(value) == "table" then
    for k, v in pairs(value) do
      if A.is_tensor(v) then fn("." .. tostring(k), v) end
    end
  end
end

---Runs a model once and keeps what the modules made whose names match: { [name] = tensor, gradients = { [name] =
---tensor } }, which prints as a table. * stands for one part of a name, ** for any; without them the pattern is a piece of it. A
---module
---that runs more than once keeps its last result; of a table each tensor is kept under name.field.
---@param model table  a module, or a run
---@param pattern string  "vision.encoder.layer.*.attention", "fusion"
---@param ... any  its inputs; a recipe's batch, for its losses; or a function that returns the loss. A table
---  { gradients = true } at the end runs backward too
---@return table captured
---
---    local nn = weft.nn
---    local model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
---    local made = weft.capture(model, "0", weft.randn { 2, 3 })
---    print(made["0"].shape[2])
function M.capture(model, pattern, ...)
  local run = type(model) == "table" and rawget(model, "recipe") and model or nil
  model = common.model(model, "capture")
  local inputs, n = { ... }, select("#", ...)
  local gradients = false
  if n > 1 and type(inputs[n]) == "table" and not A.is_tensor(inputs[n]) and inputs[n].gradients ~= nil then
    gradients = inputs[n].gradients
    inputs[n], n = nil, n - 1
  end
  local match, names, off = common.matcher(pattern, "capture"), {}, {}
  local found = setmetatable({}, Captured)
  if gradients then rawset(found, "gradients", {}) end
  for path, m in model:named_modules() do
    if path ~= "" then names[#names + 1] = path end
    if path ~= "" and match(path) then
      off[#off + 1] = m:register_forward_hook(function(_, value)
        each(value, function(field, t)
          local name = path .. field
          if rawget(found, name) == nil then found[#found + 1] = name end
          local kept = t:detach():clone():keep()
          rawset(found, name, kept)
          if gradients and t.requires_grad then
            t:register_hook(function(g) found.gradients[name] = g:clone():keep() end)
          end
        end)
      end)
    end
  end
  local function clean()
    for _, remove in ipairs(off) do remove() end
  end
  if #off == 0 then A.raise("capture: no module matches %s%s", pattern, A.suggest(pattern, names)) end
  local ok, problem = pcall(common.aside, model, function()
    require("weft.scope").scope(function()
      local function pass() return common.total(model, run, unpack(inputs, 1, n)) end
      if not gradients then
        require("weft.autograd").no_grad(pass)
        return
      end
      local total = pass()
      if not A.is_tensor(total) or not total.requires_grad then A.raise "capture: gradients: there is no loss that needs a gradient" end
      if total:numel() > 1 then total = total:sum() end
      total:backward()
    end)
  end)
  clean()
  if not ok then error(problem, 0) end
  return found
end

return M
