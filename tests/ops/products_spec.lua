-- products_spec.lua: what products, attention and convolution promise beside their values: the same
-- bits in any batch and for any number of threads, no copies, one rule of dropout. Values are in
-- tests/ops/cases.
local ffi = require "ffi"
local weft = require "weft"
local state = require("weft.core").state
local near = require("tests.support.near").near

local function stream(name) return weft.random.stream("products " .. name, 5) end
local rng = { key = 0x9E3779B97F4A7C15ULL, counter = 3ULL }

local function randn(name, shape)
  shape.rng = stream(name)
  return weft.randn(shape)
end

-- Whether two float tensors hold the same bits.
local function same_bits(a, b)
  a, b = a:detach():contiguous(), b:detach():contiguous()
  assert.equal(a:numel(), b:numel())
  return ffi.C.memcmp(a:data(), b:data(), a:numel() * (a.dtype == "float64" and 8 or 4)) == 0
end

ffi.cdef "int memcmp(const void *a, const void *b, size_t n);"

local function with_threads(n, fn)
  local was = weft.threads()
  weft.threads(n)
  local result = { pcall(fn) }
  weft.threads(was)
  if not result[1] then error(result[2], 0) end
  return unpack(result, 2)
end

describe("a picture in a batch", function()
  local function check(name, x, fn)
    local batch = fn(x)
    for i = 1, x:size(1) do
      assert.is_true(same_bits(batch:narrow(1, i, 1), fn(x:narrow(1, i, 1))), name .. ": picture " .. i)
    end
  end

  it("gets the features it gets alone however few positions it has", function()
    for _, n in ipairs { 2, 3, 5, 7, 17, 50, 63 } do
      for _, out in ipairs { 8, 30, 300 } do
        local x, w, b = randn("few", { 9, n, 80 }), randn("w", { out, 80 }), randn("b", { out })
        check(("linear of %d to %d"):format(n, out), x, function(t) return weft.linear(t, w, b) end)
        local la, lb = randn("la", { 5, 80 }), randn("lb", { out, 5 })
        check(("lora_linear of %d to %d"):format(n, out), x, function(t) return weft.lora_linear(t, w, b, la, lb, 2) end)
        x = x:to "float64"
        check(("float64 linear of %d to %d"):format(n, out), x, function(t) return weft.linear(t, w:to(x.dtype), b:to(x.dtype)) end)
        check(("float64 lora_linear of %d to %d"):format(n, out), x, function(t)
          return weft.lora_linear(t, w:to(x.dtype), b:to(x.dtype), la:to(x.dtype), lb:to(x.dtype), 2)
        end)
      end
      local x = randn("few heads", { 9, n, 2, 24 })
      check("attention of " .. n, x, function(t)
        local h = t:transpose(2, 3)
        return weft.scaled_dot_product_attention(h, h, h)
      end)
      check("layer_norm of " .. n, randn("few rows", { 9, n, 50 }), function(t) return weft.layer_norm(t) end)
    end
  end)

  it("gets the features it gets alone from a linear layer", function()
    -- sizes at which both single pictures and batches are cut into tiles
    local w, b = randn("w", { 300, 80 }), randn("b", { 300 })
    check("linear", randn("x", { 5, 101, 80 }), function(x) return weft.linear(x, w, b) end)
    local narrow = randn("narrow", { 17, 80 })
    check("narrow linear", randn("x", { 9, 257, 80 }), function(x) return weft.linear(x, narrow) end)
  end)

  it("gets the features it gets alone from a LoRA layer", function()
    local w, a, b = randn("w", { 300, 80 }), randn("a", { 8, 80 }), randn("b", { 300, 8 })
    check("lora_linear", randn("x", { 5, 101, 80 }), function(x) return weft.lora_linear(x, w, nil, a, b, 2) end)
  end)

  it("gets the features it gets alone from a convolution", function()
    local w, b = randn("w", { 40, 3, 7, 7 }), randn("b", { 40 })
    check("conv2d", randn("x", { 3, 3, 84, 98 }), function(x) return weft.conv2d(x, w, b, 7, 7) end)
  end)

  it("gets the features it gets alone from attention", function()
    local k = randn("k", { 3, 201, 2, 24 })
    check("attention", k, function(x)
      local h = x:transpose(2, 3)
      return weft.scaled_dot_product_attention(h, h, h)
    end)
  end)
end)

