-- optim.lua: cases of the optimizer's steps. In-place rows: the reference returns every tensor of
-- xs as it should be afterwards.
local function clone(t)
  local data = {}
  for i = 1, #t.data do data[i] = t.data[i] end
  return { shape = t.shape, data = data }
end

-- attrs: lr, beta1, beta2, eps, weight_decay, step
local function adamw(ins, attrs)
  local lr, b1, b2, eps, decay, t = unpack(attrs, 1, 6)
  local out = {}
  for k = 1, #ins.xs, 4 do
    local p, g = clone(ins.xs[k]), clone(ins.xs[k + 1])
    local m, v = clone(ins.xs[k + 2]), clone(ins.xs[k + 3])
    for i = 1, #p.data do
      p.data[i] = p.data[i] * (1 - lr * decay)
      m.data[i] = b1 * m.data[i] + (1 - b1) * g.data[i]
      v.data[i] = b2 * v.data[i] + (1 - b2) * g.data[i] ^ 2
      local mean, square = m.data[i] / (1 - b1 ^ t), v.data[i] / (1 - b2 ^ t)
      p.data[i] = p.data[i] - lr * mean / (math.sqrt(square) + eps)
    end
    out[k], out[k + 1], out[k + 2], out[k + 3] = p, g, m, v
  end
  return unpack(out)
end

-- attrs: lr, momentum, weight_decay, nesterov
local function sgd(ins, attrs)
  local lr, momentum, decay, nesterov = unpack(attrs, 1, 4)
  local out = {}
  for k = 1, #ins.xs, 3 do
    local p, g, b = clone(ins.xs[k]), clone(ins.xs[k + 1]), clone(ins.xs[k + 2])
    for i = 1, #p.data do
      local d = g.data[i] + decay * p.data[i]
      if momentum ~= 0 then
        b.data[i] = momentum * b.data[i] + d
        d = nesterov and d + momentum * b.data[i] or b.data[i]
      end
      p.data[i] = p.data[i] - lr * d
    end
    out[k], out[k + 1], out[k + 2] = p, g, b
  end
  return unpack(out)
end

local function ema(ins, attrs)
  local decay, out = attrs[1], {}
  for k = 1, #ins.xs, 2 do
    local e, p = clone(ins.xs[k]), clone(ins.xs[k + 1])
    for i = 1, #e.data do e.data[i] = decay * e.data[i] + (1 - decay) * p.data[i] end
    out[k], out[k + 1] = e, p
  end
  return unpack(out)
end

local function global_norm(ins)
  local sum = 0
  for _, x in ipairs(ins.xs) do
    for _, v in ipairs(x.data) do sum = sum + v * v end
  end
  return { shape = {}, data = { math.sqrt(sum) } }
end

local function clip(ins, attrs)
  local norm, out = ins[1], {}
  local factor = math.min(1, attrs[1] / (norm.data[1] + 1e-6))
  out[1] = norm
  for k, x in ipairs(ins.xs) do
    local y = clone(x)
    for i = 1, #y.data do y.data[i] = y.data[i] * factor end
    out[k + 1] = y
  end
  return unpack(out)
end

-- Groups of tensors of one shape each; sizes cross chunks and lie beside vector widths.
local SHAPES = { { 3, 5 }, {}, { 0, 2 }, { 16384 }, { 17, 1001 }, { 1 } }

local M = {}

