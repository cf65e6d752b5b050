-- footprint_spec.lua: what operators do not keep and do not make: matrices of all heads, probabilities,
-- masks of dropout, what only a frozen weight's gradient would want.
local weft = require "weft"
local counts = require "tests.support.counts"

local stream = weft.random.stream("footprint", 1)
local function randn(shape, wanted)
  shape.rng, shape.requires_grad = stream, wanted or false
  return weft.randn(shape)
end

-- Bytes that were live at the most while fn ran, beside those before; and what fn gave.
local function most(fn)
  collectgarbage()
  collectgarbage()
  weft.empty_cache()
  weft.reset_peak()
  local before = weft.memory().live
  local y = fn()
  return weft.memory().peak - before, y
end

describe("attention", function()
  it("never holds the weights of all heads, forward or backward, masked, causal or with dropout", function()
    local B, H, N, D = 2, 8, 512, 16
    local all, one = B * H * N * N * 4, B * H * N * D * 4
    local q, k, v = randn({ B, H, N, D }, true), randn({ B, H, N, D }, true), randn({ B, H, N, D }, true)
    local mask = randn({ B, 1, 1, N }):gt(-1)
    local rng = { key = 5ULL, counter = 1ULL }
    for name, options in pairs { plain = {}, masked = { mask }, causal = { nil, true }, dropout = { nil, false, 0, 0.1, rng } } do
      local function forward() return weft.scaled_dot_product_attention(q, k, v, unpack(options, 1, 5)) end
      local tape = counts.tape()
      local bytes, y = most(forward)
      assert.is_true(bytes < one + all / 8, ("%s: %d bytes, the weights are %d"):format(name, bytes, all))
      -- the operands, the result, a statistic a row, the mask
      assert.is_true(counts.tape() - tape <= 4 * one + B * H * N * 4 + B * N, name)
      local gradient = weft.ones(y.shape)
      bytes = most(function() y:backward { gradient = gradient } end)
      assert.is_true(bytes < 4 * one + all / 8, ("%s, backward: %d bytes, the weights are %d"):format(name, bytes, all))
      for _, t in ipairs { q, k, v } do t:zero_grad() end
    end
  end)
end)

describe("cross_entropy", function()
  it("makes no probabilities: nothing of its input's size forward, the gradient alone backward", function()
    local x, target = randn({ 256, 4096 }, true), weft.zeros { 256, dtype = "int64" }
    local size = 256 * 4096 * 4
    local bytes, loss = most(function() return weft.cross_entropy(x, target) end)
    assert.is_true(bytes < size / 10, tostring(bytes))
    bytes = most(function() loss:backward() end)
    assert.is_true(bytes < size * 1.2, tostring(bytes))
  end)
end)

describe("dropout", function()
  it("keeps no mask", function()
    local x = randn({ 100000 }, true)
    local tape = counts.tape()
    local bytes, y = most(function() return weft.dropout(x, 0.5, { key = 1ULL, counter = 0ULL }) end)
    assert.is_true(bytes < 100000 * 4 * 1.2, tostring(bytes))
    assert.equal(tape, counts.tape())
    y:sum():backward()
    assert.is_true(weft.eq(x.grad:ne(0), y:ne(0)):to("int64"):min():item() == 1)
  end)
end)

describe("a frozen encoder", function()
  it("below a trained head leaves no node, no tape and no product of its own in backward", function()
    local model = weft.models.dinov2.new { hidden_size = 32, num_hidden_layers = 2, num_attention_heads = 2, image_size = 28, patch_size = 7 }
    model:freeze():train()
    local head = weft.nn.Linear(32, 4)
    local pixels = randn { 2, 3, 28, 28 }
    local before = counts.alive()
    local patches = model(pixels).patches
    assert.equal(before.nodes, counts.alive().nodes)
    assert.equal(before.tape, counts.tape())
    local loss = head(patches):sum()
    local calls = counts.during({ "linear", "matmul", "linear_weight_backward", "attention_backward", "layer_norm_backward" },
      function() loss:backward() end)
    assert.same({ linear = 0, matmul = 0, linear_weight_backward = 1, attention_backward = 0, layer_norm_backward = 0 }, calls)
    for name, t in model:named_parameters() do assert.is_nil(t.grad, name) end
  end)

  it("with adapters above its first layers makes gradients of adapters alone", function()
    local model = weft.peft.lora(weft.models.dinov2.new { hidden_size = 32, num_hidden_layers = 2, num_attention_heads = 2,
      image_size = 28, patch_size = 7 }, { rank = 2, alpha = 4 }):train()
    local loss = model(randn { 2, 3, 28, 28 }).cls:sum()
    local calls = counts.during({ "linear_weight_backward", "lora_linear_backward" }, function() loss:backward() end)
    assert.equal(0, calls.linear_weight_backward)
    assert.equal(4, calls.lora_linear_backward)  -- query and value of two layers
    for name, t in model:named_parameters() do assert.equal(name:find "lora_" ~= nil, t.grad ~= nil, name) end
  end)
end)
