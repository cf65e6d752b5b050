-- flow.lua: weft.flow: how much gradient comes to each part of a model.
local A = require "weft.args"
local common = require "weft.probe.common"

local M = {}

local Flow = {}
Flow.__index = Flow

Flow.__tostring = function(self)
  local most, rows = 0, {}
  for _, r in ipairs(self) do most = math.max(most, r.gradient) end
  for i, r in ipairs(self) do
    local bar = ("#"):rep(most > 0 and math.floor(24 * r.gradient / most + 0.5) or 0)
    rows[i] = { r.path, ("%d"):format(r.tensors), ("%.4g"):format(r.gradient), ("%.4g"):format(r.weight), ("%.2e"):format(r.ratio),
      r.zero > 0 and ("%d of %d"):format(r.zero, r.tensors) or "", bar }
    if #bar < 24 then rows[i][7] = bar .. (" "):rep(24 - #bar) end
  end
  return common.text({ "part", "tensors", "|g|", "|w|", "|g|/|w|", "without", "" }, rows, 1, { "without", "tensors", "" })
end

---Gradient flow: runs a model and backward once, and says for each part how large its gradient is beside its
---weights, and how many of its tensors have none. Nothing moves, and no gradient stays.
---@param model table  a module, or a run
---@param ... any  its inputs; a recipe's batch, for its losses; or a function that returns the loss. A number
---  at the end says how many names deep a part is (3)
---@return table rows  { path, tensors, gradient, weight, ratio, zero }, which print as a table
---
---    local nn = weft.nn
---    print(weft.flow(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)), weft.randn { 2, 3 }))
function M.flow(model, ...)
  local run = type(model) == "table" and rawget(model, "recipe") and model or nil
  model = common.model(model, "flow")
  local inputs, n = { ... }, select("#", ...)
  local depth = 3
  if n > 1 and type(inputs[n]) == "number" then
    depth, n = inputs[n], n - 1
  end
  local rows, by = setmetatable({}, Flow), {}
  common.aside(model, function()
    require("weft.scope").scope(function()
      local total = common.total(model, run, unpack(inputs, 1, n))
      if not A.is_tensor(total) or not total.requires_grad then A.raise "flow: there is no loss that needs a gradient: everything is frozen" end
      if total:numel() > 1 then total = total:sum() end
      total:backward()
      for name, t in model:named_parameters() do
        if t.requires_grad then
          local parts = {}
          for part in name:gmatch "[^.]+" do parts[#parts + 1] = part end
          local path = table.concat(parts, ".", 1, math.min(depth, math.max(1, #parts - 1)))
          local row = by[path]
          if not row then
            row = { path = path, tensors = 0, gradient = 0, weight = 0, zero = 0 }
            by[path] = row
            rows[#rows + 1] = row
          end
          local g = t.grad
          local size = g and g:numel() > 0 and g:norm():item() or 0
          row.tensors, row.gradient, row.zero = row.tensors + 1, row.gradient + size ^ 2, row.zero + (size == 0 and 1 or 0)
          row.weight = row.weight + t:detach():norm():item() ^ 2
        end
      end
    end)
  end)
  for _, r in ipairs(rows) do
    r.gradient, r.weight = math.sqrt(r.gradient), math.sqrt(r.weight)
    r.ratio = r.weight > 0 and r.gradient / r.weight or 0
  end
  return rows
end

return M
