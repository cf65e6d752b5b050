-- softmax.lua: cases of softmax and log_softmax.

-- Calls f with the places of each list of elements along dim (a Lua position).
local function along(x, dim, f)
  local n = #x.shape
  dim = dim < 0 and dim + n + 1 or dim
  local inner, size = 1, x.shape[dim]
  for d = dim + 1, n do inner = inner * x.shape[d] end
  for start = 0, (size > 0 and #x.data / size or 0) - 1 do
    local from, places = math.floor(start / inner) * size * inner + start % inner, {}
    for i = 1, size do places[i] = from + (i - 1) * inner + 1 end
    f(places)
  end
end

local function forward(log)
  return function(ins, a)
    local x, data = ins[1], {}
    along(x, a[1] or -1, function(places)
      local top, s = -math.huge, 0
      for _, k in ipairs(places) do top = math.max(top, x.data[k]) end
      for _, k in ipairs(places) do s = s + math.exp(x.data[k] - top) end
      for _, k in ipairs(places) do
        local l = x.data[k] - top - math.log(s)
        data[k] = log and l or math.exp(l)
      end
    end)
    return { shape = x.shape, data = data }
  end
end

local function softmax_backward(ins, a)
  local dy, y, data = ins[1], ins[2], {}
  along(y, a[1] or -1, function(places)
    local s = 0
    for _, k in ipairs(places) do s = s + dy.data[k] * y.data[k] end
    for _, k in ipairs(places) do data[k] = y.data[k] * (dy.data[k] - s) end
  end)
  return { shape = y.shape, data = data }
end

local function log_softmax_backward(ins, a)
  local dy, y, data = ins[1], ins[2], {}
  along(y, a[1] or -1, function(places)
    local s = 0
    for _, k in ipairs(places) do s = s + dy.data[k] end
    for _, k in ipairs(places) do data[k] = dy.data[k] - math.exp(y.data[k]) * s end
  end)
  return { shape = y.shape, data = data }
end

local function shapes(g, add)
  add { 7 }
  add({ 3, 5 }, -1)
  add({ 3, 5 }, 1)
  add({ 2, 6, 4 }, -2)
  add({ 4, 1 }, 2)
  add({ 0, 5 }, 2)
  add({ 3, 0 }, 2)
  add({ 4, 33 }, 2)
  add({ 2, 3, 150 }, 2)                -- more columns than one tile
  add({ 40, 1030 }, 2, g.no_grad)      -- rows in pieces, blocks in a row: too many to perturb
  add({ 3, 70, 200 }, 2, g.no_grad)
  add({ 2, 3000 }, 2, g.no_grad)       -- long rows, of lengths that a GPU takes differently
  add({ 2, 2051 }, 2, g.no_grad)
  add({ 2, 5000 }, 2, g.no_grad)
  add({ 2, 8200 }, 2, g.no_grad)
end

local M = {}
for name, reference in pairs { softmax = forward(false), log_softmax = forward(true) } do
  M[name] = {
    cases = function(g)
      local list = {}
      shapes(g, function(shape, dim, grad)
        list[#list + 1] = { inputs = { g.randn(shape), n = 1 }, attrs = { dim, n = 1 }, reference = reference, grad = grad }
      end)
      -- large values: exp would overflow without the maximum taken off
      list[#list + 1] = { inputs = { g.uniform({ 3, 9 }, 500, 1000), n = 1 }, attrs = { 2, n = 1 }, reference = reference,
        grad = g.no_grad, bfloat16 = "forward" }  -- y is 1 or 0 there: its rounding is all of the gradient
      return list
    end,
    refuses = function(g)
      return {
        { inputs = { g.randn { 2, 3 }, n = 1 }, attrs = { 3, n = 1 }, message = "dim 3 outside 1..2" },
        { inputs = { g.randn {}, n = 1 }, attrs = { -1, n = 1 }, message = "no dims" },
      }
    end,
  }
end
for name, reference in pairs { softmax_backward = softmax_backward, log_softmax_backward = log_softmax_backward } do
  M[name] = {
    cases = function(g)
      local list = {}
      shapes(g, function(shape, dim)
        dim = dim and dim > 0 and dim - #shape - 1 or dim or -1
        list[#list + 1] = { inputs = { g.randn(shape), g.uniform(shape, -2, 0), n = 2 }, attrs = { dim, n = 1 },
          reference = reference }
      end)
      return list
    end,
    refuses = function(g)
      return { { inputs = { g.randn { 2, 3 }, g.randn { 3, 2 }, n = 2 }, attrs = { -1, n = 1 }, message = "one shape" } }
    end,
  }
end

return M
