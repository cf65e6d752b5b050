-- memory_spec.lua: accounting, limits, pacing of the collector, and a training loop that stays where
-- it is.
local weft = require "weft"
local counts = require "tests.support.counts"
local command = require "tests.support.command"
local C = require("weft.core").lib

local MB = 2 ^ 20

local function message_of(fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok)
  return message
end

-- Runs fn with a limit of `room` bytes above what is live now.
local function with_room(room, fn)
  collectgarbage()
  collectgarbage()
  weft.empty_cache()
  weft.memory_limit(weft.memory().live + room)
  local ok, message = pcall(fn)
  weft.memory_limit(0)
  if not ok then error(message, 0) end
end

describe("memory", function()
  it("is counted as it is taken and given back", function()
    weft.empty({ 5 }):free()  -- the first of its kind makes room for handles
    collectgarbage()
    collectgarbage()
    weft.empty_cache()
    local before = weft.memory()
    assert.equal(0, before.cached)
    local x = weft.empty { 2 ^ 20 }
    local during = weft.memory()
    assert.equal(4 * MB, during.live - before.live)
    assert.equal(before.system_calls + 1, during.system_calls)
    x:free()
    assert.equal(before.live, weft.memory().live)
    assert.equal(4 * MB, weft.memory().cached)
    -- the next of its size takes it from the cache
    x = weft.empty { 2 ^ 20 }
    assert.equal(during.system_calls, weft.memory().system_calls)
    assert.equal(0, weft.memory().cached)
    x:free()
    weft.empty_cache()
    assert.equal(0, weft.memory().cached)
  end)

  it("of a block that serves a smaller one stays exact", function()
    collectgarbage()
    collectgarbage()
    weft.empty_cache()
    weft.empty({ 2 ^ 20 }):free()
    local system = weft.memory().system_calls
    for _ = 1, 3 do weft.empty({ 0.6 * 2 ^ 20 - 0.6 * 2 ^ 20 % 1 }):free() end
    assert.equal(system, weft.memory().system_calls)
    assert.equal(4 * MB, weft.memory().cached)
    weft.empty_cache()
    assert.equal(0, weft.memory().cached)
  end)

  it("has a peak that can be set back to now", function()
    weft.reset_peak()
    local before = weft.memory()
    assert.equal(before.live, before.peak)
    weft.empty({ 2 ^ 20 }):free()
    assert.equal(4 * MB, weft.memory().peak - before.live)
    weft.reset_peak()
    assert.equal(weft.memory().live, weft.memory().peak)
  end)

  it("of a view is that of its tensor", function()
    local x = weft.empty { 2 ^ 20 }
    local live = weft.memory().live
    local v = weft.scope(function() return x:reshape(2 ^ 10, 2 ^ 10):t():narrow(1, 1, 5) end)
    assert.equal(live, weft.memory().live)
    x:free()
    assert.equal(live, weft.memory().live)
    v:free()
    assert.equal(live - 4 * MB, weft.memory().live)
  end)

  it("wastes at most an eighth of a large block", function()
    for _, n in ipairs { 1000, 1025, 5000, 99999, 1234567, 2 ^ 20 + 1 } do
      local live = weft.memory().live
      local x = weft.empty { n, dtype = "uint8" }
      local taken = weft.memory().live - live
      assert.is_true(taken >= n and taken <= n * 1.125 + 64, ("%d bytes for %d"):format(taken, n))
      x:free()
    end
  end)

  it("of meta tensors is counted apart and takes none", function()
    local live = weft.memory().live
    local before = weft.memory("meta").live
    local x = weft.empty { 2 ^ 40, device = "meta" }
    assert.equal(2 ^ 42, weft.memory("meta").live - before)
    assert.equal(live, weft.memory().live)
    x:free()
    assert.equal(before, weft.memory("meta").live)
  end)
end)

