-- attention_spec.lua: attention on a GPU, bfloat16 above all, against the CPU's float64 from the
-- same rounded inputs: ragged lengths, head sizes, masks, dropout, strides.
local weft = require "weft"
local near = require "tests.support.near"

local device = os.getenv "WEFT_TEST_DEVICE" or "cpu"
local stream = weft.random.stream("attention on a gpu", 11)
local rng = { key = 0xC0AC29B7C97C50DDULL, counter = 0x3F84D5B5B5470917ULL }

local function normal(...) return weft.randn { rng = stream, dtype = "float64", ... } end

-- Ways for [B, H, N, D] to lie: the shape of what is given, and the view of it.
local layouts = {
  plain = { function(...) return ... end, function(t) return t end },
  heads_last = { function(b, h, n, d) return b, n, h, d end, function(t) return t:transpose(2, 3) end },
  columns = { function(b, h, n, d) return b, h, d, n end, function(t) return t:transpose(3, 4) end },
  -- rows that begin at no multiple of 16 bytes
  ragged = { function(b, h, n, d) return b, h, n, d + 3 end, function(t) return t:narrow(4, 2, t:size(4) - 3) end },
}

local function bool(shape, share)
  shape.rng = stream
  return weft.rand(shape):lt(share)
end

-- Output and gradients, those of float leaves behind rounded, strided views.
local function attend(leaves, dtype, view, mask, case, gradient)
  local x = {}
  for i, t in ipairs(leaves) do x[i] = view(t:requires_grad_():to(dtype)) end
  local y = weft.scaled_dot_product_attention(x[1], x[2], x[3], mask, case.causal or false, case.scale or 0, case.p or 0, rng)
  y:backward { gradient = gradient }
  return { y = y, dq = leaves[1].grad, dk = leaves[2].grad, dv = leaves[3].grad }
end

local worst = {}

local function check(dtype, tolerance, case)
  local b, h, n, m, d = case.b or 1, case.h or 2, case.n, case.m or case.n, case.d
  local layout = layouts[case.layout or "plain"]
  local function rounded(t) return t:to(dtype):to "float64" end
  local mask = case.mask and case.mask(b, h, n, m)
  if mask and mask.dtype ~= "bool" then mask = rounded(mask) end
  local gradient = rounded(normal(b, n, h, d)):transpose(2, 3)
  local here, there = {}, {}
  for i, rows in ipairs { n, m, m } do
    here[i] = rounded(normal(layout[1](b, h, rows, d)))
    there[i] = here[i]:to("float32"):to(device)
  end
  local want = attend(here, "float64", layout[2], mask, case, gradient)
  local got = attend(there, dtype, layout[2], mask and (mask.dtype == "bool" and mask or mask:to(dtype)):to(device), case,
    gradient:to(dtype):to(device))
  for _, name in ipairs { "y", "dq", "dk", "dv" } do
    local off, scale = near.difference(got[name], want[name])
    -- over a single key the gradient of scores is a difference of equal numbers, about sqrt(d)
    scale = math.max(scale, m == 1 and 1 or 0.05)
    assert(off <= tolerance * scale, ("%s of %dx%dx%d (head %d): differs by %g, largest value %g"):format(name, h, n, m, d, off, scale))
    worst[dtype] = math.max(worst[dtype] or 0, off / scale)
  end
end

local masks = {
  pairs = function(b, h, n, m) return bool({ b, h, n, m }, 0.7) end,
  keys = function(b, _, _, m) return bool({ b, 1, 1, m }, 0.6) end,
  added = function(_, h, n, m) return normal(1, h, n, m) end,
  blind = function(b, h, n, m)      -- query 2 sees nothing
    local mask = bool({ b, h, n, m }, 0.5)
    mask:select(3, 2):fill_(0)
    return mask
  end,
}

