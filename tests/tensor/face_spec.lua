-- face_spec.lua: the tensor as Lua sees it: indexing, conversion, arithmetic with numbers, printing.
local weft = require "weft"

local function message_of(fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok)
  return message
end

describe("t[i]", function()
  local t = weft.arange(12):reshape(3, 4)

  it("counts from 1, and from the end with a minus", function()
    assert.same({ 0, 1, 2, 3 }, t[1]:totable())
    assert.same({ 8, 9, 10, 11 }, t[-1]:totable())
    assert.same({ 0, 1, 2, 3 }, t[-3]:totable())
    assert.equal(6, t[2][3]:item())
  end)

  it("is always a tensor, and shares memory", function()
    local x = weft.arange(3)
    assert.is_true(weft.is_tensor(x[1]))
    assert.equal(0, x[1].ndim)
    x[2]:fill_(7)
    assert.same({ 0, 7, 2 }, x:totable())
  end)

  it("outside its interval says the interval", function()
    for _, i in ipairs { 4, -4, 100 } do
      local message = message_of(function() local _ = t[i] end)
      local expected = ("x [3,4]: position %d outside 1..3 of dim 1 (or -3..-1)"):format(i)
      assert.is_truthy(message:find(expected, 1, true), message)
      assert.matches("outside 1..3", message_of(function() t[i] = 1 end))
    end
    assert.matches("count from 1 %(or from the end, %-1%), got 0", message_of(function() local _ = t[0] end))
    assert.matches("a position is expected, got a number %(1.5%)", message_of(function() local _ = t[1.5] end))
    assert.matches("a 0%-dim tensor has no dims", message_of(function() local _ = weft.tensor(1)[1] end))
    assert.matches("position 1 outside", message_of(function() local _ = weft.zeros({ 0 })[1] end))
  end)

  it("can be set to a number, a tensor that broadcasts, and nothing else", function()
    local x = weft.zeros { 2, 3 }
    x[1] = 5
    x[-1] = weft.tensor { 1, 2, 3 }
    assert.same({ { 5, 5, 5 }, { 1, 2, 3 } }, x:totable())
    x[2] = weft.tensor({ 7 }, { dtype = "int64" })
    x[1][2] = 0
    assert.same({ { 5, 0, 5 }, { 7, 7, 7 } }, x:totable())
    assert.matches("%[2%] does not broadcast to %[3%]", message_of(function() x[1] = weft.ones { 2 } end))
    assert.matches("a number or a tensor is expected, got the string \"a\"", message_of(function() x[1] = "a" end))
    assert.matches("foo can't be set", message_of(function() x.foo = 1 end))
  end)

  it("passes gradients", function()
    local x = weft.zeros { 3, 2, requires_grad = true }
    ;(x[2] * 3 + x[-1]):sum():backward()
    assert.same({ { 0, 0 }, { 3, 3 }, { 1, 1 } }, x.grad:totable())
  end)
end)

