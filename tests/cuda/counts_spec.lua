-- counts_spec.lua: what a step of DINOv2-base with LoRA costs a GPU, counted on the simulated device, which
-- computes nothing here: launches, bytes, allocations, waits. Bytes are compared with the least that the
-- step's shapes allow.
local counts = require "tests.support.device_counts"
local weft = require "weft"

local device, place = counts.device, { device = counts.device, dtype = "bfloat16" }
local BATCH, TOKENS, WIDTH, RANK, LAYERS, SIZE = 8, 257, 768, 16, 12, 2     -- SIZE: bytes of a bfloat16

-- Forward, loss, backward, clipping and AdamW over a base model with adapters on query and value.
local function phase_2(rate, layers)
  local model = weft.models.dinov2.new { hidden_size = WIDTH, num_hidden_layers = layers, num_attention_heads = 12, image_size = 224 }
  weft.peft.lora(model, { rank = RANK, alpha = 2 * RANK, dropout = rate, targets = { "query", "value" } })
  model:to(place)
  model:train()
  local params = {}
  for _, t in model:named_parameters() do
    if t.requires_grad then params[#params + 1] = t end
  end
  local optimizer = weft.optim.AdamW(params, { lr = 1e-4 })
  local pixels = weft.zeros({ BATCH, 3, 224, 224, device = device }):to(place)
  return model, function()
    optimizer:zero_grad()
    local y = model(pixels).patches
    ;(y * y):mean():backward()
    weft.optim.clip_grad_norm(optimizer, 1)
    optimizer:step()
  end, pixels
end

-- The counts of a step that repeats.
local function of_step(step)
  for _ = 1, 2 do weft.scope(step) end
  collectgarbage()
  return (counts.during(function() weft.scope(step) end))
end

-- Launches of one block in the stack, forward and backward: what a block more adds.
local function of_block(rate)
  local forward, all = {}, {}
  for i, layers in ipairs { 2, 3 } do
    local model, step, pixels = phase_2(rate, layers)
    all[i] = of_step(step).launches
    forward[i] = counts.during(function() weft.scope(function() model(pixels) end) end).launches
  end
  return forward[2] - forward[1], all[2] - all[1] - (forward[2] - forward[1])
end

-- The least bytes of a step: each product, attention and norm reads its operands once and writes its results
-- once; what stands between them (biases, dropout, LayerScale, sums of the residual stream and of gradients,
-- GELU) is part of one of these and costs what it must keep for the gradient alone.
local function least()
  local rows = BATCH * TOKENS
  local act, weights = rows * WIDTH * SIZE, 12 * WIDTH * WIDTH * SIZE
  local adapters = 2 * 2 * WIDTH * RANK * SIZE
  local forward = act * (
    1 + 3                 -- query, key, value: x once
    + 3 + 1               -- attention
    + 1 + 1               -- output
    + 2 * (2 + 2)         -- residual sum and norm: two in, two out
    + 1 + 4 + 4           -- fc1, and its GELU: both are kept
    + 4 + 1)              -- fc2
  local backward = act * (
    1 + 4 + 4             -- fc2 and GELU's gradient
    + 4 + 1               -- fc1
    + 2 * (3 + 2)         -- residual sum and norm: their gradients and x in, two out
    + 1 + 1               -- output
    + 5 + 3               -- attention: dy, y and its operands
    + 3 + 1 + 1)          -- query, key, value, and x once for LoRA's A
  local step = 2 * rows * RANK * SIZE * 3      -- h: written once, read twice
  local optimizer = LAYERS * adapters / SIZE * (2 + 2 + 3 * 4) * 2
  local ends = act * 12   -- patches, positions, the last norm, the loss
  return LAYERS * (forward + backward + 2 * (weights + adapters) + step) + optimizer + ends
end

describe("the simulated device's counts", function()
  local function zeros(...) return weft.zeros { device = device, ... } end

  it("take an operand once for each launch, broadcast or not", function()
    local a, b, row = zeros(64, 100), zeros(64, 100), zeros(100)
    local c = counts.during(function() return a + b end)
    assert.same({ launches = 1, read = 2 * 25600, written = 25600 }, c.kernels["each_kernel add_fn"])
    c = counts.during(function() return a + row end)
    assert.equal(25600 + 400, c.read)
    c = counts.during(function() a:add_(b) end)
    assert.same({ 2 * 25600, 25600 }, { c.read, c.written })
    c = counts.during(function() return a:narrow(2, 1, 16):contiguous() end)
    assert.same({ 4096, 4096 }, { c.read, c.written })
  end)

  it("take a product's matrices and what it adds to", function()
    local x, w = zeros(2, 10, 32), zeros(48, 32)
    local c = counts.during(function() return weft.linear(x, w) end)
    assert.same({ launches = 1, read = 4 * (20 * 32 + 48 * 32), written = 4 * 20 * 48 }, c.kernels.product)
  end)

  it("tell copies, waits and allocations", function()
    local big = weft.zeros { 1000, 3 }
    local t
    local c = counts.during(function() t = big:to(device) end)
    assert.same({ 1, 12000, 1, 0 }, { c.uploads, c.upload_bytes, c.allocations, c.stream_waits })
    c = counts.during(function() return t:sum():item() end)
    assert.same({ 1, 4, 1 }, { c.downloads, c.download_bytes, c.stream_waits })
    c = counts.during(function() t:free() end)
    assert.same({ 0, 0 }, { c.frees, c.stream_waits })
  end)
end)

describe("a step of DINOv2-base with LoRA, batch 8, bfloat16", function()
  local step, c
  setup(function()
    local _
    _, step = phase_2(0.1, LAYERS)
    c = of_step(step)
  end)

  it("allocates nothing and waits for nothing once it repeats", function()
    assert.same({ 0, 0, 0 }, { c.allocations, c.frees, c.pinned_allocations })
    assert.same({ 0, 0 }, { c.stream_waits, c.event_waits })
    assert.same({ 0, 0 }, { c.uploads, c.downloads })
  end)

  it("waits for nothing where garbage is collected", function()
    local left = counts.during(function()
      for _ = 1, 3 do step() end      -- outside any scope: finalizers free what it made
      collectgarbage()
      collectgarbage()
    end)
    assert.same({ 0, 0, 0 }, { left.stream_waits, left.event_waits, left.frees })
  end)

  it("starts 12 kernels a block forward, and 19 backward, two of them to add up gradients under dropout", function()
    local forward, backward = of_block(0.1)
    print(("launches a block: %d forward, %d backward; %d a step"):format(forward, backward, c.launches))
    assert.same({ 12, 19 }, { forward, backward })
    assert.same({ 12, 17 }, { of_block(0) })
  end)

  it("moves little more than the least possible", function()
    local ratio = (c.read + c.written) / least()
    print(("bytes of a step: %.2f GB, %.2f times the least"):format((c.read + c.written) / 1e9, ratio))
    assert(ratio <= 1.47 and ratio >= 1, ("%.2f times the least\n%s"):format(ratio, counts.text(c)))
  end)
end)
