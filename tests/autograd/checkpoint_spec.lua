-- checkpoint_spec.lua: recomputing in backward gives the same gradients and the same random draws,
-- and keeps less.
local weft = require "weft"
local counts = require "tests.support.counts"
local near = require "tests.support.near"

local stream = weft.random.stream("checkpoint spec", 1)
local function leaf(shape)
  shape.rng, shape.requires_grad = stream, true
  return weft.randn(shape)
end

-- Two layers with dropout from the default stream and from a named one.
local function block(w1, w2)
  return function(x)
    local h = weft.linear(x, w1):gelu()
    h = weft.dropout(h, 0.5)
    h = weft.dropout(h, 0.25, weft.random.named "checkpoint spec")
    return weft.linear(h, w2) + x
  end
end

-- Loss, gradients and the most that the tape kept, of four blocks.
local function train(x, weights, checkpointed)
  weft.manual_seed(11)
  local before, most = counts.tape(), 0
  local y = x
  for i = 1, 4 do
    local f = block(weights[2 * i - 1], weights[2 * i])
    if checkpointed then y = weft.checkpoint(f, y) else y = f(y) end
    most = math.max(most, counts.tape() - before)
  end
  local loss = (y * y):sum()
  loss:backward()
  local out = { loss:detach(), x.grad:clone(), weft.rand { 5 } }
  for _, w in ipairs(weights) do out[#out + 1] = w.grad:clone() end
  for _, w in ipairs(weights) do w:zero_grad() end
  x:zero_grad()
  return out, most
end

describe("a checkpoint", function()
  it("gives the same bits as no checkpoint: loss, gradients, dropout masks, and later draws", function()
    local x, weights = leaf { 16, 8 }, {}
    for i = 1, 4 do weights[2 * i - 1], weights[2 * i] = leaf { 32, 8 }, leaf { 8, 32 } end
    local plain = train(x, weights, false)
    local again = train(x, weights, true)
    for i, t in ipairs(plain) do assert.is_true(near.same(t, again[i]), "result " .. i) end
  end)

  it("keeps its inputs alone on the tape", function()
    local x, weights = leaf { 16, 8 }, {}
    for i = 1, 4 do weights[2 * i - 1], weights[2 * i] = leaf { 32, 8 }, leaf { 8, 32 } end
    local _, plain = train(x, weights, false)
    local _, less = train(x, weights, true)
    assert.is_true(less < plain / 4, ("%d and %d bytes"):format(less, plain))
    assert.equal(4 * 16 * 8 * 4, less)
  end)

  it("lowers the peak of a training step", function()
    local weights = {}
    for i = 1, 4 do weights[2 * i - 1], weights[2 * i] = leaf { 256, 32 }, leaf { 32, 256 } end
    local x = leaf { 1000, 32 }
    local function peak(checkpointed)
      collectgarbage()
      collectgarbage()
      weft.reset_peak()
      local before = weft.memory().live
      weft.scope(function()
        local y = x
        for i = 1, 4 do
          local f = block(weights[2 * i - 1], weights[2 * i])
          local function inner(v) return weft.scope(f, v) end
          if checkpointed then y = weft.checkpoint(inner, y) else y = inner(y) end
        end
        (y * y):sum():backward()
      end)
      return weft.memory().peak - before
    end
    peak(false)
    local plain, less = peak(false), peak(true)
    assert.is_true(less < 0.6 * plain, ("%d and %d bytes"):format(less, plain))
  end)

  it("runs its function once forward and once more in backward, and leaves the random state be", function()
    local n, w = 0, leaf { 3 }
    weft.manual_seed(3)
    local y = weft.checkpoint(function(x)
      n = n + 1
      return weft.dropout(x * w, 0.5)
    end, weft.ones { 3 })
    assert.equal(1, n)
    local between = weft.random.state()
    y:sum():backward()
    assert.equal(2, n)
    assert.same(between, weft.random.state())
  end)

  it("reaches parameters alone, inputs alone, and several inputs", function()
    local a, b, w = leaf { 3 }, leaf { 3 }, leaf { 3 }
    local still = weft.ones { 3 }
    weft.checkpoint(function(x, scale, y) return x * w * scale + y end, still, 2, still):sum():backward()
    assert.same({ 2, 2, 2 }, w.grad:totable())
    weft.checkpoint(function(x, scale, y) return x * scale + y * y end, a, 2, b):sum():backward()
    assert.same({ 2, 2, 2 }, a.grad:totable())
    near.near(b.grad, b:detach() * 2, 1e-6)
  end)

  it("passes over a function in which nothing trains", function()
    local w, frozen = leaf { 3 }, weft.ones { 3 }
    local y = weft.checkpoint(function(x) return x * frozen end, weft.ones { 3 })
    ;(y * w):sum():backward()
    assert.same({ 1, 1, 1 }, w.grad:totable())
  end)

  it("adds up gradients of a parameter that is used inside and outside, and in two checkpoints", function()
    local w = weft.tensor({ 1, 2 }, { dtype = "float64", requires_grad = true })
    local function f(x) return x * w * w end
    local one = weft.ones { 2, dtype = "float64" }
    ;(weft.checkpoint(f, w) + weft.checkpoint(f, one) + w * 5):sum():backward()
    -- w^3 + w^2 + 5 w
    assert.same({ 3 + 2 + 5, 12 + 4 + 5 }, w.grad:totable())
  end)

  it("nests", function()
    local x = weft.tensor({ 1, 2 }, { dtype = "float64", requires_grad = true })
    local y = weft.checkpoint(function(a)
      return weft.checkpoint(function(b) return b * b end, a * 2) * 3
    end, x)
    y:sum():backward()
    assert.same({ 24, 48 }, x.grad:totable())
  end)

  it("does nothing off the tape", function()
    local n, x = 0, leaf { 3 }
    local y = weft.no_grad(weft.checkpoint, function(a)
      n = n + 1
      return a * 2
    end, x)
    assert.equal(1, n)
    assert.is_false(y.requires_grad)
  end)

  it("puts the random state back when recomputing fails", function()
    local x, runs = leaf { 3 }, 0
    weft.manual_seed(3)
    local y = weft.checkpoint(function(a)
      runs = runs + 1
      if runs == 2 then error "on purpose" end
      return weft.dropout(a, 0.5)
    end, x)
    local between = weft.random.state()
    local ok, message = pcall(y.backward, y:sum())
    assert.is_false(ok)
    assert.matches("on purpose", message)
    assert.same(between, weft.random.state())
    assert.is_true(weft.grad_enabled())
  end)

  it("is refused more or less than one tensor", function()
    local ok, message = pcall(weft.checkpoint, function() return 3 end, leaf { 1 })
    assert.is_false(ok)
    assert.matches("must return one tensor, got a number %(3%)", message)
  end)
end)
