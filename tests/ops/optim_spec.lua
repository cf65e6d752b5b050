-- optim_spec.lua: what the walk does not see of the optimizer's steps: infinities, tensors that
-- can't be written, versions, many tensors, and that threads change no bit.
local ffi = require "ffi"
local weft = require "weft"
local core = require "weft.core"

local rng = weft.random.stream("optim spec", 1)
local function randn(n) return weft.randn { n, rng = rng } end

local function bytes(t) return ffi.string(t.p.v.data, t:numel() * 4) end

local function with_threads(n, fn)
  local before = weft.threads()
  weft.threads(n)
  local result = fn()
  weft.threads(before)
  return result
end

describe("optimizer steps", function()
  it("write the same bits with 1 and 2 threads", function()
    local source = { randn(70001), randn(70001), randn(70001), weft.rand { 70001, rng = rng } }
    local function step()
      local xs = {}
      for i, t in ipairs(source) do xs[i] = t:clone() end
      weft.adamw_(xs, 1e-2, 0.9, 0.98, 1e-8, 0.1, 3)
      local norm = weft.global_norm(xs)
      weft.clip_(norm, xs, 1)
      return bytes(xs[1]) .. bytes(xs[3]) .. bytes(xs[4]) .. bytes(norm)
    end
    assert.is_true(with_threads(1, step) == with_threads(2, step))
  end)

  it("take hundreds of tensors in one call", function()
    local xs, apart = {}, {}
    for i = 1, 300 do
      local n = i % 7 * 37
      for k, t in ipairs { randn(n), randn(n), randn(n), weft.rand { n, rng = rng } } do
        xs[4 * (i - 1) + k], apart[4 * (i - 1) + k] = t, t:clone()
      end
    end
    weft.adamw_(xs, 1e-2, 0.9, 0.98, 1e-8, 0.1, 3)
    for i = 0, 299 do
      weft.adamw_({ unpack(apart, 4 * i + 1, 4 * i + 4) }, 1e-2, 0.9, 0.98, 1e-8, 0.1, 3)
    end
    for i, t in ipairs(xs) do assert.is_true(bytes(t) == bytes(apart[i]), "tensor " .. i) end
  end)

  it("leave gradients alone", function()
    local xs = { randn(9), randn(9), randn(9), weft.ones { 9 } }
    local before = bytes(xs[2])
    weft.adamw_(xs, 1e-2)
    assert.equal(before, bytes(xs[2]))
  end)

  it("count as writes for the tape", function()
    local xs = { randn(9), randn(9), randn(9), weft.ones { 9 } }
    local before = core.lib.weft_version_of(xs[1].p)
    weft.adamw_(xs, 1e-2)
    assert.is_true(core.lib.weft_version_of(xs[1].p) > before)
  end)

  it("refuse tensors that are not contiguous", function()
    local x = weft.zeros { 4, 3 }
    assert.error_matches(function() weft.ema_({ x:t(), weft.zeros { 3, 4 } }, 0.9) end,
      "tensor 1 is written in place and must be contiguous")
  end)

  it("leave the buffer alone without momentum", function()
    local p, g, b = weft.ones { 2 }, weft.ones { 2 }, weft.full { 2, value = 0 / 0 }
    weft.sgd_({ p, g, b }, 0.25)
    assert.same({ 0.75, 0.75 }, p:totable())
    assert.is_true(b:totable()[1] ~= b:totable()[1])
  end)
end)

describe("the global norm", function()
  it("lets NaN and infinity through", function()
    local x = weft.ones { 40000 }
    x:data()[39999] = math.huge
    assert.equal(math.huge, weft.global_norm({ x }):item())
    x:data()[17] = 0 / 0
    local norm = weft.global_norm({ x }):item()
    assert.is_true(norm ~= norm)
  end)

  it("does not overflow where the squares would in float32", function()
    assert.near(5e30, weft.global_norm({ weft.full { 25, value = 1e30 } }):item(), 1e24)
  end)
end)

describe("clipping", function()
  it("changes no bit of what is short enough", function()
    local x = randn(100)
    local before = bytes(x)
    weft.clip_(weft.tensor(1), { x }, 1.1)
    assert.equal(before, bytes(x))
  end)

  it("does not hide a NaN norm", function()
    local x = weft.ones { 3 }
    weft.clip_(weft.tensor(0 / 0), { x }, 1)
    assert.is_true(x:totable()[1] ~= x:totable()[1])
  end)
end)
