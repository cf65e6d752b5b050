-- meta_spec.lua: shapes without memory.
local weft = require "weft"
local counts = require "tests.support.counts"

local function refused(pattern, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok)
  assert.matches(pattern, message)
end

describe("the meta device", function()
  it("gives the shapes of a whole model, forward and backward, without its memory", function()
    local live = counts.alive().live
    weft.reset_peak()
    local peak = weft.memory().peak
    weft.scope(function()
      local w1 = weft.empty { 40000, 10000, device = "meta", requires_grad = true }
      local w2 = weft.empty { 10000, 40000, device = "meta" }
      local table_ = weft.empty { 100000, 10000, device = "meta", requires_grad = true }
      local ids = weft.empty { 64, 512, dtype = "int64", device = "meta" }
      local x = weft.embedding(ids, table_)
      assert.same({ 64, 512, 10000 }, x.shape)
      local q = x:reshape(64, 512, 100, 100):transpose(2, 3)
      local a = weft.scaled_dot_product_attention(q, q, q, nil, true)
      assert.same({ 64, 100, 512, 100 }, a.shape)
      local h = weft.linear(weft.layer_norm(a:transpose(2, 3):reshape(64, 512, 10000)), w1):gelu()
      assert.same({ 64, 512, 40000 }, h.shape)
      local y = weft.dropout(weft.linear(h, w2), 0.1) + x
      local loss = weft.cross_entropy(y:reshape(-1, 10000), weft.empty { 64 * 512, dtype = "int64", device = "meta" })
      assert.same({}, loss.shape)
      assert.equal("meta", loss.device)
      loss:backward()
      assert.same({ 40000, 10000 }, w1.grad.shape)
      assert.same({ 100000, 10000 }, table_.grad.shape)
      assert.equal("meta", w1.grad.device)
    end)
    -- the copies of handles alone: pools come in slabs
    assert.is_true(weft.memory().peak - peak < 2 ^ 20)
    assert.equal(live, counts.alive().live)
  end)

  it("has no values to read", function()
    local t = weft.zeros { device = "meta" }
    refused("item: a tensor on meta has no values", t.item, t)
    refused("totable: a tensor on meta has no values", t.totable, t)
    refused("data: the tensor is on meta", t.data, t)
  end)

  it("does not mix with the CPU", function()
    local a, b = weft.zeros { 2 }, weft.zeros { 2, device = "meta" }
    refused("add: a %[2%] x b %[2%]: b is on meta, a on cpu; move one with to%(%)", function() return a + b end)
    refused("copy_: the source is on meta", a.copy_, a, b)
    assert.equal("meta", (a:to "meta" + b).device)
    refused("device", b.to, b, "cpu")
  end)

  it("refuses what the CPU would refuse", function()
    local a = weft.zeros { 2, 3, device = "meta" }
    refused("inner sizes differ %(3 and 2%), float32 on meta", weft.matmul, a, a)
    refused("outside 1..2", function() return a[3] end)
  end)

  it("takes writes in place as done", function()
    local t = weft.zeros { 2, 3, device = "meta" }
    t:fill_(1)
    t:add_(t)
    t[1] = weft.zeros { 3, device = "meta" }
    assert.same({ 2, 3 }, t.shape)
    assert.same({ 5 }, weft.arange(5, { device = "meta" }).shape)
    assert.same({ 3, 2 }, weft.randn({ 3, 2, device = "meta" }).shape)
  end)
end)
