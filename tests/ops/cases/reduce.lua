-- reduce.lua: cases of sums, norms, extremes and running sums.
local inf = math.huge

-- Splits a tensor over dims (Lua positions; nil: all) into one list of values an output.
-- Returns the lists, the shape of the result, and for each element its list.
local function split(x, dims, keepdim)
  local gone, shape, n = {}, {}, #x.shape
  if dims == nil then for d = 1, n do gone[d] = true end end
  for _, d in ipairs(type(dims) == "table" and dims or { dims }) do gone[d < 0 and d + n + 1 or d] = true end
  local count = 1
  for d = 1, n do
    if not gone[d] then shape[#shape + 1] = x.shape[d]; count = count * x.shape[d]
    elseif keepdim then shape[#shape + 1] = 1 end
  end
  local lists, owner = {}, {}
  for i = 1, count do lists[i] = {} end
  for i = 1, #x.data do
    local rest, step, at = i - 1, 1, 0
    for d = n, 1, -1 do
      local c = rest % x.shape[d]
      rest = (rest - c) / x.shape[d]
      if not gone[d] then at = at + c * step; step = step * x.shape[d] end
    end
    local list = lists[at + 1]
    list[#list + 1] = x.data[i]
    owner[i] = at + 1
  end
  return lists, shape, owner
end

local function fold(x, dims, keepdim, f)
  local lists, shape = split(x, dims, keepdim)
  local data = {}
  for i, list in ipairs(lists) do data[i] = f(list) end
  return { shape = shape, data = data }
end

local function total(list)
  local s = 0
  for _, v in ipairs(list) do s = s + v end
  return s
end
local function average(list) return total(list) / #list end

local function sum(ins, a) return fold(ins[1], a[1], a[2], total) end
local function mean(ins, a) return fold(ins[1], a[1], a[2], average) end
local function var(ins, a)
  return fold(ins[1], a[1], a[3], function(list)
    local m, s = average(list), 0
    for _, v in ipairs(list) do s = s + (v - m) ^ 2 end
    return s / (#list - (a[2] or 1))
  end)
end
local function norm(ins, a)
  local p = a[1] or 2
  return fold(ins[1], a[2], a[3], function(list)
    local s = p == -inf and inf or 0
    for _, v in ipairs(list) do
      v = math.abs(v)
      if p == inf then s = math.max(s, v)
      elseif p == -inf then s = math.min(s, v)
      elseif p == 0 then s = s + (v ~= 0 and 1 or 0)
      else s = s + v ^ p end
    end
    return (p == 0 or math.abs(p) == inf) and s or s ^ (1 / p)
  end)
end
local function logsumexp(ins, a)
  return fold(ins[1], a[1], a[2], function(list)
    local top, s = math.max(-inf, unpack(list)), 0
    for _, v in ipairs(list) do s = s + math.exp(v - top) end
    return top + math.log(s)
  end)
end

local function extreme(sign)
  return function(ins, a)
    local lists, shape = split(ins[1], a[1], a[2])
    local values, indices = {}, {}
    for i, list in ipairs(lists) do
      local best = 1
      for k = 2, #list do if sign * list[k] > sign * list[best] then best = k end end
      values[i], indices[i] = list[best], best - 1
    end
    return { shape = shape, data = values }, { shape = shape, data = indices }
  end
end
local function only_indices(f) return function(ins, a) return (select(2, f(ins, a))) end end

local function cumsum(ins, a)
  local x = ins[1]
  local _, _, owner = split(x, a[1])
  local running, data = {}, {}
  for i, v in ipairs(x.data) do
    running[owner[i]] = (running[owner[i]] or 0) + v
    data[i] = running[owner[i]]
  end
  return { shape = x.shape, data = data }
end

-- Shapes and dims that every reduction meets. `make` builds {inputs, attrs} from a tensor and dims.
local function over_dims(g, reference, make, big)
  local list = {}
  local function add(x, dims, keepdim, grad)
    local case = make(dims, keepdim)
    case.inputs, case.reference, case.grad = { x, n = 1 }, reference, grad
    list[#list + 1] = case
  end
  add(g.randn {}, nil)
  add(g.randn { 7 }, 1)
  add(g.randn { 3, 5 }, nil)
  add(g.randn { 3, 5 }, nil, true)
  add(g.randn { 3, 5 }, -1)
  add(g.randn { 3, 5 }, 1, true)
  add(g.randn { 2, 3, 4 }, { 1, 3 })
  add(g.randn { 2, 3, 4 }, { -1, 1 }, true)
  add(g.randn { 2, 3, 4 }, 2)
  add(g.randn { 2, 1, 4, 1 }, { 2, 3 })
  add(g.randn { 0, 4 }, 2)
  add(g.randn { 5, 37 }, 2)
  add(g.randn { 37, 19 }, 1)
  add(g.randn { 40, 3 }, 2)
  if big then  -- cut into pieces; too many elements to perturb one by one
    add(g.randn { 200000 }, nil, false, g.no_grad)
    add(g.randn { 700, 300 }, 1, false, g.no_grad)
    add(g.randn { 3, 70000 }, 2, false, g.no_grad)
    add(g.randn { 60, 70, 50 }, { 1, 3 }, false, g.no_grad)
  end
  return list
end

local M = {}

local function plain(dims, keepdim) return { attrs = { dims, keepdim or false, n = 2 } } end
local refused = function(g)
  return {
    { inputs = { g.randn { 2, 3 }, n = 1 }, attrs = { 3, false, n = 2 }, message = "dim 3 outside 1..2" },
    { inputs = { g.randn { 2, 3 }, n = 1 }, attrs = { { 1, -2 }, false, n = 2 }, message = "one dim twice" },
  }
end

M.sum = {
  cases = function(g)
    local list = over_dims(g, sum, plain, true)
    list[#list + 1] = { inputs = { g.randn { 0, 4 }, n = 1 }, attrs = { 1, false, n = 2 }, reference = sum }
    list[#list + 1] = { inputs = { g.int({ 3, 4 }, -9, 9), n = 1 }, attrs = { 2, false, n = 2 }, reference = sum }
    return list
  end,
  refuses = refused,
}
M.mean = { cases = function(g) return over_dims(g, mean, plain, true) end, refuses = refused }
M.var = {
  cases = function(g)
    local list = over_dims(g, var, function(dims, keepdim)
      return { attrs = { dims, 0, keepdim or false, n = 3 } }
    end, true)
    list[#list + 1] = { inputs = { g.randn { 4, 6 }, n = 1 }, attrs = { 2, 1, false, n = 3 }, reference = var }
    list[#list + 1] = { inputs = { g.randn { 4, 6 }, n = 1 }, attrs = { 1, n = 1 }, reference = var }
    -- far from zero: squares summed without the mean would lose every digit
    list[#list + 1] = { inputs = { g.uniform({ 3, 500 }, 1000, 1001), n = 1 }, attrs = { 2, n = 1 },
      reference = var, grad = g.no_grad, tolerance32 = 1e-2 }
    return list
  end,
}
M.norm = {
  cases = function(g)
    local list = over_dims(g, norm, function(dims, keepdim)
      return { attrs = { 2, dims, keepdim or false, n = 3 } }
    end, true)
    for _, p in ipairs { 1, 3, 1.5, inf, -inf } do
      list[#list + 1] = { inputs = { g.distinct { 4, 6 }, n = 1 }, attrs = { p, 2, false, n = 3 }, reference = norm }
      list[#list + 1] = { inputs = { g.distinct { 20, 17 }, n = 1 }, attrs = { p, 1, true, n = 3 }, reference = norm }
      list[#list + 1] = { inputs = { g.distinct { 3, 5 }, n = 1 }, attrs = { p, nil, false, n = 3 }, reference = norm }
    end
    -- a count is flat: nothing to check by differences
    list[#list + 1] = { inputs = { g.int({ 4, 6 }, -1, 1):to("float64"), n = 1 }, attrs = { 0, 2, false, n = 3 },
      reference = norm, grad = g.no_grad }
    return list
  end,
  refuses = function(g)
    return { { inputs = { g.randn { 3, 0 }, n = 1 }, attrs = { inf, 2, false, n = 3 }, message = "no element" } }
  end,
}
M.logsumexp = {
  cases = function(g)
    local list = over_dims(g, logsumexp, plain)
    list[#list + 1] = { inputs = { g.uniform({ 5, 13 }, -800, 800), n = 1 }, attrs = { 2, false, n = 2 },
      reference = logsumexp, grad = g.no_grad }  -- as flat as a maximum
    return list
  end,
  refuses = refused,
}

local function along(g, reference)
  local list = {}
  local function add(x, dim, keepdim, grad)
    list[#list + 1] = { inputs = { x, n = 1 }, attrs = { dim, keepdim or false, n = 2 }, reference = reference, grad = grad }
  end
  add(g.distinct { 7 }, 1)
  add(g.distinct { 3, 5 }, 1)
  add(g.distinct { 3, 5 }, -1, true)
  add(g.distinct { 2, 3, 4 }, 2)
  add(g.distinct { 2, 3, 4 }, -3, true)
  add(g.distinct { 4, 1 }, 2)
  add(g.randn { 0, 4 }, 2)
  add(g.distinct { 33, 21 }, 1)
  add(g.distinct { 3, 2500 }, 2, false, g.no_grad)   -- long rows, cut: too many to perturb
  add(g.distinct { 90, 1100 }, 1, false, g.no_grad)
  add(g.int({ 5, 40 }, 0, 3), 2)                     -- ties: the first wins
  add(g.int({ 40, 20 }, 0, 3), 1)
  return list
end
local function refused_along(g)
  return {
    { inputs = { g.randn { 2, 0 }, n = 1 }, attrs = { 2, false, n = 2 }, message = "size 0: there is no element" },
    { inputs = { g.randn { 2, 3 }, n = 1 }, attrs = { -3, false, n = 2 }, message = "outside" },
  }
end
for name, reference in pairs {
  max = extreme(1), min = extreme(-1), argmax = only_indices(extreme(1)), argmin = only_indices(extreme(-1)),
} do
  M[name] = { cases = function(g) return along(g, reference) end, refuses = refused_along }
end

M.cumsum = {
  cases = function(g)
    local list = {}
    local function add(x, dim, grad)
      list[#list + 1] = { inputs = { x, n = 1 }, attrs = { dim, n = 1 }, reference = cumsum, grad = grad }
    end
    add(g.randn { 9 }, 1)
    add(g.randn { 3, 9 }, 2)
    add(g.randn { 3, 9 }, -2)
    add(g.randn { 2, 3, 4 }, 2)
    add(g.randn { 1, 5 }, 1)
    add(g.randn { 0, 5 }, 1)
    add(g.randn { 20, 19 }, 1)
    add(g.randn { 100, 900 }, 1, g.no_grad)  -- cut into pieces: too many to perturb
    add(g.randn { 100, 900 }, 2, g.no_grad)
    add(g.int({ 4, 6 }, -5, 5), 1)
    return list
  end,
}

return M
