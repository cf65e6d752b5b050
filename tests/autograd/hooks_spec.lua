-- hooks_spec.lua: hooks see gradients in order, may replace them, go when asked, and die with the
-- tensor.
local weft = require "weft"
local counts = require "tests.support.counts"

local function leaf(values) return weft.tensor(values, { dtype = "float64", requires_grad = true }) end

describe("a hook", function()
  it("sees the whole gradient of its tensor, once", function()
    local x, seen = leaf { 1, 2 }, {}
    local y = x * 3
    y:register_hook(function(g) seen[#seen + 1] = g:totable() end)
    ;(y * 2 + y * 5):sum():backward()
    assert.same({ { 7, 7 } }, seen)
    assert.same({ 21, 21 }, x.grad:totable())
  end)

  it("comes in the order of registering, after those of later results", function()
    local x, order = leaf { 1 }, {}
    local y = x * 3
    local z = y * 2
    x:register_hook(function() order[#order + 1] = "x" end)
    y:register_hook(function() order[#order + 1] = "y1" end)
    y:register_hook(function() order[#order + 1] = "y2" end)
    z:register_hook(function() order[#order + 1] = "z" end)
    z:backward()
    assert.equal("z y1 y2 x", table.concat(order, " "))
  end)

  it("replaces the gradient by what it returns; the next hook sees that", function()
    local x, seen = leaf { 1, 2 }, nil
    local y = x * 3
    y:register_hook(function(g) return g * 10 end)
    y:register_hook(function(g) seen = g:totable() end)
    y:sum():backward()
    assert.same({ 10, 10 }, seen)
    assert.same({ 30, 30 }, x.grad:totable())
    x:zero_grad()
    x:register_hook(function(g) return g * 0 end)
    ;(x * 4):sum():backward()
    assert.same({ 0, 0 }, x.grad:totable())
  end)

  it("on a leaf comes at each backward, before .grad is added to", function()
    local x, n = leaf { 1 }, 0
    x:register_hook(function(g)
      n = n + 1
      return g + n
    end)
    ;(x * 1):sum():backward()
    ;(x * 1):sum():backward()
    assert.equal(2, n)
    assert.same({ 2 + 3 }, x.grad:totable())
  end)

  it("runs off the tape", function()
    local x, on = leaf { 1 }, nil
    x:register_hook(function() on = weft.grad_enabled() end)
    ;(x * 2):sum():backward()
    assert.is_false(on)
    assert.is_true(weft.grad_enabled())
  end)

  it("may hold on to the gradient it was given", function()
    local x, kept = leaf { 1, 2 }, nil
    local y = x * 2
    y:register_hook(function(g) kept = g end)
    weft.scope(function() (y * 3):sum():backward() end)
    ;(x * 2):sum():backward()
    assert.same({ 3, 3 }, kept:totable())
  end)

  it("is refused a gradient of another shape or dtype", function()
    local x = leaf { 1, 2 }
    for _, bad in ipairs { weft.ones { 3, dtype = "float64" }, weft.ones { 2 } } do
      local y = x * 2
      y:register_hook(function() return bad end)
      local ok, message = pcall(y.backward, y:sum())
      assert.is_false(ok)
      assert.matches("a hook must return a gradient of the shape and dtype", message)
    end
    local y = x * 2
    y:register_hook(function() return 5 end)
    local ok, message = pcall(y.backward, y:sum())
    assert.is_false(ok)
    assert.matches("hook: result: a tensor is expected, got a number %(5%)", message)
  end)

  it("that fails stops backward with its message and leaves nothing behind", function()
    local x = leaf { 1, 2 }
    local function once()
      weft.scope(function()
        local y = x * 2
        y:register_hook(function() error "on purpose" end)
        local ok, message = pcall(y.backward, y:sum())
        assert.is_false(ok)
        assert.matches("on purpose", message)
      end)
    end
    once()
    local before = counts.alive()
    for _ = 1, 5 do once() end
    assert.same(before, counts.alive())
  end)

  it("can't yield out of backward", function()
    local x = leaf { 1 }
    x:register_hook(function() coroutine.yield() end)
    local y = x * 2
    local ok, message = coroutine.resume(coroutine.create(function() y:backward() end))
    assert.is_false(ok)
    assert.matches("yield inside backward", message)
  end)

  it("is refused where no gradient comes", function()
    assert.has_error(function() weft.zeros({ 2 }):register_hook(function() end) end)
  end)
end)

describe("removing a hook", function()
  it("ends it, and only it, and twice is once", function()
    local x, order = leaf { 1 }, {}
    local removers = {}
    for i = 1, 3 do removers[i] = x:register_hook(function() order[#order + 1] = i end) end
    removers[2]()
    removers[2]()
    ;(x * 2):sum():backward()
    assert.same({ 1, 3 }, order)
    removers[1]()
    removers[3]()
    ;(x * 2):sum():backward()
    assert.same({ 1, 3 }, order)
  end)

  it("works from inside the hook, and for those that would come next", function()
    local x, order, removers = leaf { 1 }, {}, {}
    for i = 1, 4 do
      removers[i] = x:register_hook(function()
        order[#order + 1] = i
        if i == 2 then
          for k = 1, 3 do removers[k]() end
        end
      end)
    end
    ;(x * 2):sum():backward()
    assert.same({ 1, 2, 4 }, order)
    ;(x * 2):sum():backward()
    assert.same({ 1, 2, 4, 4 }, order)
  end)

  it("is harmless after its tensor died", function()
    local y = leaf { 1 } * 2
    local remove = y:register_hook(function() end)
    y:free()
    remove()
  end)

  it("lets go of the function, as does the tensor's death", function()
    local weak = setmetatable({}, { __mode = "v" })
    local x = leaf { 1 }
    do
      local function first() return nil, x end
      local function second() return nil, x, 2 end
      weak[1], weak[2] = first, second
      x:register_hook(first)()
      local y = x * 2
      y:register_hook(second)
      y:free()
    end
    ;(x * 1):sum():backward()
    collectgarbage()
    collectgarbage()
    assert.is_nil(weak[1])
    assert.is_nil(weak[2])
  end)
end)
