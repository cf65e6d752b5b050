-- products_spec.lua: products, convolution and resizing on a GPU give what the CPU gives: sizes that
-- are no one's tile, operands that no library takes as they lie, gradients, bfloat16; and how many
-- kernels they start.
local ffi = require "ffi"
local weft = require "weft"
local gpu = require "tests.support.gpu"
local near = require("tests.support.near").near

local device = gpu.device
local it = gpu.guard(it, pending)
local rng = { key = 0x13198A2E03707344ULL, counter = 5ULL }

local function randn(name, shape)
  shape.rng, shape.dtype = weft.random.stream("device products " .. name, 2), "float64"
  return weft.randn(shape)
end

-- fn(inputs) and its gradients by the inputs in `wanted`, in a dtype, on a device.
local function run(fn, inputs, where, dtype, wanted)
  local leaves, copies = {}, {}
  for i, t in ipairs(inputs) do    -- leaves of bfloat16 layers are float32
    leaves[i] = t:to(dtype == "float64" and dtype or "float32"):to(where):clone()
    if wanted and wanted[i] then leaves[i]:requires_grad_() end
    copies[i] = leaves[i]:to(dtype)
  end
  local y = fn(unpack(copies))
  local out = { y }
  if wanted then
    local g = randn("gradient", y.shape):to(dtype):to(where)
    y:backward { gradient = g }
    for i, t in ipairs(leaves) do out[#out + 1] = wanted[i] and t.grad or nil end
  end
  return out
end

local function check(name, fn, inputs, wanted)
  local want = run(fn, inputs, "cpu", "float64", wanted)
  for dtype, tolerance in pairs { float64 = 1e-12, float32 = 2e-5, bfloat16 = 3e-2 } do
    local got = run(fn, inputs, device, dtype, wanted)
    for i, w in ipairs(want) do
      assert.equal(i > 1 and dtype == "bfloat16" and "float32" or dtype, got[i].dtype)
      near(got[i], w, tolerance, ("%s, %s, result %d"):format(name, dtype, i))
    end
  end
end

describe("on a GPU", function()
  it("matmul takes heads that were permuted, shared sides and rows far apart", function()
    check("heads", function(q, k)
      return weft.matmul(q:transpose(2, 3), k:permute(1, 3, 4, 2))
    end, { randn("q", { 3, 5, 2, 7 }), randn("k", { 3, 6, 2, 7 }) })
    check("many leading dims", function(q, k)
      return weft.matmul(q:transpose(2, 3), k:permute(1, 3, 4, 2))
    end, { randn("q", { 9, 4, 12, 3 }), randn("k", { 9, 5, 12, 3 }) })
    check("both sides repeated", function(a, b)
      return weft.matmul(a:unsqueeze(2):expand(9, 10, 4, 3), b:unsqueeze(1):expand(9, 10, 3, 2))
    end, { randn("a", { 9, 4, 3 }), randn("b", { 10, 3, 2 }) })
    check("every other column", function(a, b)
      return weft.matmul(a:unfold(2, 1, 2):select(3, 1), b:unfold(1, 1, 2):select(3, 1))
    end, { randn("a", { 5, 8 }), randn("b", { 8, 3 }) })
    check("one row of a wider matrix", function(a, b) return weft.matmul(a:narrow(1, 2, 1), b) end,
      { randn("a", { 4, 7 }), randn("b", { 7, 3 }) })
    check("a repeated row", function(a, b) return weft.matmul(a:expand(6, 7), b) end,
      { randn("a", { 1, 7 }), randn("b", { 7, 3 }) })
  end)

  it("linear layers add a bias that lies anywhere", function()
    check("linear", function(x, w, b) return weft.linear(x, w, b:narrow(1, 2, 33)) end,
      { randn("x", { 3, 41, 17 }), randn("w", { 33, 17 }), randn("b", { 40 }) })
  end)

  if device == "cuda-sim" then
    it("products are right where the library has no algorithm for them", function()
      ffi.cdef "int setenv(const char *name, const char *value, int overwrite); int unsetenv(const char *name);"
      for _, what in ipairs { "all", "bias" } do
        ffi.C.setenv("WEFT_SIM_REFUSE", what, 1)
        local ok, message = pcall(function()
          check("linear, " .. what, function(x, w, b) return weft.linear(x, w, b) end,
            { randn("x", { 3, 41, 17 }), randn("w", { 70, 17 }), randn("b", { 70 }) })
          check("both sides turned, " .. what, function(a, b) return weft.matmul(a:transpose(2, 3), b:transpose(1, 2)) end,
            { randn("a", { 3, 35, 66 }), randn("b", { 65, 35 }) })
          check("adapters, " .. what, function(x, w, a, b) return weft.lora_linear(x, w, nil, a, b, 2) end,
            { randn("x", { 9, 18 }), randn("w", { 7, 18 }), randn("a", { 3, 18 }), randn("b", { 7, 3 }) }, { true, true, true, true })
        end)
        ffi.C.unsetenv "WEFT_SIM_REFUSE"
        assert(ok, message)
      end
    end)
  end

  it("LoRA layers have their gradients, all of them or some", function()
    local inputs = { randn("x", { 2, 71, 40 }), randn("w", { 24, 40 }), randn("bias", { 24 }), randn("a", { 5, 40 }), randn("b", { 24, 5 }) }
    for _, p in ipairs { 0, 0.3, 1 } do
      local function layer(x, w, bias, a, b) return weft.lora_linear(x, w, bias, a, b, 0.5, p, rng) end
      check("p = " .. p, layer, inputs, { true, true, true, true, true })
      check("adapters, p = " .. p, layer, inputs, { false, false, false, true, true })
      check("x, p = " .. p, layer, inputs, { true, false, false, false, false })
    end
    local odd = { randn("x", { 3, 7 }), randn("w", { 3, 7 }), randn("bias", { 3 }), randn("a", { 2, 7 }), randn("b", { 3, 2 }) }
    check("odd sizes", function(x, w, bias, a, b) return weft.lora_linear(x, w, bias, a, b, 1, 0.5, rng) end, odd,
      { true, true, true, true, true })
  end)

  it("LoRA layers have their gradients under dropout over many rows, which are added up in pieces", function()
    local function layer(x, w, a, b) return weft.lora_linear(x, w, nil, a, b, 0.5, 0.3, rng) end
    for _, c in ipairs { { 543, 40, 8 }, { 543, 72, 66 }, { 300, 37, 3 }, { 8200, 8, 8 } } do
      local rows, size, rank = unpack(c)
      local name = ("%d rows of %d, rank %d"):format(rows, size, rank)
      check(name, layer, { randn("x " .. name, { rows, size }), randn("w " .. name, { 8, size }), randn("a " .. name, { rank, size }),
        randn("b " .. name, { 8, rank }) }, { true, false, true, true })
    end
  end)

  it("LoRA layers start few kernels, and none for what is frozen", function()
    local x, w, a, b = randn("x", { 64, 32 }):to(device), randn("w", { 24, 32 }):to(device), randn("a", { 4, 32 }):to(device), randn("b", { 24, 4 }):to(device)
    local y
    assert.equal(2, gpu.launches(function() weft.lora_linear(x, w, nil, a, b) end))
    assert.equal(2, gpu.launches(function() weft.lora_linear(x, w, nil, a, b, 1, 0.5, rng) end))
    local g = randn("g", { 64, 24 }):to(device)
    -- the adapters: dy B, dA, dB
    a:requires_grad_()
    b:requires_grad_()
    y = weft.lora_linear(x, w, nil, a, b)
    assert.equal(3, gpu.launches(function() y:backward { gradient = g } end))
    -- x too: dy W, and the low-rank part onto it
    a:zero_grad()
    b:zero_grad()
    x:requires_grad_()
    y = weft.lora_linear(x, w, nil, a, b)
    assert.equal(4, gpu.launches(function() y:backward { gradient = g } end))
    -- masks are drawn where they are applied
    for _, t in ipairs { x, a, b } do t:zero_grad() end
    y = weft.lora_linear(x, w, nil, a, b, 1, 0.5, rng)
    assert.equal(4, gpu.launches(function() y:backward { gradient = g } end))
  end)

  it("a batch of products is one call, and so is a shared right side", function()
    local a, b, c = randn("a", { 3, 4, 5, 6 }):to(device), randn("b", { 3, 4, 6, 2 }):to(device), randn("c", { 6, 7 }):to(device)
    assert.equal(1, gpu.launches(function() weft.matmul(a, b) end))
    assert.equal(1, gpu.launches(function() weft.matmul(a, c) end))
    local turned = weft.transpose(b, -2, -1):contiguous()
    assert.equal(1, gpu.launches(function() weft.matmul(a, weft.transpose(turned, -2, -1)) end))
  end)

  it("convolutions have their gradients: groups, strides, padding, pictures that patches don't cover", function()
    local function conv(...)
      local rest = { ... }
      return function(x, w) return weft.conv2d(x, w, nil, unpack(rest)) end
    end
    check("patches", conv(4, 4), { randn("x", { 5, 3, 13, 9 }), randn("w", { 6, 3, 4, 4 }) }, { true, true })
    check("wide steps", conv(5, 6), { randn("x", { 2, 3, 13, 23 }), randn("w", { 6, 3, 4, 5 }) }, { true, true })
    check("overlapping", conv(1, 1, 1, 1), { randn("x", { 9, 5, 7, 9 }), randn("w", { 6, 5, 3, 3 }) }, { true, true })
    check("step 2", conv(2, 2, 1, 1), { randn("x", { 3, 4, 8, 7 }), randn("w", { 6, 4, 3, 3 }) }, { true, true })
    check("two groups", conv(1, 2, 1, 0, 2), { randn("x", { 3, 6, 7, 7 }), randn("w", { 4, 3, 2, 3 }) }, { true, true })
    check("by channel", conv(1, 1, 1, 1, 8), { randn("x", { 2, 8, 7, 7 }), randn("w", { 8, 1, 3, 3 }) }, { true, true })
    check("points", conv(), { randn("x", { 2, 5, 3, 3 }), randn("w", { 7, 5, 1, 1 }) }, { true, true })
    check("with a bias", function(x, w, b) return weft.conv2d(x, w, b, 4, 4) end,
      { randn("x", { 5, 3, 16, 16 }), randn("w", { 6, 3, 4, 4 }), randn("b", { 6 }) })
    check("with a bias, overlapping", function(x, w, b) return weft.conv2d(x, w, b, 1, 1, 1, 1, 2) end,
      { randn("x", { 5, 4, 6, 5 }), randn("w", { 6, 2, 3, 3 }), randn("b", { 6 }) })
  end)

  it("pictures are resized, and gradients go the same way back", function()
    local x = randn("x", { 2, 3, 9, 14 })
    for name, size in pairs { larger = { 13, 31 }, smaller = { 4, 5 }, mixed = { 20, 3 }, one = { 1, 1 } } do
      check(name, function(t) return weft.interpolate(t, size[1], size[2]) end, { x }, { true })
      check(name .. ", antialiased", function(t) return weft.interpolate(t, size[1], size[2], 0, 0, true) end, { x }, { true })
    end
    check("given scales", function(t) return weft.interpolate(t, 12, 12, 0.5, 2, true) end, { x }, { true })
  end)
end)
