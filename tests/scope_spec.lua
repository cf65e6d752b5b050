-- scope_spec.lua: who owns a handle, and what a freed one says.
local ffi = require "ffi"
local weft = require "weft"
local counts = require "tests.support.counts"
local C = require("weft.core").lib

local function refused(pattern, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok)
  assert.matches(pattern, message)
  return message
end

describe("a scope", function()
  it("hands out what it returns and frees the rest", function()
    local before = counts.alive()
    local inner
    local kept = weft.scope(function()
      inner = weft.ones { 3 }
      return inner * 2
    end)
    assert.same({ 2, 2, 2 }, kept:totable())
    refused("was freed, or its scope has ended; return it from the scope or keep%(%) it", inner.sum, inner)
    assert.equal(before.handles + 1, counts.alive().handles)
    kept = nil
    assert.is_nil(kept)
    assert.same(before, counts.alive())
  end)

  it("hands out tensors inside returned tables, at any depth, also in a table that holds itself", function()
    local out, n, two = weft.scope(function()
      local t = { a = weft.ones { 1 }, { b = { weft.full { 1, value = 2 } } } }
      t.self = t
      return t, 5, weft.full { 1, value = 3 }
    end)
    assert.same({ 1, 2, 3, 5 }, { out.a:item(), out[1].b[1]:item(), two:item(), n })
  end)

  it("hands arguments in, and all results out, nil among them", function()
    local function pack(...) return { n = select("#", ...), ... } end
    assert.same({ n = 4, 1, nil, 3, nil }, pack(weft.scope(function(...) return ... end, 1, nil, 3, nil)))
    assert.same({ n = 0 }, pack(weft.scope(function() end)))
  end)

  it("leaves to its owner what was made outside", function()
    local x = weft.ones { 2 }
    weft.scope(function() return x end)
    weft.scope(function() x:add_(1) end)
    assert.same({ 2, 2 }, x:totable())
  end)

  it("lets go of what keep() took, which then lives as long as Lua holds it", function()
    local before, kept = counts.alive(), nil
    weft.scope(function()
      weft.scope(function() kept = weft.ones({ 2 }):keep() end)
    end)
    assert.same({ 1, 1 }, kept:totable())
    kept = nil
    assert.is_nil(kept)
    assert.same(before, counts.alive())
  end)

  it("in a scope hands its result to the outer one", function()
    local inner, outer
    weft.scope(function()
      inner = weft.scope(function() return weft.ones { 2 } end)
      assert.same({ 1, 1 }, inner:totable())
      outer = weft.zeros { 2 }
    end)
    refused("was freed", inner.sum, inner)
    refused("was freed", outer.sum, outer)
  end)

  it("that fails frees everything and passes the error on, table or text", function()
    local before, inner = counts.alive(), nil
    local line = debug.getinfo(1, "l").currentline + 4
    local message = refused("no match", function()
      weft.scope(function()
        inner = weft.ones { 2 }
        error "no match"
      end)
    end)
    assert.matches(("scope_spec.lua:%d: no match"):format(line), message)
    refused("was freed", inner.sum, inner)
    local object = {}
    local ok, same = pcall(weft.scope, error, object)
    assert.is_false(ok)
    assert.equal(object, same)
    -- an error through several scopes, one of them opened by hand
    pcall(weft.scope, function()
      C.weft_scope_begin()
      weft.ones { 5 }
      weft.scope(function() error "x" end)
    end)
    inner = nil
    assert.is_nil(inner)
    assert.same(before, counts.alive())
  end)

  it("frees a graph that its error left unfinished", function()
    local w = weft.ones { 3, requires_grad = true }
    local before = counts.alive()
    pcall(weft.scope, function()
      local y = (w * 2):exp():sum()
      y:backward { retain_graph = true }
      error "x"
    end)
    w:zero_grad()
    assert.same(before, counts.alive())
  end)

  it("keeps what the tape needs, though its handles are gone", function()
    local w = weft.tensor({ 1, 2 }, { requires_grad = true })
    local loss = weft.scope(function() return ((w * 3):exp() * w):sum() end)
    loss:backward()
    local expected = {}
    for i, v in ipairs { 1, 2 } do expected[i] = math.exp(3 * v) * (1 + 3 * v) end
    for i, v in ipairs(w.grad:totable()) do assert.near(expected[i], v, 1e-5 * expected[i]) end
  end)

  it("gives gradients that outlive it", function()
    local w = weft.ones { 2, requires_grad = true }
    weft.scope(function() (w * 3):sum():backward() end)
    assert.same({ 3, 3 }, w.grad:totable())
    w.grad = weft.scope(function() return w.grad * 2 end)
    weft.scope(function() w.grad = w.grad * 2 end)
    assert.same({ 12, 12 }, w.grad:totable())
  end)

  it("may be opened 256 deep and no deeper", function()
    local before = counts.alive()
    local function nest(n) return n == 0 and weft.ones { 1 } or weft.scope(nest, n - 1) end
    assert.equal(1, nest(100):item())
    local function deep(n)
      if n == 0 then return end
      local id = C.weft_scope_begin()
      if id == 0 then error(ffi.string(C.weft_error()), 0) end
      local ok, message = pcall(deep, n - 1)
      C.weft_scope_end(id)
      if not ok then error(message, 0) end
    end
    deep(256)
    refused("more than 256 scopes", deep, 257)
    assert.same(before, counts.alive())
  end)

  it("refuses a yield out of it, at the line that yields", function()
    local line = debug.getinfo(1, "l").currentline + 3
    local co = coroutine.create(function()
      weft.scope(function()
        coroutine.yield(weft.ones { 2 })
      end)
    end)
    local before = counts.alive().scopes
    local ok, message = coroutine.resume(co)
    assert.is_false(ok)
    assert.matches(("scope_spec.lua:%d: a coroutine can't yield inside weft.scope"):format(line), message)
    assert.equal(before, counts.alive().scopes)
  end)

  it("minds no coroutine that begins and yields inside", function()
    local sum = weft.scope(function()
      local each = coroutine.wrap(function()
        for i = 1, 3 do coroutine.yield(weft.full { 1, value = i }) end
      end)
      return each() + each() + each()
    end)
    assert.equal(6, sum:item())
  end)

  it("may run inside a coroutine, between its yields", function()
    local co = coroutine.wrap(function()
      for _ = 1, 3 do coroutine.yield(weft.scope(function() return weft.ones { 2 } * 2 end)) end
    end)
    for _ = 1, 3 do assert.same({ 2, 2 }, co():totable()) end
  end)

  it("that is not open can't be ended", function()
    local id = C.weft_scope_begin()
    assert.equal(0, tonumber(C.weft_scope_end(id)))
    assert.is_true(C.weft_scope_end(id) ~= 0)
    assert.matches("is not open", ffi.string(C.weft_error()))
  end)
end)

