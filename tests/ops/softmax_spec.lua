-- softmax_spec.lua: rows without a finite element, masked columns, threads.
local weft = require "weft"
local inf = math.huge

local function tensor(value) return weft.tensor(value) end
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

  it("spoils no other row", function()
    local y = weft.softmax(tensor { { 0, 0 }, { -inf, -inf } }, 2):totable()
    assert.same({ 0.5, 0.5 }, y[1])
  end)

  it("keeps a masked column out of the gradient", function()
    local x = weft.tensor({ 1, -inf, 2 }, { requires_grad = true })
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