describe("a limit", function()
  it("can be set, asked for, and taken off", function()
    assert.equal(0, weft.memory_limit())
    weft.memory_limit(123 * 2 ^ 30)
    assert.equal(123 * 2 ^ 30, weft.memory_limit())
    assert.equal(123 * 2 ^ 30, weft.memory().limit)
    weft.memory_limit(0)
    assert.matches("a whole number from 0", message_of(weft.memory_limit, -1))
    assert.matches("unknown device", message_of(weft.memory_limit, 5, "gpu"))
  end)

  it("fails with what was asked for, what is live, what is cached and what to do", function()
    with_room(64 * MB, function()
      local held = weft.empty { 2 ^ 20 }
      local live = weft.memory().live
      local line = debug.getinfo(1, "l").currentline + 1
      local message = message_of(function() local _ = weft.zeros { 2 ^ 25 } end)
      assert.matches(("^.-memory_spec.lua:%d: zeros: out of memory on cpu: requested 134217728 bytes, live %d, cached %%d+")
        :format(line, live), message)
      assert.matches("limit %d+; make the batch smaller or free tensors", message)
      line = debug.getinfo(1, "l").currentline + 1
      message = message_of(function() local _ = held:expand(40, 2 ^ 20):exp() end)
      assert.is_truthy(message:find(("memory_spec.lua:%d: exp: x [40,1048576]: out of memory on cpu: requested 167772160")
        :format(line), 1, true), message)
      held:free()
    end)
  end)

  it("holds 100 times in a row; then a smaller call works and nothing is lost", function()
    with_room(64 * MB, function()
      local a = weft.ones { 1000, 1000 }
      local before = counts.alive()
      for _ = 1, 100 do
        assert.matches("out of memory", message_of(weft.zeros, { 2 ^ 25 }))
        assert.matches("out of memory", message_of(weft.expand(a[1], { 2 ^ 15, 1000 }).clone, a:expand(20, 1000, 1000)))
      end
      assert.same(before, counts.alive())
      assert.equal(1000, (a * 2)[1]:sum():item() / 2)
    end)
  end)

  it("that a step meets half way leaves live bytes, handles and nodes where they were", function()
    local w = weft.ones { 1000, 1000, requires_grad = true }
    local function step(layers)
      weft.scope(function()
        local y = w
        for _ = 1, layers do y = y:exp() * 0.1 end
        y:sum():backward()
      end)
      w:zero_grad()
    end
    with_room(64 * MB, function()
      step(3)
      local before = counts.alive()
      for _ = 1, 100 do
        assert.matches("out of memory", message_of(step, 40))
        w:zero_grad()
      end
      assert.same(before, counts.alive())
      step(3)
    end)
    -- and where it is backward that runs out
    local loss
    weft.scope(function()
      local y = w
      for _ = 1, 5 do y = y:exp() * 0.1 end
      loss = y:sum():keep()
    end)
    with_room(2 * MB, function() assert.matches("out of memory", message_of(loss.backward, loss)) end)
    loss:free()
    w:zero_grad()
  end)

  it("is kept by collecting garbage first, in operators, in making tensors and in backward", function()
    with_room(64 * MB, function()
      for _ = 1, 100 do local _ = weft.zeros { 2 ^ 20 } end
      local x = weft.ones { 2 ^ 20 }
      for _ = 1, 100 do local _ = x * 2 end
      for _ = 1, 100 do weft.zeros({ 2 ^ 20 }):copy_(x:reshape(2 ^ 10, 2 ^ 10):t():reshape(2 ^ 20)) end
    end)
    local w = weft.ones { 2 ^ 20, requires_grad = true }
    with_room(64 * MB, function()
      collectgarbage "stop"
      local y = (w:exp() * 2):exp():sum()
      for _ = 1, 100 do
        if weft.memory().live > weft.memory_limit() - 6 * MB then break end
        local _ = weft.empty { 2 ^ 20 }
      end
      local ok, message = pcall(y.backward, y)
      collectgarbage "restart"
      assert(ok, message)
    end)
    assert.is_true(w.grad:narrow(1, 1, 1):item() > 0)
  end)
end)

describe("garbage outside scopes", function()
  it("of 10 GB stays under 1 GB", function()
    collectgarbage()
    collectgarbage()
    weft.empty_cache()
    weft.reset_peak()
    local before = weft.memory().live
    for _ = 1, 1000 do local _ = weft.empty { 2621440 } end
    assert.is_true(weft.memory().peak - before < 2 ^ 30, tostring(weft.memory().peak))
    -- with a graph on it, and results of operators
    local x = weft.empty { 2621440, requires_grad = true }
    local y
    weft.reset_peak()
    for _ = 1, 300 do y = x:narrow(1, 1, 2000):expand(1000, 2000):contiguous() end
    assert.is_true(weft.memory().peak - before < 2 ^ 30, tostring(weft.memory().peak))
    y:free()
    collectgarbage()
    collectgarbage()
    weft.empty_cache()
  end)
end)

