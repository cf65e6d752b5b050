-- random_spec.lua: draws on a GPU have the CPU's bits, whatever is drawn; bfloat16 has those of
-- float32, rounded.
local weft = require "weft"
local ops = require("weft.ops").functions
local gpu = require "tests.support.gpu"
local near = require "tests.support.near"

local device = gpu.device
local it = gpu.guard(it, pending)
local rng = { key = 0x0123456789ABCDEFULL, counter = 42ULL }
local SHAPES = { { 1 }, { 2 }, { 3 }, { 4 }, { 5, 7 }, { 1030 }, { 3, 0 }, { 3001 } }

local function each(fn)
  for _, shape in ipairs(SHAPES) do fn(shape, table.concat(shape, ",")) end
end

describe("drawing on a GPU", function()
  it("gives the CPU's bits", function()
    each(function(shape, what)
      for _, dtype in ipairs { "float32", "float64" } do
        local function same(name, fn) assert.is_true(near.same(fn(device):to "cpu", fn "cpu"), ("%s %s [%s]"):format(name, dtype, what)) end
        same("rand", function(d) return ops.rand(shape, dtype, d, rng) end)
        same("randn", function(d) return ops.randn(shape, dtype, d, rng) end)
        for _, cut in ipairs { { 1, -2, 2 }, { 0.02, -2, 2 }, { 0.5, -0.2, 0.4 }, { 1, 2.5, 3 }, { 1, -math.huge, -4 } } do
          same("trunc_normal", function(d) return ops.trunc_normal(shape, cut[1], cut[2], cut[3], dtype, d, rng) end)
        end
        local x, p = ops.randn(shape, dtype, "cpu", { key = 1ULL, counter = 0ULL }), ops.rand(shape, dtype, "cpu", { key = 2ULL, counter = 0ULL })
        for _, q in ipairs { 0, 0.1, 1 / 3, 0.999999, 1 } do same("dropout", function(d) return ops.dropout(x:to(d), q, rng) end) end
        same("bernoulli", function(d) return ops.bernoulli(p:to(d), rng) end)
        same("bernoulli, turned", function(d) return ops.bernoulli(p:to(d):reshape { 1, -1 }:expand { 3, p:numel() }:transpose(1, 2), rng) end)
      end
      for _, dtype in ipairs { "float32", "float64", "int32", "int64" } do
        local got, want = ops.randint(shape, -7, 90000, dtype, device, rng), ops.randint(shape, -7, 90000, dtype, "cpu", rng)
        assert.is_true(near.same(got:to "cpu", want), dtype)
      end
    end)
    for _, n in ipairs { 0, 1, 2, 1025, 5000 } do
      assert.is_true(near.same(ops.randperm(n, device, rng):to "cpu", ops.randperm(n, "cpu", rng)))
    end
  end)

  it("draws the same indices by weight", function()
    for _, dtype in ipairs { "float32", "float64" } do
      for _, shape in ipairs { { 1, 1 }, { 3, 33 }, { 2, 300 }, { 2, 2500 }, { 1100, 4 } } do
        local w = ops.rand(shape, dtype, "cpu", { key = 3ULL, counter = 0ULL })
        w = weft.where(w:lt(0.3), weft.zeros { 1, dtype = dtype }, w) -- some that are never drawn
        w = weft.cat({ w, weft.ones { shape[1], 1, dtype = dtype } }, 2)
        for _, how in ipairs { { 1, false }, { 40, true }, { shape[2] == 300 and 60 or 1, false } } do
          local got = ops.multinomial(w:to(device), how[1], how[2], rng)
          assert.is_true(near.same(got:to "cpu", ops.multinomial(w, how[1], how[2], rng)),
            ("%s [%s], %d draws"):format(dtype, table.concat(shape, ","), how[1]))
        end
      end
    end
  end)

  it("rounds the draws of float32 to bfloat16, and never to a uniform 1", function()
    each(function(shape)
      local function call(name, dtype, d, ...)
        local n = select("#", ...)
        local list = { shape, ... }
        list[n + 2], list[n + 3], list[n + 4] = dtype, d, rng
        return ops[name](unpack(list, 1, n + 4))
      end
      assert.is_true(near.same(call("randn", "bfloat16", device):to "cpu", call("randn", "float32", "cpu"):to "bfloat16"))
      assert.is_true(near.same(call("trunc_normal", "bfloat16", device, 1, -2, 2):to "cpu",
        call("trunc_normal", "float32", "cpu", 1, -2, 2):to "bfloat16"))
      assert.is_true(near.same(call("randint", "bfloat16", device, -200, 256):to "cpu", call("randint", "float32", "cpu", -200, 256):to "bfloat16"))
      local got, want = near.numbers(call("rand", "bfloat16", device)), near.numbers(call("rand", "float32", "cpu"))
      for i = 1, #want do assert.is_true(got[i] <= want[i] and got[i] >= want[i] * (1 - 2 ^ -7)) end
      local x = call("randn", "float32", "cpu"):to "bfloat16"
      local mask = ops.dropout(x:to "float32", 0.4, rng)
      near.near(ops.dropout(x:to(device), 0.4, rng):to "cpu", mask, 2 ^ -8)
    end)
    assert.has_error(function() ops.rand({ 2 }, "bfloat16", "cpu", rng) end)
    assert.has_error(function() ops.randint({ 2 }, 0, 257, "bfloat16", device, rng) end)
  end)
end)