M.adamw_ = {
  cases = function(g)
    local function case(shapes, ...)
      local xs = {}
      for _, shape in ipairs(shapes) do
        xs[#xs + 1] = g.randn(shape)
        xs[#xs + 1] = g.randn(shape)
        xs[#xs + 1] = g.randn(shape)
        xs[#xs + 1] = g.uniform(shape, 0, 2)
      end
      return { inputs = { xs = xs }, attrs = { n = 6, ... }, reference = adamw }
    end
    return {
      case(SHAPES, 1e-2, 0.9, 0.98, 1e-8, 0.1, 3),
      case({ { 7 } }, 1e-3, 0.9, 0.999, 1e-8, 0, 1),
      case({ { 7 }, { 2, 2 } }, 0.5, 0, 0, 1e-3, 0.5, 100000),
    }
  end,
  refuses = function(g)
    local function refuse(message, xs, ...)
      return { inputs = { xs = xs }, attrs = { n = 6, ... }, message = message }
    end
    local function four() return { g.randn { 3 }, g.randn { 3 }, g.randn { 3 }, g.randn { 3 } } end
    return {
      refuse("quadruples, got 3 tensors", { g.randn { 3 }, g.randn { 3 }, g.randn { 3 } },
        1e-3, 0.9, 0.99, 1e-8, 0, 1),
      refuse("tensors 1 and 3 belong together but differ in shape",
        { g.randn { 3 }, g.randn { 3 }, g.randn { 2 }, g.randn { 3 } },
        1e-3, 0.9, 0.99, 1e-8, 0, 1),
      refuse("step counts from 1, got 0", four(), 1e-3, 0.9, 0.99, 1e-8, 0, 0),
      refuse("beta1 and beta2 must lie in %[0, 1%), got 1 and 0.99", four(),
        1e-3, 1, 0.99, 1e-8, 0, 1),
      refuse("eps must not be negative", four(), 1e-3, 0.9, 0.99, -1, 0, 1),
    }
  end,
}

-- Parameter and gradient in bfloat16, the rest in float32; the parameter is its master rounded.
local function adamw_mixed(ins, attrs)
  local quads, out = { xs = {} }, {}
  for k = 1, #ins.xs, 5 do
    local at = (k - 1) / 5 * 4
    quads.xs[at + 1], quads.xs[at + 2] = ins.xs[k + 4], ins.xs[k + 1]
    quads.xs[at + 3], quads.xs[at + 4] = ins.xs[k + 2], ins.xs[k + 3]
  end
  local all = { adamw(quads, attrs) }
  for k = 1, #ins.xs, 5 do
    local at = (k - 1) / 5 * 4
    out[k], out[k + 1], out[k + 2], out[k + 3] = all[at + 1], ins.xs[k + 1], all[at + 3], all[at + 4]
    out[k + 4] = all[at + 1]
  end
  return unpack(out)
end

M.adamw_mixed_ = {
  cases = function(g)
    local xs = {}
    for _, shape in ipairs(SHAPES) do
      local master = g.randn(shape):to "float32"
      xs[#xs + 1] = master:to "bfloat16"
      xs[#xs + 1] = g.randn(shape):to "bfloat16"
      xs[#xs + 1] = g.randn(shape):to "float32"
      xs[#xs + 1] = g.uniform(shape, 0, 2):to "float32"
      xs[#xs + 1] = master
    end
    -- the parameter is rounded to 8 bits; the others to float32
    return { { inputs = { xs = xs }, attrs = { 1e-2, 0.9, 0.99, 1e-8, 0.05, 3 }, reference = adamw_mixed,
               tolerance64 = 2 ^ -8, float32 = false, grad = g.no_grad } }
  end,
  refuses = function(g)
    local x = g.randn { 3 }
    local h, f = x:to "bfloat16", x:to "float32"
    return {
      { inputs = { xs = { h, h, f, f, x } }, attrs = { 0.1 }, message = "tensor 5 is float64, expected float32" },
      { inputs = { xs = { f, f, f, f, f } }, attrs = { 0.1 }, message = "tensor 1 is float32, expected bfloat16" },
      { inputs = { xs = { h, h, f, f } }, attrs = { 0.1 }, message = "quintuples" },
    }
  end,
}

M.sgd_ = {
  cases = function(g)
    local function case(shapes, ...)
      local xs = {}
      for _, shape in ipairs(shapes) do
        for _ = 1, 3 do xs[#xs + 1] = g.randn(shape) end
      end
      return { inputs = { xs = xs }, attrs = { n = 4, ... }, reference = sgd }
    end
    return {
      case(SHAPES, 0.1, 0, 0, false), case(SHAPES, 0.1, 0.9, 0.01, false),
      case({ { 9 } }, 0.1, 0.9, 0.01, true),
    }
  end,
  refuses = function(g)
    return { { inputs = { xs = { g.randn { 2 } } }, attrs = { 0.1, 0, 0, false, n = 4 },
      message = "triples, got 1 tensors" } }
  end,
}

M.ema_ = {
  cases = function(g)
    local function case(shapes, decay)
      local xs = {}
      for _, shape in ipairs(shapes) do
        for _ = 1, 2 do xs[#xs + 1] = g.randn(shape) end
      end
      return { inputs = { xs = xs }, attrs = { decay, n = 1 }, reference = ema }
    end
    return { case(SHAPES, 0.995), case({ { 3 } }, 0), case({ { 3 } }, 1) }
  end,
  refuses = function(g)
    return {
      { inputs = { xs = { g.randn { 2 }, g.randn { 2 } } }, attrs = { 1.5, n = 1 },
        message = "decay must lie in 0%.%.1, got 1.5" },
      { inputs = { xs = { g.randn { 2 }, g.randn { 3 } } }, attrs = { 0.5, n = 1 },
        message = "tensors 1 and 2 belong together but differ in shape %(%[2%] and %[3%]%)" },
    }
  end,
}

M.global_norm = {
  cases = function(g)
    local function case(shapes)
      local xs = {}
      for i, shape in ipairs(shapes) do xs[i] = g.randn(shape) end
      -- the norm is float32 whatever the tensors are
      return { inputs = { xs = xs }, attrs = { n = 0 }, reference = global_norm,
        tolerance64 = 1e-6 }
    end
    return { case(SHAPES), case { { 3 } }, case { { 0 } }, case { {} } }
  end,
  refuses = function()
    return { { inputs = { xs = {} }, attrs = { n = 0 }, message = "0 tensors given" } }
  end,
}

M.clip_ = {
  cases = function(g)
    local function case(shapes, norm, max_norm)
      local xs = {}
      for i, shape in ipairs(shapes) do xs[i] = g.randn(shape) end
      return { inputs = { g.uniform({}, norm, norm), xs = xs, n = 1 }, attrs = { max_norm, n = 1 },
        reference = clip }
    end
    return { case(SHAPES, 8, 1), case(SHAPES, 0.25, 1), case({ { 3 } }, 2, 2),
      case({ { 3 } }, 2, 0) }
  end,
  refuses = function(g)
    return {
      { inputs = { g.randn { 2 }, xs = { g.randn { 2 } }, n = 1 }, attrs = { 1, n = 1 },
        message = "norm must be one float32 or float64" },
      { inputs = { g.uniform({}, 1, 1), xs = { g.randn { 2 } }, n = 1 }, attrs = { -1, n = 1 },
        message = "max_norm must not be negative" },
    }
  end,
}

return M
