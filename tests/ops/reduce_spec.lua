-- reduce_spec.lua: what the walk over the table does not ask of reductions: threads, NaN, ties,
-- empty dims, accuracy.
local weft = require "weft"
local nan, inf = 0 / 0, math.huge

local function flat(t) return t:reshape { t:numel() }:totable() end
local function tensor(value, dtype) return weft.tensor(value, { dtype = dtype or "float32" }) end

describe("reductions", function()
  it("give the same bits whatever the number of threads", function()
    local threads = weft.threads()
    local x = weft.randn { 700, 300, rng = weft.random.stream("reduce", 1) }
    local function results()
      local out = {}
      for _, name in ipairs { "sum", "mean", "logsumexp" } do
        for _, dims in ipairs { { 1 }, { 2 }, { 1, 2 } } do out[#out + 1] = flat(weft[name](x, dims)) end
      end
      for _, dims in ipairs { { 1 }, { 2 }, { 1, 2 } } do
        out[#out + 1] = flat(weft.var(x, dims))
        out[#out + 1] = flat(weft.norm(x, 2, dims))
      end
      out[#out + 1] = flat(weft.cumsum(x, 1))
      return out
    end
    weft.threads(1)
    local one = results()
    for _, n in ipairs { 2, 3 } do
      weft.threads(n)
      assert.same(one, results())
    end
    weft.threads(threads)
  end)

  it("keep the digits of a long float32 sum", function()
    local tenth = weft.full { 1000000, value = 0.1 }
    local each = tenth[1]:item()
    assert.near(1000000 * each, weft.sum(tenth):item(), 0.01)
    assert.near(1000000 * each, weft.sum(tenth:reshape(1000, 1000), 1):sum():item(), 0.01)
    assert.near(each, weft.mean(tenth):item(), 1e-8)
  end)

  it("have an answer for no elements", function()
    local x = weft.zeros { 0, 3 }
    assert.same({ 0, 0, 0 }, weft.sum(x, 1):totable())
    assert.same({ 0, 0, 0 }, weft.norm(x, 2, 1):totable())
    assert.same({ -inf, -inf, -inf }, weft.logsumexp(x, 1):totable())
    local mean = weft.mean(x):item()
    assert.is_true(mean ~= mean)
    assert.has_error(function() weft.max(x, 1) end)
  end)

  it("sum int32 in int64", function()
    local y = weft.sum(tensor({ 2000000000, 2000000000 }, "int32"))
    assert.equal("int64", y.dtype)
    assert.equal(4000000000, y:item())
  end)

  it("pass NaN and infinities on", function()
    for _, name in ipairs { "sum", "mean", "norm", "logsumexp" } do
      local v = weft[name](tensor { 1, nan, 3 }):item()
      assert(v ~= v, name)
    end
    for _, p in ipairs { inf, -inf, 1, 3 } do
      local v = weft.norm(tensor { { 1 }, { nan }, { 3 } }, p, 1):item()
      assert(v ~= v, "norm " .. p)
    end
    assert.equal(inf, weft.logsumexp(tensor { 1, inf }):item())
    assert.equal(-inf, weft.logsumexp(tensor { -inf, -inf }):item())
  end)

  it("give a zero vector's norm the gradient 0", function()
    for _, p in ipairs { 1, 2, 3, inf } do
      local x = weft.zeros { 3, requires_grad = true }
      weft.norm(x, p):backward()
      assert.same({ 0, 0, 0 }, x.grad:totable())
    end
  end)
end)

describe("extremes", function()
  it("let NaN win, the first one", function()
    local long = {}
    for i = 1, 3000 do long[i] = i end
    long[2001], long[2500] = nan, nan
    local rows = tensor { long, long }
    for _, x in ipairs { rows, rows:t():contiguous():t() } do
      for _, name in ipairs { "max", "min" } do
        local values, indices = weft[name](x, 2)
        local v = values[1]:item()
        assert(v ~= v, name)
        assert.same({ 2000, 2000 }, indices:totable())
        assert.same({ 2000, 2000 }, weft["arg" .. name](x, 2):totable())
      end
    end
  end)

  it("take the first of equals", function()
    local x = tensor { { 5, 1, 5, 1 }, { 0, 0, 0, 0 } }
    assert.same({ 0, 0 }, weft.argmax(x, 2):totable())
    assert.same({ 1, 0 }, weft.argmin(x, 2):totable())
    assert.same({ 0, 0, 0, 0 }, weft.argmax(tensor { { 2, 2, 2, 2 }, { 2, 2, 2, 2 } }, 1):totable())
  end)

  it("know infinities", function()
    local values = weft.max(tensor { -inf, -inf }, 1)
    assert.equal(-inf, values:item())
    assert.equal(1, weft.argmin(tensor { inf, -inf, 0 }, 1):item())
  end)

  it("send the gradient to the chosen element alone", function()
    local x = weft.tensor({ 3, 7, 7 }, { requires_grad = true })
    local values = weft.max(x, 1)
    values:backward()
    assert.same({ 0, 1, 0 }, x.grad:totable())
  end)

  it("give large inputs of logsumexp shares that sum to 1, each as exact as softmax's", function()
    local x = weft.tensor({ { 92.2, 91.7, 90.4 }, { -70.3, -71.1, -69.9 } }, { dtype = "float32", requires_grad = true })
    for _, dims in ipairs { { 2 }, { 1, 2 } } do
      x.grad = nil
      x:logsumexp(dims):sum():backward()
      local exact = x:detach():to "float64"
      exact = #dims == 1 and exact:softmax(2) or exact:reshape({ 6 }):softmax(1):reshape { 2, 3 }
      assert.is_true((x.grad:to "float64" - exact):abs():max():item() < 2e-7)
    end
  end)
end)
