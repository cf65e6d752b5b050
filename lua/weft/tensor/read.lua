-- read.lua: the values of several tensors at once, so that a GPU is waited for once.
local A = require "weft.args"
local autograd = require "weft.autograd"
local ops = require("weft.ops").functions
local scope = require("weft.scope").scope

local M = {}

local function on_gpu(t) return t.device ~= "cpu" and t.device ~= "meta" end

---The elements of each tensor as a flat list of numbers, in the order given. Tensors of one GPU come
---back in one copy.
---@param list weft.Tensor[]
---@return number[][]
function M.lists(list)
  local out, there, device = {}, {}, nil
  for i, t in ipairs(list) do
    A.tensor(t, "lists", "t")
    if on_gpu(t) and (device == nil or t.device == device) then
      device = t.device
      there[#there + 1] = i
    else out[i] = t:detach():reshape({ -1 }):totable() end
  end
  if #there == 0 then return out end
  local flat = scope(autograd.no_grad, function()
    local parts = {}
    for k, i in ipairs(there) do parts[k] = list[i]:detach():reshape({ -1 }):to "float64" end
    return ops.cat(parts, 1):totable()
  end)
  local at = 0
  for _, i in ipairs(there) do
    local n = list[i]:numel()
    out[i] = {}
    for k = 1, n do out[i][k] = flat[at + k] end
    at = at + n
  end
  return out
end

---The single elements of tensors as numbers.
---@param list weft.Tensor[]
---@return number[]
function M.items(list)
  local out = M.lists(list)
  for i, values in ipairs(out) do out[i] = values[1] end
  return out
end

return M
