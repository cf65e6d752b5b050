-- view_spec.lua: views share storage and copy nothing; copies happen only where strides force them,
-- and are counted.
local weft = require "weft"
local counts = require "tests.support.counts"
local C = require("weft.core").lib

local function shares(a, b) return C.weft_same_storage(a.p, b.p) end

-- How many copies fn made, and what it gave.
local function copies(fn)
  local before = counts.copies()
  local t = fn()
  return counts.copies() - before, t
end

local x = weft.arange(24):reshape(2, 3, 4)
local views = {
  narrow = { function() return x:narrow(3, 2, 2) end, { 2, 3, 2 }, { 12, 4, 1 }, 1 },
  select = { function() return x:select(2, -1) end, { 2, 4 }, { 12, 1 }, 8 },
  transpose = { function() return x:transpose(1, 3) end, { 4, 3, 2 }, { 1, 4, 12 }, 0 },
  permute = { function() return x:permute(3, 1, 2) end, { 4, 2, 3 }, { 1, 12, 4 }, 0 },
  expand = { function() return x:unsqueeze(1):expand(5, 2, 3, 4) end, { 5, 2, 3, 4 }, { 0, 12, 4, 1 }, 0 },
  reshape = { function() return x:reshape(6, -1) end, { 6, 4 }, { 4, 1 }, 0 },
  ["reshape of a slice"] = { function() return x:narrow(1, 2, 1):reshape(12) end, { 12 }, { 1 }, 12 },
  ["reshape that splits a strided dim"] = { function() return x:narrow(3, 1, 2):reshape(2, 3, 2, 1) end, { 2, 3, 2, 1 }, nil, 0 },
  ["reshape that joins transposed dims in order"] = { function() return x:permute(3, 1, 2):reshape(4, 6) end, { 4, 6 }, { 1, 4 }, 0 },
  unfold = { function() return x:unfold(3, 2, 1) end, { 2, 3, 3, 2 }, { 12, 4, 1, 1 }, 0 },
  ["unfold by patches"] = { function() return x:unfold(3, 2, 2):unfold(2, 3, 3) end, { 2, 1, 2, 2, 3 }, nil, 0 },
  squeeze = { function() return x:narrow(1, 2, 1):squeeze(1) end, { 3, 4 }, { 4, 1 }, 12 },
  index = { function() return x[2][1] end, { 4 }, { 1 }, 12 },
}

describe("a view", function()
  for name, case in pairs(views) do
    it(("by %s shares storage and copies nothing"):format(name), function()
      local n, y = copies(case[1])
      assert.equal(0, n)
      assert.is_true(shares(x, y))
      assert.same(case[2], y.shape)
      if case[3] then assert.same(case[3], y.strides) end
      if case[4] then assert.equal(case[4], y:contiguous():data()[0]) end
    end)
  end

  it("holds the elements that it should", function()
    assert.same({ { { 1, 2 }, { 5, 6 }, { 9, 10 } }, { { 13, 14 }, { 17, 18 }, { 21, 22 } } }, x:narrow(3, 2, 2):totable())
    assert.same({ { 0, 4, 8 }, { 12, 16, 20 } }, x:select(3, 1):totable())
    assert.same({ { 0, 1 }, { 2, 3 } }, x[1][1]:unfold(1, 2, 2):totable())
    assert.same({ { 0, 12 }, { 4, 16 }, { 8, 20 } }, x:permute(3, 2, 1)[1]:totable())
    assert.same({ 0, 12, 4, 16, 8, 20 }, x:permute(3, 2, 1)[1]:reshape(6):totable())
  end)

  it("sees writes through others, and is written through", function()
    local base = weft.zeros { 4, 4 }
    local diagonal = base:reshape(16):unfold(1, 1, 5):squeeze(2)
    diagonal:fill_(1)
    assert.same(weft.eye(4):totable(), base:totable())
    base[2]:fill_(5)
    assert.same({ 1, 5, 1, 1 }, diagonal:totable())
  end)

  it("of nothing is nothing", function()
    local empty = weft.zeros { 0, 3 }
    assert.same({ 3, 0 }, empty:t().shape)
    assert.same({ 0 }, empty:reshape(-1).shape)
    assert.same({ 0, 3 }, weft.zeros({ 2, 3 }):narrow(1, 3, 0).shape)
    assert.same({ 5, 0, 3 }, empty:expand(5, 0, 3).shape)
  end)

  it("has up to eight dims", function()
    local big = weft.arange(256):reshape(2, 2, 2, 2, 2, 2, 2, 2)
    local n, y = copies(function() return big:permute(8, 7, 6, 5, 4, 3, 2, 1) end)
    assert.equal(0, n)
    assert.same({ 1, 2, 4, 8, 16, 32, 64, 128 }, y.strides)
    local flat = y:reshape(256):totable()
    assert.same({ 0, 128, 64, 192, 32 }, { unpack(flat, 1, 5) })
    assert.equal(255, y[2][2][2][2][2][2][2][2]:item())
    assert.equal(256 * 255 / 2, (y + big):sum():item() / 2)
    assert.has_error(function() big:unsqueeze(1) end)
    assert.has_error(function() big:expand(2, 2, 2, 2, 2, 2, 2, 2, 2) end)
  end)
end)