describe("a training loop", function()
  it("of 2,000 steps ends with the bytes, handles and nodes it began with, and asks the system for none", function()
    local nn, optim = weft.nn, weft.optim
    local stream = weft.random.stream("memory spec", 1)
    local model = nn.Sequential { nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Dropout(0.1), nn.Linear(16, 3) }
    local o = optim.AdamW(model, { lr = 1e-3 })
    local x = weft.randn { 32, 8, rng = stream }
    local labels = weft.randint { 32, low = 0, high = 3, rng = stream }
    local total = 0
    local function step()
      total = total + weft.scope(function()
        local loss = weft.cross_entropy(model(x), labels)
        loss:backward()
        optim.clip_grad_norm(o, 1.0)
        o:step()
        o:zero_grad()
        return loss:item()
      end)
    end
    for _ = 1, 50 do step() end
    local before, system = counts.alive(), weft.memory().system_calls
    local lua = collectgarbage "count"
    for _ = 1, 2000 do step() end
    assert.equal(system, weft.memory().system_calls)
    assert.same(before, counts.alive())
    assert.is_true(collectgarbage "count" - lua < 200, ("%d KB more of Lua"):format(collectgarbage "count" - lua))
    assert.is_true(total == total)
  end)
end)

describe("the end of a program", function()
  local function lua(code)
    local f = os.tmpname()
    local file = assert(io.open(f, "w"))
    file:write(code)
    file:close()
    local status, out, err = command.run("luajit " .. f)
    os.remove(f)
    return status, out, err
  end

  it("comes quietly with tensors, graphs, hooks and open scopes alive", function()
    for _, ending in ipairs { "", "os.exit(0)", "os.exit(0, true)" } do
      local status, out, err = lua([[
        local weft = require "weft"
        weft.threads(3)
        kept = {}
        for i = 1, 100 do
          local x = weft.randn { 50, 50, requires_grad = true }
          x:register_hook(function(g) return g end)
          kept[i] = weft.matmul(x, x):exp()
        end
        require("weft.core").lib.weft_scope_begin()
        kept[101] = weft.ones { 5 }
        kept[102] = weft.checkpoint(function(a) return a * 2 end, kept[1])
        print "end"
      ]] .. ending)
      assert.equal("", err)
      assert.equal("end\n", out)
      assert.equal(0, status)
    end
  end)

  it("comes quietly when the collector ran into the middle of everything", function()
    local status, out, err = lua [[
      local weft = require "weft"
      collectgarbage("setpause", 50)
      collectgarbage("setstepmul", 1000)
      local x = weft.randn { 20, 20, requires_grad = true }
      for i = 1, 500 do
        local y = weft.matmul(x, x):gelu()
        y:register_hook(function(g) collectgarbage() return g * 1 end)
        y:sum():backward()
        if i % 50 == 0 then x:zero_grad() end
      end
      print(tostring(x):sub(1, 15))
    ]]
    assert.equal("", err)
    assert.equal("float32 [20,20]\n", out)
    assert.equal(0, status)
  end)
end)

describe("an allocation that fails", function()
  it("in the middle of making tensors leaves nothing behind", function()
    local make_room = require("weft.args").make_room
    require("weft.args").make_room = function() end
    local before = counts.alive()
    for _, make in ipairs {
      function() return weft.zeros { 3 } end, function() return weft.arange(5, { dtype = "int64" }) end,
      function() return weft.tensor({ 1, 2 }, { dtype = "bfloat16" }) end, function() return weft.eye(3) end,
      function() return weft.ones { 2, requires_grad = true } end,
      function() return weft.ones({ 2 }):t() end, function() return weft.ones({ 2 }):eq(1) end,
    } do
      local failed = 0
      for nth = 1, 60 do
        C.weft_fail_allocation(nth)
        local ok, message = pcall(weft.scope, make)
        C.weft_fail_allocation(0)
        if ok then break end
        failed = failed + 1
        assert.matches("memory", message)
      end
      assert.is_true(failed > 0)
    end
    require("weft.args").make_room = make_room
    assert.same(before, counts.alive())
  end)
end)