describe("threads", function()
  -- Output and gradients of fn at float32 leaves.
  local function everything(fn, leaves)
    for _, t in ipairs(leaves) do t:requires_grad_():zero_grad() end
    local y = fn(unpack(leaves))
    local out = { y:detach() }
    local shape = y.shape
    shape.rng = stream "weights"
    y:backward { gradient = weft.randn(shape) }
    for _, t in ipairs(leaves) do out[#out + 1] = t.grad end
    return out
  end

  local function check(fn, leaves)
    local one = with_threads(1, function() return everything(fn, leaves) end)
    for _, n in ipairs { 2, 5 } do
      local many = with_threads(n, function() return everything(fn, leaves) end)
      for i, t in ipairs(one) do assert.is_true(same_bits(t, many[i]), ("result %d, %d threads"):format(i, n)) end
    end
  end

  it("do not change a matrix product", function()
    check(weft.matmul, { randn("a", { 3, 150, 90 }), randn("b", { 90, 170 }) })
  end)

  it("do not change a LoRA layer with dropout", function()
    check(function(x, w, b, la, lb) return weft.lora_linear(x, w, b, la, lb, 0.5, 0.3, rng) end,
      { randn("x", { 2, 130, 70 }), randn("w", { 150, 70 }), randn("b", { 150 }), randn("la", { 6, 70 }), randn("lb", { 150, 6 }) })
  end)

  it("do not change attention, many heads or few", function()
    local function attend(q, k, v) return weft.scaled_dot_product_attention(q, k, v, nil, true, 0, 0.1, rng) end
    check(attend, { randn("q", { 2, 9, 60, 16 }), randn("k", { 2, 9, 70, 16 }), randn("v", { 2, 9, 70, 16 }) })
    check(attend, { randn("q", { 1, 1, 400, 16 }), randn("k", { 1, 1, 400, 16 }), randn("v", { 1, 1, 400, 16 }) })
  end)

  it("do not change a convolution", function()
    check(function(x, w, b) return weft.conv2d(x, w, b, 1, 1, 1, 1) end,
      { randn("x", { 2, 9, 20, 21 }), randn("w", { 12, 9, 3, 3 }), randn("b", { 12 }) })
  end)
end)

describe("hot paths", function()
  local function copies(fn)
    local before = tonumber(state.copies)
    fn()
    return tonumber(state.copies) - before
  end

  it("multiply transposed operands as they lie", function()
    local a, b = randn("a", { 40, 30 }), randn("b", { 50, 40 })
    assert.equal(0, copies(function() weft.matmul(a:transpose(1, 2), b:transpose(1, 2)) end))
  end)

  it("multiply rows that lie apart as they lie, forward to the same bits, and backward", function()
    for _, dtype in ipairs { "float32", "float64" } do
      for _, out in ipairs { 3, 40 } do
        local x, w, b = randn("apart x", { 5, 19, 33 }):to(dtype), randn("w", { out, 33 }):to(dtype), randn("b", { out }):to(dtype)
        local dy = randn("apart dy", { 5, 19, out }):to(dtype)
        -- rows of a larger tensor, with something before and after each; the same row again and again; blocks that overlap
        local wide = weft.zeros { 5, 23, 40, dtype = dtype }:narrow(2, 3, 19):narrow(3, 5, 33)
        wide:copy_(x)
        local same = x:narrow(2, 1, 1):expand(5, 19, 33)
        local overlapping = x:reshape(-1):narrow(1, 1, 33 * 23):unfold(1, 33 * 19, 33):reshape(5, 19, 33)
        for name, view in pairs { wide = wide, same = same, overlapping = overlapping } do
          local function both(t, gradient)
            t = t:detach():requires_grad_()
            local v = w:detach():requires_grad_()
            local y = weft.linear(t, v, b)
            y:backward { gradient = gradient }
            return { y, t.grad, v.grad }
          end
          local far = weft.zeros { 5, 20, out + 1, dtype = dtype }:narrow(2, 2, 19):narrow(3, 1, out)
          far:copy_(dy)
          local got
          assert.equal(0, copies(function() got = both(view, far) end), name)
          local want = both(view:contiguous(), dy)
          assert.is_true(same_bits(want[1], got[1]), name)
          for i = 2, 3 do near(got[i], want[i], dtype == "float32" and 1e-5 or 1e-13, name .. " " .. i) end
        end
      end
    end
  end)

  it("attend over heads that are views, and give heads back that way", function()
    local x = randn("x", { 2, 50, 3, 16 })
    local q = x:transpose(2, 3)
    local y
    assert.equal(0, copies(function() y = weft.scaled_dot_product_attention(q, q, q) end))
    assert.is_true(y:transpose(2, 3):is_contiguous())
  end)

  it("turn heads that are views, and keep their order", function()
    local x, angles = randn("x", { 2, 50, 3, 16 }), randn("angles", { 50, 8 })
    local y
    assert.equal(0, copies(function() y = weft.rotary(x:transpose(2, 3), angles:cos(), angles:sin()) end))
    assert.is_true(y:transpose(2, 3):is_contiguous())
  end)
end)

describe("a LoRA layer", function()
  it("drops what the dropout operator drops", function()
    local n = 37
    local x, zero, eye = randn("x", { 11, n }), weft.zeros { n, n }, weft.zeros { n, n }
    for i = 1, n do eye:select(1, i):select(1, i):fill_(1) end
    local y = weft.lora_linear(x, zero, nil, eye, eye, 1, 0.4, rng)
    assert.is_true(same_bits(y, weft.dropout(x, 0.4, rng)))
  end)

  it("keeps its input only for a gradient that needs it", function()
    local C = require("weft.core").lib
    local x, w = randn("x", { 64, 512 }):requires_grad_(), randn("w", { 8, 512 })
    local a, b = randn("a", { 4, 512 }), randn("b", { 8, 4 })
    local before = tonumber(C.weft_tape_bytes())
    local y = weft.linear(x, w)
    local frozen = tonumber(C.weft_tape_bytes()) - before
    assert.is_true(frozen < 64 * 512 * 4, "a frozen layer keeps x")
    local z = weft.lora_linear(x, w, nil, a, b:requires_grad_(), 1)
    assert.is_true(tonumber(C.weft_tape_bytes()) - before - frozen < 64 * 512 * 4, "a gradient of B alone keeps x")
    assert.is_truthy(y and z)
  end)
end)

describe("attention", function()
  it("refuses a gradient of its mask", function()
    local q = randn("q", { 1, 1, 3, 4 })
    local mask = weft.zeros { 3, 3 }
    mask:requires_grad_()
    local y = weft.scaled_dot_product_attention(q, q, q, mask):sum()
    assert.has_error(function() y:backward() end)
    local ok, message = pcall(function() weft.scaled_dot_product_attention(q, q, q, mask):sum():backward() end)
    assert.is_false(ok)
    assert.matches("mask has no gradient", message)
  end)

  it("shows a NaN instead of hiding it as an empty row", function()
    local q, k = weft.full { 1, 1, 2, 4, value = 0 / 0 }, randn("k", { 1, 1, 3, 4 })
    local y = weft.scaled_dot_product_attention(q, k, k):sum():item()
    assert.is_true(y ~= y)
  end)
end)

describe("position tables", function()
  it("are resized as elsewhere, by each of the three rules", function()
    local file = assert(require("weft.io.safetensors").open "tests/golden/pos_interp.safetensors")
    local table_ = assert(file:tensor "table"):narrow(2, 2, 37 * 37):reshape { 1, 37, 37, 8 }:permute { 1, 4, 2, 3 }
    for _, name in ipairs(file.names) do
      local rule, h, w = name:match "^(%a+)%.(%d+)x(%d+)$"
      if rule then
        h, w = tonumber(h), tonumber(w)
        local offset = rule == "offset"
        local y = weft.interpolate(table_, h, w, offset and (h + 0.1) / 37 or 0, offset and (w + 0.1) / 37 or 0, rule == "antialias")
        near(y:permute { 1, 3, 4, 2 }:reshape { 1, h * w, 8 }, assert(file:tensor(name)), 5e-6, name)
      end
    end
  end)
end)