describe("#t", function()
  it("is the size of the first dim", function()
    assert.equal(3, #weft.zeros { 3, 4 })
    assert.equal(0, #weft.zeros { 0, 4 })
    assert.matches("0%-dim tensor has no length", message_of(function() return #weft.tensor(1) end))
  end)
end)

describe("a tensor of a Lua table", function()
  it("comes back the same, in every dtype", function()
    for _, dtype in ipairs { "float32", "float64", "bfloat16", "float16", "int32", "int64", "uint8" } do
      local values = { { 1, 0, 3 }, { 100, 5, 64 } }
      local t = weft.tensor(values, { dtype = dtype })
      assert.equal(dtype, t.dtype)
      assert.same({ 2, 3 }, t.shape)
      assert.same(values, t:totable())
      assert.same({ { 1, 100 }, { 0, 5 }, { 3, 64 } }, t:t():totable())
    end
    assert.same({ 1, 0 }, weft.tensor({ true, false }):totable())
    assert.same({ 1, 1, 0 }, weft.tensor({ 2, -1, 0 }, { dtype = "bool" }):totable())
    assert.same({ -5, 2 ^ 31 - 1, -2 ^ 31 }, weft.tensor({ -5, 2 ^ 31 - 1, -2 ^ 31 }, { dtype = "int32" }):totable())
    assert.same({ 2 ^ 53, -2 ^ 53 }, weft.tensor({ 2 ^ 53, -2 ^ 53 }, { dtype = "int64" }):totable())
    assert.same({ 0.1, -1e300, math.huge }, weft.tensor({ 0.1, -1e300, math.huge }, { dtype = "float64" }):totable())
  end)

  it("rounds to the nearest of a storage type", function()
    assert.equal(1.0078125, weft.tensor(1.0049, { dtype = "bfloat16" }):item())
    assert.equal(0.0999755859375, weft.tensor(0.1, { dtype = "float16" }):item())
    assert.equal(math.huge, weft.tensor(1e6, { dtype = "float16" }):item())
    local nan = weft.tensor({ 0 / 0, 1 }, { dtype = "bfloat16" }):totable()
    assert.is_true(nan[1] ~= nan[1])
  end)

  it("takes a number, booleans, nothing, and rows of nothing", function()
    assert.same({}, weft.tensor(5).shape)
    assert.equal("bool", weft.tensor({ true }).dtype)
    assert.equal("float32", weft.tensor({ 1 }).dtype)
    assert.same({ 0 }, weft.tensor({}).shape)
    assert.same({ 2, 0 }, weft.tensor({ {}, {} }).shape)
    assert.same({ {}, {} }, weft.zeros({ 2, 0 }):totable())
    assert.same({ 2 }, weft.tensor({ 1, 2 }, { device = "meta" }).shape)
    assert.equal("meta", weft.tensor({ 1, 2 }, { device = "meta" }).device)
  end)

  it("refuses rows of several lengths, mixed depths, and what is no number", function()
    assert.matches("rows of one length are expected: 2 and 1 at depth 2", message_of(weft.tensor, { { 1, 2 }, { 3 } }))
    assert.matches("a number stands where a table of 2", message_of(weft.tensor, { { 1, 2 }, 3 }))
    assert.matches("a table stands where a number", message_of(weft.tensor, { 1, { 2 } }))
    assert.matches("got the string \"a\"", message_of(weft.tensor, { 1, "a" }))
    assert.matches("use t:clone%(%)", message_of(weft.tensor, weft.ones { 1 }))
  end)
end)

describe("item and data", function()
  it("give one number and a typed pointer", function()
    assert.equal(2.5, weft.tensor({ { 2.5 } }):item())
    assert.equal(3, tonumber(weft.tensor({ 1, 2, 3 }, { dtype = "int64" }):data()[2]))
    assert.equal(0, weft.tensor({ 1, 2, 3 }):eq(2):data()[0])
    local x = weft.tensor { 1, 2 }
    x:data()[1] = 9
    assert.same({ 1, 9 }, x:totable())
    assert.matches("one element is expected, got %[2%]", message_of(x.item, x))
  end)
end)

describe("numbers beside tensors", function()
  local x = weft.tensor({ 1, 4 }, { dtype = "float64" })
  it("stand on either side", function()
    assert.same({ 3, 6 }, (2 + x):totable())
    assert.same({ 1, -2 }, (2 - x):totable())
    assert.same({ -1, 2 }, (x - 2):totable())
    assert.same({ 2, 0.5 }, (2 / x):totable())
    assert.same({ 2, 16 }, (2 ^ x):totable())
    assert.same({ -2, 16 }, ((-2) ^ x):totable())
    assert.same({ 1, 16 }, (x ^ 2):totable())
    assert.same({ -1, -4 }, (-x):totable())
    assert.same({ 0, 1 }, weft.lt(2, x):totable())
    assert.same({ 1, 0 }, x:lt(2):totable())
    assert.same({ 3, 4 }, weft.maximum(3, x):totable())
  end)

  it("divide integers as integers, also in place, and compare with whole numbers only", function()
    local n = weft.tensor({ 49, -7, 10 }, { dtype = "int64" })
    assert.same({ 1, 0, 0 }, (n / 49):totable())
    assert.same({ 24, -3, 5 }, (n / 2):totable())
    assert.same({ 1, 0, 0 }, n:clone():div_(49):totable())
    assert.same({ 49, 0, 10 }, n:clone():maximum_(0):totable())
    assert.matches("lt: the tensor is int64, the number 1.5 is not whole", message_of(n.lt, n, 1.5))
    assert.matches("div: the tensor is int64, the number 0.5 is not whole", message_of(function() return n / 0.5 end))
  end)

  it("compare by identity with ==, which is false beside nil", function()
    local y = x
    assert.is_true(y == x)
    assert.is_false(x == x:clone())
    assert.is_false(x == nil)
    assert.is_false(x == 1)
    assert.matches("a:lt%(b%)", message_of(function() return x < y end))
  end)
end)

describe("tostring", function()
  it("of one element is one line", function()
    assert.equal("float32 [] cpu  2.5", tostring(weft.tensor(2.5)))
    assert.equal("int64 [1] cpu  3", tostring(weft.tensor({ 3 }, { dtype = "int64" })))
    assert.equal("float32 [] cpu  nan", tostring(weft.tensor(0 / 0)))
  end)

  it("of none says empty", function()
    assert.equal("float32 [0,3] cpu  empty", tostring(weft.zeros { 0, 3 }))
  end)

  it("has shape, range and mean, then the values", function()
    assert.equal("float32 [2,2] cpu  min -1  mean 1.75  max 5\n  -1.0000   0.5000\n   2.5000   5.0000",
      tostring(weft.tensor { { -1, 0.5 }, { 2.5, 5 } }))
    assert.equal("int32 [2] cpu  min 1  mean 150.5  max 300\n    1  300", tostring(weft.tensor({ 1, 300 }, { dtype = "int32" })))
    assert.equal("bool [2] cpu  min 0  mean 0.5  max 1\n  1  0", tostring(weft.tensor { true, false }))
  end)

  it("counts NaN and leaves them out of the mean", function()
    assert.equal("float32 [3] cpu  min 1  mean 2  max 3  1 NaN\n  1.0000     nan  3.0000", tostring(weft.tensor { 1, 0 / 0, 3 }))
    assert.matches("2 NaN\n", tostring(weft.tensor { 0 / 0, 0 / 0 }))
    assert.matches("\n   inf  %-inf$", tostring(weft.tensor { math.huge, -math.huge }))
  end)

  it("of a large tensor shows edges: three of the last two dims, the first and last block before them", function()
    local lines = {}
    local text = tostring(weft.arange(64 * 197 * 768):reshape(64, 197, 768))
    for line in (text .. "\n"):gmatch "(.-)\n" do lines[#lines + 1] = line end
    assert.equal(1 + 7 + 1 + 1 + 7, #lines)
    assert.matches("^float32 %[64,197,768%] cpu  min 0 ", lines[1])
    assert.matches("^  0%.0000e%+00  1%.0000e%+00  2%.0000e%+00  %.%.%.  7%.6500e%+02", lines[2])
    assert.equal("  ...", lines[5])
    assert.equal("  ...", lines[9])
    assert.equal("", lines[10])
    assert.is_true(#tostring(weft.zeros { 20, 20, 20, 20 }) < 2500)
    for _, line in ipairs(lines) do assert.is_true(#line < 100) end
  end)

  it("shows small tensors of three dims whole", function()
    assert.equal("float32 [2,1,2] cpu  min 0  mean 1.5  max 3\n  0.0000  1.0000\n\n  2.0000  3.0000",
      tostring(weft.arange(4):reshape(2, 1, 2)))
  end)

  it("says what requires a gradient and what made it, and records nothing", function()
    local x = weft.ones { 2, requires_grad = true }
    assert.matches("^float32 %[2%] cpu  requires_grad  min", tostring(x))
    assert.matches("^float32 %[2%] cpu  from exp  min", tostring(x:exp()))
    assert.equal("float32 [2,3] meta", tostring(weft.zeros { 2, 3, device = "meta" }))
    assert.matches("1%.0000  2%.0000", tostring(weft.tensor({ 1, 2 }, { dtype = "bfloat16" })))
  end)
end)

describe("making tensors", function()
  it("fills, counts and draws", function()
    assert.same({ { 0, 0 } }, weft.zeros({ 1, 2 }):totable())
    assert.same({ 1, 1 }, weft.ones({ 2, dtype = "uint8" }):totable())
    assert.same({ 7 }, weft.full({ 1, value = 7 }):totable())
    assert.same({ 0, 1, 2 }, weft.arange(3):totable())
    assert.same({ 2, 5, 8 }, weft.arange(2, 9, 3, { dtype = "int32" }):totable())
    assert.same({ 3, 2, 1 }, weft.arange(3, 0, -1):totable())
    assert.same({ 0, 1 }, weft.arange(2, { dtype = "int64" }):totable())
    assert.same({ 0 }, weft.arange(5, 5).shape)
    assert.same({ { 1, 0 }, { 0, 1 } }, weft.eye(2):totable())
    assert.same({ 2, 0, 3 }, weft.randn({ 2, 0, 3 }).shape)
    assert.is_true(weft.zeros({ 1, requires_grad = true }).requires_grad)
  end)
end)
