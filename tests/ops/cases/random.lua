-- random.lua: cases of what is drawn. References draw the same words in plain Lua; moments and
-- frequencies are in tests/tensor/random_spec.lua. Shapes cross batches and pieces of the kernels.
local philox = require "tests.tensor.philox"
local device = require("tests.support.walker").device

local rng = { key = 0x243F6A8885A308D3ULL, counter = 0x13198A2E03707344ULL }

local function filled(shape, f)
  local n, data = 1, {}
  for _, size in ipairs(shape) do n = n * size end
  for e = 0, n - 1 do data[e + 1] = f(e) end
  return { shape = shape, data = data }
end

local SHAPES = { {}, { 0 }, { 3 }, { 2, 0, 3 }, { 5, 1, 7 }, { 1030 }, { 3, 701 } }

-- One case for each shape and each list of further attributes.
local function drawn(lists, count, reference)
  local cases = {}
  for _, attrs in ipairs(lists) do
    for _, shape in ipairs(SHAPES) do
      local list = { shape, n = count }
      for i = 1, count - 1 do list[i + 1] = attrs[i] end
      list[count] = rng
      cases[#cases + 1] = {
        inputs = { n = 0 }, attrs = list,
        reference = function() return filled(shape, function(e) return reference(e, attrs) end) end,
      }
    end
  end
  return cases
end

local function refused(attrs, count, message)
  attrs.n, attrs[count] = count, rng
  return { inputs = { n = 0 }, attrs = attrs, message = message }
end

local M = {}

M.rand = {
  cases = function()
    return drawn({ { "float64", device }, { "float32", device } }, 4, function(e, attrs)
      return attrs[1] == "float32" and philox.uniform32(rng, e) or philox.uniform64(rng, e)
    end)
  end,
  refuses = function()
    return {
      refused({ { 2, -1 }, "float32", device }, 4, "size %-1"),
      refused({ { 2 }, "int64", device }, 4, "can't draw int64; expected float32, float64"),
      refused({ { 1, 1, 1, 1, 1, 1, 1, 1, 1 }, "float32", device }, 4, "9 dims"),
    }
  end,
}

M.randn = {
  cases = function()
    return drawn({ { "float64", device } }, 4, function(e) return philox.normal64(rng, e) end)
  end,
  refuses = function()
    return { refused({ { 2 }, "bool", device }, 4, "can't draw bool") }
  end,
}

-- attrs: std, a, b, dtype, device
local function cut_normal(e, attrs)
  local std, low, high = attrs[1], attrs[2] / attrs[1], attrs[3] / attrs[1]
  for j = 0, 1023 do
    if low <= 0.5 and high >= -0.5 and high - low >= 1 then
      local x = philox.normal64(rng, e, j)
      if x >= low and x <= high then return x * std end
    else
      local x, counts = philox.narrow(rng, e, j, low, high)
      if counts then return x * std end
    end
  end
end

M.trunc_normal = {
  cases = function()
    return drawn({
      { 1, -2, 2, "float64", device }, { 0.5, -0.2, 0.4, "float64", device },
      { 0.02, -2, 2, "float64", device }, { 1, 2.5, 3, "float64", device },
      { 1, -math.huge, -4, "float64", device }, { 2, -0.1, 0.1, "float64", device },
    }, 7, cut_normal)
  end,
  refuses = function()
    return {
      refused({ { 2 }, 0, -1, 1, "float32", device }, 7, "std must be above 0"),
      refused({ { 2 }, 1, 1, 1, "float32", device }, 7, "a = 1 must be below b = 1"),
      refused({ { 2 }, 1, 2, -2, "float32", device }, 7, "a = 2 must be below b = %-2"),
    }
  end,
}

-- attrs: low, high, dtype, device
M.randint = {
  cases = function()
    return drawn({
      { 0, 10, "int64", device }, { -7, -3, "int32", device }, { 0, 1, "float32", device },
      { -2 ^ 50, 2 ^ 50 + 12345, "int64", device }, { -5, 2 ^ 40, "float64", device },
      { -2 ^ 31, 2 ^ 31, "int32", device },
    }, 6, function(e, attrs) return attrs[1] + philox.below(rng, e, attrs[2] - attrs[1]) end)
  end,
  refuses = function()
    return {
      refused({ { 2 }, 5, 5, "int64", device }, 6, "low = 5 must be below high = 5"),
      refused({ { 2 }, 0, 2 ^ 31 + 1, "int32", device }, 6, "does not fit: int32 holds"),
      refused({ { 2 }, 0, 2 ^ 24 + 1, "float32", device }, 6, "does not fit: float32 holds"),
      refused({ { 2 }, 0, 5, "uint8", device }, 6, "can't draw uint8"),
    }
  end,
}

local function permutation(n)
  local data = {}
  for i = 1, n do data[i] = i - 1 end
  for k = 0, n - 2 do
    local last = n - k
    local j = philox.below(rng, k, last) + 1
    data[last], data[j] = data[j], data[last]
  end
  return { shape = { n }, data = data }
end

M.randperm = {
  cases = function()
    local cases = {}
    for _, n in ipairs { 0, 1, 2, 17, 1024, 1025, 2500 } do
      cases[#cases + 1] = {
        inputs = { n = 0 }, attrs = { n, device, rng, n = 3 },
        reference = function() return permutation(n) end,
      }
    end
    return cases
  end,
  refuses = function()
    return { refused({ -1, device }, 3, "n must not be negative, got %-1") }
  end,
}

