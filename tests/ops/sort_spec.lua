-- sort_spec.lua: NaN, signed zeros, infinities and equal values in sort and topk.
local weft = require "weft"
local nan, inf = 0 / 0, math.huge
local device = os.getenv "WEFT_TEST_DEVICE" or "cpu"

local function tensor(value) return weft.tensor(value, { device = device }) end

describe("sort", function()
  it("puts NaN after everything, or first when descending", function()
    local x = tensor { 2, nan, -inf, inf, nan, 0 }
    local _, up = weft.sort(x)
    assert.same({ 2, 5, 0, 3, 1, 4 }, up:totable())
    local _, down = weft.sort(x, -1, true)
    assert.same({ 1, 4, 3, 0, 5, 2 }, down:totable())
  end)

  it("holds -0 and 0 for equals and leaves equals in their order", function()
    local _, indices = weft.sort(tensor { 0, -0.0, 0, -1 }, -1, true)
    assert.same({ 0, 1, 2, 3 }, indices:totable())
  end)

  it("agrees between short rows, which are merged, and long ones, which are counted", function()
    local x = weft.randint { 4000, low = -50, high = 50, rng = weft.random.stream("sort", 1) }:to(device)
    local values, indices = weft.sort(x)
    local v, at, list = values:totable(), indices:totable(), x:totable()
    for i = 1, #v do
      assert.equal(list[at[i] + 1], v[i])
      if i > 1 then assert(v[i - 1] < v[i] or (v[i - 1] == v[i] and at[i - 1] < at[i])) end
    end
  end)
end)

describe("topk", function()
  -- 16,390: so long that a GPU selects, in segments of which the last is short; many ties
  it("is the head of sort in long lists, along any dim and in every dtype", function()
    local ints = weft.randint { 2, 16390, low = -90, high = 90, rng = weft.random.stream("topk", 2) }
    for _, dtype in ipairs { "int64", "int32", "float32", "float64", device ~= "cpu" and "bfloat16" or nil } do
      local x = ints:to(dtype):to(device)
      if dtype:find "float" then x = weft.masked_fill(x, x:eq(7), nan) end
      for _, dim in ipairs { 2, 1 } do
        local y = dim == 2 and x or x:transpose(1, 2)
        for _, largest in ipairs { true, false } do
          local _, order = weft.sort((dtype == "bfloat16" and y:to "float32" or y):to "cpu", dim, largest)
          for _, k in ipairs { 1, 1000, 2049, 16390 } do
            local values, indices = weft.topk(y, k, dim, largest)
            assert.same(order:narrow(dim, 1, k):totable(), indices:totable())
            local found = weft.gather(y, indices, dim):ne(values)
            assert.equal(0, weft.logical_and(found, values:eq(values)):to("int64"):sum():item())
          end
        end
      end
    end
  end)

  it("is the head of sort, whichever way it takes", function()
    local x = weft.randint { 3, 900, low = 0, high = 40, rng = weft.random.stream("topk", 1) }:to(device)
    for _, largest in ipairs { true, false } do
      local sorted, order = weft.sort(x, 2, largest)
      for _, k in ipairs { 1, 7, 64, 65, 899 } do
        local values, indices = weft.topk(x, k, 2, largest)
        assert.same(sorted:narrow(2, 1, k):totable(), values:totable())
        assert.same(order:narrow(2, 1, k):totable(), indices:totable())
      end
    end
  end)

  it("counts NaN as the largest", function()
    local row = {}
    for i = 1, 100 do row[i] = i end
    row[51], row[71] = nan, nan
    local _, most = weft.topk(tensor(row), 3)
    assert.same({ 50, 70, 99 }, most:totable())
    local _, first = weft.topk(tensor(row), 1)
    assert.same({ 50 }, first:totable())
    local _, least = weft.topk(tensor(row), 3, 1, false)
    assert.same({ 0, 1, 2 }, least:totable())
  end)
end)
