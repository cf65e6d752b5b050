-- elementwise_spec.lua: what the walk over the operator table can't see: special values, accuracy
-- of the float32 functions, rounding of conversions, wrapping integers, equal bits for any threads.
local weft = require "weft"
local ffi = require "ffi"

local nan, inf = 0 / 0, math.huge
local function tensor(values, dtype) return weft.tensor(values, { dtype = dtype or "float32" }) end

-- Values as text, so that NaN equals NaN and -0 differs from 0.
local function text(t)
  local out = {}
  for i, v in ipairs(t:to("float64"):reshape(-1):totable()) do
    out[i] = v ~= v and "nan" or v == 0 and (1 / v < 0 and "-0" or "0") or ("%.17g"):format(v)
  end
  return table.concat(out, " ")
end

-- float32 numbers of both signs with every exponent, stepping through the mantissas.
local function every_exponent(step)
  local n = math.ceil(0x7f800000 / step)
  local bits = ffi.new("uint32_t[?]", 2 * n)
  for i = 0, n - 1 do
    bits[2 * i] = i * step
    bits[2 * i + 1] = i * step + 0x80000000
  end
  local t = weft.zeros { 2 * n }
  ffi.copy(t:data(), bits, 8 * n)
  return t
end

-- Largest error of float32 fn against float64 fn, in units of the last place of the true value.
local function worst_ulp(fn, x)
  local got, want = fn(x), fn(x:to "float64")
  local y, w, p, worst, where = got:data(), want:data(), x:data(), 0, 0
  for i = 0, x:numel() - 1 do
    local true_value = w[i]
    local rounded = tonumber(ffi.cast("float", true_value))
    if rounded ~= rounded then
      if y[i] == y[i] then return inf, p[i] end
    elseif math.abs(rounded) == inf or math.abs(y[i]) == inf then
      if y[i] ~= rounded then return inf, p[i] end
    else
      local _, e = math.frexp(true_value)
      local ulp = math.abs(y[i] - true_value) / math.ldexp(1, math.max(e, -125) - 24)
      if ulp > worst then worst, where = ulp, p[i] end
    end
  end
  return worst, where
end

describe("float32 functions", function()
  local x = every_exponent(35281)
  for name, bound in pairs { exp = 1.1, log = 1, tanh = 2.6, sigmoid = 2.4, erf = 1.6, sqrt = 0.51,
                             rsqrt = 1.6 } do
    it(("%s stays within %.2g ulp over all exponents"):format(name, bound), function()
      local ulp, where = worst_ulp(weft[name], x)
      assert.is_true(ulp <= bound, ("%s: %.3g ulp at %.9g"):format(name, ulp, where))
    end)
  end
  for _, name in ipairs { "sin", "cos" } do
    it(name .. " holds for small, large and huge angles", function()
      local ulp, where = worst_ulp(weft[name], x)
      assert.is_true(ulp <= 1, ("%s: %.3g ulp at %.9g"):format(name, ulp, where))
    end)
  end

  it("have their limits at infinity, and keep NaN", function()
    local v = tensor { inf, -inf, nan, 0, -0.0 }
    assert.equal("inf 0 nan 1 1", text(weft.exp(v)))
    assert.equal("inf nan nan -inf -inf", text(weft.log(v)))
    assert.equal("1 -1 nan 0 -0", text(weft.tanh(v)))
    assert.equal("1 0 nan 0.5 0.5", text(weft.sigmoid(v)))
    assert.equal("1 -1 nan 0 -0", text(weft.erf(v)))
    assert.equal("inf 0 nan 0 0", text(weft.relu(v)))
    for _, name in ipairs { "gelu", "gelu_tanh", "silu" } do
      assert.equal("inf -0 nan 0 -0", text(weft[name](v)), name)
      assert.equal("inf -0 nan 0 -0", text(weft[name](v:to "float64")), name)
    end
  end)

  it("have finite gradients far out", function()
    for _, dtype in ipairs { "float32", "float64" } do
      for _, name in ipairs { "gelu", "gelu_tanh", "silu" } do
        local v = tensor({ 1e30, -1e30, inf, -inf }, dtype):requires_grad_()
        weft[name](v):backward { gradient = weft.ones { 4, dtype = dtype } }
        assert.equal("1 0 1 0", (text(v.grad):gsub("%-0", "0")), name .. " " .. dtype)
      end
    end
  end)

  it("gelu keeps the digits of its small results", function()
    local x64 = weft.arange(-12, -3, 0.0625, { dtype = "float64" })
    local want, got = weft.gelu(x64):totable(), weft.gelu(x64:to "float32"):totable()
    for i, w in ipairs(want) do assert.is_true(math.abs(got[i] / w - 1) < 1e-5, tostring(w)) end
  end)
end)