M.bernoulli = {
  cases = function(g)
    local cases = {}
    for _, shape in ipairs(SHAPES) do
      cases[#cases + 1] = {
        inputs = { g.uniform(shape, 0, 1), n = 1 }, attrs = { rng, n = 1 },
        reference = function(ins)
          return filled(shape, function(e)
            return philox.uniform32(rng, e) < ins[1].data[e + 1] and 1 or 0
          end)
        end,
        grad = g.no_grad, -- a step function: its gradient is 0, which differences can't show
      }
    end
    return cases
  end,
  refuses = function(g)
    return {
      { inputs = { g.uniform({ 3 }, 1.5, 2), n = 1 }, attrs = { rng, n = 1 },
        message = "outside 0%.%.1, position 1" },
      { inputs = { g.uniform({ 3 }, -2, -1), n = 1 }, attrs = { rng, n = 1 },
        message = "outside 0%.%.1, position 1" },
    }
  end,
}

M.dropout = {
  cases = function(g)
    local cases = {}
    for _, p in ipairs { 0, 0.1, 0.5, 1 } do
      for _, shape in ipairs(SHAPES) do
        cases[#cases + 1] = {
          inputs = { g.randn(shape), n = 1 }, attrs = { p, rng, n = 2 },
          reference = function(ins)
            return filled(shape, function(e)
              return philox.uniform32(rng, e) >= p and ins[1].data[e + 1] / (1 - p) or 0
            end)
          end,
        }
      end
    end
    return cases
  end,
  refuses = function(g)
    local cases = {}
    for i, p in ipairs { 1.5, -0.5, 0 / 0 } do
      cases[i] = { inputs = { g.randn { 3 }, n = 1 }, attrs = { p, rng, n = 2 },
        message = "p must lie in 0%.%.1, got " }
    end
    return cases
  end,
}

-- One row: with replacement (or for one draw) by running sums, else by waiting times.
local function pick(weights, row, n, replacement)
  local out, positive, total = {}, 0, 0
  for i = 1, #weights do
    total = total + weights[i]
    if weights[i] > 0 then positive = positive + 1 end
  end
  if positive == 0 then
    for j = 1, n do out[j] = -1 end
    return out
  end
  if replacement or n == 1 then
    for j = 1, n do
      local at, sum = philox.uniform64(rng, row * n + j - 1) * total, 0
      for i = 1, #weights do
        sum = sum + weights[i]
        if sum > at then out[j] = i - 1; break end
      end
    end
    return out
  end
  local times = {}
  for i = 1, #weights do
    if weights[i] > 0 then
      local u = philox.uniform64(rng, row * #weights + i - 1) + 2 ^ -54
      times[#times + 1] = { -math.log(u) / weights[i], i - 1 }
    end
  end
  table.sort(times, function(a, b) return a[1] < b[1] end)
  for j = 1, n do out[j] = times[j][2] end
  return out
end

local function multinomial(ins, attrs)
  local shape, data = ins[1].shape, {}
  local classes, rows = shape[#shape], #shape == 2 and shape[1] or 1
  for row = 0, rows - 1 do
    local weights = {}
    for i = 1, classes do weights[i] = ins[1].data[row * classes + i] end
    for _, v in ipairs(pick(weights, row, attrs[1], attrs[2])) do data[#data + 1] = v end
  end
  return { shape = #shape == 2 and { rows, attrs[1] } or { attrs[1] }, data = data }
end

M.multinomial = {
  cases = function(g)
    local cases = {}
    local function add(weights, n, replacement)
      cases[#cases + 1] = { inputs = { weights, n = 1 }, attrs = { n, replacement, rng, n = 3 },
        reference = multinomial }
    end
    for _, replacement in ipairs { false, true } do
      add(g.uniform({ 7 }, 0.5, 1), 3, replacement)
      add(g.uniform({ 1 }, 0.5, 1), 1, replacement)
      add(g.uniform({ 0, 4 }, 0.5, 1), 2, replacement)
      add(g.uniform({ 5, 9 }, 0.5, 1), 1, replacement)
      add(g.uniform({ 5, 9 }, 0.5, 1), 9, replacement)
      add(g.uniform({ 131, 33 }, 0.5, 1), 5, replacement)
      add(g.uniform({ 3, 6 }, 0, 0), 2, replacement) -- rows of zeros
    end
    add(g.uniform({ 4, 3 }, 0.5, 1), 8, true)
    return cases
  end,
  refuses = function(g)
    local function refuse(weights, n, replacement, message)
      return { inputs = { weights, n = 1 }, attrs = { n, replacement, rng, n = 3 },
        message = message }
    end
    return {
      refuse(g.uniform({ 2, 3 }, 0.5, 1), 4, false,
        "4 draws without replacement from row 1, which has 3 positive weights"),
      refuse(g.uniform({ 2, 3 }, -1, -0.5), 1, true,
        "in row 1, position 1: weights must be finite"),
      refuse(g.uniform({ 2, 3 }, 0.5, 1), 0, true, "n must be at least 1"),
      refuse(g.uniform({ 2, 3, 4 }, 0.5, 1), 1, true,
        "weights must be %[N, C%] or %[C%], got 3 dims"),
    }
  end,
}

return M
