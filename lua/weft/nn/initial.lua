-- initial.lua: how parameters begin. Each entry makes a function (tensor, rng) that fills in place.
local A = require "weft.args"
local create = require("weft.tensor").create

local M = {}

local function fill_from(make)
  return function(t, rng)
    local spec = t.shape
    spec.dtype, spec.rng = t.dtype == "float64" and "float64" or "float32", rng
    local drawn = make(spec)
    t:copy_(drawn)
    drawn:free()
  end
end

function M.zeros(t) t:fill_(0) end
function M.ones(t) t:fill_(1) end

---A constant.
function M.constant(value)
  return function(t) t:fill_(value) end
end

---Normal with mean 0.
function M.normal(std)
  return fill_from(function(spec)
    local t = create.randn(spec)
    return t:mul_(std)
  end)
end

---Uniform on [-bound, bound).
function M.uniform(bound)
  return fill_from(function(spec)
    local t = create.rand(spec)
    return t:mul_(2 * bound):add_(-bound)
  end)
end

---Normal with mean 0, cut at two units of 1 (as the vision models of the field do it).
function M.trunc_normal(std)
  return fill_from(function(spec)
    spec.std, spec.a, spec.b = std, -2, 2
    return create.trunc_normal(spec)
  end)
end

---Kaiming uniform with a = sqrt(5): U(-1/sqrt(fan_in), 1/sqrt(fan_in)). He et al. 2015, as PyTorch's Linear.
function M.kaiming(fan_in)
  if fan_in < 1 then A.raise("kaiming: a fan-in of at least 1 is expected, got %s", tostring(fan_in)) end
  return M.uniform(1 / math.sqrt(fan_in))
end

return M
