-- gradcheck.lua: compares a gradient with central differences.
local A = require "weft.args"
local autograd = require "weft.autograd"
local scope = require("weft.scope").scope

local M = {}

---Checks the gradient of fn at inputs against (f(x + eps) - f(x - eps)) / (2 eps), for a fixed random
---weighting of all outputs. float64 inputs; those that require a gradient are perturbed.
---@param fn function  tensors to one or several tensors
---@param inputs weft.Tensor[]
---@param options? table  eps (1e-6), atol (1e-6), rtol (1e-5)
---@return boolean ok, string? message
function M.gradcheck(fn, inputs, options)
  local o = A.options(options, { eps = 1e-6, atol = 1e-6, rtol = 1e-5 }, "gradcheck")
  local create = require("weft.tensor").create
  local stream = require("weft.random").stream("gradcheck", 1)
  local weights
  local function loss(recording)
    local out = { fn(unpack(inputs, 1, #inputs)) }
    local total
    weights = weights or {}
    for i, y in ipairs(out) do
      if y.dtype == "float64" and (not recording or y.requires_grad) then
        if not weights[i] then
          local shape = y.shape
          shape.dtype, shape.rng = "float64", stream
          weights[i] = create.randn(shape):to(y.device):keep()
        end
        local part = (y * weights[i]):sum()
        total = total and total + part or part
      end
    end
    return total
  end
  for i, x in ipairs(inputs) do
    if A.is_tensor(x) and x.requires_grad then
      if x.dtype ~= "float64" then A.raise("gradcheck: input %d is %s; float64 is needed", i, x.dtype) end
      if not x:is_contiguous() then A.raise("gradcheck: input %d must be contiguous", i) end
      x:zero_grad()
    end
  end
  scope(function()
    local total = loss(true)
    if total then total:backward() end
  end)
  for i, x in ipairs(inputs) do
    if A.is_tensor(x) and x.requires_grad then
      local n, near = x:numel(), x.device == "cpu"
      -- on a GPU the changed copy goes up whole
      local copy = near and x or x:detach():to "cpu"
      local data = copy:data()
      local function set(k, v)
        data[k] = v
        if not near then autograd.no_grad(function() x:copy_(copy) end) end
      end
      local grad = x.grad
      local got = grad and grad:contiguous():to "cpu" or nil
      local got_data = got and got:data()
      for k = 0, n - 1 do
        local function at(v)
          return autograd.no_grad(function()
            return scope(function()
              local old = data[k]
              set(k, v)
              local ok, value = pcall(function() return loss(false):item() end)
              set(k, old)
              if not ok then error(value, 0) end
              return value
            end)
          end)
        end
        local v = data[k]
        local expected = (at(v + o.eps) - at(v - o.eps)) / (2 * o.eps)
        local found = got_data and got_data[k] or 0
        if not (math.abs(found - expected) <= o.atol + o.rtol * math.abs(expected)) then
          return false, ("input %d, element %d: gradient %.9g, central difference %.9g"):format(i, k + 1, found, expected)
        end
      end
    end
  end
  return true
end

return M
