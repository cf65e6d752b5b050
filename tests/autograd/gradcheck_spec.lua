-- gradcheck_spec.lua: the public check finds wrong gradients and passes right ones.
local weft = require "weft"
local counts = require "tests.support.counts"

local function leaf(values) return weft.tensor(values, { dtype = "float64", requires_grad = true }) end

-- x^3 with a gradient that is wrong by a factor.
local function cube(factor)
  return weft.custom {
    forward = function(ctx, x)
      ctx.saved = { x }
      return x ^ 3
    end,
    backward = function(ctx, dy) return dy * ctx.saved[1] ^ 2 * (3 * factor) end,
  }
end

describe("gradcheck", function()
  it("passes a right gradient", function()
    assert.is_true(weft.gradcheck(cube(1), { leaf { 1, 2, -3 } }))
    assert.is_true(weft.gradcheck(function(a, b) return a * b, (a + b):exp() end, { leaf { 1, 2 }, leaf { 0.5, -1 } }))
  end)

  it("finds a wrong one and says where", function()
    local ok, message = weft.gradcheck(cube(1.001), { leaf { 1, 2, -3 } })
    assert.is_false(ok)
    assert.matches("input 1, element 1: gradient %-?[%d.]+, central difference", message)
  end)

  it("finds a single wrong element, and a missing gradient", function()
    local mask = weft.tensor({ 1, 1, 0 }, { dtype = "float64" })
    local f = weft.custom { forward = function(_, x) return x * 2 end, backward = function(_, dy) return dy * mask * 2 end }
    local ok, message = weft.gradcheck(f, { leaf { 1, 2, 3 } })
    assert.is_false(ok)
    assert.matches("element 3: gradient 0,", message)
    assert.is_false((weft.gradcheck(function(x) return x:detach() * x end, { leaf { 1, 2 } })))
    assert.is_false((weft.gradcheck(function(x) return x, x:detach() * 2 end, { leaf { 1, 2 } })))
  end)

  it("tells outputs apart: a sum that is right is not enough", function()
    local f = weft.custom {
      forward = function(_, x) return x * 1 end,
      backward = function(_, dy) return weft.cat({ dy:narrow(1, 2, 1), dy:narrow(1, 1, 1) }, 1) end,
    }
    assert.is_false((weft.gradcheck(f, { leaf { 1, 2 } })))
  end)

  it("leaves inputs as they were, adds no draws, and keeps nothing", function()
    local x = leaf { 1, 2 }
    weft.manual_seed(5)
    local state = weft.random.state()
    weft.gradcheck(cube(1), { x })
    local before = counts.alive()
    weft.gradcheck(cube(1), { x })
    assert.same(before, counts.alive())
    assert.same({ 1, 2 }, x:totable())
    assert.same(state, weft.random.state())
  end)

  it("is refused float32 and strided inputs, and unknown options", function()
    local function refused(pattern, ...)
      local ok, message = pcall(weft.gradcheck, ...)
      assert.is_false(ok)
      assert.matches(pattern, message)
    end
    local f = function(x) return x * 2 end
    refused("input 1 is float32; float64 is needed", f, { weft.ones { 2, requires_grad = true } })
    local strided = weft.ones({ 2, 3, dtype = "float64" }):t():detach():requires_grad_()
    refused("input 1 must be contiguous", f, { strided })
    refused("did you mean eps", f, { leaf { 1 } }, { ep = 1 })
  end)

  it("restores an input when the function fails", function()
    local x, n = leaf { 1, 2 }, 0
    local ok = pcall(weft.gradcheck, function(a)
      n = n + 1
      if n == 2 then error "on purpose" end
      return a * 2
    end, { x })
    assert.is_false(ok)
    assert.same({ 1, 2 }, x:totable())
    assert.is_true(weft.grad_enabled())
  end)
end)
