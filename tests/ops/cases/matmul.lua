-- matmul.lua: cases of matrix products and linear layers. References are sums written out.
local philox = require "tests.tensor.philox"

local rng = { key = 0x452821E638D01377ULL, counter = 0xBE5466CF34E90C6CULL }

local function product(list, from, to)
  local n = 1
  for i = from, to do n = n * list[i] end
  return n
end

-- Row-major matrix number `index` of x, broadcast over the leading dims of `lead`.
local function matrix_at(x, lead, index)
  local n, offset, stride = #x.shape, 0, x.shape[#x.shape] * x.shape[#x.shape - 1]
  for d = #lead, 1, -1 do
    local i = index % lead[d]
    index = math.floor(index / lead[d])
    local mine = n - 2 - (#lead - d)
    if mine >= 1 then
      if x.shape[mine] ~= 1 then offset = offset + i * stride end
      stride = stride * x.shape[mine]
    end
  end
  return offset
end

local function multiply(ins)
  local a, b = ins[1], ins[2]
  local row, column = #a.shape == 1, #b.shape == 1
  if row then a = { shape = { 1, a.shape[1] }, data = a.data } end
  if column then b = { shape = { b.shape[1], 1 }, data = b.data } end
  local m, k, n = a.shape[#a.shape - 1], a.shape[#a.shape], b.shape[#b.shape]
  local lead, count = {}, math.max(#a.shape, #b.shape) - 2
  for d = 1, count do
    local x, y = a.shape[#a.shape - 2 - count + d] or 1, b.shape[#b.shape - 2 - count + d] or 1
    lead[d] = x == 1 and y or x
  end
  local data = {}
  for index = 0, product(lead, 1, count) - 1 do
    local at, bt = matrix_at(a, lead, index), matrix_at(b, lead, index)
    for i = 0, m - 1 do
      for j = 0, n - 1 do
        local sum = 0
        for p = 0, k - 1 do sum = sum + a.data[at + i * k + p + 1] * b.data[bt + p * n + j + 1] end
        data[#data + 1] = sum
      end
    end
  end
  local shape = lead
  if not row then shape[#shape + 1] = m end
  if not column then shape[#shape + 1] = n end
  return { shape = shape, data = data }
end

-- x W^T + b, and scale * dropout(x) A^T B^T where there are adapters
local function affine(ins, attrs)
  local x, w, bias, a, b = ins[1], ins[2], ins[3], ins[4], ins[5]
  local out, size = w.shape[1], w.shape[2]
  local rows = product(x.shape, 1, #x.shape - 1)
  local shape, data = {}, {}
  for i, s in ipairs(x.shape) do shape[i] = s end
  shape[#shape] = out
  for i = 0, rows - 1 do
    local low = {}
    for q = 0, a and a.shape[1] - 1 or -1 do
      low[q] = 0
      for p = 0, size - 1 do
        local e, p_drop = i * size + p, attrs[2]
        local factor = p_drop == 0 and 1 or philox.uniform32(rng, e) >= p_drop and 1 / (1 - p_drop) or 0
        low[q] = low[q] + factor * x.data[e + 1] * a.data[q * size + p + 1]
      end
    end
    for o = 0, out - 1 do
      local sum = bias and bias.data[o + 1] or 0
      for p = 0, size - 1 do sum = sum + x.data[i * size + p + 1] * w.data[o * size + p + 1] end
      for q = 0, a and a.shape[1] - 1 or -1 do
        sum = sum + attrs[1] * low[q] * b.data[o * a.shape[1] + q + 1]
      end
      data[#data + 1] = sum
    end
  end
  return { shape = shape, data = data }
end

local M = {}

M.matmul = {
  cases = function(g)
    local shapes = {
      { { 2, 3 }, { 3, 4 } },
      { { 1, 1 }, { 1, 1 } },
      { { 3 }, { 3 } },
      { { 3 }, { 3, 4 } },
      { { 2, 3 }, { 3 } },
      { { 2, 5, 3 }, { 3 } },
      { { 3 }, { 2, 3, 4 } },
      { { 2, 1, 3, 4 }, { 5, 4, 2 } },
      { { 2, 3, 4 }, { 4, 5 } },
      { { 3, 4 }, { 2, 4, 5 } },
      { { 2, 3, 1, 4 }, { 4, 5 } },
      { { 2, 3, 2, 4 }, { 2, 3, 4, 3 } },
      { { 2, 1, 3, 1, 3 }, { 2, 1, 3, 2 } },
      { { 0, 3 }, { 3, 2 } },
      { { 2, 0 }, { 0, 3 } },
      { { 2, 3 }, { 3, 0 } },
      { { 0, 2, 3 }, { 3, 2 } },
      { { 2, 0 }, { 0 } },
      { { 70, 131 }, { 131, 90 } },   -- several tiles, none of them even
      { { 90, 41 }, { 41, 517 } },
      { { 530, 41 }, { 41, 9 } },
      { { 1, 700 }, { 700, 401 } },
    }
    local cases = {}
    for i, s in ipairs(shapes) do
      cases[i] = { inputs = { g.randn(s[1]), g.randn(s[2]) }, reference = multiply }
    end
    return cases
  end,
  refuses = function(g)
    return {
      { inputs = { g.randn { 8, 1024 }, g.randn { 768, 768 } }, message = "inner sizes differ %(1024 and 768%)" },
      { inputs = { g.randn { 3 }, g.randn { 4 } }, message = "inner sizes differ %(3 and 4%)" },
      { inputs = { g.randn {}, g.randn { 4 } }, message = "use mul" },
      { inputs = { g.randn { 2, 3, 4 }, g.randn { 3, 4, 5 } }, message = "matmul" },
    }
  end,
}

M.linear = {
  cases = function(g)
    local list = {
      { { 3 }, 2, true },
      { { 2, 3 }, 4, true },
      { { 2, 3 }, 1, false },
      { { 2, 5, 7 }, 3, true },
      { { 2, 1, 2, 3 }, 5, true },
      { { 0, 3 }, 2, true },
      { { 2, 0, 3 }, 2, false },
      { { 2, 0 }, 3, true },
      { { 2, 70, 33 }, 300, true },   -- rows in groups of 70
      { { 3, 65, 9 }, 7, true },
    }
    local cases = {}
    for i, c in ipairs(list) do
      local size = c[1][#c[1]]
      cases[i] = { inputs = { g.randn(c[1]), g.randn { c[2], size }, c[3] and g.randn { c[2] } or nil, n = 3 }, reference = affine }
    end
    return cases
  end,
  refuses = function(g)
    return {
      { inputs = { g.randn { 2, 3 }, g.randn { 4, 5 }, n = 3 }, message = "x ends in 3, weight %[out, in%] wants 5" },
      { inputs = { g.randn { 2, 3 }, g.randn { 4, 3 }, g.randn { 3 } }, message = "bias must be %[4%]" },
      { inputs = { g.randn { 2, 3 }, g.randn { 3 }, n = 3 }, message = "weight %[out, in%]" },
    }
  end,
}

M.linear_backward = {
  cases = function(g)
    local list = {}
    for i, c in ipairs { { { 3 }, 2 }, { { 2, 3 }, 4 }, { { 2, 5, 7 }, 3 }, { { 0, 3 }, 2 }, { { 2, 3 }, 0 }, { { 2, 70, 33 }, 300 }, { { 3, 65, 16 }, 8 } } do
      local size = c[1][#c[1]]
      list[i] = { inputs = { g.randn(c[1]), g.randn { size, c[2] } }, attrs = { false, n = 1 }, reference = function(ins)
        local dy, w = ins[1], ins[2]
        local out, inner = w.shape[1], w.shape[2]
        local shape, data = {}, {}
        for d, n in ipairs(dy.shape) do shape[d] = n end
        shape[#shape] = inner
        for row = 0, #dy.data / out - 1 do
          for j = 1, inner do
            local sum = 0
            for k = 1, out do sum = sum + dy.data[row * out + k] * w.data[(k - 1) * inner + j] end
            data[row * inner + j] = sum
          end
        end
        return { shape = shape, data = data }
      end }
    end
    return list
  end,
}

M.lora_linear = {
  cases = function(g)
    local list = {
      -- x, out, r, bias, scale, p
      { { 2, 9 }, 7, 2, true, 0.5, 0 },
      { { 2, 9 }, 7, 2, true, 2, 0.4 },
      { { 9 }, 4, 1, false, 1, 0 },
      { { 2, 3, 6 }, 5, 3, false, 1.5, 0.25 },
      { { 3, 5 }, 16, 2, true, 1, 0.5 },
      { { 2, 5 }, 3, 2, true, 1, 1 },
      { { 0, 5 }, 3, 2, true, 1, 0.5 },
      { { 2, 3 }, 32, 17, false, 1, 0.1 },
      { { 2, 101, 37 }, 300, 5, true, 1, 0.3 },
      { { 2, 101, 80 }, 64, 5, true, 1, 0 },
      -- sizes that tensor cores take, of several tiles and a part of one
      { { 2, 35, 72 }, 136, 8, true, 1.5, 0.3 },
      { { 70, 72 }, 72, 24, false, 1, 0 },
      { { 9, 8 }, 16, 72, true, 0.5, 0.5 },
    }
    local cases = {}
    for i, c in ipairs(list) do
      local size = c[1][#c[1]]
      cases[i] = {
        inputs = { g.randn(c[1]), g.randn { c[2], size }, c[4] and g.randn { c[2] } or nil, g.randn { c[3], size },
          g.randn { c[2], c[3] }, n = 5 },
        attrs = { c[5], c[6], rng }, reference = affine,
      }
    end
    return cases
  end,
  refuses = function(g)
    return {
      { inputs = { g.randn { 2, 3 }, g.randn { 4, 3 }, nil, g.randn { 2, 4 }, g.randn { 4, 2 }, n = 5 },
        attrs = { 1, 0, rng }, message = "lora_a must be %[r, 3%]" },
      { inputs = { g.randn { 2, 3 }, g.randn { 4, 3 }, nil, g.randn { 2, 3 }, g.randn { 2, 4 }, n = 5 },
        attrs = { 1, 0, rng }, message = "lora_b must be %[4, 2%]" },
      { inputs = { g.randn { 2, 3 }, g.randn { 4, 3 }, nil, g.randn { 2, 3 }, g.randn { 4, 2 }, n = 5 },
        attrs = { 1, 1.5, rng }, message = "p must lie in" },
    }
  end,
}

return M
