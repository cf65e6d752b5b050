-- graph_spec.lua: work of a GPU captured and launched as one: what is kept, what is refused, whose the
-- memory is, and the numbers that change from launch to launch. On the GPU under test.
local ffi = require "ffi"
local weft = require "weft"
local A = require "weft.args"
local C = require("weft.core").lib
local gpu = require "tests.support.gpu"
local near = require "tests.support.near"
local it = gpu.guard(it, pending)
local device = gpu.device

local function input(a, b) return weft.randn({ a, b, rng = weft.random.stream("graph", 1) }):to(device) end
local function pattern(text) return (text:gsub("%-", "%%-")) end

describe("a graph", function()
  local function work(x, w) return (weft.gelu(weft.matmul(x, w)) + x):softmax(-1) end

  it("gives at each launch the bits that its operators give, from what its inputs hold then", function()
    local x, w, y = input(5, 8), input(8, 8), nil
    local graph = weft.cuda.graph(device, function() y = work(x, w):keep() end)
    for seed = 1, 3 do
      x:copy_(weft.randn { 5, 8, rng = weft.random.stream("graph", seed) })
      graph:launch()
      assert.is_true(near.same(y, work(x, w)))
    end
    graph:free()
    assert.is_false((pcall(graph.launch, graph)))
  end)

  it("runs nothing while it is captured, and is one launch", function()
    local x, y = weft.ones { 4, device = device }, nil
    local before = weft.cuda.counters(device)
    local graph = weft.cuda.graph(device, function()
      x:mul_(2)
      y = (x + 1):sum():keep()
    end)
    assert.equal(3, graph.kernels)
    assert.equal(before.launches, weft.cuda.counters(device).launches)
    assert.same({ 1, 1, 1, 1 }, x:totable())
    before = weft.cuda.counters(device)
    graph:launch()
    graph:launch()
    local after = weft.cuda.counters(device)
    assert.equal(0, after.launches - before.launches)
    assert.equal(2, after.graphs - before.graphs)
    assert.same({ 4, 4, 4, 4 }, x:totable())
    assert.equal(20, y:item())
    graph:free()
  end)

  it("holds a backward too", function()
    local x, w = input(5, 8), input(8, 8):requires_grad_()
    work(x, w):pow(2):sum():backward()
    local eager = w.grad:clone()
    w:zero_grad()
    local graph = weft.cuda.graph(device, function()
      weft.scope(function() work(x, w):pow(2):sum():backward() end)
    end)
    graph:launch()
    assert.is_true(near.same(eager, w.grad))
    w:zero_grad()
    graph:free()
  end)

  it("refuses what would have to run at once, and the device goes on", function()
    local x = weft.ones { 4, device = device }
    local function refused(expected, fn)
      local ok, message = pcall(weft.cuda.graph, device, fn)
      assert.is_false(ok)
      assert.matches(expected .. " while a graph is captured on " .. pattern(device), message)
    end
    refused("a value is read", function() return x:sum():item() end)
    refused("data of the host is wanted", function() return x + weft.ones({ 4 }):to(device) end)
    refused("the device is waited for", function() weft.cuda.synchronize(device) end)
    local ok, message = pcall(weft.cuda.graph, device, function() weft.cuda.graph(device, function() end) end)
    assert.is_false(ok)
    assert.matches("a graph is being captured", message)
    ok, message = pcall(weft.cuda.graph, "cpu", function() end)
    assert.is_false(ok)
    assert.matches("there are no graphs on cpu", message)
    assert.equal(4, x:sum():item())
  end)

  it("keeps the memory that it works on, whoever lets go of it, and nobody else is given it", function()
    collectgarbage() collectgarbage()
    local live = weft.memory(device).live
    local x, y = weft.full { 300, value = 3, device = device }, nil
    local graph = weft.cuda.graph(device, function()
      weft.scope(function() y = ((x * 2) + (x * x)):keep() end)
    end)
    assert.is_true(graph.bytes >= 2 * 1200)
    x:free()
    local others = {}
    for i = 1, 20 do others[i] = weft.full { 300, value = -1, device = device } end
    graph:launch()
    assert.equal(15, y:min():item())
    for i = 1, 20 do
      assert.equal(-1, others[i]:max():item())
      others[i]:free()
    end
    graph:free()
    assert.equal(15, y:max():item())      -- a result outlives its graph
    y:free()
    collectgarbage() collectgarbage()
    assert.equal(live, weft.memory(device).live)
  end)

  it("draws what the clock's step draws, and AdamW and EMA take their rates from the device", function()
    local x = input(37)
    local clock, rates = weft.zeros { 1, dtype = "int64", device = device }, weft.zeros { 4, dtype = "float64", device = device }
    local function draws(counter)
      local rng = { key = 77ULL, counter = counter }
      local q = x:reshape(1, 1, 1, 37)
      return weft.cat({ weft.dropout(x, 0.5, rng), weft.rand { 5, device = device, rng = rng }, weft.randn { 5, device = device, rng = rng },
        weft.trunc_normal { 5, device = device, rng = rng }, weft.bernoulli(weft.full { 5, value = 0.5, device = device }, rng),
        weft.multinomial(weft.ones { 9, device = device }, 4, true, rng):to "float32",
        weft.scaled_dot_product_attention(q, q, q, nil, false, 0, 0.5, rng):reshape(37),
        weft.lora_linear(x:reshape(1, 37), weft.ones { 1, 37, device = device }, nil, weft.ones { 1, 37, device = device },
          weft.ones { 1, 1, device = device }, 1, 0.5, rng):reshape(1) }, 1)
    end
    local function parameters() return { weft.ones { 9, device = device }, weft.full { 9, value = 0.5, device = device },
      weft.zeros { 9, device = device }, weft.zeros { 9, device = device } } end
    local function adamw(list, lr, t)
      local p, n = A.tensors(list, "test", "list")
      A.check(C.weft_adamw_(p, n, lr, 0.9, 0.98, 1e-8, 0.1, t))
    end
    local mine, theirs, y = parameters(), parameters(), nil
    local average, other = { weft.zeros { 9, device = device }, mine[1] }, { weft.zeros { 9, device = device }, theirs[1] }
    local function ema(list, decay)
      local p, n = A.tensors(list, "test", "list")
      A.check(C.weft_ema_(p, n, decay))
    end
    local graph = weft.cuda.graph(device, function(g)
      g:bind(clock, rates)
      y = draws(5ULL):keep()
      adamw(mine, 0, 1)
      ema(average, 0.5)
    end)
    local out = ffi.new "double[3]"
    for t = 1, 3 do
      clock:fill_(t * 2 ^ 32)
      C.weft_adamw_rates(0.1 * t, 0.9, 0.98, 0.1, t, out)
      rates:copy_(weft.tensor({ out[0], out[1], out[2], 1 }, { dtype = "float64" }))
      graph:launch()
      assert.is_true(near.same(y, draws(5ULL + t * 2ULL ^ 32)))
      adamw(theirs, 0.1 * t, t)
      ema(other, 1 - out[0])
      for i = 1, 4 do assert.is_true(near.same(theirs[i], mine[i])) end
      assert.is_true(near.same(other[1], average[1]))
    end
    local before = mine[1]:clone()
    rates:copy_(weft.tensor({ out[0], out[1], out[2], 0 }, { dtype = "float64" }))
    graph:launch()
    assert.is_true(near.same(before, mine[1]))
    assert.is_false((pcall(weft.cuda.graph, device, function(g) g:bind(rates, nil) end)))
    graph:free()
  end)
end)