describe("maximum, minimum and clamp", function()
  it("let NaN win, on either side", function()
    local a, b = tensor { nan, 1, nan, 2 }, tensor { 1, nan, nan, 3 }
    assert.equal("nan nan nan 3", text(weft.maximum(a, b)))
    assert.equal("nan nan nan 2", text(weft.minimum(a, b)))
    assert.equal("nan 0 1", text(weft.clamp(tensor { nan, -5, 5 }, 0, 1)))
  end)

  it("share the gradient of a tie", function()
    local a, b = tensor { 1, 2, 3 }:requires_grad_(), tensor { 1, 3, 2 }:requires_grad_()
    weft.maximum(a, b):sum():backward()
    assert.equal("0.5 0 1", text(a.grad))
    assert.equal("0.5 1 0", text(b.grad))
  end)
end)

describe("integers", function()
  it("wrap around in sums, products and the one quotient that overflows", function()
    local top, low = tensor({ 2147483647 }, "int32"), tensor({ -2147483648 }, "int32")
    assert.equal("-2147483648", text(top + tensor({ 1 }, "int32")))
    assert.equal("1", text(top * top))
    assert.equal("-2147483648", text(weft.div(low, tensor({ -1 }, "int32"))))
    assert.equal("-2147483648", text(weft.neg(low)))
  end)

  it("keep all 64 bits through a whole factor", function()
    local big = weft.zeros { 1, dtype = "int64" }
    big:data()[0] = 9007199254740993LL
    local y = big * 1 + 2
    assert.equal("9007199254740995LL", tostring(y:data()[0]))
  end)

  it("leave a destination alone when a divisor is 0", function()
    local a = tensor({ 6, 8 }, "int32")
    assert.has_error(function() a:div_(tensor({ 2, 0 }, "int32")) end)
    assert.equal("6 8", text(a))
  end)
end)

