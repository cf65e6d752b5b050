-- tape_spec.lua: what backward computes, keeps and refuses.
local ffi = require "ffi"
local weft = require "weft"
local counts = require "tests.support.counts"
local near = require("tests.support.near").near
local C = require("weft.core").lib

local stream = weft.random.stream("tape spec", 1)
local function randn(shape, wanted)
  shape.rng, shape.dtype, shape.requires_grad = stream, shape.dtype or "float64", wanted or false
  return weft.randn(shape)
end
local function table_of(t) return t:totable() end

describe("a frozen weight", function()
  -- products are the only calls of these in the backward of a linear layer
  local products = { "matmul", "linear", "linear_weight_backward", "lora_linear", "lora_linear_backward" }

  it("costs no dW product", function()
    local x, w = randn({ 4, 6 }, true), randn { 5, 6 }
    local loss = weft.linear(x, w):sum()
    local n = counts.during(products, function() loss:backward() end)
    assert.equal(1, n.matmul + n.linear)
    assert.equal(0, n.linear_weight_backward)

    w:requires_grad_()
    loss = weft.linear(x, w):sum()
    n = counts.during(products, function() loss:backward() end)
    assert.equal(2, n.matmul + n.linear + n.linear_weight_backward)
  end)

  it("costs no dW product in a matrix product, on either side", function()
    for side = 1, 2 do
      local a, b = randn({ 4, 6 }, side == 1), randn({ 6, 5 }, side == 2)
      local loss = weft.matmul(a, b):sum()
      local n = counts.during(products, function() loss:backward() end)
      assert.equal(1, n.matmul)
      assert.is_nil((side == 1 and b or a).grad)
    end
  end)

  it("keeps no activation that only dW needs", function()
    local x, w = randn({ 64, 6 }, true), randn { 5, 6 }
    local before = counts.tape()
    local y = weft.linear(x, w)
    assert.equal(5 * 6 * 8, counts.tape() - before)          -- the weight, for dx
    y:free()
    assert.equal(before, counts.tape())
    w:requires_grad_()
    y = weft.linear(x, w)
    assert.equal((5 * 6 + 64 * 6) * 8, counts.tape() - before)  -- and x, for dW
    y:free()
  end)

  it("keeps no input at all when nothing before it wants a gradient", function()
    local x, w, b = randn { 64, 6 }, randn { 5, 6 }, randn({ 5 }, true)
    local before = counts.tape()
    local y = weft.linear(x, w, b)
    assert.equal(before, counts.tape())
    y:sum():backward()
    assert.same({ 64, 64, 64, 64, 64 }, table_of(b.grad))
  end)

  it("gets no gradient buffer", function()
    local x, w = randn({ 4, 600 }, true), randn { 500, 600 }
    local loss = weft.linear(x, w):sum()
    weft.empty_cache()
    weft.reset_peak()
    local before = weft.memory()
    loss:backward()
    assert.is_nil(w.grad)
    assert.is_true(weft.memory().peak - before.live < 500 * 600 * 8)
    assert.is_true(weft.memory().live - before.live <= 4 * 600 * 8 + 4096)
  end)

  it("inside a LoRA layer keeps the input once and no more than A needs", function()
    local x, w = randn { 64, 6 }, randn { 5, 6 }
    local a, b = randn({ 2, 6 }, true), randn({ 5, 2 }, true)
    local before = counts.tape()
    local y = weft.lora_linear(x, w, nil, a, b, 2)
    -- x for dA, A and B for each other, the rows x A^T for dB; not W
    assert.is_true(counts.tape() - before <= (64 * 6 + 2 * 6 + 5 * 2 + 64 * 2) * 8)
    local n = counts.during({ "lora_linear_backward" }, function() y:sum():backward() end)
    assert.equal(1, n.lora_linear_backward)
    assert.is_nil(w.grad)
    assert.is_nil(x.grad)
    assert.is_not_nil(a.grad)
  end)

  it("behind which nothing trains makes no node", function()
    local before = counts.alive().nodes
    local y = weft.linear(randn { 4, 6 }, randn { 5, 6 }):gelu():sum()
    assert.is_false(y.requires_grad)
    assert.equal(before, counts.alive().nodes)
  end)
end)

