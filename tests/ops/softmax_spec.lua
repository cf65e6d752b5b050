-- softmax_spec.lua: rows without a finite element, masked columns, threads.
local weft = require "weft"
local inf = math.huge
local device = os.getenv "WEFT_TEST_DEVICE" or "cpu"

local function tensor(value) return weft.tensor(value, { device = device }) end
local function all_nan(t)
  for _, v in ipairs(t:reshape { t:numel() }:totable()) do if v == v then return false end end
  return true
end

describe("softmax", function()
  it("gives a masked column nothing", function()
    assert.same({ 0.5, 0, 0.5 }, weft.softmax(tensor { 1, -inf, 1 }):totable())
    assert.equal(-inf, weft.log_softmax(tensor { 1, -inf, 1 }):totable()[2])
  end)

  it("gives NaN for a row of -inf, along any dim", function()
    local x = tensor { { -inf, -inf }, { -inf, -inf } }
    for dim = 1, 2 do
      assert.is_true(all_nan(weft.softmax(x, dim)))
      assert.is_true(all_nan(weft.log_softmax(x, dim)))
    end
  end)

  -- 20,000: longer than a GPU's registers hold
  it("finds the one element of a long row that is not -inf", function()
    for _, n in ipairs { 300, 20000 } do
      local list = {}
      for i = 1, n do list[i] = -inf end
      list[n - 5] = 3
      local y, l = weft.softmax(tensor(list)):totable(), weft.log_softmax(tensor(list)):totable()
      assert.equal(1, y[n - 5])
      assert.equal(0, l[n - 5])
      assert.equal(0, y[1])
      assert.equal(-inf, l[1])
    end
  end)

  it("gives NaN for a row that holds NaN or infinity, whatever its length", function()
    for _, n in ipairs { 300, 20000 } do
      for _, bad in ipairs { 0 / 0, inf } do
        local list = {}
        for i = 1, n do list[i] = -i end
        list[n - 5] = bad
        assert.is_true(all_nan(weft.softmax(tensor(list))))
        assert.is_true(all_nan(weft.softmax(tensor(list):reshape { n, 1 }:expand { n, 2 }, 1)))
      end
    end
  end)

  it("spoils no other row", function()
    local y = weft.softmax(tensor { { 0, 0 }, { -inf, -inf } }, 2):totable()
    assert.same({ 0.5, 0.5 }, y[1])
  end)

  it("keeps a masked column out of the gradient", function()
    local x = weft.tensor({ 1, -inf, 2 }, { requires_grad = true, device = device })
    local y = weft.log_softmax(x)
    y[1]:backward()
    assert.equal(0, x.grad:totable()[2])
  end)

  it("gives the same bits whatever the number of threads", function()
    local threads = weft.threads()
    local x = weft.randn { 300, 401, rng = weft.random.stream("softmax", 1) }
    weft.threads(1)
    local rows, columns = weft.softmax(x, 2):totable(), weft.softmax(x, 1):totable()
    weft.threads(3)
    assert.same(rows, weft.softmax(x, 2):totable())
    assert.same(columns, weft.softmax(x, 1):totable())
    weft.threads(threads)
  end)
end)
