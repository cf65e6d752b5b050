-- steady_spec.lua: a training step that repeats, whole and tiny, in both phases: no copy because a kernel
-- wants contiguous data, no call of the system's allocator, nothing that stays.
local weft = require "weft"
local counts = require "tests.support.counts"
local tiny = require "tests.support.tiny"

local WARM, STEPS = 60, 440  -- of each phase

describe("stage 1", function()
  local root, remove_pictures, run, remove
  setup(function()
    root, remove_pictures = tiny.pictures(24)
    run, remove = tiny.run(root, { "log_every=100000" })
    run.evaluate = function(self) self.history = self.history or { { label = "none", step = self.step, values = {} } } end
    run.model:train()
  end)
  teardown(function()
    remove()
    remove_pictures()
  end)

  -- What WARM + STEPS steps of the phase that comes next do, over the batches of one epoch again and
  -- again: when Lua's collector finds a batch that is gone is no matter of the step.
  local function phase()
    run:epochs()()
    local batches = {}
    for batch in run:batches() do batches[#batches + 1] = batch end
    local out = { copies = 0, system = 0, early = 0, late = 0, phase = run.phase.name, batches = #batches }
    for n = 1, WARM + STEPS do
      local copies, system = counts.copies(), weft.memory().system_calls
      run:train_step(batches[n % #batches + 1], function(b) return run.model:losses(b) end)
      out.copies = out.copies + counts.copies() - copies
      if n > WARM then out.system = out.system + weft.memory().system_calls - system end
      if n == WARM + 1 then out.before = counts.alive() end
      if n > WARM and n <= WARM + 100 then out.early = math.max(out.early, weft.memory().live) end
      if n > WARM + STEPS - 100 then out.late = math.max(out.late, weft.memory().live) end
    end
    out.after = counts.alive()
    return out
  end

  local function check(p, name)
    assert.equal(name, p.phase)
    assert.is_true(p.batches > 2)
    assert.equal(0, p.copies, name .. ": copies that the dispatcher made")
    assert.equal(0, p.system, name .. ": calls of the system's allocator")
    assert.equal(p.early, p.late, name .. ": the most bytes that were live")
    assert.same(p.before, p.after, name .. ": what is alive")
  end

  it("steps without a copy and without the system's allocator, and keeps nothing, in both phases #slow", function()
    check(phase(), "Phase 1")
    run.epoch, run.position, run.epoch_done = 3, 0, nil
    check(phase(), "Phase 2")
  end)

  it("asks the system for nothing either where captions of every length come in an order of each epoch's own #slow", function()
    local words = { "red", "a", "blue", "bar", "square", "x" }
    for i = 1, 24 do
      local text = {}
      for k = 1, 1 + i * 5 % 9 do text[k] = words[i * k % 6 + 1] end
      tiny.write(("%s/%02d.txt"):format(root, i), ("Number %d %s\n"):format(i, table.concat(text, " ")))
    end
    local varied, remove_varied = tiny.run(root, { "log_every=100000", "warmup_epochs=70", "epochs=140", "data.length=20" })
    varied.evaluate = run.evaluate
    varied.model:train()
    local step, late, tokens = {}, {}, {}
    for _ in varied:epochs() do
      local name = varied.phase.name
      collectgarbage()  -- handles of batches that are gone are no matter of the step
      collectgarbage()
      for batch in varied:batches() do
        step[name] = (step[name] or 0) + 1
        local n, seen = step[name], weft.memory().system_calls
        tokens[batch.tokens] = true
        varied:train_step(batch, function(b) return varied.model:losses(b) end)
        if n > WARM and weft.memory().system_calls > seen then late[#late + 1] = ("%s, step %d"):format(name, n) end
      end
    end
    remove_varied()
    assert.same({}, late)
    assert.same({ ["Phase 1"] = 280, ["Phase 2"] = 280 }, step)
    local lengths = 0
    for _ in pairs(tokens) do lengths = lengths + 1 end
    assert.is_true(lengths > 4)
  end)
end)

describe("an encoder's step", function()
  local nn = weft.nn

  -- The step of either phase on a DINOv2, with what reads its patches.
  local function step_of(lora)
    local model = weft.models.dinov2.new { hidden_size = 32, num_hidden_layers = 2, num_attention_heads = 2, image_size = 28, patch_size = 7 }
    if lora then weft.peft.lora(model, { rank = 2, alpha = 4, dropout = 0.1 }) else model:freeze() end
    local compress = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 8), nn.LayerNorm(8))
    model:train()
    compress:train()
    local o = weft.optim.AdamW(nn.ModuleList { model, compress }, { lr = 1e-3 })
    local pixels = weft.randn { 3, 3, 28, 28 }
    return function(read)
      weft.scope(function()
        o:zero_grad()
        local out = model(pixels)
        read(out, compress):backward()
        weft.optim.clip_grad_norm(o, 1)
        o:step()
      end)
    end
  end

  it("copies nothing, whatever part of the features is read", function()
    for _, lora in ipairs { false, true } do
      local step = step_of(lora)
      for name, read in pairs {
        patches = function(out, compress) return (compress(out.patches) ^ 2):mean() end,
        cls = function(out, compress) return (compress(out.cls) ^ 2):mean() end,
        ["all positions, averaged"] = function(out, compress) return (compress(out.last_hidden_state:mean(2)) ^ 2):sum() end,
        ["patches, averaged after"] = function(out, compress) return (compress(out.patches):mean(2) ^ 2):sum() end,
      } do
        step(read)
        local before = counts.copies()
        step(read)
        assert.equal(before, counts.copies(), (lora and "phase 2, " or "phase 1, ") .. name)
      end
    end
  end)
end)