describe("backward", function()
  it("adds into .grad, call after call, until it is cleared", function()
    local x = randn({ 3 }, true)
    for k = 1, 3 do
      (x * 2):sum():backward()
      assert.same({ 2 * k, 2 * k, 2 * k }, table_of(x.grad))
    end
    x:zero_grad()
    assert.is_nil(x.grad)
    ;(x * 5):sum():backward()
    assert.same({ 5, 5, 5 }, table_of(x.grad))
    x.grad = nil
    assert.is_nil(x.grad)
    x.grad = weft.ones { 3, dtype = "float64" }
    ;(x * 5):sum():backward()
    assert.same({ 6, 6, 6 }, table_of(x.grad))
  end)

  it("adds up the gradients of a tensor that is used several times", function()
    local x = weft.tensor({ 2, 3 }, { dtype = "float64", requires_grad = true })
    ;(x * x + x * 4 + x):sum():backward()
    assert.same({ 9, 11 }, table_of(x.grad))
    local y = weft.tensor({ 2, 3 }, { dtype = "float64", requires_grad = true })
    weft.add(y, y):sum():backward()
    assert.same({ 2, 2 }, table_of(y.grad))
  end)

  it("goes through a chain of views", function()
    local x = weft.tensor({ { 1, 2, 3 }, { 4, 5, 6 }, { 7, 8, 9 } }, { dtype = "float64", requires_grad = true })
    local view = x:transpose(1, 2):narrow(1, 2, 2):select(2, 3):unsqueeze(1):expand(4, 2):reshape(8)
    assert.same({ 8, 9, 8, 9, 8, 9, 8, 9 }, table_of(view))
    local w = weft.tensor({ 1, 10, 2, 20, 3, 30, 4, 40 }, { dtype = "float64" })
    ;(view * w):sum():backward()
    assert.same({ { 0, 0, 0 }, { 0, 0, 0 }, { 0, 10, 100 } }, table_of(x.grad))
  end)

  it("adds up what overlapping windows read", function()
    local x = weft.tensor({ 1, 2, 3, 4 }, { dtype = "float64", requires_grad = true })
    x:unfold(1, 2, 1):sum():backward()
    assert.same({ 1, 2, 2, 1 }, table_of(x.grad))
  end)

  it("sums over what was broadcast", function()
    local a, b, c = randn({ 4, 1, 3 }, true), randn({ 2, 1 }, true), weft.tensor(2, { dtype = "float64", requires_grad = true })
    ;((a + b) * c):sum():backward()
    assert.same({ 4, 1, 3 }, a.grad.shape)
    assert.same({ { 24 }, { 24 } }, table_of(b.grad))
    assert.equal(0, c.grad.ndim)
    assert.same({ 4, 4, 4 }, table_of(a.grad)[1][1])
    near(c.grad, (a + b):sum(), 1e-12)
  end)

  it("passes through tensors of size zero", function()
    local x, w = randn({ 0, 3 }, true), randn({ 2, 3 }, true)
    weft.linear(x, w):sum():backward()
    assert.same({ 0, 3 }, x.grad.shape)
    assert.same({ { 0, 0, 0 }, { 0, 0, 0 } }, table_of(w.grad))
  end)

  it("takes the gradient of a result that is no single number", function()
    local x = randn({ 2 }, true)
    local y = x * 3
    assert.has_error(function() y:backward() end)
    y:backward { gradient = weft.tensor({ 1, 10 }, { dtype = "float64" }) }
    assert.same({ 3, 30 }, table_of(x.grad))
  end)

  it("refuses a gradient of another shape or dtype, unknown options, and what has no history", function()
    local x = randn({ 2 }, true)
    local function refused(pattern, fn, ...)
      local ok, message = pcall(fn, ...)
      assert.is_false(ok)
      assert.matches(pattern, message)
    end
    refused("%[2%]", x.backward, x * 3, { gradient = weft.ones { 3, dtype = "float64" } })
    refused("dtype", x.backward, x * 3, { gradient = weft.ones { 2 } })
    refused("did you mean retain_graph", x.backward, (x * 3):sum(), { retain_grap = true })
    refused("one element is expected, got %[2%]", x.backward, x * 3)
    refused("no history", x.backward, randn { 1 })
    refused("no history", x.backward, weft.no_grad(function() return (x * 3):sum() end))
    assert.is_nil(x.grad)
  end)

  it("refuses a second pass through what it released", function()
    local x = randn({ 2 }, true)
    local y = x:exp():sum()
    y:backward()
    local ok, message = pcall(y.backward, y)
    assert.is_false(ok)
    assert.matches("a second time", message)
    assert.matches("retain_graph = true", message)
  end)

  it("keeps what it needs with retain_graph, and releases it in the end", function()
    local x = randn({ 2 }, true)
    local before = counts.tape()
    local y = x:exp():sum()
    y:backward { retain_graph = true }
    assert.equal(2 * 8, counts.tape() - before)
    local once = x.grad:clone()
    y:backward()
    near(x.grad, once * 2, 1e-15)
    assert.equal(before, counts.tape())
  end)

  it("releases what was kept as it goes", function()
    local x = randn({ 1000 }, true)
    local before, seen = counts.tape(), {}
    local y = x
    for i = 1, 10 do
      y = y:exp():affine(0.1)
      y:register_hook(function() seen[i] = counts.tape() - before end)
    end
    y:sum():backward()
    -- at the hook of layer i the exponentials of layers 1..i are still kept
    for i = 1, 10 do assert.equal(i * 8000, seen[i]) end
  end)

  it("refuses to use what was written in place since it was kept", function()
    local x = randn({ 2 }, true)
    local y = x:exp()
    local loss = y:sum()
    weft.no_grad(function() y:fill_(1) end)
    local ok, message = pcall(loss.backward, loss)
    assert.is_false(ok)
    assert.matches("exp saved was written in place", message)
    assert.matches("clone%(%)", message)
    -- writing to a view of it is the same
    local w = randn { 2 }
    loss = (x * w):sum()
    w:narrow(1, 1, 1):fill_(1)
    assert.has_error(function() loss:backward() end)
    -- what the gradient needs not, may change
    y = x:affine(2)
    loss = y:sum()
    weft.no_grad(function() y:fill_(1) end)
    x:zero_grad()
    loss:backward()
    assert.same({ 2, 2 }, table_of(x.grad))
  end)

  it("shares no memory between gradients that differ later", function()
    local a, b = randn({ 2 }, true), randn({ 2 }, true)
    local w = weft.ones { 2, dtype = "float64" }
    ;((a + b) * w):sum():backward()
    assert.is_false(C.weft_same_storage(a.grad.p, b.grad.p))
    ;(a * 3):sum():backward()
    assert.same({ 4, 4 }, table_of(a.grad))
    assert.same({ 1, 1 }, table_of(b.grad))
  end)

  it("leaves nothing behind when it fails half way", function()
    local x, w = randn({ 3 }, true), randn({ 3 }, true)
    local bad = weft.custom { forward = function(_, t) return t * 1 end, backward = function() error "on purpose" end }
    local function once()
      weft.scope(function()
        local y = bad(x:exp()) * w
        assert.is_false(pcall(y.backward, y:sum()))
      end)
      w:zero_grad()
    end
    once()
    local before = counts.alive()
    for _ = 1, 5 do once() end
    assert.same(before, counts.alive())
    assert.is_nil(x.grad)
    assert.is_true(weft.grad_enabled())
    ;(x * w):sum():backward()
    near(x.grad, w:detach(), 0)
  end)

  it("joins more than 64 tensors that want gradients", function()
    local parts = {}
    for i = 1, 150 do parts[i] = weft.full { 2, value = i, dtype = "float64", requires_grad = true } end
    local joined, stacked = weft.cat(parts, 1), weft.stack(parts, 2)
    assert.same({ 300 }, joined.shape)
    assert.same({ 2, 150 }, stacked.shape)
    local w = weft.arange(300, { dtype = "float64" })
    ;(joined * w):sum():backward()
    stacked:sum():backward()
    for i = 1, 150 do assert.same({ 2 * i - 2 + 1, 2 * i - 1 + 1 }, table_of(parts[i].grad)) end
    parts[100] = weft.full { 2, 2, value = 1, dtype = "float64", requires_grad = true }
    local ok, message = pcall(weft.cat, parts, 1)
    assert.is_false(ok)
    assert.matches("tensor 100 has 2 dims", message)
  end)

  it("runs and releases a chain of 200,000 nodes", function()
    local before = counts.alive()
    local x = weft.tensor(1, { dtype = "float64", requires_grad = true })
    weft.scope(function()
      local y = x
      for _ = 1, 100000 do
        local z = y:affine(1, 0.5):neg()
        if y ~= x then y:free() end
        y = z
      end
      assert.equal(200000, counts.alive().nodes - before.nodes - 1)
      y:backward()
    end)
    assert.equal(1, x.grad:item())
    -- and of a chain that backward never saw
    weft.scope(function()
      local y = x
      for _ = 1, 200000 do
        local z = y:neg()
        if y ~= x then y:free() end
        y = z
      end
    end)
    x:free()
    collectgarbage()
    assert.same(before.nodes, counts.alive().nodes)
  end)
end)

