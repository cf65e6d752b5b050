-- index_spec.lua: what the walk does not see of reading and adding by index: every dtype, positions
-- in messages, and that threads change no bit.
local ffi = require "ffi"
local weft = require "weft"
local core = require "weft.core"

local rng = weft.random.stream("index spec", 1)

local function bytes(t)
  local v = t.p.v
  return ffi.string(v.data, tonumber(v.numel * core.lib.weft_dtype_size(v.dtype)))
end

local function with_threads(n, fn)
  local before = weft.threads()
  weft.threads(n)
  local result = fn()
  weft.threads(before)
  return result
end

describe("reading by index", function()
  local ids = weft.tensor({ 2, 0, 2, 1 }, { dtype = "int64" })

  it("takes every dtype", function()
    for dtype in ("float32 float64 bfloat16 float16 int32 int64 uint8 bool"):gmatch "%w+" do
      local x = weft.tensor { { 0, 1 }, { 1, 1 }, { 1, 0 } }:to(dtype)
      local want = { { 1, 0 }, { 0, 1 }, { 1, 0 }, { 1, 1 } }
      local rows, selected = weft.embedding(ids, x), weft.index_select(x, ids, 1)
      local gathered = weft.gather(x, ids:unsqueeze(2):expand(4, 2), 1)
      for _, y in ipairs { rows, selected, gathered } do
        assert.equal(dtype, y.dtype)
        assert.same(want, y:to("float32"):totable())
      end
    end
  end)

  it("takes int32 ids", function()
    local x = weft.tensor { { 5 }, { 6 }, { 7 } }
    assert.same({ { 7 }, { 5 }, { 7 }, { 6 } }, weft.embedding(ids:to "int32", x):totable())
  end)

  it("names the first index outside, its place and the valid interval", function()
    local bad = weft.zeros { 1000, dtype = "int64" }
    bad:data()[812], bad:data()[900] = 16390, -1
    assert.error_matches(function() weft.embedding(bad, weft.zeros { 16384, 2 }) end,
      "id 16390 outside 0%.%.16383, position 813")
    bad:data()[5] = -3
    assert.error_matches(function() weft.index_select(weft.zeros { 7, 2 }, bad, 1) end,
      "index %-3 outside 0%.%.6, position 6")
  end)
end)

describe("adding by index", function()
  it("gives the same bits with 1 and 2 threads", function()
    local dy = weft.randn { 3000, 130, rng = rng }
    local ids = weft.randint { 3000, low = 0, high = 40, rng = rng }
    local columns = weft.randint { 3000, 130, low = 0, high = 3000, rng = rng }
    local narrow = weft.randint { 3000, 130, low = 0, high = 130, rng = rng }
    local zeros = weft.zeros { 3000, 130 }
    local weight = weft.randn({ 50, 130, rng = rng }):requires_grad_()
    local calls = {
      embedding = function()
        weight:zero_grad()
        weft.sum(weft.embedding(ids, weight) * dy):backward()
        return bytes(weight.grad)
      end,
      scatter_add = function() return bytes(weft.scatter_add(zeros, columns, dy, 1)) end,
      scatter_add_rows = function() return bytes(weft.scatter_add(zeros, narrow, dy, 2)) end,
      index_add = function() return bytes(weft.index_add(zeros, ids, dy, 1)) end,
    }
    for name, call in pairs(calls) do
      assert.is_true(with_threads(1, call) == with_threads(2, call), name)
    end
  end)

  it("wraps integers as C does and keeps large ones exact", function()
    local x = weft.tensor({ 2 ^ 53 - 1, 0 }, { dtype = "int64" })
    local index = weft.tensor({ 0, 1, 0 }, { dtype = "int64" })
    local src = weft.tensor({ 1, -5, -2 }, { dtype = "int64" })
    local y = weft.scatter_add(x, index, src, 1):data()
    assert.equal(2 ^ 53 - 2, tonumber(y[0]))
    assert.equal(-5, tonumber(y[1]))
  end)

  it("sums many gradients of one row accurately", function()
    local weight = weft.zeros({ 2, 1 }):requires_grad_()
    local y = weft.embedding(weft.zeros { 100000, dtype = "int64" }, weight) * 0.1
    y:sum():backward()
    assert.near(10000, weight.grad:select(1, 1):item(), 1e-3)
  end)
end)
