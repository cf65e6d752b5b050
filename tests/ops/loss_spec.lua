-- loss_spec.lua: ignored rows, absent columns, targets out of range, threads.
local weft = require "weft"
local inf = math.huge
local device = os.getenv "WEFT_TEST_DEVICE" or "cpu"

local function ids(list) return weft.tensor(list, { dtype = "int64", device = device }) end
local function tensor(value) return weft.tensor(value, { device = device }) end

describe("cross_entropy", function()
  it("counts ignored rows neither in the loss nor in the gradient", function()
    local x = weft.randn { 3, 5, requires_grad = true, device = device }
    local loss = weft.cross_entropy(x, ids { 1, -100, 4 })
    local kept = weft.cross_entropy(x:detach():index_select(ids { 0, 2 }, 1), ids { 1, 4 })
    assert.near(kept:item(), loss:item(), 1e-6)
    loss:backward()
    assert.same({ 0, 0, 0, 0, 0 }, x.grad:totable()[2])
  end)

  it("is NaN over zero rows, 0 as a sum", function()
    local x = weft.randn { 2, 5, device = device }
    local mean = weft.cross_entropy(x, ids { -100, -100 }):item()
    assert.is_true(mean ~= mean)
    assert.equal(0, weft.cross_entropy(x, ids { -100, -100 }, -100, 0, "sum"):item())
  end)

  it("names the target that is out of range, and the range", function()
    local ok, message = pcall(weft.cross_entropy, weft.randn { 8, 33, device = device }, ids { 0, 1, 2, 3, 4, 5, 6, 40 })
    assert.is_false(ok)
    assert.matches("target 40 outside 0..32, row 8", tostring(message), 1, true)
  end)

  it("holds for large logits and for masked ones", function()
    local x = tensor { { 1e4, 0, -1e4 }, { -inf, 0, 0 } }
    local rows = weft.cross_entropy(x, ids { 0, 1 }, -100, 0, "none"):totable()
    assert.equal(0, rows[1])
    assert.near(math.log(2), rows[2], 1e-6)
  end)

  it("keeps no probabilities for the gradient", function()
    local x = weft.randn { 64, 1000, requires_grad = true, device = device }
    local before = weft.memory(device).live
    local loss = weft.cross_entropy(x, weft.zeros { 64, dtype = "int64", device = device })
    assert(weft.memory(device).live - before < 64 * 1000 * 4 / 10)
    loss:backward()
  end)

  it("gives the same bits whatever the number of threads", function()
    local threads = weft.threads()
    local stream = weft.random.stream("loss", 1)
    local x, target = weft.randn { 500, 90, rng = stream }, weft.randint { 500, low = 0, high = 90, rng = stream }
    x, target = x:to(device), target:to(device)
    local function both()
      local leaf = x:detach():clone():requires_grad_()
      local loss = weft.cross_entropy(leaf, target, -100, 0.1)
      loss:backward()
      return { loss:item(), leaf.grad:totable() }
    end
    weft.threads(1)
    local one = both()
    weft.threads(3)
    assert.same(one, both())
    weft.threads(threads)
  end)
end)

describe("cross_entropy_soft", function()
  it("leaves out columns at -inf, in the loss and in both gradients", function()
    local x = weft.tensor({ { 1, -inf, 2 } }, { requires_grad = true, device = device })
    local target = weft.tensor({ { 0.25, 0, 0.75 } }, { requires_grad = true, device = device })
    local loss = weft.cross_entropy_soft(x, target)
    local lse = math.log(math.exp(1) + math.exp(2))
    assert.near(0.25 * (lse - 1) + 0.75 * (lse - 2), loss:item(), 1e-6)
    loss:backward()
    assert.equal(0, x.grad:totable()[1][2])
    assert.equal(0, target.grad:totable()[1][2])
    assert.near(math.exp(1 - lse) - 0.25, x.grad:totable()[1][1], 1e-6)
  end)

  it("gives an absent column no weight whatever its target", function()
    local x = weft.tensor({ { 1, -inf, 2 } }, { requires_grad = true, device = device })
    local target = tensor { { 0.25, 0.5, 0.25 } }
    local lse = math.log(math.exp(1) + math.exp(2))
    local loss = weft.cross_entropy_soft(x, target)
    assert.near(0.25 * (lse - 1) + 0.25 * (lse - 2), loss:item(), 1e-6)
    loss:backward()
    local grad = x.grad:totable()[1]
    assert.equal(0, grad[2])
    assert.near(0.5 * math.exp(1 - lse) - 0.25, grad[1], 1e-6)
  end)

  it("agrees with cross_entropy where the target is one class", function()
    local x = weft.randn { 2, 3, device = device }
    local soft = weft.cross_entropy_soft(x, tensor { { 0, 1, 0 }, { 0, 0, 1 } }):item()
    assert.near(weft.cross_entropy(x, ids { 1, 2 }):item(), soft, 1e-6)
  end)
end)

describe("losses over pairs", function()
  it("hold for large logits", function()
    local x, t = tensor { 1000, -1000, 1000 }, tensor { 1, 0, 0 }
    assert.same({ 0, 0, 1000 }, weft.binary_cross_entropy_with_logits(x, t, "none"):totable())
  end)

  it("keep the digits of a tiny loss", function()
    local loss = weft.binary_cross_entropy_with_logits(tensor { 20 }, tensor { 1 }):item()
    assert.near(1, loss / 2.0611536e-9, 1e-5)
  end)

  it("are |d| when beta is 0", function()
    local x = weft.tensor({ 3, -2, 0 }, { requires_grad = true, device = device })
    local loss = weft.smooth_l1(x, weft.zeros { 3, device = device }, 0, "sum")
    assert.equal(5, loss:item())
    loss:backward()
    assert.same({ 1, -1, 0 }, x.grad:totable())
  end)
end)
