-- norm_spec.lua: threads, accuracy and corners of layer_norm, rms_norm and normalize.
local weft = require "weft"

local function gradients(fn, x, ...)
  local leaves = {}
  for i, t in ipairs { x, ... } do leaves[i] = t:detach():clone():requires_grad_() end
  local weights = weft.randn { x:size(1), x:size(2), rng = weft.random.stream("norm weights", 1) }
  local loss = (fn(unpack(leaves)) * weights):sum()
  loss:backward()
  local out = {}
  for i, t in ipairs(leaves) do out[i] = t.grad:totable() end
  return out
end

describe("norms", function()
  it("have gradients of the same bits whatever the number of threads", function()
    local threads = weft.threads()
    local stream = weft.random.stream("norm", 1)
    local x, w, b = weft.randn { 900, 70, rng = stream }, weft.randn { 70, rng = stream }, weft.randn { 70, rng = stream }
    weft.threads(1)
    local layer, rms = gradients(weft.layer_norm, x, w, b), gradients(weft.rms_norm, x, w)
    for _, n in ipairs { 2, 3 } do
      weft.threads(n)
      assert.same(layer, gradients(weft.layer_norm, x, w, b))
      assert.same(rms, gradients(weft.rms_norm, x, w))
    end
    weft.threads(threads)
  end)

  it("keep float32 digits of rows far from zero", function()
    local x = weft.rand { 4, 768, rng = weft.random.stream("norm", 2) } + 1000
    local exact = weft.layer_norm(x:to "float64"):totable()
    local got = weft.layer_norm(x):totable()
    for r = 1, 4 do
      for i = 1, 768 do assert.near(exact[r][i], got[r][i], 1e-3) end
    end
  end)

  it("do not divide by zero", function()
    local zeros = weft.zeros { 2, 3 }
    assert.same({ { 0, 0, 0 }, { 0, 0, 0 } }, weft.layer_norm(zeros):totable())
    assert.same({ { 0, 0, 0 }, { 0, 0, 0 } }, weft.rms_norm(zeros):totable())
    assert.same({ { 0, 0, 0 }, { 0, 0, 0 } }, weft.normalize(zeros):totable())
  end)

  it("normalise float32 whose squares overflow", function()
    local y = weft.normalize(weft.tensor { 3e30, 4e30 }):totable()
    assert.near(0.6, y[1], 1e-6)
    assert.near(0.8, y[2], 1e-6)
  end)
end)

describe("a frozen layer_norm", function()
  it("computes no gradient of weight and bias", function()
    local x = weft.randn { 4, 6, requires_grad = true }
    local w, b = weft.ones { 6 }, weft.zeros { 6 }
    weft.layer_norm(x, w, b):sum():backward()
    assert.is_nil(w.grad)
    assert.is_nil(b.grad)
    assert.is_not_nil(x.grad)
  end)
end)
