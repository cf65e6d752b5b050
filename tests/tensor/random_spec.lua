-- random_spec.lua: the generator against its known answers, distributions by moments and
-- Kolmogorov-Smirnov distances with fixed seeds, and that threads and CPU paths change no bit.
local ffi = require "ffi"
local weft = require "weft"
local core = require "weft.core"
local philox = require "tests.tensor.philox"

local ops = require("weft.ops").functions
local rng = { key = 0x0123456789ABCDEFULL, counter = 42ULL }

local function numbers(t)
  local list, data = {}, t:data()
  for i = 1, t:numel() do list[i] = tonumber(data[i - 1]) end
  return list
end

local function bytes(t)
  local v = t.p.v
  return ffi.string(v.data, tonumber(v.numel * core.lib.weft_dtype_size(v.dtype)))
end

local function moments(list)
  local n, mean, square, third, fourth = #list, 0, 0, 0, 0
  for _, x in ipairs(list) do mean = mean + x / n end
  for _, x in ipairs(list) do
    local d = x - mean
    square, third, fourth = square + d ^ 2 / n, third + d ^ 3 / n, fourth + d ^ 4 / n
  end
  return mean, square, third / square ^ 1.5, fourth / square ^ 2
end

-- Largest distance between the distribution of list and cdf, times sqrt(n): above 1.95 once in a
-- thousand samples of the right distribution.
local function distance(list, cdf)
  table.sort(list)
  local n, d = #list, 0
  for i, x in ipairs(list) do
    local p = cdf(x)
    d = math.max(d, p - (i - 1) / n, i / n - p)
  end
  return d * math.sqrt(n)
end

-- Distribution of a normal between -9 and x, by Simpson's rule.
local function phi_between(a, b)
  local n, sum = 200, 0
  local h = (b - a) / n
  for i = 0, n do
    local weight = (i == 0 or i == n) and 1 or i % 2 == 1 and 4 or 2
    sum = sum + weight * math.exp(-(a + i * h) ^ 2 / 2)
  end
  return sum * h / 3 / math.sqrt(2 * math.pi)
end
local function phi(x) return 0.5 + phi_between(0, x) end

-- Sum of (seen - expected)^2 / expected.
local function chi_square(counts, expected)
  local sum = 0
  for k, e in pairs(expected) do sum = sum + ((counts[k] or 0) - e) ^ 2 / e end
  return sum
end

local function count(list)
  local counts = {}
  for _, v in ipairs(list) do counts[v] = (counts[v] or 0) + 1 end
  return counts
end

