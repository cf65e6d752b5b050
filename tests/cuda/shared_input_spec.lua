-- shared_input_spec.lua: a tensor that several layers read: their gradients are added up where the first
-- of them lies, on the CPU and on the device under test (WEFT_TEST_DEVICE).
local weft = require "weft"
local counts = require "tests.support.counts"

local device = os.getenv "WEFT_TEST_DEVICE" or "cpu"
local stream = weft.random.stream("shared input", 5)

local function randn(...) return weft.randn({ rng = stream, dtype = "float64", ... }):to(device) end
local function close(want, got)
  local off = (want - got):abs():max(1):max(1):item()
  assert(off <= 1e-12 * (1 + want:abs():max(1):max(1):item()), "apart by " .. off)
end

local function loss_of(y) return (y * y):sum() end

local function layers()
  local w = { randn(6, 10), randn(6, 10), randn(6, 10) }
  local a, b = randn(3, 10), randn(6, 3)
  local draw = { key = 7ULL, counter = 3ULL }
  local function lora(p) return function(x) return weft.lora_linear(x, w[1], nil, a, b, 0.5, p, draw) end end
  return { function(x) return weft.linear(x, w[2]) end, lora(0), lora(0.3), function(x) return weft.linear(x, w[3]) end }
end

describe("layers over one input, on " .. device, function()
  it("add their gradients as sums of their own would", function()
    local x, list = randn(7, 10), layers()
    local want
    for _, layer in ipairs(list) do
      local alone = x:detach():requires_grad_()
      loss_of(layer(alone)):backward()
      want = want and want + alone.grad or alone.grad
    end
    local leaf = x:detach():requires_grad_()
    local shared = leaf * 1
    local total
    for _, layer in ipairs(list) do
      local y = loss_of(layer(shared))
      total = total and total + y or y
    end
    local n = counts.during({ "matmul", "linear_backward", "lora_linear_backward" }, function() total:backward() end)
    close(want, leaf.grad)
    assert.same({ 0, 2, 2 }, { n.matmul, n.linear_backward, n.lora_linear_backward })
  end)

  it("leave alone a gradient that somebody else sees", function()
    local list = layers()
    local leaf = randn(7, 10):requires_grad_()
    local shared = leaf * 1
    shared:retain_grad()
    local seen = {}
    shared:register_hook(function(g) seen[#seen + 1] = g:clone():keep() end)
    local loss = loss_of(list[1](shared)) + loss_of(list[4](shared)) + (shared * 2):sum()
    loss:backward()
    close(leaf.grad, shared.grad)
    close(leaf.grad, seen[1])
    assert.equal(1, #seen)
  end)

  it("give the same where the graph is run twice", function()
    local list = layers()
    local leaf = randn(7, 10):requires_grad_()
    local shared = leaf * 1
    local loss = loss_of(list[1](shared)) + loss_of(list[3](shared)) + loss_of(list[4](shared))
    loss:backward { retain_graph = true }
    local once = leaf.grad:clone()
    loss:backward()
    close(once * 2, leaf.grad)
  end)
end)
