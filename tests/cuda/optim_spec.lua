-- optim_spec.lua: optimizer steps on a GPU: many tensors in few launches, tensors that cross blocks or
-- begin at odd places, and the norm that stays on the device.
local ffi = require "ffi"
local weft = require "weft"
local C = require("weft.core").lib
local A = require "weft.args"
local gpu = require "tests.support.gpu"
local near = require "tests.support.near"

local device = gpu.device
local it = gpu.guard(it, pending)
local stream = weft.random.stream("cuda optim", 5)
local SIZES = { 1, 3, 4, 1000, 8192, 8193, 20011 }

local function randn(n, dtype) return weft.randn({ n, rng = stream, dtype = "float64" }):to(dtype) end
local function pointers(list)
  local p = ffi.new("const weft_tensor *[?]", #list)
  for i, t in ipairs(list) do p[i - 1] = t.p end
  return p, #list
end
local function moved(list)   -- a copy of each on the GPU, some of them one element behind an aligned place
  local out = {}
  for i, t in ipairs(list) do
    out[i] = i % 3 == 0 and weft.cat { weft.zeros { 1, dtype = t.dtype }, t }:to(device):narrow(1, 2, t:numel()) or t:to(device)
    out[i] = out[i].p == t.p and t:clone() or out[i]
  end
  return out
end
local function copies(list)
  local out = {}
  for i, t in ipairs(list) do out[i] = t:clone() end
  return out
end

-- Runs step(pointers, n) on copies of the tensors on both devices and compares them all.
local function agree(what, list, step, tolerance)
  local here, there = copies(list), moved(list)
  A.check(step(pointers(here)))
  A.check(step(pointers(there)))
  for i = 1, #list do near.near(there[i]:to "cpu", here[i], tolerance, ("%s, tensor %d"):format(what, i)) end
end

local function groups(kinds, dtype, positive)
  local list = {}
  for _, n in ipairs(SIZES) do
    for k = 1, kinds do
      local t = randn(n, dtype)
      list[#list + 1] = k == positive and t * t or t
    end
  end
  return list
end

describe("the optimizer on a GPU", function()
  for _, dtype in ipairs { "float32", "float64" } do
    local tolerance = dtype == "float32" and 1e-6 or 1e-14
    it("steps as the CPU does, in " .. dtype, function()
      agree("adamw_", groups(4, dtype, 4), function(p, n) return C.weft_adamw_(p, n, 1e-2, 0.9, 0.98, 1e-8, 0.1, 3) end, tolerance)
      agree("sgd_", groups(3, dtype), function(p, n) return C.weft_sgd_(p, n, 1e-2, 0, 0.1, 0) end, tolerance)
      agree("sgd_ with momentum", groups(3, dtype), function(p, n) return C.weft_sgd_(p, n, 1e-2, 0.9, 0.1, 1) end, tolerance)
      agree("ema_", groups(2, dtype), function(p, n) return C.weft_ema_(p, n, 0.97) end, tolerance)
    end)

    it("clips by a norm that it never brings to the host, in " .. dtype, function()
      local list = groups(1, dtype)
      local there = moved(list)
      local norm = A.wrap(C.weft_global_norm(pointers(there)))
      local counters = C.weft_counters_of(C.weft_device_of(device))
      local downloads = counters.downloads
      local p, n = pointers(there)
      A.check(C.weft_clip_(norm.p, p, n, 1e9))
      A.check(C.weft_clip_(norm.p, p, n, 3))
      assert.equal(downloads, counters.downloads)
      local here = A.wrap(C.weft_global_norm(pointers(list)))
      near.near(norm:to "cpu", here, 1e-7)
      for i, t in ipairs(there) do near.near(t:to "cpu", list[i] * (3 / (here:item() + 1e-6)), 1e-6) end
    end)
  end

  it("keeps a float32 master for bfloat16, as the CPU does", function()
    local list = {}
    for _, n in ipairs(SIZES) do
      local master, v = randn(n, "float32"), randn(n, "float32")
      for _, t in ipairs { master:to "bfloat16", randn(n, "bfloat16"), randn(n, "float32"), v * v, master } do list[#list + 1] = t end
    end
    local here, there = copies(list), moved(list)
    for _, set in ipairs { here, there } do
      local p, n = pointers(set)
      A.check(C.weft_adamw_mixed_(p, n, 1e-2, 0.9, 0.98, 1e-8, 0.1, 3))
    end
    for i = 1, #list do
      near.near(there[i]:to "cpu", here[i], i % 5 == 1 and 2 ^ -8 or 1e-6)
      if i % 5 == 0 then assert.is_true(near.same(there[i - 4]:to "cpu", there[i]:to("bfloat16"):to "cpu")) end
    end
  end)

  it("steps in bfloat16 within its rounding", function()
    local list = groups(3, "bfloat16")
    local there = moved(list)
    local wide = {}
    for i, t in ipairs(list) do wide[i] = t:to "float64" end
    local q = pointers(wide)
    A.check(C.weft_sgd_(q, #wide, 1e-2, 0.9, 0.1, 0))
    local p, n = pointers(there)
    A.check(C.weft_sgd_(p, n, 1e-2, 0.9, 0.1, 0))
    for i = 1, #list do near.near(there[i]:to "cpu", wide[i], 2 ^ -8) end
  end)

  it("moves hundreds of tensors in one launch, and more than a table holds in two", function()
    local list = {}
    for i = 1, 4 * 300 do list[i] = weft.ones { 5, device = device } end
    local p, n = pointers(list)
    local function step(count) A.check(C.weft_adamw_(p, count, 1e-2, 0.9, 0.98, 1e-8, 0, 1)) end
    assert.equal(1, gpu.launches(function() step(n) end))
    local norm
    assert.equal(2, gpu.launches(function() norm = A.wrap(C.weft_global_norm(p, n)) end))
    local want = 0
    for _, t in ipairs(list) do
      for _, x in ipairs(near.numbers(t)) do want = want + x * x end
    end
    near.near(norm:to "cpu", weft.tensor(math.sqrt(want)), 1e-6)

    for i = #list + 1, 1700 do list[i] = weft.full { 2, value = 3, device = device } end
    p, n = pointers(list)
    assert.equal(3, gpu.launches(function() norm = A.wrap(C.weft_global_norm(p, n)) end))
    near.near(norm:to "cpu", weft.tensor(math.sqrt(want + 500 * 18)), 1e-6)
  end)
end)
