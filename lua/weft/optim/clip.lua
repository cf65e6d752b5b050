-- clip.lua: gradients scaled down together where their norm is too large.
local ffi = require "ffi"
local A = require "weft.args"
local C = require("weft.core").lib
local no_grad = require("weft.autograd").no_grad
local named = require "weft.optim.named"

local M = {}

-- The gradients of an optimizer's, a module's or a list's parameters, by dtype.
local function gradients(params, where)
  local list = type(params) == "table" and params.groups and params:entries() or named.list(params, where)
  local by_dtype = {}
  for _, entry in ipairs(list) do
    local t = entry[2]
    local grad = t.requires_grad and t.grad or nil
    if grad ~= nil then
      local dtype = grad.dtype
      by_dtype[dtype] = by_dtype[dtype] or {}
      table.insert(by_dtype[dtype], grad)
    end
  end
  if next(by_dtype) == nil then A.raise("%s: no parameter has a gradient; call backward() first", where) end
  return by_dtype
end

local function pointers(list)
  local p = ffi.new("const weft_tensor *[?]", #list)
  for i, t in ipairs(list) do p[i - 1] = t.p end
  return p, #list
end

local function norm_of(by_dtype)
  local total
  for _, dtype in ipairs { "float32", "float64", "bfloat16" } do
    if by_dtype[dtype] then
      local handle = C.weft_global_norm(pointers(by_dtype[dtype]))
      if handle == nil then A.fail() end
      local norm = A.wrap(handle)
      total = total and (total * total + norm * norm):sqrt() or norm
    end
  end
  return total
end

---The 2-norm over all gradients of a module, an optimizer or a list, as a float32 tensor of one element.
---@return weft.Tensor norm
function M.grad_norm(params)
  return (no_grad(function() return norm_of(gradients(params, "grad_norm")) end))
end

---Multiplies all gradients by min(1, max_norm / (norm + 1e-6)), with the norm over all of them, and
---returns that norm (before clipping) as a tensor of one element. Call it after accumulation, before step().
---@param params table  a module, an optimizer, or a list of tensors
---@param max_norm number
---@param norm? weft.Tensor  what grad_norm has said already
---@return weft.Tensor norm
function M.clip_grad_norm(params, max_norm, norm)
  A.number(max_norm, "clip_grad_norm", "max_norm")
  return (no_grad(function()
    local by_dtype = gradients(params, "clip_grad_norm")
    norm = norm or norm_of(by_dtype)
    for _, list in pairs(by_dtype) do
      local p, n = pointers(list)
      A.check(C.weft_clip_(norm.p, p, n, max_norm))
    end
    return norm
  end))
end

return M