describe("a copy", function()
  it("is made, once, by a reshape that strides can't express", function()
    local n, y = copies(function() return x:t():reshape(24) end)
    assert.equal(1, n)
    assert.is_false(shares(x, y))
    assert.same({ 0, 4, 8, 1 }, { unpack(y:totable(), 1, 4) })
  end)

  it("is gone when the kernel that wanted it returns, or refuses", function()
    local ids = weft.zeros { 2, dtype = "int32" }
    local y, before
    for _ = 1, 2 do  -- the first round makes room for handles
      before = counts.alive()
      y = weft.softmax(x:transpose(1, 3), -1)
      y:free()
      y = weft.index_select(x, ids, 1)
      y:free()
      y = x:t():reshape(24)
      y:free()
      assert.is_false(pcall(weft.index_select, x:transpose(1, 3), ids + 9, 1))
    end
    assert.same(before, counts.alive())
  end)

  it("is not made by operators that walk strides, and made by those that want rows", function()
    local w = weft.ones { 4, 4 }
    local n = copies(function()
      local _ = x:transpose(1, 3) + x:transpose(1, 3)
      _ = x:transpose(1, 2):sum(2)
      _ = weft.matmul(x:transpose(1, 2), w:t())
      _ = weft.cat({ x:transpose(1, 2), x:transpose(1, 2) }, 1)
      local q = x:reshape(2, 3, 2, 2):transpose(2, 3)
      return weft.scaled_dot_product_attention(q, q, q)
    end)
    assert.equal(0, n)
    n = copies(function() return weft.softmax(x:transpose(1, 3), -1) end)
    assert.equal(1, n)
    n = copies(function() return weft.linear(x, w) end)
    assert.equal(0, n)
  end)

  it("by contiguous() is x itself where x is in rows", function()
    assert.is_true(shares(x, x:contiguous()))
    assert.is_true(shares(x, x:narrow(1, 2, 1):contiguous()))
    assert.is_false(shares(x, x:t():contiguous()))
    assert.is_false(shares(x, x:clone()))
  end)
end)

describe("an impossible view", function()
  it("is refused with sizes", function()
    local function refused(pattern, fn)
      local ok, message = pcall(fn)
      assert.is_false(ok)
      assert.matches(pattern, message)
    end
    refused("the new shape holds 25 elements, x 24", function() x:reshape(5, 5) end)
    refused("reshape", function() x:reshape(-1, -1) end)
    refused("reshape", function() x:reshape(5, -1) end)
    refused("3 positions from position 3 on don't lie in dim 3 of size 4", function() x:narrow(3, 3, 3) end)
    refused("dim 4 outside 1..3", function() x:narrow(4, 1, 1) end)
    refused("dim 1 is listed twice", function() x:permute(1, 1, 2) end)
    refused("2 dims are listed, x has 3", function() x:permute(1, 2) end)
    refused("expand", function() x:expand(2, 5, 4) end)
    refused("squeeze", function() x:squeeze(1) end)
    refused("unfold", function() x:unfold(3, 5, 1) end)
  end)
end)