describe("recording", function()
  it("stops inside no_grad and starts again inside enable_grad", function()
    local x = randn({ 2 }, true)
    weft.no_grad(function()
      assert.is_false(weft.grad_enabled())
      assert.is_false((x * 2).requires_grad)
      weft.enable_grad(function() assert.is_true((x * 2).requires_grad) end)
      assert.is_false(weft.grad_enabled())
    end)
    assert.is_true((x * 2).requires_grad)
  end)

  it("goes back to what it was when a function fails", function()
    assert.is_false(pcall(weft.no_grad, error, "x"))
    assert.is_true(weft.grad_enabled())
    weft.no_grad(function()
      assert.is_false(pcall(weft.enable_grad, error, "x"))
      assert.is_false(weft.grad_enabled())
    end)
  end)

  it("hands arguments in and all results out", function()
    local n, a, b, c = select("#", weft.no_grad(function(...) return ... end, 1, nil, 3)),
      weft.no_grad(function(...) return ... end, 1, nil, 3)
    assert.same({ 3, 1, nil, 3 }, { n, a, b, c })
  end)

  it("is refused a yield out of no_grad, which would leave it off for others", function()
    local co = coroutine.create(function() weft.no_grad(coroutine.yield) end)
    local ok, message = coroutine.resume(co)
    assert.is_false(ok)
    assert.matches("yield inside weft.no_grad", message)
    assert.is_true(weft.grad_enabled())
  end)

  it("leaves out what detach cut off, which shares memory", function()
    local x = randn({ 2 }, true)
    local d = x:detach()
    assert.is_false(d.requires_grad)
    assert.is_true(d.is_leaf)
    assert.is_true(C.weft_same_storage(d.p, x.p))
    ;(x * d):sum():backward()
    near(x.grad, d, 0)
  end)

  it("tells leaves from results", function()
    local x = randn({ 2 }, true)
    local y = x * 2
    assert.same({ true, true, "leaf" }, { x.requires_grad, x.is_leaf, x.grad_op })
    assert.same({ true, false, "affine" }, { y.requires_grad, y.is_leaf, y.grad_op })
    assert.is_nil(randn({ 2 }).grad_op)
    x:requires_grad_(false)
    assert.is_false((x * 2).requires_grad)
    local ok, message = pcall(y.requires_grad_, y, false)
    assert.is_false(ok)
    assert.matches("a result of affine; use detach", message)
  end)

  it("is refused to integers", function()
    local ok, message = pcall(weft.zeros, { 2, dtype = "int64", requires_grad = true })
    assert.is_false(ok)
    assert.matches("only float32 and float64 tensors have gradients, got int64", message)
  end)
end)