describe("cast", function()
  it("cuts floats towards zero and saturates", function()
    for _, from in ipairs { "float32", "float64" } do
      local x = tensor({ 2.9, -2.9, 3e9, -3e9, nan, inf, -inf, 1e30 }, from)
      assert.equal("2 -2 2147483647 -2147483648 0 2147483647 -2147483648 2147483647",
        text(x:to "int32"))
      assert.equal("2 0 255 0 0 255 0 255", text(x:to "uint8"))
      local longs = tensor({ 1e19, -1e19, nan, -7.5 }, from):to "int64"
      local long = longs:data()
      assert.equal("9223372036854775807LL", tostring(long[0]))
      assert.equal("-9223372036854775808LL", tostring(long[1]))
      assert.equal("0LL -7LL", tostring(long[2]) .. " " .. tostring(long[3]))
    end
    assert.equal("2147483647 -2147483648", text(tensor({ 2 ^ 40, -2 ^ 40 }, "int64"):to "int32"))
    assert.equal("255 0", text(tensor({ 300, -1 }, "int32"):to "uint8"))
  end)

  it("makes bools of 0 and 1 alone", function()
    for _, dtype in ipairs { "float32", "float64", "int32", "int64", "uint8", "bfloat16",
                             "float16" } do
      assert.equal("0 1 1 1", text(tensor({ 0, 1, 2, 100 }, dtype):to "bool"), dtype)
    end
    assert.equal("1 1 0", text(tensor { 0.25, nan, -0.0 }:to "bool"))
  end)

  it("rounds to nearest even in bfloat16 and float16", function()
    local tie = 2 ^ -8
    local x = { 1 + tie, 1 + 3 * tie, 1 + tie * 1.01, -1 - tie, 3.4e38, nan, -inf }
    assert.equal("1 1.015625 1.0078125 -1 inf nan -inf", text(tensor(x):to "bfloat16"))
    tie = 2 ^ -11
    x = { 1 + tie, 1 + 3 * tie, 65519, 65520, 2 ^ -24, 2 ^ -25, 3 * 2 ^ -25, nan, -inf, -2 ^ -14 }
    assert.equal("1 1.001953125 65504 inf 5.9604644775390625e-08 0 1.1920928955078125e-07 nan -inf "
      .. "-6.103515625e-05", text(tensor(x):to "float16"))
  end)

  it("rounds float64 once on its way to 16 bits", function()
    -- above a tie by less than float32 shows: through float32 it would fall on the tie and go down
    local x = tensor({ 1 + 2 ^ -8 + 2 ^ -40, 1 + 3 * 2 ^ -8 - 2 ^ -40 }, "float64")
    assert.equal("1.0078125 1.0078125", text(x:to "bfloat16"))
    local y = tensor({ 1 + 2 ^ -11 + 2 ^ -40, 1 + 3 * 2 ^ -11 - 2 ^ -40 }, "float64")
    assert.equal("1.0009765625 1.0009765625", text(y:to "float16"))
  end)

  it("brings every 16-bit value back unchanged", function()
    for _, dtype in ipairs { "bfloat16", "float16" } do
      local all = weft.zeros { 65536, dtype = dtype }
      for i = 0, 65535 do all:data()[i] = i end
      local wide = all:to "float32"
      local back, finite = wide:to(dtype), weft.isfinite(wide):totable()
      local different = 0
      for i = 0, 65535 do
        if finite[i + 1] == 1 and back:data()[i] ~= i then different = different + 1 end
      end
      local count = weft.isfinite(wide):to("int64"):sum():item()
      assert.equal(dtype == "bfloat16" and 65280 or 63488, count)
      assert.equal(0, different, dtype)
    end
  end)
end)

describe("the walk over operands", function()
  it("reads transposed, reversed and stepped operands where they lie", function()
    local a = weft.randn { 40, 33, 70 }
    local want = a:data()
    local views = { a:permute(3, 1, 2), a:permute(2, 3, 1), weft.transpose(a, 1, 2),
                    a:unfold(3, 1, 3):select(4, 1), weft.flip(a, { 1, 3 }) }
    local index = weft.arange(0, 40 * 33 * 70, 1, { dtype = "float64" }):reshape(40, 33, 70)
    local places = { index:permute(3, 1, 2), index:permute(2, 3, 1), weft.transpose(index, 1, 2),
                     index:unfold(3, 1, 3):select(4, 1), weft.flip(index, { 1, 3 }) }
    for k, view in ipairs(views) do
      for _, y in ipairs { view:contiguous(), view * 1, view:clone() } do
        local place = places[k] * 1
        local got, at = y:data(), place:data()
        local wrong = 0
        for i = 0, y:numel() - 1 do
          if got[i] ~= want[at[i]] then wrong = wrong + 1 end
        end
        assert.equal(0, wrong, "view " .. k)
      end
    end
  end)

  it("writes in place what it would have returned", function()
    local a, b = weft.randn { 300, 201 }, weft.randn { 201 }
    local want = text((a * b + b):narrow(1, 1, 3))
    a:mul_(b):add_(b)
    assert.equal(want, text(a:narrow(1, 1, 3)))
    local t = weft.randn { 30, 20 }
    local expected = text(weft.transpose(t, 1, 2) * 2)
    weft.transpose(t, 1, 2):mul_(2)
    assert.equal(expected, text(weft.transpose(t, 1, 2)))
  end)

  it("gives the same bits for any number of threads", function()
    local threads = weft.threads()
    local x = weft.randn { 150001 }
    weft.threads(1)
    local one = weft.gelu(x) + weft.sin(x)
    weft.threads(3)
    local three = weft.gelu(x) + weft.sin(x)
    weft.threads(threads)
    assert.equal(150001, weft.eq(one, three):to("int64"):sum():item())
  end)
end)
