-- attention.lua: cases of attention and rotary positions, against the formulas written out.
local philox = require "tests.tensor.philox"

local rng = { key = 0xC0AC29B7C97C50DDULL, counter = 0x3F84D5B5B5470917ULL }

-- Weights softmax(q k^T scale + mask), dropped, times v.
local function attend(ins, attrs)
  local q, k, v, mask = ins[1], ins[2], ins[3], ins[4]
  local causal, scale, p = attrs[1], attrs[2] or 0, attrs[3] or 0
  local B, H, N, D = q.shape[1], q.shape[2], q.shape[3], q.shape[4]
  local M = k.shape[3]
  if scale == 0 then scale = 1 / math.sqrt(D) end
  local function masked(b, h, i, j)
    if not mask then return 0 end
    local at, stride, position = 0, 1, { b, h, i, j }
    for d = #mask.shape, 1, -1 do
      local x = position[4 - #mask.shape + d]
      if mask.shape[d] ~= 1 then at = at + x * stride end
      stride = stride * mask.shape[d]
    end
    local value = mask.data[at + 1]
    if mask.dtype == "bool" or mask.dtype == "uint8" then return value ~= 0 and 0 or -math.huge end
    return value
  end
  local data = {}
  for b = 0, B - 1 do
    for h = 0, H - 1 do
      local head = b * H + h
      for i = 0, N - 1 do
        local s, max, total = {}, -math.huge, 0
        for j = 0, M - 1 do
          local sum = 0
          for d = 1, D do sum = sum + q.data[(head * N + i) * D + d] * k.data[(head * M + j) * D + d] end
          s[j] = sum * scale + masked(b, h, i, j)
          if causal and j > i + M - N then s[j] = -math.huge end
          max = math.max(max, s[j])
        end
        for j = 0, M - 1 do
          s[j] = s[j] == -math.huge and 0 or math.exp(s[j] - max)
          total = total + s[j]
        end
        for d = 1, D do
          local y = 0
          for j = 0, M - 1 do
            local e = (head * N + i) * M + j
            local factor = p == 0 and 1 or philox.uniform32(rng, e) >= p and 1 / (1 - p) or 0
            if s[j] ~= 0 then y = y + s[j] / total * factor * v.data[(head * M + j) * D + d] end
          end
          data[#data + 1] = y
        end
      end
    end
  end
  return { shape = q.shape, data = data }
end

local function rotate(ins, attrs)
  local x, cosines, sines = ins[1], ins[2], ins[3]
  local n = #x.shape
  local N, D = x.shape[n - 1], x.shape[n]
  local half, sign, data = D / 2, attrs[1] and -1 or 1, {}
  for row = 0, D > 0 and #x.data / D - 1 or -1 do
    for i = 1, D do
      local pair = (i - 1) % half
      local at = row % N * half + pair + 1
      local other = x.data[row * D + (i > half and i - half or i + half)]
      local turn = i > half and other * sines.data[at] or -other * sines.data[at]
      data[#data + 1] = x.data[row * D + i] * cosines.data[at] + sign * turn
    end
  end
  return { shape = x.shape, data = data }
end

local M = {}

M.scaled_dot_product_attention = {
  cases = function(g)
    local function case(q, m, attrs, mask)
      local kv = { q[1], q[2], m, q[4] }
      return { inputs = { g.randn(q), g.randn(kv), g.randn(kv), mask, n = 4 }, attrs = attrs,
        reference = attend, grad = { true, true, true, false } }
    end
    -- query 2 of the first head sees nothing
    local blind = g.bool { 2, 2, 3, 5 }
    blind:select(1, 1):select(1, 1):select(1, 2):fill_(0)
    return {
      case({ 1, 2, 3, 4 }, 5, {}),
      case({ 2, 1, 3, 17 }, 7, { false, 0.3 }),
      case({ 1, 1, 1, 1 }, 1, {}),
      case({ 1, 2, 4, 3 }, 4, { true }),
      case({ 1, 2, 2, 3 }, 5, { true }),
      case({ 1, 2, 5, 3 }, 2, { true }),        -- the first three queries see nothing
      case({ 2, 2, 3, 4 }, 5, { false }, blind),
      case({ 2, 2, 3, 4 }, 5, { true }, g.bool { 2, 1, 1, 5 }),
      case({ 2, 2, 3, 4 }, 5, { false }, g.randn { 1, 2, 3, 5 }),
      case({ 2, 2, 3, 4 }, 5, { false }, g.randn { 3, 1 }),
      case({ 1, 2, 3, 4 }, 5, { false, 0, 0.3, rng }),
      case({ 1, 2, 3, 4 }, 5, { true, 0.7, 0.5, rng }, g.randn { 3, 5 }),
      case({ 1, 1, 2, 3 }, 3, { false, 0, 1, rng }),
      case({ 0, 2, 3, 4 }, 5, {}),
      case({ 1, 2, 0, 4 }, 5, {}),
      case({ 1, 2, 3, 4 }, 0, {}),
      case({ 1, 2, 120, 9 }, 70, { true }),     -- several blocks of queries
      case({ 1, 1, 201, 5 }, 9, {}),            -- one head in several pieces
      case({ 1, 1, 201, 20 }, 230, { true, 0, 0.2, rng }),
    }
  end,
  refuses = function(g)
    local function with(q, k, v, mask, message, attrs)
      return { inputs = { g.randn(q), g.randn(k), g.randn(v), mask, n = 4 }, attrs = attrs, message = message }
    end
    return {
      with({ 2, 3, 4 }, { 2, 3, 4 }, { 2, 3, 4 }, nil, "q %[B, H, N, D%]"),
      with({ 1, 2, 3, 4 }, { 1, 2, 3, 5 }, { 1, 2, 3, 5 }, nil, "q and k differ in dim 4 %(4 and 5%)"),
      with({ 1, 2, 3, 4 }, { 1, 2, 5, 4 }, { 1, 2, 6, 4 }, nil, "k and v differ in dim 3 %(5 and 6%)"),
      with({ 1, 2, 3, 4 }, { 1, 2, 5, 4 }, { 1, 2, 5, 4 }, g.bool { 3, 4 }, "mask's dim 2 is 4, expected 1 or 5"),
      with({ 1, 2, 3, 4 }, { 1, 2, 5, 4 }, { 1, 2, 5, 4 }, g.index({ 3, 5 }, 2), "mask must be bool or float64"),
      with({ 1, 1, 2, 257 }, { 1, 1, 2, 257 }, { 1, 1, 2, 257 }, nil, "head size D must be 1 to 256"),
      with({ 1, 1, 2, 3 }, { 1, 1, 2, 3 }, { 1, 1, 2, 3 }, nil, "p must lie in", { false, 0, -0.1, rng }),
    }
  end,
}

M.rotary = {
  cases = function(g)
    local cases = {}
    for _, inverse in ipairs { false, true } do
      for _, shape in ipairs { { 5, 2 }, { 2, 3, 5, 8 }, { 1, 4 }, { 2, 0, 4 }, { 3, 0 }, { 2, 130, 6 } } do
        local angles = { shape[#shape - 1], shape[#shape] / 2 }
        cases[#cases + 1] = { inputs = { g.randn(shape), g.randn(angles), g.randn(angles) }, attrs = { inverse },
          reference = rotate, grad = { true, false, false } }
      end
    end
    return cases
  end,
  refuses = function(g)
    return {
      { inputs = { g.randn { 2, 3 }, g.randn { 2, 1 }, g.randn { 2, 1 } }, message = "even D" },
      { inputs = { g.randn { 2, 4 }, g.randn { 2, 2 }, g.randn { 2, 4 } }, message = "must be %[N, D/2%] = %[2, 2%]" },
    }
  end,
}

return M