describe("random numbers", function()
  it("gives Philox's known answers", function()
    local f = assert(io.open("tests/golden/philox.json"))
    local words = {}
    for hex in f:read("*a"):gmatch '"(%x%x%x%x%x%x%x%x)"' do
      words[#words + 1] = tonumber(hex, 16)
    end
    f:close()
    assert.equal(30, #words)
    for at = 0, 20, 10 do
      -- keys of the file in order: counter, key, out
      local counter = ffi.new("uint32_t[4]", { unpack(words, at + 1, at + 4) })
      local key = ffi.new("uint32_t[2]", { unpack(words, at + 5, at + 6) })
      local out = ffi.new "uint32_t[4]"
      core.lib.weft_philox_words(key, counter, out)
      local plain = philox.rounds({ unpack(words, at + 5, at + 6) },
        { unpack(words, at + 1, at + 4) })
      for i = 1, 4 do
        assert.equal(words[at + 6 + i], out[i - 1])
        assert.equal(words[at + 6 + i], plain[i])
      end
    end
  end)

  local draws = {
    rand32 = function(n) return ops.rand({ n }, "float32", "cpu", rng) end,
    rand64 = function(n) return ops.rand({ n }, "float64", "cpu", rng) end,
    randn32 = function(n) return ops.randn({ n }, "float32", "cpu", rng) end,
    randn64 = function(n) return ops.randn({ n }, "float64", "cpu", rng) end,
    trunc32 = function(n) return ops.trunc_normal({ n }, 1, -1, 1, "float32", "cpu", rng) end,
    trunc64 = function(n) return ops.trunc_normal({ n }, 1, -0.5, 3, "float64", "cpu", rng) end,
    tail = function(n) return ops.trunc_normal({ n }, 1, 3, 4, "float32", "cpu", rng) end,
    randint = function(n) return ops.randint({ n }, -3, 10, "int64", "cpu", rng) end,
    randperm = function(n) return ops.randperm(n, "cpu", rng) end,
    bernoulli = function(n) return ops.bernoulli(weft.full { n, value = 0.3 }, rng) end,
    dropout = function(n) return ops.dropout(weft.ones { n }, 0.3, rng) end,
    multinomial = function(n)
      return ops.multinomial(weft.ones { math.ceil(n / 100), 7 }, 3, false, rng)
    end,
  }

  it("draws the same bits with 1 and 2 threads", function()
    local before = weft.threads()
    for name, draw in pairs(draws) do
      weft.threads(1)
      local one = bytes(draw(50001))
      weft.threads(2)
      local two = bytes(draw(50001))
      assert.is_true(one == two, name)
    end
    weft.threads(before)
  end)

  it("draws the same bits on each path of the CPU", function()
    local program = [[
      local weft = require "weft"
      local ops, ffi = require("weft.ops").functions, require "ffi"
      local rng, h = { key = 5ULL, counter = 6ULL }, 1469598103934665603ULL
      for _, t in ipairs { ops.randn({ 3000 }, "float32", "cpu", rng),
          ops.randn({ 3000 }, "float64", "cpu", rng),
          ops.trunc_normal({ 3000 }, 1, -1, 1, "float32", "cpu", rng),
          ops.multinomial(ops.rand({ 300, 9 }, "float64", "cpu", rng), 4, false, rng) } do
        local p, size = ffi.cast("uint8_t *", t.p.v.data), t.dtype == "float32" and 4 or 8
        for i = 0, t:numel() * size - 1 do h = bit.bxor(h, 0ULL + p[i]) * 1099511628211ULL end
      end
      print(h)
    ]]
    local path = os.tmpname()
    local f = assert(io.open(path, "w"))
    f:write(("package.path, package.cpath = %q, %q\n"):format(package.path, package.cpath), program)
    f:close()
    local seen = {}
    for _, cpu in ipairs { "plain", "avx2", "avx512" } do
      local p = assert(io.popen(("WEFT_CPU=%s luajit %s 2>&1"):format(cpu, path)))
      seen[#seen + 1] = p:read "*a"
      p:close()
    end
    os.remove(path)
    assert.truthy(seen[1]:match "^%d+ULL%s*$", seen[1])
    assert.equal(seen[1], seen[2])
    assert.equal(seen[1], seen[3])
  end)

  it("prefixes of a longer draw are the shorter draw", function()
    for name, draw in pairs(draws) do
      if name ~= "randperm" and name ~= "multinomial" then
        local short, long = bytes(draw(37)), bytes(draw(5000))
        assert.is_true(long:sub(1, #short) == short, name)
      end
    end
  end)

  it("gives other values for another key or counter", function()
    local a = bytes(ops.rand({ 100 }, "float32", "cpu", rng))
    for _, other in ipairs { { key = rng.key + 1, counter = rng.counter },
        { key = rng.key, counter = rng.counter + 1 } } do
      assert.are_not.equal(a, bytes(ops.rand({ 100 }, "float32", "cpu", other)))
    end
  end)

  it("draws uniforms on [0, 1)", function()
    for _, dtype in ipairs { "float32", "float64" } do
      local list = numbers(ops.rand({ 20000 }, dtype, "cpu", rng))
      for _, x in ipairs(list) do assert(x >= 0 and x < 1) end
      assert.is_true(distance(list, function(x) return x end) < 1.95)
    end
  end)

  it("draws standard normals", function()
    for _, dtype in ipairs { "float32", "float64" } do
      local list = numbers(ops.randn({ 100000 }, dtype, "cpu", rng))
      local mean, variance, skew, kurtosis = moments(list)
      assert.near(0, mean, 0.012)
      assert.near(1, variance, 0.018)
      assert.near(0, skew, 0.03)
      assert.near(3, kurtosis, 0.06)
      local products = 0
      for i = 1, #list, 2 do products = products + list[i] * list[i + 1] end
      assert.near(0, products / (#list / 2), 0.018) -- the two of a pair are independent
      assert.is_true(distance({ unpack(list, 1, 5000) }, phi) < 1.95)
    end
  end)

  it("draws float32 normals close to what real arithmetic makes of the same words", function()
    local list = numbers(ops.randn({ 2001 }, "float32", "cpu", rng))
    for e = 0, 2000 do assert.near(philox.normal32(rng, e), list[e + 1], 2e-6) end
  end)

  it("cuts normals to an interval and keeps their shape inside", function()
    for _, case in ipairs { { 1, -1, 1 }, { 0.5, -0.4, 3 }, { 1, 2, 2.5 }, { 1, -math.huge, -3 },
        { 3, -0.1, 0.2 } } do
      local std, a, b = unpack(case)
      local low, high = math.max(a / std, -9), math.min(b / std, 9)
      for _, dtype in ipairs { "float32", "float64" } do
        local t = ops.trunc_normal({ 3000 }, std, a, b, dtype, "cpu", rng)
        local list = numbers(t)
        local edge = dtype == "float32" and 1e-6 or 0
        for _, x in ipairs(list) do assert(x >= a - edge and x <= b + edge) end
        local whole = phi_between(low, high)
        local function cdf(x) return phi_between(low, x / std) / whole end
        assert.is_true(distance(list, cdf) < 1.95)
      end
    end
  end)

  it("draws bounded integers evenly", function()
    local counts, expected = count(numbers(ops.randint({ 70000 }, -3, 4, "int64", "cpu", rng))), {}
    for v = -3, 3 do expected[v] = 10000 end
    assert.is_true(chi_square(counts, expected) < 22.5) -- 6 degrees of freedom, 0.1 %
    for v in pairs(counts) do assert(expected[v]) end
  end)

  it("draws each permutation of three equally often", function()
    local counts, expected = {}, {}
    for i = 1, 6000 do
      local p = table.concat(numbers(ops.randperm(3, "cpu", { key = rng.key, counter = 0ULL + i })))
      counts[p] = (counts[p] or 0) + 1
    end
    for p in ("012 021 102 120 201 210"):gmatch "%d+" do expected[p] = 1000 end
    assert.is_true(chi_square(counts, expected) < 20.5)
  end)

  it("permutes all of 0 .. n - 1", function()
    local list = numbers(ops.randperm(3000, "cpu", rng))
    table.sort(list)
    for i = 1, 3000 do assert(list[i] == i - 1) end
  end)

  it("drops by dropout what bernoulli would draw as 1", function()
    for _, p in ipairs { 0, 0.1, 0.7, 1 } do
      local x = weft.full { 40000, value = 2, dtype = "float64" }
      local kept = numbers(ops.dropout(x, p, rng))
      local drawn = numbers(ops.bernoulli(weft.full { 40000, value = p, dtype = "float64" }, rng))
      local ones = 0
      for i = 1, 40000 do
        ones = ones + drawn[i]
        assert(kept[i] == (drawn[i] == 1 and 0 or 2 * (1 / (1 - p))))
      end
      assert.near(p, ones / 40000, 0.012)
    end
  end)

  it("gives the gradient of dropout the same mask", function()
    local x = weft.full({ 1000, value = 3 }):requires_grad_()
    local y = ops.dropout(x, 0.4, rng)
    y:sum():backward()
    local kept, grad = numbers(y), numbers(x.grad)
    for i = 1, 1000 do assert((kept[i] == 0) == (grad[i] == 0)) end
  end)
end)

describe("multinomial", function()
  local weights = { 0, 3, 1, 0, 2, 4, 0 }

  it("never draws a zero weight in a million draws, and the others by weight", function()
    local row = {}
    for i = 1, 10 do row[i] = weights end
    local counts = count(numbers(ops.multinomial(weft.tensor(row), 100000, true, rng)))
    local expected = {}
    for i, w in ipairs(weights) do
      if w > 0 then expected[i - 1] = w * 100000 else assert.is_nil(counts[i - 1]) end
    end
    assert.is_true(chi_square(counts, expected) < 16.3) -- 3 degrees of freedom, 0.1 %
  end)

  it("draws without replacement as one draw after another would", function()
    local row = {}
    for i = 1, 20000 do row[i] = { 1, 0, 2, 3 } end
    local pairs_drawn = ops.multinomial(weft.tensor(row), 2, false, rng):totable()
    local counts, expected, w = {}, {}, { [0] = 1, [2] = 2, [3] = 3 }
    for _, p in ipairs(pairs_drawn) do counts[p[1] .. p[2]] = (counts[p[1] .. p[2]] or 0) + 1 end
    for a, wa in pairs(w) do
      for b, wb in pairs(w) do
        if a ~= b then expected[a .. b] = 20000 * wa / 6 * wb / (6 - wa) end
      end
    end
    assert.is_true(chi_square(counts, expected) < 20.5) -- 5 degrees of freedom, 0.1 %
    for p in pairs(counts) do assert(expected[p], p) end
  end)

  it("gives -1 for a row of zeros beside rows that are drawn", function()
    local t = weft.tensor { { 0, 0, 0 }, { 0, 5, 0 } }
    assert.same({ { -1 }, { 1 } }, ops.multinomial(t, 1, false, rng):totable())
    assert.same({ { -1, -1 }, { 1, 1 } }, ops.multinomial(t, 2, true, rng):totable())
  end)

  it("refuses more draws than positive weights, naming the row", function()
    assert.error_matches(function()
      ops.multinomial(weft.tensor { { 1, 1, 1 }, { 0, 5, 1 } }, 3, false, rng)
    end, "3 draws without replacement from row 2, which has 2 positive weights")
  end)

  it("refuses negative, infinite and NaN weights, naming the place", function()
    for text, w in pairs { ["%-1"] = -1, inf = math.huge, nan = 0 / 0 } do
      assert.error_matches(function()
        ops.multinomial(weft.tensor { { 1, 1, 1 }, { 0, 5, w } }, 1, false, rng)
      end, "weight %-?" .. text .. " in row 2, position 3")
    end
  end)

  it("holds its frequencies over weights of very different sizes", function()
    local t = weft.tensor({ { 1e-30, 3e-30, 0 }, { 1e300, 3e300, 0 } }, { dtype = "float64" })
    local list = ops.multinomial(t, 20000, true, rng):totable()
    for row = 1, 2 do
      local counts = count(list[row])
      assert.near(0.25, counts[0] / 20000, 0.012)
      assert.is_nil(counts[2])
    end
  end)
end)
