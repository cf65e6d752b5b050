-- errors_spec.lua: what goes wrong is said at the user's line, with shapes, dtypes and what to do.
local weft = require "weft"

-- Each case: what it must say, and a function whose only line does the wrong thing.
local t, m = weft.arange(6):reshape(2, 3), weft.ones { 2, 3, device = "meta" }
local cases = {
  { "matmul: a [8,197,1024] x b [768,768]: inner sizes differ (1024 and 768), float32 on cpu",
    function() local _ = weft.matmul(weft.ones { 8, 197, 1024 }, weft.ones { 768, 768 }) end },
  { "matmul: a [2,3] x b [3,2]: dtypes differ (b is float64); convert one with to(), float32 on cpu",
    function() local _ = weft.matmul(t, weft.ones { 3, 2, dtype = "float64" }) end },
  { "mul: a [2,3] x b [2,3]: b is on meta, a on cpu; move one with to()",
    function() local _ = t * m end },
  { "add: a [2,3] x b [2,4]: sizes 3 and 4 of dim -1 (from the end) don't broadcast, float32 on cpu",
    function() local _ = t + weft.ones { 2, 4 } end },
  { "add: b: a tensor is expected, got the string \"x\"", function() local _ = t + "x" end },
  { "softmax: x [2,3]: dim 4 outside 1..2 (or -2..-1)", function() local _ = weft.softmax(t, 4) end },
  { "softmax: dim: positions count from 1 (or from the end, -1), got 0", function() local _ = t:softmax(0) end },
  { "softmax: x is int64; float32 or float64 is expected", function() local _ = weft.softmax(t:to "int64") end,
    "x is int64; float32 or float64 is expected" },
  { "linear: weight: a tensor is expected, got nothing", function() local _ = weft.linear(t) end },
  { "linear: bias: a tensor is expected, got a number (3)", function() local _ = weft.linear(t, t, 3) end },
  { "cat: xs[2]: a tensor is expected, got a number (5)", function() local _ = weft.cat({ t, 5 }) end },
  { "cat: xs: a table of tensors is expected, got a tensor", function() local _ = weft.cat(t) end },
  { "cat: ", function() local _ = weft.cat({}) end },
  { "cond is float32; bool is expected", function() local _ = weft.where(t, t, t) end },
  { "target 7 outside 0..2, row 2",
    function() local _ = weft.cross_entropy(t, weft.tensor({ 0, 7 }, { dtype = "int64" })) end },
  { "id 7 outside 0..1, position 2", function() local _ = weft.embedding(weft.tensor({ 0, 7 }, { dtype = "int64" }), t) end },
  { "unknown choice maen; did you mean mean?", function() local _ = weft.cross_entropy(t, t, 0, 0, "maen") end },
  { "weft has no sofmax; did you mean softmax", function() local _ = weft.sofmax end },
  { "a tensor has no field or method shpe; did you mean shape", function() local _ = t.shpe end },
  { "zeros: unknown option dtyp; did you mean dtype?", function() local _ = weft.zeros { 2, dtyp = "float64" } end },
  { "zeros: unknown dtype floot32; did you mean float32", function() local _ = weft.zeros { 2, dtype = "floot32" } end },
  { "zeros: unknown device gpu; cpu, cuda, cuda:1 or meta are expected", function() local _ = weft.zeros { 2, device = "gpu" } end },
  { "zeros: a table such as { 2, 3, dtype = \"float32\" } is expected, got a number (2)", function() local _ = weft.zeros(2, 3) end },
  { "zeros: size -1 of dim 1 is negative", function() local _ = weft.zeros { -1 } end },
  { "zeros: shape[2]: a whole number is expected, got a number (1.5)", function() local _ = weft.zeros { 3, 1.5 } end },
  { "ones: 9 dims: a tensor has 0 to 8", function() local _ = weft.ones { 1, 2, 3, 4, 5, 6, 7, 8, 9 } end },
  { "zeros: the shape holds more than 2^46 elements", function() local _ = weft.zeros { 2 ^ 40, 2 ^ 40 } end },
  { "full: value is missing", function() local _ = weft.full { 2 } end },
  { "full: value: a number is expected, got the string \"x\"", function() local _ = weft.full { 2, value = "x" } end },
  { "arange: start 0, stop 1, step 0", function() local _ = weft.arange(0, 1, 0) end },
  { "arange: step: a number is expected", function() local _ = weft.arange(0, 1, "a") end },
  { "eye: a number of rows is expected", function() local _ = weft.eye("3x3") end },
  { "randint: high is missing", function() local _ = weft.randint { 2 } end },
  { "empty interval", function() local _ = weft.randint { 2, low = 3, high = 3 } end },
  { "to: neither a dtype nor a device: float23; did you mean", function() local _ = t:to "float23" end },
  { "to: unknown option dtyp; did you mean dtype?", function() local _ = t:to { dtyp = "float32" } end },
  { "reshape: x [2,3]: the new shape holds 8 elements, x 6", function() local _ = t:reshape(4, 2) end },
  { "size: dim 3 outside 1..2", function() local _ = t:size(3) end },
  { "threads: expected 1 to 256, got 0", function() weft.threads(0) end },
  { "threads: n: a number is expected, got the string \"many\"", function() weft.threads "many" end },
  { "memory: unknown device gpu", function() local _ = weft.memory "gpu" end },
  { "manual_seed: a whole number from 0 is expected", function() weft.manual_seed(-1) end },
  { "randn: rng: a stream of weft.random is expected, got a number (5)", function() local _ = weft.randn { 2, rng = 5 } end },
  { "split: pieces sum to 4, dim 1 has 2", function() local _ = t:split({ 1, 3 }) end },
  { "copy_: [2] does not broadcast to [2,3]", function() t:copy_(weft.ones { 2 }) end },
  { "fill_: value: a number is expected, got nothing", function() t:fill_() end },
  { "add_: other: a tensor is expected, got a table", function() t:add_({}) end },
  { "backward: the tensor [] has no history", function() t:sum():backward() end },
}

