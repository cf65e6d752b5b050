-- index_spec.lua: reading and adding by index on a GPU: sizes that cross blocks, pieces and the sort
-- of one block, heavy repetition, and sums in the order of the index.
local weft = require "weft"
local C = require("weft.core").lib
local A = require "weft.args"
local gpu = require "tests.support.gpu"
local near = require "tests.support.near"

local device = gpu.device
local it = gpu.guard(it, pending)
local stream = weft.random.stream("cuda index", 5)

local function spec(shape, extra)
  local s = { rng = stream, dtype = "float32" }
  for i, n in ipairs(shape) do s[i] = n end
  for k, v in pairs(extra or {}) do s[k] = v end
  return s
end
local function randn(shape, dtype) return weft.randn(spec(shape)):to(dtype or "float32") end
local function ids(shape, n) return weft.randint(spec(shape, { dtype = "int64", low = 0, high = n })) end

-- the row of the table has no name in Lua
local function embedding_backward(index, dy, rows)
  local handle = C.weft_embedding_backward(index.p, dy.p, rows)
  if handle == nil then A.fail() end
  return A.wrap(handle)
end

describe("embedding_backward on a GPU", function()
  it("adds rows up whatever pieces their positions fall into", function()
    for _, width in ipairs { 8, 5 } do
      for _, rows in ipairs { 1, 3, 40, 1000 } do
        for _, n in ipairs { 1, 15, 16, 17, 33, 300 } do
          local index, dy = ids({ n }, rows), randn({ n, width }, "float64")
          near.near(embedding_backward(index:to(device), dy:to(device), rows):to "cpu", embedding_backward(index, dy, rows), 1e-13,
            ("%d ids of %d, width %d"):format(n, rows, width))
        end
      end
    end
  end)

  it("sorts more ids than one block holds, padding among them", function()
    local n, rows = 20000, 700
    local index, dy = ids({ n }, rows), randn({ n, 2 }, "float64")
    index = weft.where(ids({ n }, 2):eq(0), index, weft.zeros { n, dtype = "int64" } + 3)
    near.near(embedding_backward(index:to(device), dy:to(device), rows):to "cpu", embedding_backward(index, dy, rows), 1e-12)
  end)

  it("sums bfloat16 in float32 and rounds once", function()
    local index, dy = ids({ 400 }, 3), randn({ 400, 16 }, "bfloat16")
    local got = embedding_backward(index:to(device), dy:to(device), 3)
    assert.equal("bfloat16", got.dtype)
    local want = embedding_backward(index, dy:to "float64", 3)
    near.near(got:to "cpu", want, 2 ^ -8)
    near.near(got:to "cpu", want:to "bfloat16", 2 ^ -8)
  end)
end)

describe("scatter_add and index_add on a GPU", function()
  it("give the CPU's bits where places repeat", function()
    for _, dtype in ipairs { "float32", "float64", "int32", "int64" } do
      -- few long lines, many short ones, and lines of another size than x's
      for _, case in ipairs { { { 7 }, { 500 }, 1 }, { { 40, 300 }, { 20, 300 }, 1 }, { { 5, 6, 3 }, { 4, 90, 2 }, 2 } } do
        local shape, many, dim = unpack(case)
        local x, src, index = (randn(shape) * 100):to(dtype), (randn(many) * 100):to(dtype), ids(many, shape[dim])
        local want = weft.scatter_add(x, index, src, dim)
        local got = weft.scatter_add(x:to(device), index:to(device), src:to(device), dim)
        assert.is_true(near.same(got:to "cpu", want), dtype .. " scatter_add [" .. table.concat(many, ",") .. "]")
      end
      for _, inner in ipairs { 1, 8, 9 } do
        local x, src, index = (randn { 2, 5, inner } * 100):to(dtype), (randn { 2, 70, inner } * 100):to(dtype), ids({ 70 }, 5)
        local want = weft.index_add(x, index, src, 2)
        local got = weft.index_add(x:to(device), index:to(device), src:to(device), 2)
        assert.is_true(near.same(got:to "cpu", want), dtype .. " index_add, inner " .. inner)
      end
    end
  end)

  it("round a sum of bfloat16 once", function()
    local x, src, index = randn({ 3 }, "bfloat16"), randn({ 600 }, "bfloat16"), ids({ 600 }, 3)
    local want = weft.scatter_add(x:to "float64", index, src:to "float64", 1)
    for _, op in ipairs { weft.scatter_add, function(a, i, b, dim) return weft.index_add(a, i, b, dim) end } do
      near.near(op(x:to(device), index:to(device), src:to(device), 1):to "cpu", want, 2 ^ -8)
    end
  end)
end)

describe("reading by index on a GPU", function()
  it("moves stretches of every size of unit", function()
    for _, dtype in ipairs { "float32", "float64", "bfloat16", "uint8" } do
      for _, width in ipairs { 1, 2, 3, 4, 8, 32, 67 } do
        local x, index = randn({ 3, 9, width }, dtype), ids({ 25 }, 9)
        assert.is_true(near.same(weft.index_select(x:to(device), index:to(device), 2):to "cpu", weft.index_select(x, index, 2)))
        assert.is_true(near.same(weft.gather(x:to(device), ids({ 3, 4, 1 }, 9):to(device) * 0 + 2, 2):to "cpu",
          weft.gather(x, weft.full { 3, 4, 1, value = 2, dtype = "int64" }, 2)))
      end
    end
  end)

  it("tells of an index out of range at the next wait, and of what is allowed", function()
    local w, index = randn { 5, 4 }, weft.tensor({ 1, 7, 2 }, { dtype = "int64" })
    local ok, message = pcall(function() return weft.embedding(index:to(device), w:to(device)):to "cpu" end)
    assert.is_false(ok)
    assert.matches("id 7 outside 0%.%.4, position 2", message)
    -- and only once
    assert.equal(4, weft.embedding(index:clamp(0, 4):to(device), w:to(device)):to("cpu").shape[2])
  end)
end)