describe("a freed tensor", function()
  it("says so wherever it is used", function()
    local x, y = weft.ones { 2 }, weft.ones { 2 }
    x:free()
    for _, use in ipairs {
      function() return x + y end, function() return y + x end, function() return x:sum() end,
      function() return x.shape end, function() return x[1] end, function() x[1] = 2 end,
      function() return #x end, function() return x:item() end, function() return x:data() end,
      function() return weft.cat({ y, x }, 1) end, function() y:copy_(x) end, function() x:backward() end,
      function() return x.grad end, function() return x:keep() end,
    } do
      refused("was freed", use)
    end
    assert.equal("tensor (freed)", tostring(x))
    assert.is_false(x == y)
  end)

  it("may be freed again, which does nothing", function()
    local before = counts.alive().handles
    local x = weft.ones { 2 }
    x:free()
    x:free()
    -- its handle may belong to another tensor now
    local y = weft.full { 2, value = 7 }
    x:free()
    assert.same({ 7, 7 }, y:totable())
    y:free()
    assert.equal(before, counts.alive().handles)
  end)

  it("leaves its memory to views and to the tape", function()
    local x = weft.tensor { 1, 2, 3 }
    local tail = x:narrow(1, 2, 2)
    x:free()
    assert.same({ 2, 3 }, tail:totable())
    local w = weft.ones { 3, requires_grad = true }
    local y = weft.tensor { 1, 2, 3 }
    local loss = (w * y):sum()
    y:free()
    loss:backward()
    assert.same({ 1, 2, 3 }, w.grad:totable())
  end)

  it("is what the collector makes of a tensor that nobody holds", function()
    local before = counts.alive()
    for _ = 1, 1000 do
      local _ = (weft.ones { 10, requires_grad = true } * 2):exp()
    end
    assert.same(before, counts.alive())
  end)
end)