describe("an error", function()
  for _, case in ipairs(cases) do
    it(("says: %s"):format(case[1]), function()
      local ok, message = pcall(case[2])
      assert.is_false(ok)
      local line = debug.getinfo(case[2], "S").linedefined
      local where, said = message:match "^.-errors_spec%.lua:(%d+): (.*)$"
      assert.is_not_nil(where, "not at the caller's line: " .. message)
      assert.equal(line, tonumber(where))
      assert.is_truthy(said:find(case[3] or case[1], 1, true), said)
    end)
  end

  it("comes at the line of the caller through modules, methods and operators alike", function()
    local layer = weft.nn.Linear(4, 3)
    local ok, message
    local line = debug.getinfo(1, "l").currentline + 2
    ok, message = pcall(function()
      local y = layer(weft.ones { 2, 5 })
      return y
    end)
    assert.is_false(ok)
    assert.matches(("errors_spec.lua:%d: "):format(line + 0), message)
    assert.matches("%[2,5%]", message)
  end)

  it("comes from inside scopes, no_grad and coroutines at that line too", function()
    local line = debug.getinfo(1, "l").currentline + 2
    local function wrong()
      local _ = t:reshape(4, 2)
    end
    for _, run in ipairs {
      function() weft.scope(wrong) end, function() weft.no_grad(wrong) end,
      function() weft.scope(weft.no_grad, wrong) end,
      function() assert(coroutine.resume(coroutine.create(wrong))) end,
    } do
      local ok, message = pcall(run)
      assert.is_false(ok)
      assert.matches(("errors_spec.lua:%d: reshape: x %%[2,3%%]"):format(line), message)
    end
  end)

  it("suggests near names only: two letters are near to nothing", function()
    local ok, message = pcall(function() return t.zz end)
    assert.is_false(ok)
    assert.is_nil(message:find "did you mean")
  end)

  it("leaves the tape and the counters as they were", function()
    local counts = require "tests.support.counts"
    for _, case in ipairs(cases) do pcall(case[2]) end
    local before = counts.alive()
    for _, case in ipairs(cases) do pcall(case[2]) end
    local after = counts.alive()
    assert.same({ before.handles, before.nodes, before.live }, { after.handles, after.nodes, after.live })
    assert.is_true(weft.grad_enabled())
  end)
end)

describe("a LuaJIT whose objects end at 2 GB", function()
  it("is refused at the start, in a sentence", function()
    local command = require "tests.support.command"
    local status, _, err = command.run([[luajit -e 'local ffi = require "ffi"; local abi = ffi.abi
      ffi.abi = function(what) return what ~= "gc64" and abi(what) end; require "weft"']])
    assert.equal(1, status)
    assert.truthy(err:find("weft wants a 64-bit LuaJIT with 64-bit GC (gc64); this one holds at most 2 GB of Lua objects", 1, true), err)
  end)
end)
