-- elementwise.lua: cases of arithmetic, comparisons, choices and conversions.
local plain = require "tests.support.plain"
local each = plain.each

local M = {}

-- 32897 elements are two pieces of work; 67 columns are no multiple of a vector's width.
local large = { 491, 67 }
local pairs_of_shapes = {
  { { 3, 5 }, { 3, 5 } }, { {}, {} }, { { 4 }, {} }, { {}, { 2, 3 } }, { { 2, 1, 4 }, { 3, 1 } },
  { { 5, 1 }, { 1, 7 } }, { { 0, 3 }, { 1, 3 } }, { { 2, 0 }, { 2, 0 } }, { { 1 }, { 1, 1, 1 } },
  { { 3, 70 }, { 70 } }, { { 3, 70 }, { 3, 1 } }, { { 130 }, { 1 } },
}
local shapes = { { 3, 5 }, {}, { 17 }, { 0, 4 }, { 2, 1, 3 }, { 1 }, { 7, 33 } }

-- Cases of a two-input row; make(shape, which) gives an input.
local function binary(make, fn, extra)
  return function(g)
    local list = {}
    for i, s in ipairs(pairs_of_shapes) do
      list[i] = { inputs = { make(g, s[1], 1), make(g, s[2], 2) }, reference = each(fn) }
    end
    list[#list + 1] = { inputs = { make(g, large, 1), make(g, { 67 }, 2) }, reference = each(fn) }
    for _, case in ipairs(extra and extra(g) or {}) do
      case.reference = case.reference or each(fn)
      list[#list + 1] = case
    end
    return list
  end
end

-- Cases of a one-input row, each with every list of attributes.
local function unary(make, fn, attributes, options)
  return function(g)
    local list = {}
    for _, attrs in ipairs(attributes or { {} }) do
      for _, s in ipairs(shapes) do
        list[#list + 1] = { inputs = { make(g, s) }, attrs = attrs, reference = each(fn) }
      end
    end
    list[#list + 1] = { inputs = { make(g, large) }, attrs = attributes and attributes[1],
                        reference = each(fn) }
    for _, case in ipairs(list) do
      for k, v in pairs(options or {}) do case[k] = v end
    end
    return list
  end
end

local function normal(g, s) return g.randn(s) end
local function positive(g, s) return g.uniform(s, 0.3, 2.5) end
-- away from 0, either sign
local function nonzero(g, s) return g.uniform(s, 0.4, 2) * (g.bool(s):to "float64" * 2 - 1) end
-- no two inputs equal, and none at a kink: a in halves, b between them
local function apart(g, s, which)
  return g.int(s, -8, 9):to "float64" * 0.5 + (which == 2 and 0.2 or 0.05)
end
local function ints(g, s) return g.int(s, -9, 10) end
local function nonzero_ints(g, s) return g.int(s, 1, 9) * (g.bool(s):to "int64" * 2 - 1) end
local function towards_zero(x) return x < 0 and math.ceil(x) or math.floor(x) end

local function whole_pairs(g)
  return { { inputs = { ints(g, { 4, 9 }), ints(g, { 9 }) } },
           { inputs = { ints(g, { 3, 5 }):to "int32", ints(g, { 3, 5 }):to "int32" } } }
end

local function refuses_shapes(g)
  return { { inputs = { g.randn { 2, 3 }, g.randn { 2 } }, message = "sizes 3 and 2" },
           { inputs = { g.randn { 2 }, g.int({ 2 }, 0, 3) }, message = "dtypes differ" } }
end

M.add = {
  cases = binary(normal, function(a, b) return a + b end, whole_pairs),
  refuses = refuses_shapes,
}
M.sub = { cases = binary(normal, function(a, b) return a - b end, whole_pairs) }
M.mul = { cases = binary(normal, function(a, b) return a * b end, whole_pairs) }

M.div = {
  cases = binary(nonzero, function(a, b) return a / b end, function(g)
    local quotient = each(function(a, b) return towards_zero(a / b) end)
    return { { inputs = { ints(g, { 4, 9 }), nonzero_ints(g, { 9 }) }, reference = quotient },
             { inputs = { ints(g, { 5, 1 }):to "int32", nonzero_ints(g, { 7 }):to "int32" },
               reference = quotient } }
  end),
  refuses = function(g)
    local zero = g.tensor({ 1, 0, 2 }, { dtype = "int64" })
    return { { inputs = { g.int({ 2, 3 }, 0, 9), zero }, message = "division by zero" },
             { inputs = { g.int({ 1 }, 0, 9):to "int32", zero:to "int32" },
               message = "division by zero" } }
  end,
}

M.pow = {
  cases = binary(positive, function(a, b) return a ^ b end, function(g)
    -- at a zero base or exponent the gradients are taken as 0, which differences can't show
    return { { inputs = { g.tensor { 0, 2, 0, 3 }, g.tensor { 2, 0, 0, 1.5 } }, grad = g.no_grad },
             { inputs = { g.tensor { -2, -2, -1.5 }, g.tensor { 2, 3, -1 } },
               grad = { true, false } } }
  end),
}

M.maximum = { cases = binary(apart, math.max, whole_pairs) }
M.minimum = { cases = binary(apart, math.min, whole_pairs) }

M.affine = {
  cases = function(g)
    local fn = function(x, mul, add) return x * mul + add end
    local list = unary(normal, fn, { { 2.5, -0.75 }, { -1, 0 }, { 0, 3 } })(g)
    list[#list + 1] = { inputs = { ints(g, { 3, 7 }) }, attrs = { 3, -2 }, reference = each(fn) }
    list[#list + 1] = { inputs = { ints(g, { 3, 7 }):to "int32" }, attrs = { 0.5, 0.25 },
                        reference = each(function(...) return towards_zero(fn(...)) end) }
    return list
  end,
}

M.pow_scalar = {
  cases = unary(positive, function(x, e) return x ^ e end,
                { { 2 }, { 3 }, { -1 }, { 0.5 }, { 0 }, { 1 }, { -2.5 } }),
}
M.neg = { cases = unary(normal, function(x) return -x end) }
M.abs = { cases = unary(nonzero, math.abs) }
M.sign = { cases = unary(nonzero, function(x) return x > 0 and 1 or x < 0 and -1 or 0 end) }
-- a gradient of 0 between the steps
M.floor = { cases = unary(apart, math.floor) }
M.exp = { cases = unary(normal, math.exp) }
M.log = { cases = unary(positive, math.log) }
M.sqrt = { cases = unary(positive, math.sqrt) }
M.rsqrt = { cases = unary(positive, function(x) return 1 / math.sqrt(x) end) }
M.sin = { cases = unary(normal, math.sin) }
M.cos = { cases = unary(normal, math.cos) }

M.clamp = {
  cases = function(g)
    local fn = function(x, low, high)
      return math.min(math.max(x, low or -math.huge), high or math.huge)
    end
    local list = unary(apart, fn, { { -1.1, 1.4 }, { 0.1 }, {} })(g)
    list[#list + 1] = { inputs = { ints(g, { 5, 3 }) }, attrs = { -2.5, 3.5 },
                        reference = each(function(x) return math.min(math.max(x, -2), 3) end) }
    return list
  end,
}

-- --- comparisons: few distinct values, so that equal ones occur
local function few(g, s) return g.int(s, -1, 2):to "float64" end
local function comparison(fn)
  local truth = function(a, b) return fn(a, b) and 1 or 0 end
  return {
    cases = binary(few, truth, function(g)
      local list = {}
      for i, dtype in ipairs { "int64", "int32", "uint8", "bool" } do
        list[i] = { inputs = { g.int({ 3, 7 }, 0, 2):to(dtype), g.int({ 7 }, 0, 2):to(dtype) } }
      end
      return list
    end),
    refuses = refuses_shapes,
  }
end
M.eq = comparison(function(a, b) return a == b end)
M.ne = comparison(function(a, b) return a ~= b end)
M.lt = comparison(function(a, b) return a < b end)
M.le = comparison(function(a, b) return a <= b end)
M.gt = comparison(function(a, b) return a > b end)
M.ge = comparison(function(a, b) return a >= b end)

local function truths(g, s) return g.bool(s) end
local function bytes(g, s) return g.int(s, 0, 4):to "uint8" end
M.logical_not = { cases = unary(bytes, function(x) return x == 0 and 1 or 0 end) }
M.logical_and = {
  cases = binary(bytes, function(a, b) return a ~= 0 and b ~= 0 and 1 or 0 end),
  refuses = function(g)
    return { { inputs = { g.randn { 2 }, g.bool { 2 } }, message = "bool is expected" } }
  end,
}
M.logical_or = { cases = binary(truths, function(a, b) return (a ~= 0 or b ~= 0) and 1 or 0 end) }
M.isfinite = {
  cases = unary(function(g, s)
    return g.int(s, -1, 2):to "float64" / g.int(s, 0, 2):to "float64"
  end, function(x) return x - x == 0 and 1 or 0 end),
}

-- --- choices
local function choose(c, a, b) if c ~= 0 then return a end return b end
M.where = {
  cases = function(g)
    local list = {}
    for i, s in ipairs { { { 3, 5 }, { 3, 5 }, { 3, 5 } }, { {}, {}, {} }, { { 4, 1 }, { 3 }, {} },
                         { { 6 }, { 2, 6 }, { 2, 1 } }, { { 0, 2 }, { 2 }, { 1, 1 } },
                         { large, { 67 }, large } } do
      list[i] = { inputs = { g.bool(s[1]), g.randn(s[2]), g.randn(s[3]) },
                  reference = each(choose) }
    end
    for _, dtype in ipairs { "int64", "int32", "uint8", "bool" } do
      local a, b = g.int({ 3, 5 }, 0, 2):to(dtype), g.int({ 5 }, 0, 2):to(dtype)
      list[#list + 1] = { inputs = { g.bool { 5 }, a, b }, reference = each(choose) }
    end
    return list
  end,
  refuses = function(g)
    return { { inputs = { g.bool { 3 }, g.randn { 2 }, g.randn { 1 } },
               message = "sizes 3 and 2" } }
  end,
}
M.masked_fill = {
  cases = function(g)
    local list, fill = {}, function(x, m, value) return m ~= 0 and value or x end
    for i, s in ipairs { { { 3, 5 }, { 3, 5 } }, { {}, {} }, { { 2, 3, 4 }, { 3, 1 } },
                         { { 0, 2 }, { 2 } }, { large, { 67 } } } do
      list[i] = { inputs = { g.randn(s[1]), g.bool(s[2]) }, attrs = { -3.25 },
                  reference = each(fill) }
    end
    for _, dtype in ipairs { "int64", "int32", "uint8", "bool" } do
      list[#list + 1] = { inputs = { g.int({ 3, 5 }, 0, 2):to(dtype), g.bool { 5 } },
                          attrs = { 1 }, reference = each(fill) }
    end
    return list
  end,
  refuses = function(g)
    return { { inputs = { g.randn { 2, 1 }, g.bool { 2, 3 } }, attrs = { 0 },
               message = "mask does not broadcast" } }
  end,
}

M.cast = {
  cases = function(g)
    local list = {}
    local from = { float64 = normal, float32 = normal, int64 = ints, int32 = ints, uint8 = bytes,
                   bool = truths, bfloat16 = ints, float16 = ints }
    for dtype, make in pairs(from) do
      list[#list + 1] = { inputs = { make(g, { 3, 5 }):to(dtype) }, attrs = { "float64" },
                          reference = each(function(x) return x end), grad = g.no_grad }
    end
    -- float32 keeps 24 bits: halves are exact, so differences are too
    for _, s in ipairs(shapes) do
      list[#list + 1] = { inputs = { apart(g, s) }, attrs = { "float64" },
                          reference = each(function(x) return x end) }
    end
    list[#list + 1] = { inputs = { apart(g, large) }, attrs = { "int64" },
                        reference = each(function(x) return towards_zero(x) end) }
    return list
  end,
}

M.to_device = {
  cases = function(g)
    local list = {}
    for _, s in ipairs(shapes) do
      list[#list + 1] = { inputs = { g.randn(s) }, attrs = { "cpu" }, reference = each(function(x) return x end) }
    end
    return list
  end,
  refuses = function(g)
    return { { inputs = { g.randn { 2 }:to "meta" }, attrs = { "cpu" }, message = "meta has no values" } }
  end,
}

return M
