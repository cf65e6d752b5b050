-- layout_spec.lua: moving elements on a GPU: sizes that cross tiles, blocks and tables, with the bits
-- that the CPU gives. The walk over the operator table checks small shapes of every row.
local weft = require "weft"
local gpu = require "tests.support.gpu"
local near = require "tests.support.near"

local device = gpu.device
local it = gpu.guard(it, pending)
local stream = weft.random.stream("cuda layout", 5)

local DTYPES = { "float32", "float64", "bfloat16", "int64", "uint8" }
local function randn(shape, dtype)
  local s = { rng = stream, dtype = "float32" }
  for i, n in ipairs(shape) do s[i] = n end
  return (weft.randn(s) * 50):to(dtype or "float32")
end

-- fn(tensors) gives the same bits on both devices.
local function same(what, fn, ...)
  local there = {}
  for i, t in ipairs { ... } do there[i] = t:to(device) end
  local got, want = fn(unpack(there)), fn(...)
  assert.equal(device:gsub("^cuda$", "cuda:0"), got.device, what)
  assert.is_true(near.same(got:to "cpu", want), what)
end

describe("contiguous on a GPU", function()
  it("exchanges the last two dims through tiles, whole and cut", function()
    for _, dtype in ipairs(DTYPES) do
      for _, shape in ipairs { { 33, 70 }, { 64, 128 }, { 3, 65, 8 }, { 2, 100, 66 }, { 9, 9 }, { 7, 200 }, { 1, 40, 1, 40 } } do
        same(dtype .. " [" .. table.concat(shape, ",") .. "]", function(x)
          return weft.transpose(x, -2, -1):contiguous()
        end, randn(shape, dtype))
      end
    end
  end)

  it("moves dims across others", function()
    for _, dtype in ipairs(DTYPES) do
      local x = randn({ 3, 40, 2, 36 }, dtype)
      for _, order in ipairs { { 1, 3, 2, 4 }, { 4, 3, 2, 1 }, { 1, 3, 4, 2 }, { 2, 4, 1, 3 }, { 4, 1, 2, 3 } } do
        same(dtype .. " " .. table.concat(order, ","), function(t) return t:permute(order):contiguous() end, x)
      end
    end
  end)

  it("writes turned sources into parts of a tensor", function()
    for _, dtype in ipairs(DTYPES) do
      same(dtype, function(x)
        local y = weft.zeros { 50, 49, dtype = dtype, device = x.device }
        y:narrow(1, 3, 40):narrow(2, 5, 33):copy_(weft.transpose(x, 1, 2))
        return y
      end, randn({ 33, 40 }, dtype))
    end
  end)
end)

describe("cat on a GPU", function()
  it("joins hundreds of tensors in a launch for each table of them", function()
    local xs, there = {}, {}
    for i = 1, 150 do
      xs[i] = randn { 3, i % 7, 4 }
      there[i] = xs[i]:to(device)
    end
    local y
    local launches = gpu.launches(function() y = weft.cat(there, 2) end)
    assert.is_true(near.same(y:to "cpu", weft.cat(xs, 2)))
    assert.is_true(launches <= 3, launches .. " launches")
  end)

  it("takes parts, turned and expanded tensors", function()
    for _, dtype in ipairs(DTYPES) do
      for dim = 1, 3 do
        same(dtype .. " dim " .. dim, function(a, b, c)
          return weft.cat({ a:narrow(3, 2, 6), weft.transpose(b, 2, 3), a:narrow(2, 1, 4):narrow(3, 1, 6), c:expand { 4, 4, 6 } }, dim)
        end, randn({ 4, 4, 8 }, dtype), randn({ 4, 6, 4 }, dtype), randn({ 4, 1, 1 }, dtype))
      end
    end
  end)

  it("crosses blocks at every size of unit", function()
    for _, dtype in ipairs(DTYPES) do
      for _, width in ipairs { 4096, 2049, 1026 } do
        same(dtype .. " width " .. width, function(a, b) return weft.cat({ a, b, a }, 2) end,
          randn({ 3, width }, dtype), randn({ 3, 2 * width }, dtype))
      end
    end
  end)
end)

describe("pad on a GPU", function()
  it("fills around x with a value of each dtype", function()
    for _, dtype in ipairs(DTYPES) do
      for _, pads in ipairs { { 0, 0, 1, 2, 0, 0 }, { 1, 0, 0, 0, 8, 16 }, { 0, 0, 0, 0, 16, 0 }, { 2, 1, 3, 0, 1, 1 } } do
        same(dtype .. " " .. table.concat(pads, ","), function(x) return weft.pad(x, pads, 2.75) end, randn({ 3, 5, 16 }, dtype))
      end
      same(dtype .. " turned", function(x)
        return weft.pad(weft.transpose(x, 1, 3), { 0, 0, 1, 1, 0, 4 }, -1e9)
      end, randn({ 4, 5, 8 }, dtype))
    end
  end)

  it("fills all where x is empty", function()
    same("empty", function(x) return weft.pad(x, { 1, 0, 2, 3 }, 7) end, weft.zeros { 0, 4 })
  end)
end)
