-- loss.lua: cases of the losses.

local function logsumexp(x, row, n)
  local top, s = -math.huge, 0
  for k = 1, n do top = math.max(top, x.data[row * n + k]) end
  for k = 1, n do s = s + math.exp(x.data[row * n + k] - top) end
  return top + math.log(s)
end

local function reduced(rows, reduction, counted, shape)
  if reduction == "none" then return { shape = shape, data = rows } end
  local s = 0
  for _, v in ipairs(rows) do s = s + v end
  return { shape = {}, data = { (reduction or "mean") == "mean" and s / counted or s } }
end

-- attrs: ignore_index, label_smoothing, reduction
local function cross_entropy(ins, a)
  local x, target, ignore, smoothing = ins[1], ins[2], a[1] or -100, a[2] or 0
  local n, c, counted, rows = x.shape[1], x.shape[2], 0, {}
  for i = 0, n - 1 do
    local t = target.data[i + 1]
    rows[i + 1] = 0
    if t ~= ignore then
      counted = counted + 1
      local lse = logsumexp(x, i, c)
      for k = 1, c do
        local q = smoothing / c + (k - 1 == t and 1 - smoothing or 0)
        rows[i + 1] = rows[i + 1] + q * (lse - x.data[i * c + k])
      end
    end
  end
  return reduced(rows, a[3], counted, { n })
end

local function weight(dloss, reduction, i, counted)
  if reduction == "none" then return dloss.data[i] end
  return dloss.data[1] / (reduction == "mean" and counted or 1)
end

local function cross_entropy_backward(ins, a)
  local dloss, x, target, lse, ignore, smoothing = ins[1], ins[2], ins[3], ins[4], a[1], a[2]
  local n, c, counted, dx = x.shape[1], x.shape[2], 0, {}
  for i = 1, n do counted = counted + (target.data[i] ~= ignore and 1 or 0) end
  for i = 0, n - 1 do
    for k = 1, c do
      local at = i * c + k
      local q = smoothing / c + (k - 1 == target.data[i + 1] and 1 - smoothing or 0)
      dx[at] = target.data[i + 1] == ignore and 0
        or (math.exp(x.data[at] - lse.data[i + 1]) - q) * weight(dloss, a[3], i + 1, counted)
    end
  end
  return { shape = x.shape, data = dx }
end

local function cross_entropy_soft(ins, a)
  local x, target = ins[1], ins[2]
  local n, c, rows = x.shape[1], x.shape[2], {}
  for i = 0, n - 1 do
    local lse, s = logsumexp(x, i, c), 0
    for k = i * c + 1, i * c + c do
      if x.data[k] ~= -math.huge then s = s + target.data[k] * (lse - x.data[k]) end
    end
    rows[i + 1] = s
  end
  return reduced(rows, a[1], n, { n })
end

local function cross_entropy_soft_backward(ins, a)
  local dloss, x, target, lse, reduction, needs = ins[1], ins[2], ins[3], ins[4], a[1], a[2]
  local n, c, dx, dt = x.shape[1], x.shape[2], {}, {}
  for i = 0, n - 1 do
    local w, mass = weight(dloss, reduction, i + 1, n), 0
    for k = i * c + 1, i * c + c do mass = mass + (target and target.data[k] or 0) end
    for k = i * c + 1, i * c + c do
      dx[k] = w * (math.exp(x.data[k] - lse.data[i + 1]) * mass - (target and target.data[k] or 0))
      dt[k] = w * (lse.data[i + 1] - x.data[k])
    end
  end
  local none = { shape = { 0 }, data = {} }
  return needs % 2 == 1 and { shape = x.shape, data = dx } or none, needs >= 2 and { shape = x.shape, data = dt } or none
end

