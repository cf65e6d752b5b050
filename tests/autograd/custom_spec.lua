-- custom_spec.lua: functions with a gradient written in Lua.
local weft = require "weft"
local counts = require "tests.support.counts"
local near = require("tests.support.near").near

local stream = weft.random.stream("custom spec", 1)
local function leaf(shape, dtype)
  shape.rng, shape.dtype, shape.requires_grad = stream, dtype or "float64", true
  return weft.randn(shape)
end
local function refused(pattern, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok)
  assert.matches(pattern, message)
end

-- a * exp(b), and a + b: two inputs, two outputs
local both = weft.custom {
  forward = function(ctx, a, b, scale)
    local e = b:exp()
    ctx.saved = { a, e }
    ctx.scale = scale
    return a * e * scale, a + b
  end,
  backward = function(ctx, dy, dsum)
    local a, e = unpack(ctx.saved)
    local da, db
    if ctx.needs[1] then da = (dy and dy * e * ctx.scale or 0) + (dsum or 0) end
    if ctx.needs[2] then db = (dy and dy * a * e * ctx.scale or 0) + (dsum or 0) end
    return da, db
  end,
}

describe("a function with its own gradient", function()
  it("takes several inputs, numbers among them, and gives several outputs", function()
    local a, b = leaf { 3 }, leaf { 3 }
    assert.is_true(weft.gradcheck(function(x, y) return both(x, y, 2.5) end, { a, b }))
  end)

  it("gets nil for an output that nobody used", function()
    local a, b = leaf { 3 }, leaf { 3 }
    local _, sum = both(a, b, 1)
    sum:sum():backward()
    assert.same({ 1, 1, 1 }, a.grad:totable())
    a:zero_grad()
    local product = both(a, b, 1)
    product:sum():backward()
    near(a.grad, b:detach():exp(), 1e-15)
  end)

  it("is told which inputs want a gradient, and what it gives for others is dropped", function()
    local needs
    local f = weft.custom {
      forward = function(_, a, b) return a + b end,
      backward = function(ctx, dy)
        needs = { ctx.needs[1], ctx.needs[2] }
        return dy, dy
      end,
    }
    local a, b = leaf { 3 }, weft.zeros { 3, dtype = "float64" }
    f(a, b):sum():backward()
    assert.same({ true, false }, needs)
    assert.is_nil(b.grad)
    f(b, a):sum():backward()
    assert.same({ false, true }, needs)
  end)

  it("may give nil: no gradient goes that way", function()
    local f = weft.custom { forward = function(_, a, b) return a * b end, backward = function(_, dy) return nil, dy end }
    local a, b = leaf { 3 }, leaf { 3 }
    f(a * 1, b):sum():backward()
    assert.is_nil(a.grad)
    assert.same({ 1, 1, 1 }, b.grad:totable())
  end)

  it("may hand an input through, and give views", function()
    local f = weft.custom {
      forward = function(_, a) return a, a:narrow(1, 1, 2) end,
      backward = function(_, d1, d2)
        local dx = d1:clone()
        local head = dx:narrow(1, 1, 2)
        head:add_(d2)
        return dx
      end,
    }
    local a = leaf { 3 }
    local x, y = f(a)
    assert.is_false(x.is_leaf)
    assert.is_true(a.is_leaf)
    ;(x:sum() + y:sum() * 4):backward()
    assert.same({ 5, 5, 1 }, a.grad:totable())
  end)

  it("runs off the tape in both directions", function()
    local on = {}
    local f = weft.custom {
      forward = function(_, a)
        on[1] = weft.grad_enabled()
        return a * 2
      end,
      backward = function(_, dy)
        on[2] = weft.grad_enabled()
        return dy * 2
      end,
    }
    f(leaf { 1 }):backward()
    assert.same({ false, false }, on)
  end)

  it("makes no node where nothing wants a gradient", function()
    local before = counts.alive()
    weft.scope(function()
      local y = both(weft.zeros { 2 }, weft.zeros { 2 }, 1)
      assert.is_false(y.requires_grad)
      y = weft.no_grad(both, leaf { 2 }, leaf { 2 }, 1)
      assert.is_false(y.requires_grad)
    end)
    assert.same(before, counts.alive())
  end)

  it("is refused a second pass, unless the graph was retained", function()
    local a, n = leaf { 1 }, 0
    local f = weft.custom {
      forward = function(_, x) return x * 2 end,
      backward = function(_, dy)
        n = n + 1
        return dy * 2
      end,
    }
    local y = f(a)
    y:backward { retain_graph = true }
    y:backward()
    assert.same({ 4 }, a.grad:totable())
    refused("a custom function was passed through a second time", y.backward, y)
    assert.equal(2, n)
  end)

  it("notices that a saved tensor was written since", function()
    local f = weft.custom {
      forward = function(ctx, x)
        ctx.saved = { x }
        return x * 2
      end,
      backward = function(_, dy) return dy end,
    }
    local a = leaf { 1 }
    local y = f(a)
    weft.no_grad(a.fill_, a, 1)
    refused("a tensor that a custom function saved was written in place", y.backward, y)
  end)

  it("is refused wrong gradients, in words", function()
    local a = leaf { 2, 3 }
    local function with(backward)
      local y = weft.custom { forward = function(_, x) return x * 2 end, backward = backward }(a)
      return y.backward, y:sum()
    end
    refused("gave a gradient %[3,2%] float64 on cpu for input 1, which is %[2,3%] float64 on cpu",
      with(function(_, dy) return dy:t() end))
    refused("gave a gradient %[2,3%] float32 on cpu for input 1, which is %[2,3%] float64",
      with(function(_, dy) return dy:to "float32" end))
    refused("gradient of input 1: a tensor is expected, got a number %(2%)", with(function() return 2 end))
    refused("backward returned 2 gradients for 1 tensor inputs", with(function(_, dy) return dy, dy end))
    assert.is_nil(a.grad)
  end)

  it("is refused what is no tensor as output, and unknown parts", function()
    local f = weft.custom { forward = function() return 3 end, backward = function() end }
    refused("output 1: a tensor is expected, got a number %(3%)", f, leaf { 1 })
    f = weft.custom { forward = function() end, backward = function() end }
    refused("forward must return a tensor, got nothing", f, leaf { 1 })
    refused("backward is missing", weft.custom, { forward = function() end })
    refused("did you mean backward", weft.custom, { forward = function() end, backwards = function() end })
  end)

  it("passes errors on from inside, at their own line, and leaves nothing behind", function()
    local line = debug.getinfo(1, "l").currentline + 2
    local function broken(where)
      return weft.custom { forward = function(_, x) if where == "forward" then error "in it" end return x * 2 end,
        backward = function() error "in it" end }
    end
    local a = leaf { 2 }
    local function once(where)
      weft.scope(function()
        refused(("custom_spec.lua:%d: in it"):format(where == "forward" and line or line + 1), function()
          broken(where)(a):sum():backward()
        end)
      end)
    end
    once "forward"
    once "backward"
    local before = counts.alive()
    for _ = 1, 4 do
      once "forward"
      once "backward"
    end
    assert.same(before, counts.alive())
    assert.is_true(weft.grad_enabled())
  end)

  it("lets go of what it closed over once backward is through", function()
    local weak = setmetatable({}, { __mode = "v" })
    local a = leaf { 2 }
    do
      local big = {}
      weak[1] = big
      local f = weft.custom {
        forward = function(ctx, x)
          ctx.big = big
          return x * 2
        end,
        backward = function(_, dy) return dy * 2 end,
      }
      f(a):sum():backward()
    end
    collectgarbage()
    collectgarbage()
    assert.is_nil(weak[1])
  end)

  it("frees what its backward makes before the next one runs", function()
    local f = weft.custom {
      forward = function(_, x) return x * 1 end,
      backward = function(_, dy)
        local junk = weft.zeros { 250000, dtype = "float32" }
        return dy * (junk:sum():item() + 1)
      end,
    }
    local y = leaf { 2 }
    for _ = 1, 20 do y = f(y) end
    weft.reset_peak()
    local before = weft.memory().live
    y:sum():backward()
    assert.is_true(weft.memory().peak - before < 3e6)
  end)
end)