describe("retain_grad", function()
  it("keeps the gradient of a result, and of each output of a function", function()
    local x = randn({ 3 }, true)
    local y = x * 2
    y:retain_grad()
    local z = y:exp()
    z:sum():backward()
    near(y.grad, z:detach(), 1e-15)
    near(x.grad, z:detach() * 2, 1e-15)
    assert.is_nil(z.grad)

    local two = weft.custom {
      forward = function(_, t) return t * 2, t * 3 end,
      backward = function(_, da, db) return da * 2 + db * 3 end,
    }
    local a, b = two(x)
    a:retain_grad()
    b:retain_grad()
    x:zero_grad()
    ;(a * 5 + b * 7):sum():backward()
    assert.same({ 5, 5, 5 }, table_of(a.grad))
    assert.same({ 7, 7, 7 }, table_of(b.grad))
    assert.same({ 31, 31, 31 }, table_of(x.grad))
    a:zero_grad()
    assert.is_nil(a.grad)
    assert.is_not_nil(b.grad)
  end)

  it("is refused where no gradient comes", function()
    assert.has_error(function() randn({ 2 }):retain_grad() end)
  end)
end)

describe("writing in place", function()
  local function refused(pattern, fn, ...)
    local ok, message = pcall(fn, ...)
    assert.is_false(ok)
    assert.matches(pattern, message)
  end

  it("is refused on leaves, results, views of them, and with sources that want gradients", function()
    local x = randn({ 2, 2 }, true)
    local y, plain = x * 2, randn { 2, 2 }
    refused("the leaf %[2,2%] requires a gradient", x.fill_, x, 1)
    refused("a result %[2,2%] requires a gradient", y.add_, y, plain)
    refused("requires a gradient", x.copy_, x, plain)
    refused("requires a gradient", x.mul_, x, 2)
    refused("a result %[2%] requires a gradient", function() x[1] = 0 end)
    refused("the source requires a gradient", plain.copy_, plain, x)
    refused("the source requires a gradient", plain.add_, plain, x)
    assert.is_true(pcall(weft.no_grad, x.fill_, x, 1))
    assert.same({ { 1, 1 }, { 1, 1 } }, table_of(x))
  end)

  it("is refused on expanded views, whose elements share memory", function()
    local wide = weft.zeros { 2, 1 }:expand(2, 3)
    refused("expanded view", wide.fill_, wide, 1)
    refused("expanded view", wide.add_, wide, 1)
  end)

  it("reads all of a source that overlaps before it writes", function()
    local x = weft.tensor({ { 1, 2 }, { 3, 4 } })
    x:copy_(x:t())
    assert.same({ { 1, 3 }, { 2, 4 } }, table_of(x))
    x = weft.tensor({ { 1, 2 }, { 3, 4 } })
    x:add_(x:t())
    assert.same({ { 2, 5 }, { 5, 8 } }, table_of(x))
    x = weft.tensor({ { 1, 2 }, { 3, 4 } })
    x:add_(x[1])
    assert.same({ { 2, 4 }, { 4, 6 } }, table_of(x))
    x = weft.arange(6)
    x:narrow(1, 2, 5):copy_(x:narrow(1, 1, 5))
    assert.same({ 0, 0, 1, 2, 3, 4 }, table_of(x))
    x:add_(x)
    assert.same({ 0, 0, 2, 4, 6, 8 }, table_of(x))
  end)

  it("adds a part of the same memory as it was before", function()
    local x = weft.arange(1000)
    local want = (x:narrow(1, 2, 999) + x:narrow(1, 1, 999)):totable()
    x:narrow(1, 2, 999):add_(x:narrow(1, 1, 999))
    assert.same(want, x:narrow(1, 2, 999):totable())
  end)

  it("goes through strides, converts and broadcasts", function()
    local x = weft.zeros { 3, 4 }
    x:t():narrow(1, 2, 2):copy_(weft.tensor({ 1, 2, 3 }, { dtype = "int64" }))
    assert.same({ { 0, 1, 1, 0 }, { 0, 2, 2, 0 }, { 0, 3, 3, 0 } }, table_of(x))
    refused("%[2%] does not broadcast to %[3,4%]", x.copy_, x, weft.zeros { 2 })
    refused("does not broadcast", weft.zeros({ 1 }).copy_, weft.zeros { 1 }, x)
  end)

  it("counts a version of the memory, not of the handle", function()
    local x = weft.zeros { 4 }
    local before = C.weft_version_of(x.p)
    x:narrow(1, 1, 2):fill_(3)
    assert.equal(before + 1, C.weft_version_of(x.p))
  end)

  it("is seen by backward whichever way the memory was written", function()
    local two = weft.ones { 2, dtype = "float64" }
    local ways = {
      fill_ = function(t) t:fill_(1) end, copy_ = function(t) t:copy_(two) end,
      ["add_ of a number"] = function(t) t:add_(1) end, ["mul_ of a number"] = function(t) t:mul_(2) end,
      ["div_ of a number"] = function(t) t:div_(2) end, add_ = function(t) t:add_(two) end,
      ["add_ to a strided view"] = function(t) t:unfold(1, 1, 2):add_(1) end,
      ["an index"] = function(t) t[1] = 5 end,
      ["a kernel that writes its inputs"] = function(t) weft.ema_({ t, two }, 0.5) end,
      ["C's write"] = function(t) C.weft_write(t.p, require("ffi").new("double[2]"), 2) end,
    }
    for name, write in pairs(ways) do
      local w, x = weft.full { 2, value = 3, dtype = "float64" }, randn({ 2 }, true)
      local loss = (x * w):sum()
      local before = C.weft_version_of(w.p)
      write(w)
      assert.is_true(C.weft_version_of(w.p) > before, name)
      refused("mul saved was written in place", loss.backward, loss)
    end
  end)
end)

describe("the C interface of backward", function()
  it("says so when a graph has functions that only its caller can run", function()
    local x = randn({ 1 }, true)
    local double = weft.custom { forward = function(_, t) return t * 2 end, backward = function(_, d) return d * 2 end }
    local y = double(x)
    assert.is_true(C.weft_backward(y.p) ~= 0)
    assert.matches("weft_run_step", ffi.string(C.weft_error()))
    local z = (x * 2):sum()
    assert.equal(0, tonumber(C.weft_backward(z.p)))
    assert.same({ 2 }, table_of(x.grad))
  end)
end)