describe("attention on a GPU", function()
  if device == "cpu" then
    it("is not under test: WEFT_TEST_DEVICE names no GPU", function() assert.equal("cpu", device) end)
    return
  end

  local function walk(dtype, tolerance)
    for _, d in ipairs { 16, 32, 64, 80, 96, 128 } do
      it(("has the CPU's numbers in %s for heads of %d"):format(dtype, d), function()
        for _, n in ipairs { 1, 7, 64, 65 } do
          check(dtype, tolerance, { n = n, d = d })
          check(dtype, tolerance, { n = n, d = d, causal = true, layout = "heads_last" })
        end
      end)
    end
    for _, d in ipairs { 1, 5, 24, 130, 256 } do
      it(("has the CPU's numbers in %s for the odd head size %d"):format(dtype, d), function()
        check(dtype, tolerance, { n = 19, m = 37, d = d, p = 0.2 })
        check(dtype, tolerance, { n = 33, d = d, causal = true, mask = masks.pairs })
      end)
    end
    it(("has the CPU's numbers in %s for 257 tokens"):format(dtype), function()
      check(dtype, tolerance, { h = 1, n = 257, d = 64 })
      check(dtype, tolerance, { h = 1, n = 257, d = 64, causal = true, p = 0.1 })
    end)
    it(("has the CPU's numbers in %s for queries and keys of different lengths"):format(dtype), function()
      check(dtype, tolerance, { n = 5, m = 257, d = 64 })
      check(dtype, tolerance, { n = 130, m = 17, d = 64 })
      check(dtype, tolerance, { n = 7, m = 200, d = 32, causal = true, scale = -0.2 })
      check(dtype, tolerance, { n = 200, m = 70, d = 32, causal = true })   -- 130 queries see nothing
      check(dtype, tolerance, { b = 2, n = 1, m = 66, d = 128, causal = true })
    end)
    for name, mask in pairs(masks) do
      it(("has the CPU's numbers in %s with the mask '%s'"):format(dtype, name), function()
        check(dtype, tolerance, { b = 2, n = 65, m = 70, d = 64, mask = mask })
        check(dtype, tolerance, { n = 66, d = 80, mask = mask, causal = true, scale = -0.3 })
        check(dtype, tolerance, { n = 40, m = 129, d = 16, mask = mask, p = 0.3 })
      end)
    end
    it(("drops the same weights as the CPU in %s"):format(dtype), function()
      for _, m in ipairs { 64, 65, 66, 67 } do       -- each alignment of a row with the draws
        check(dtype, tolerance, { b = 2, n = 69, m = m, d = 32, p = 0.4 })
      end
      check(dtype, tolerance, { n = 66, m = 131, d = 128, p = 0.9, causal = true })
      check(dtype, tolerance, { n = 20, m = 9, d = 64, p = 1 })
    end)
    for layout in pairs(layouts) do
      it(("does not mind the layout '%s' in %s"):format(layout, dtype), function()
        check(dtype, tolerance, { b = 2, n = 37, m = 66, d = 64, layout = layout })
        check(dtype, tolerance, { h = 3, n = 66, m = 37, d = 48, layout = layout, causal = true })
      end)
    end
    it(("gives only the gradients that are wanted in %s"):format(dtype), function()
      local base = { normal(1, 2, 20, 32), normal(1, 2, 35, 32), normal(1, 2, 35, 32) }
      local g = normal(1, 2, 20, 32):to(dtype):to(device)
      local function leaves()
        local list = {}
        for i, t in ipairs(base) do list[i] = t:to("float32"):to(device) end
        return list
      end
      local all = attend(leaves(), dtype, layouts.plain[2], nil, {}, g)
      for i, name in ipairs { "dq", "dk", "dv" } do
        local some = leaves()
        some[i]:requires_grad_()
        weft.scaled_dot_product_attention(some[1]:to(dtype), some[2]:to(dtype), some[3]:to(dtype)):backward { gradient = g }
        assert(near.same(some[i].grad, all[name]), name)
        for j = 1, 3 do assert.equal(i == j, some[j].grad ~= nil) end
      end
    end)
  end
  walk("float32", 1e-5)
  walk("bfloat16", 0.02)

  it("lets what is not a number through, and nothing else, in bfloat16", function()
    local q, k, v = normal(1, 1, 3, 32), normal(1, 1, 70, 32), normal(1, 1, 70, 32)
    q:select(3, 2):fill_(0 / 0)
    for _, dtype in ipairs { "float32", "bfloat16" } do
      local y = weft.scaled_dot_product_attention(q:to(dtype):to(device), k:to(dtype):to(device), v:to(dtype):to(device))
      local rows = near.numbers(y)
      for i = 0, 2 do
        for c = 1, 32 do assert.equal(i == 1, rows[i * 32 + c] ~= rows[i * 32 + c]) end
      end
    end
  end)

  it("meets bfloat16's own rounding, not more", function()
    -- weights and outputs are rounded to 8 bits
    assert(worst.bfloat16 < 0.012, ("bfloat16 is off by %g of the largest value"):format(worst.bfloat16))
  end)
end)
