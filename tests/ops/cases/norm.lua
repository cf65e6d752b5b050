-- norm.lua: cases of layer_norm, rms_norm and normalize.

local function rows_of(x)
  local d = x.shape[#x.shape]
  return d > 0 and #x.data / d or 0, d
end

local function rows_shape(x)
  local shape = {}
  for k = 1, #x.shape - 1 do shape[k] = x.shape[k] end
  return shape
end

-- y, with the hidden mean and rstd
local function layer_norm(ins, a)
  local x, w, b = ins[1], ins[2], ins[3]
  local n, d = rows_of(x)
  local y, means, rstds = {}, {}, {}
  for r = 0, n - 1 do
    local m, v = 0, 0
    for i = 1, d do m = m + x.data[r * d + i] / d end
    for i = 1, d do v = v + (x.data[r * d + i] - m) ^ 2 / d end
    means[r + 1], rstds[r + 1] = m, 1 / math.sqrt(v + (a[1] or 1e-5))
    for i = 1, d do
      y[r * d + i] = (x.data[r * d + i] - m) * rstds[r + 1] * (w and w.data[i] or 1) + (b and b.data[i] or 0)
    end
  end
  return { shape = x.shape, data = y }, { shape = rows_shape(x), data = means }, { shape = rows_shape(x), data = rstds }
end

local function rms_norm(ins, a)
  local x, w = ins[1], ins[2]
  local n, d = rows_of(x)
  local y, rstds = {}, {}
  for r = 0, n - 1 do
    local s = 0
    for i = 1, d do s = s + x.data[r * d + i] ^ 2 / d end
    rstds[r + 1] = 1 / math.sqrt(s + (a[1] or 1e-6))
    for i = 1, d do y[r * d + i] = x.data[r * d + i] * rstds[r + 1] * (w and w.data[i] or 1) end
  end
  return { shape = x.shape, data = y }, { shape = rows_shape(x), data = rstds }
end

-- Both backward rows: with xh = (x - mean) rstd and g = dy w,
-- dx = rstd (g - [avg g] - xh avg(g xh)), dweight = sum dy xh, dbias = sum dy
local function backward(dy, x, w, mean, rstd, needs, center)
  local n, d = rows_of(x)
  local dx, dw, db = {}, {}, {}
  for i = 1, d do dw[i], db[i] = 0, 0 end
  for r = 0, n - 1 do
    local g_sum, gx_sum, rs, m = 0, 0, rstd.data[r + 1], center and mean.data[r + 1] or 0
    for i = 1, d do
      local k = r * d + i
      local xh, g = (x.data[k] - m) * rs, dy.data[k] * (w and w.data[i] or 1)
      g_sum, gx_sum = g_sum + g / d, gx_sum + g * xh / d
      dw[i], db[i] = dw[i] + dy.data[k] * xh, db[i] + dy.data[k]
    end
    for i = 1, d do
      local k = r * d + i
      dx[k] = rs * (dy.data[k] * (w and w.data[i] or 1) - (center and g_sum or 0) - (x.data[k] - m) * rs * gx_sum)
    end
  end
  local function wanted(bit, t)
    return math.floor(needs / bit) % 2 == 1 and t or { shape = { 0 }, data = {} }
  end
  return wanted(1, { shape = x.shape, data = dx }), wanted(2, { shape = { d }, data = dw }),
    wanted(4, { shape = { d }, data = db })
end

local function layer_norm_backward(ins, a)
  return backward(ins[1], ins[2], ins[3], ins[4], ins[5], a[2], true)
end
local function rms_norm_backward(ins, a)
  local dx, dw = backward(ins[1], ins[2], ins[3], nil, ins[4], a[1], false)
  return dx, dw
end

-- sum = x + m * scale, then its norm
local function added(x, m, scale)
  local _, d = rows_of(x)
  local sum = {}
  for i, v in ipairs(x.data) do sum[i] = v + m.data[i] * (scale and scale.data[(i - 1) % d + 1] or 1) end
  return { shape = x.shape, data = sum }
end

local function add_layer_norm(ins, a)
  local sum = added(ins[1], ins[2], ins[3])
  return sum, (layer_norm({ sum, ins[4], ins[5] }, a))
end
local function add_rms_norm(ins, a)
  local sum = added(ins[1], ins[2])
  return sum, (rms_norm({ sum, ins[3] }, a))
end

-- dx = dsum + the norm's own; dm = dx * scale
local function spread(dx, dsum, scale)
  if #dx.data == 0 then return dx, dx end
  local _, d = rows_of(dx)
  local sum, dm = {}, {}
  for i, v in ipairs(dx.data) do
    sum[i] = v + (dsum and dsum.data[i] or 0)
    dm[i] = sum[i] * (scale and scale.data[(i - 1) % d + 1] or 1)
  end
  return { shape = dx.shape, data = sum }, { shape = dx.shape, data = dm }
end
local function bit(needs, b) return math.floor(needs / b) % 2 end

local function add_layer_norm_backward(ins, a)
  local needs, none = a[1], { shape = { 0 }, data = {} }
  local dx, dw, db = backward(ins[2], ins[3], ins[5], ins[6], ins[7], bit(needs, 1) + 2 * bit(needs, 4) + 4 * bit(needs, 8), true)
  local dm
  dx, dm = spread(dx, ins[1], ins[4])
  return dx, bit(needs, 2) == 1 and dm or none, dw, db
end
local function add_rms_norm_backward(ins, a)
  local dx, dw = backward(ins[2], ins[3], ins[4], nil, ins[5], a[1], false)
  return (spread(dx, ins[1])), dw
end

local function along(x, dim, f)
  local n = #x.shape
  dim = dim < 0 and dim + n + 1 or dim
  local inner, size = 1, x.shape[dim]
  for k = dim + 1, n do inner = inner * x.shape[k] end
  for start = 0, (size > 0 and #x.data / size or 0) - 1 do
    local from, places = math.floor(start / inner) * size * inner + start % inner, {}
    for i = 1, size do places[i] = from + (i - 1) * inner + 1 end
    f(places, start + 1)
  end
end

local function normalize(ins, a)
  local x, dim, eps = ins[1], a[1] or -1, a[2] or 1e-12
  local y, norms, shape = {}, {}, {}
  for k, size in ipairs(x.shape) do shape[k] = k == (dim < 0 and dim + #x.shape + 1 or dim) and 1 or size end
  along(x, dim, function(places, at)
    local s = 0
    for _, k in ipairs(places) do s = s + x.data[k] ^ 2 end
    norms[at] = math.sqrt(s)
    for _, k in ipairs(places) do y[k] = x.data[k] / math.max(norms[at], eps) end
  end)
  return { shape = x.shape, data = y }, { shape = shape, data = norms }
end

local function normalize_backward(ins, a)
  local dy, y, norm, eps = ins[1], ins[2], ins[3], a[2]
  local dx = {}
  along(y, a[1], function(places, at)
    local s, size = 0, norm.data[at]
    for _, k in ipairs(places) do s = s + dy.data[k] * y.data[k] end
    for _, k in ipairs(places) do
      dx[k] = size < eps and dy.data[k] / eps or (dy.data[k] - y.data[k] * s) / size
    end
  end)
  return { shape = y.shape, data = dx }
end

local function visible(f) return function(ins, a) return (f(ins, a)) end end

local M = {}

M.layer_norm = {
  cases = function(g)
    local list = {}
    local function add(shape, weight, bias, eps, grad)
      local d = shape[#shape]
      list[#list + 1] = { inputs = { g.randn(shape), weight and g.randn { d }, bias and g.randn { d }, n = 3 },
        attrs = { eps, n = 1 }, reference = visible(layer_norm), grad = grad }
    end
    add({ 7 }, true, true)
    add({ 3, 5 }, true, true, 1e-6)
    add({ 2, 3, 33 }, true, true)
    add({ 4, 6 }, true, false)
    add({ 4, 6 }, false, true)
    add({ 4, 6 }, false, false)
    add({ 0, 6 }, true, true)
    add({ 90, 5 }, true, true)
    add({ 100, 600 }, true, true, 1e-6, g.no_grad)  -- cut into pieces: too many to perturb
    add({ 2, 5000 }, true, true, nil, g.no_grad)
    add({ 2, 2051 }, true, true, nil, g.no_grad)    -- long rows, of lengths that a GPU takes differently
    add({ 2, 8200 }, true, true, nil, g.no_grad)
    return list
  end,
  refuses = function(g)
    return {
      { inputs = { g.randn { 2, 3 }, g.randn { 4 }, nil, n = 3 }, attrs = { n = 0 }, message = "weight must be %[3%]" },
      { inputs = { g.randn { 2, 3 }, nil, g.randn { 1, 3 }, n = 3 }, attrs = { n = 0 }, message = "bias must be %[3%]" },
      { inputs = { g.randn {}, nil, nil, n = 3 }, attrs = { n = 0 }, message = "at least one dim" },
    }
  end,
}

M.layer_norm_backward = {
  cases = function(g)
    local list = {}
    local function add(shape, weight, needs)
      local rows = rows_shape { shape = shape }
      list[#list + 1] = { inputs = { g.randn(shape), g.randn(shape), weight and g.randn { shape[#shape] },
        g.randn(rows), g.uniform(rows, 0.5, 2), n = 5 }, attrs = { 1e-5, needs, n = 2 }, reference = layer_norm_backward }
    end
    for needs = 1, 7 do add({ 5, 9 }, true, needs) end
    add({ 5, 9 }, false, 1)
    add({ 5, 9 }, false, 5)
    add({ 0, 4 }, true, 7)
    add({ 300, 40 }, true, 7)
    add({ 3, 50, 200 }, true, 7)
    add({ 3, 1500 }, true, 7)       -- long rows, of lengths that a GPU takes differently
    add({ 3, 2052 }, true, 7)
    add({ 3, 515 }, true, 7)
    add({ 2, 5000 }, true, 1)
    return list
  end,
}

M.rms_norm = {
  cases = function(g)
    local list = {}
    local function add(shape, weight, eps, grad)
      list[#list + 1] = { inputs = { g.randn(shape), weight and g.randn { shape[#shape] }, n = 2 },
        attrs = { eps, n = 1 }, reference = visible(rms_norm), grad = grad }
    end
    add({ 7 }, true)
    add({ 3, 5 }, false)
    add({ 2, 3, 33 }, true, 1e-5)
    add({ 0, 6 }, true)
    add({ 90, 5 }, true)
    add({ 100, 600 }, true, 1e-6, g.no_grad)  -- cut into pieces: too many to perturb
    return list
  end,
  refuses = function(g)
    return { { inputs = { g.randn { 2, 3 }, g.randn { 2 }, n = 2 }, attrs = { n = 0 }, message = "weight must be %[3%]" } }
  end,
}

M.rms_norm_backward = {
  cases = function(g)
    local list = {}
    local function add(shape, weight, needs)
      local rows = rows_shape { shape = shape }
      list[#list + 1] = { inputs = { g.randn(shape), g.randn(shape), weight and g.randn { shape[#shape] },
        g.uniform(rows, 0.5, 2), n = 4 }, attrs = { needs, n = 1 }, reference = rms_norm_backward }
    end
    for needs = 1, 3 do add({ 5, 9 }, true, needs) end
    add({ 5, 9 }, false, 1)
    add({ 300, 40 }, true, 3)
    return list
  end,
}

M.add_layer_norm = {
  cases = function(g)
    local list = {}
    local function put(shape, scale, weight, bias, grad)
      local d = { shape[#shape] }
      list[#list + 1] = { inputs = { g.randn(shape), g.randn(shape), scale and g.randn(d), weight and g.randn(d), bias and g.randn(d), n = 5 },
        attrs = { 1e-5, n = 1 }, reference = add_layer_norm, grad = grad }
    end
    put({ 7 }, true, true, true)
    put({ 3, 5 }, false, true, true)
    put({ 2, 3, 33 }, true, true, true)
    put({ 4, 6 }, true, false, true)
    put({ 4, 6 }, true, true, false)
    put({ 4, 6 }, false, false, false)
    put({ 0, 6 }, true, true, true)
    put({ 90, 8 }, true, true, true)
    put({ 100, 600 }, true, true, true, g.no_grad)  -- cut into pieces: too many to perturb
    put({ 2, 5000 }, true, true, true, g.no_grad)
    put({ 2, 2051 }, false, true, true, g.no_grad)  -- long rows, of lengths that a GPU takes differently
    put({ 2, 8200 }, true, true, true, g.no_grad)
    return list
  end,
  refuses = function(g)
    return {
      { inputs = { g.randn { 2, 3 }, g.randn { 2, 3 }, g.randn { 2 }, nil, nil, n = 5 }, attrs = { n = 0 }, message = "scale must be %[3%]" },
      { inputs = { g.randn { 2, 3 }, g.randn { 3 }, nil, nil, nil, n = 5 }, attrs = { n = 0 }, message = "x and m must have one shape" },
    }
  end,
}

M.add_layer_norm_backward = {
  cases = function(g)
    local list = {}
    local function put(shape, dsum, scale, weight, needs)
      local rows, d = rows_shape { shape = shape }, { shape[#shape] }
      list[#list + 1] = { inputs = { dsum and g.randn(shape), g.randn(shape), g.randn(shape), scale and g.randn(d), weight and g.randn(d),
        g.randn(rows), g.uniform(rows, 0.5, 2), n = 7 }, attrs = { needs, n = 1 }, reference = add_layer_norm_backward }
    end
    for _, needs in ipairs { 1, 3, 4, 5, 7, 8, 9, 11, 12, 13, 15 } do put({ 5, 9 }, true, true, true, needs) end
    put({ 5, 8 }, false, true, true, 3)
    put({ 5, 8 }, false, false, false, 3)
    put({ 0, 4 }, true, true, true, 15)
    put({ 300, 40 }, true, true, true, 15)
    put({ 3, 50, 200 }, true, true, true, 3)
    put({ 3, 1500 }, false, true, true, 15)       -- long rows, of lengths that a GPU takes differently
    put({ 3, 2052 }, true, true, true, 15)
    put({ 3, 515 }, true, true, true, 15)
    put({ 2, 5000 }, true, true, true, 3)
    return list
  end,
}

M.add_rms_norm = {
  cases = function(g)
    local list = {}
    local function put(shape, weight, grad)
      list[#list + 1] = { inputs = { g.randn(shape), g.randn(shape), weight and g.randn { shape[#shape] }, n = 3 },
        attrs = { 1e-6, n = 1 }, reference = add_rms_norm, grad = grad }
    end
    put({ 7 }, true)
    put({ 3, 5 }, false)
    put({ 2, 3, 33 }, true)
    put({ 0, 6 }, true)
    put({ 100, 600 }, true, g.no_grad)  -- cut into pieces: too many to perturb
    put({ 2, 8200 }, true, g.no_grad)
    return list
  end,
  refuses = function(g)
    return { { inputs = { g.randn { 2, 3 }, g.randn { 2, 3 }, g.randn { 2 }, n = 3 }, attrs = { n = 0 }, message = "weight must be %[3%]" } }
  end,
}

M.add_rms_norm_backward = {
  cases = function(g)
    local list = {}
    local function put(shape, dsum, weight, needs)
      local rows = rows_shape { shape = shape }
      list[#list + 1] = { inputs = { dsum and g.randn(shape), g.randn(shape), g.randn(shape), weight and g.randn { shape[#shape] },
        g.uniform(rows, 0.5, 2), n = 5 }, attrs = { needs, n = 1 }, reference = add_rms_norm_backward }
    end
    for needs = 1, 3 do put({ 5, 9 }, true, true, needs) end
    put({ 5, 8 }, false, false, 1)
    put({ 300, 40 }, true, true, 3)
    return list
  end,
}

M.normalize = {
  cases = function(g)
    local list = {}
    local function add(x, dim, eps, grad)
      list[#list + 1] = { inputs = { x, n = 1 }, attrs = { dim, eps, n = 2 }, reference = visible(normalize), grad = grad }
    end
    add(g.randn { 7 })
    add(g.randn { 5, 13 }, -1)
    add(g.randn { 5, 13 }, 1)
    add(g.randn { 2, 3, 4 }, 2)
    add(g.randn { 3, 0 }, 1)
    add(g.uniform({ 3, 4 }, -0.1, 0.1), 2, 10)         -- below eps: a plain division
    add(g.randn { 2, 5, 150 }, 2, 1e-12, g.no_grad)    -- tiles and pieces: too many to perturb
    add(g.randn { 70, 300 }, 2, 1e-12, g.no_grad)
    add(g.randn { 2, 8200 }, 2, 1e-12, g.no_grad)
    return list
  end,
  refuses = function(g)
    return { { inputs = { g.randn { 2, 3 }, n = 1 }, attrs = { 3, n = 1 }, message = "dim 3 outside 1..2" } }
  end,
}

M.normalize_backward = {
  cases = function(g)
    local list = {}
    local function add(shape, dim, eps)
      local norms = {}
      for k, size in ipairs(shape) do norms[k] = k == dim + #shape + 1 and 1 or size end
      list[#list + 1] = { inputs = { g.randn(shape), g.randn(shape), g.uniform(norms, 0.5, 2), n = 3 },
        attrs = { dim, eps, n = 2 }, reference = normalize_backward }
    end
    add({ 5, 9 }, -1, 1e-12)
    add({ 5, 9 }, -2, 1e-12)
    add({ 5, 9 }, -1, 1)
    add({ 3, 40, 150 }, -2, 1)
    return list
  end,
}

return M
