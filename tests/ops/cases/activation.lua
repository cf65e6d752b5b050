-- activation.lua: cases of activations. References are series and exponentials in plain Lua.
local each = require("tests.support.plain").each

local M = {}
local shapes = { { 3, 5 }, {}, { 17 }, { 0, 4 }, { 2, 1, 3 }, { 4, 70 } }

-- erf by its Taylor series, and beyond 3 by the continued fraction of erfc
local function erf(x)
  local a = math.abs(x)
  if a < 3 then
    local term, sum, n = x, x, 0
    repeat
      n = n + 1
      term = -term * x * x / n
      sum = sum + term / (2 * n + 1)
    until math.abs(term) < 1e-18
    return sum * 2 / math.sqrt(math.pi)
  end
  local f = 0
  for k = 60, 1, -1 do f = k / 2 / (a + f) end
  local y = 1 - math.exp(-a * a) / (math.sqrt(math.pi) * (a + f))
  return x < 0 and -y or y
end

local function tanh(x)
  local e = math.exp(-2 * math.abs(x))
  local y = (1 - e) / (1 + e)
  return x < 0 and -y or y
end

local function sigmoid(x) return 1 / (1 + math.exp(-x)) end

local function cases(fn, make)
  return {
    cases = function(g)
      local list = {}
      for i, s in ipairs(shapes) do list[i] = { inputs = { make and make(g, s) or g.randn(s) } } end
      -- both tails; two pieces of work in float64 and in float32
      list[#list + 1] = { inputs = { g.uniform({ 3, 60 }, -9, 9) } }
      list[#list + 1] = { inputs = { g.uniform({ 137, 241 }, -4, 4) } }
      for _, case in ipairs(list) do
        case.reference = each(fn)
        case.tolerance32 = 1e-6
      end
      return list
    end,
    refuses = function(g)
      return { { inputs = { g.int({ 2 }, 0, 3) }, message = "float32 or float64" } }
    end,
  }
end

M.relu = cases(function(x) return math.max(x, 0) end, function(g, s)
  return g.uniform(s, 0.1, 2) * (g.bool(s):to "float64" * 2 - 1)
end)
M.gelu = cases(function(x) return x * 0.5 * (1 + erf(x / math.sqrt(2))) end)
M.gelu_tanh = cases(function(x)
  return 0.5 * x * (1 + tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
end)
-- Both of one shape, in pieces and in lengths that are no multiple of a vector.
local function gated(g)
  local list = {}
  for _, s in ipairs(shapes) do list[#list + 1] = { g.randn(s), g.randn(s) } end
  list[#list + 1] = { g.uniform({ 3, 60 }, -9, 9), g.randn { 3, 60 } }
  list[#list + 1] = { g.uniform({ 137, 241 }, -4, 4), g.randn { 137, 241 } }
  return list
end
M.silu_gate = {
  cases = function(g)
    local list = {}
    for i, inputs in ipairs(gated(g)) do
      list[i] = { inputs = inputs, reference = each(function(a, b) return a * sigmoid(a) * b end), grad = inputs[1]:numel() > 1000 and g.no_grad or nil }
    end
    return list
  end,
  refuses = function(g) return { { inputs = { g.randn { 2, 3 }, g.randn { 3 } }, message = "shapes differ" } } end,
}
M.silu_gate_backward = {
  cases = function(g)
    local dgate = each(function(d, a, b) return d * b * (sigmoid(a) + a * sigmoid(a) * sigmoid(-a)) end)
    local dup = each(function(d, a) return d * a * sigmoid(a) end)
    local list = {}
    for i, inputs in ipairs(gated(g)) do
      list[i] = { inputs = { g.randn(inputs[1].shape), inputs[1], inputs[2] },
        reference = function(ins) return dgate(ins), dup(ins) end }
    end
    return list
  end,
}
M.silu = cases(function(x) return x * sigmoid(x) end)
M.tanh = cases(tanh)
M.sigmoid = cases(sigmoid)
M.erf = cases(erf)

return M