local function pairs_of(f)
  return function(ins, reduction, extra)
    local rows = {}
    for i, v in ipairs(ins[1].data) do rows[i] = f(v, ins[2].data[i], extra) end
    return reduced(rows, reduction, #rows, ins[1].shape)
  end
end
local bce = pairs_of(function(x, t)
  return math.max(x, 0) - x * t + math.log(1 + math.exp(-math.abs(x)))
end)
local huber = pairs_of(function(x, t, beta)
  local d = math.abs(x - t)
  return d < beta and d * d / (2 * beta) or d - beta / 2
end)

local function pairs_backward(f)
  return function(ins, reduction, extra)
    local dloss, x, t, dx = ins[1], ins[2], ins[3], {}
    for i, v in ipairs(x.data) do dx[i] = f(v, t.data[i], extra) * weight(dloss, reduction, i, #x.data) end
    return { shape = x.shape, data = dx }
  end
end
local bce_backward = pairs_backward(function(x, t) return 1 / (1 + math.exp(-x)) - t end)
local huber_backward = pairs_backward(function(x, t, beta)
  local d = x - t
  return math.abs(d) < beta and d / beta or (d > 0 and 1 or -1)
end)

local M = {}

-- x and target, with every third row ignored where ignore is given
local function classes(g, n, c, ignore)
  local target = g.index({ n }, c)
  if ignore then
    local list = target:totable()
    for i = 1, n, 3 do list[i] = ignore end
    target = require("weft").tensor(list, { dtype = "int64" })
  end
  return g.randn { n, c }, target
end

M.cross_entropy = {
  cases = function(g)
    local list = {}
    local function add(n, c, ignore, smoothing, reduction, grad)
      local x, target = classes(g, n, c, ignore)
      list[#list + 1] = { inputs = { x, target, n = 2 }, attrs = { ignore, smoothing, reduction, n = 3 },
        reference = cross_entropy, grad = grad }
    end
    add(5, 7)
    add(5, 7, nil, nil, "sum")
    add(5, 7, nil, nil, "none")
    add(1, 1)
    add(9, 33, -100)
    add(9, 33, -100, 0.1)
    add(9, 33, 2, 0.1, "none")
    add(9, 33, nil, 1)
    add(0, 4, nil, nil, "sum")
    add(0, 4, nil, nil, "none")
    add(70, 700, -100, 0.1, "mean", g.no_grad)  -- cut into pieces: too many to perturb
    add(3, 4200, -100, 0.1, "mean", g.no_grad)  -- long rows, of lengths that a GPU takes differently
    add(3, 2051, -100, 0, "none", g.no_grad)
    return list
  end,
  refuses = function(g)
    local weft = require "weft"
    local function bad(v) return weft.tensor({ 1, v, 0 }, { dtype = "int64" }) end
    return {
      { inputs = { g.randn { 3, 5 }, bad(5), n = 2 }, attrs = { n = 0 }, message = "target 5 outside 0%.%.4, row 2" },
      { inputs = { g.randn { 3, 5 }, bad(-1), n = 2 }, attrs = { n = 0 }, message = "target %-1 outside 0%.%.4, row 2" },
      { inputs = { g.randn { 3, 5 }, bad(-100), n = 2 }, attrs = { 2, n = 1 }, message = "target %-100 outside" },
      { inputs = { g.randn { 2, 5 }, bad(1), n = 2 }, attrs = { n = 0 }, message = "target must be %[2%]" },
      { inputs = { g.randn { 5 }, bad(1), n = 2 }, attrs = { n = 0 }, message = "must be %[N, C%]" },
      { inputs = { g.randn { 3, 5 }, bad(1), n = 2 }, attrs = { nil, 2, n = 2 }, message = "label_smoothing is 2" },
    }
  end,
}

M.cross_entropy_backward = {
  cases = function(g)
    local list = {}
    for _, reduction in ipairs { "mean", "sum", "none" } do
      local x, target = classes(g, 7, 9, -100)
      list[#list + 1] = { inputs = { g.randn(reduction == "none" and { 7 } or {}), x, target, g.uniform({ 7 }, 2, 3), n = 4 },
        attrs = { -100, 0.2, reduction, n = 3 }, reference = cross_entropy_backward }
    end
    return list
  end,
}

M.cross_entropy_soft = {
  cases = function(g)
    local list = {}
    local function add(n, c, reduction, grad)
      list[#list + 1] = { inputs = { g.randn { n, c }, g.uniform({ n, c }, 0, 1), n = 2 }, attrs = { reduction, n = 1 },
        reference = cross_entropy_soft, grad = grad }
    end
    add(5, 7)
    add(5, 7, "sum")
    add(5, 7, "none")
    add(3, 1)
    add(0, 3, "sum")
    add(40, 900, "mean", g.no_grad)  -- cut into pieces: too many to perturb
    add(3, 4200, "mean", g.no_grad)  -- longer than a GPU's registers hold
    return list
  end,
  refuses = function(g)
    return {
      { inputs = { g.randn { 2, 3 }, g.randn { 2, 4 }, n = 2 }, attrs = { n = 0 }, message = "one shape" },
      { inputs = { g.randn { 3 }, g.randn { 3 }, n = 2 }, attrs = { n = 0 }, message = "must be %[N, C%]" },
    }
  end,
}

M.cross_entropy_soft_backward = {
  cases = function(g)
    local list = {}
    local function add(needs, reduction, c)
      list[#list + 1] = { inputs = { g.randn(reduction == "none" and { 4 } or {}), g.randn { 4, c },
        needs ~= 2 and g.uniform({ 4, c }, 0, 1) or nil, g.uniform({ 4 }, 2, 3), n = 4 },
        attrs = { reduction, needs, n = 2 }, reference = cross_entropy_soft_backward }
    end
    for needs = 1, 3 do
      for _, reduction in ipairs { "mean", "sum", "none" } do add(needs, reduction, 9) end
    end
    add(3, "mean", 4200)  -- longer than a GPU's registers hold
    return list
  end,
}

local function pair_cases(g, make)
  local list = {}
  for _, reduction in ipairs { "mean", "sum", "none" } do
    make(list, { 9 }, reduction)
    make(list, { 3, 5 }, reduction)
    make(list, {}, reduction)
  end
  make(list, { 0, 3 }, "sum")
  make(list, { 40, 1000 }, "mean", g.no_grad)  -- cut into pieces: too many to perturb
  return list
end

M.binary_cross_entropy_with_logits = {
  cases = function(g)
    return pair_cases(g, function(list, shape, reduction, grad)
      list[#list + 1] = { inputs = { g.uniform(shape, -9, 9), g.uniform(shape, 0, 1), n = 2 }, attrs = { reduction, n = 1 },
        reference = function(ins, a) return bce(ins, a[1]) end, grad = grad }
    end)
  end,
  refuses = function(g)
    return { { inputs = { g.randn { 2, 3 }, g.randn { 3 }, n = 2 }, attrs = { n = 0 }, message = "one shape" } }
  end,
}

-- distinct values keep d away from the corners at 0 and beta that differences would straddle
M.smooth_l1 = {
  cases = function(g)
    return pair_cases(g, function(list, shape, reduction, grad)
      for _, beta in ipairs { 1, 0.3 } do
        list[#list + 1] = { inputs = { g.uniform(shape, -2, 2), g.uniform(shape, -2, 2), n = 2 },
          attrs = { beta, reduction, n = 2 }, reference = function(ins, a) return huber(ins, a[2], a[1]) end, grad = grad }
      end
    end)
  end,
  refuses = function(g)
    return { { inputs = { g.randn { 3 }, g.randn { 3 }, n = 2 }, attrs = { -1, n = 1 }, message = "beta is %-1" } }
  end,
}

M.bce_backward = {
  cases = function(g)
    return pair_cases(g, function(list, shape, reduction)
      list[#list + 1] = { inputs = { g.randn(reduction == "none" and shape or {}), g.uniform(shape, -9, 9),
        g.uniform(shape, 0, 1), n = 3 }, attrs = { reduction, n = 1 },
        reference = function(ins, a) return bce_backward(ins, a[1]) end }
    end)
  end,
}

M.smooth_l1_backward = {
  cases = function(g)
    return pair_cases(g, function(list, shape, reduction)
      list[#list + 1] = { inputs = { g.randn(reduction == "none" and shape or {}), g.uniform(shape, -2, 2),
        g.uniform(shape, -2, 2), n = 3 }, attrs = { 0.7, reduction, n = 2 },
        reference = function(ins, a) return huber_backward(ins, a[2], a[1]) end }
    end)
  end,
}

return M
