local weft = require "weft"
local tiny = require "tests.support.tiny"
local phases = require "weft.train.phases"

local root, remove_pictures, removers
setup(function() root, remove_pictures = tiny.pictures(24) end)
teardown(function() remove_pictures() end)
before_each(function() removers = {} end)
after_each(function() for _, fn in ipairs(removers) do fn() end end)

local function new_run(more)
  local run, remove = tiny.run(root, more)
  table.insert(removers, remove)
  run.model:train()
  return run
end

-- Steps of training; after(run) sees the gradients of each step before the next clears them.
local function steps(run, n, after, losses)
  for _ in run:epochs() do
    for batch in run:batches() do
      run:train_step(batch, losses or function(b) return run.model:losses(b) end)
      if after then after(run) end
      n = n - 1
      if n == 0 then return end
    end
  end
end

local function gradient(t)
  local g = t.grad
  if not g then return nil end
  return g:abs():max():item()
end

local function values(run, pattern)
  local out = {}
  for name, t in run.model:named_parameters() do
    if name:find(pattern) then out[name] = t:detach():clone() end
  end
  return out
end

local function same(a, b) return (a - b):abs():max():item() == 0 end

-- A run brought to the first step of phase 2, without evaluations on the way.
local function at_phase_2(more)
  local run = new_run(more)
  run.evaluate = function(self) self.history = self.history or { { label = "none", step = self.step, values = {} } } end
  steps(run, run.options.steps_per_epoch * run.plan[1].last)
  local next_epoch = run:epochs()
  -- the reader notices the end of the epoch
  assert.is_nil(run:batches()())
  assert.equal(run.plan[2].first, next_epoch())
  return run
end

describe("the two phases", function()
  it("say in the log what is frozen, with counts that were counted", function()
    local run = new_run()
    run:train()
    local counts = { [1] = 0, [2] = 0, lora = 0 }
    for name, t in run.model:named_parameters() do
      local lora = name:find "lora_" ~= nil
      if lora then counts.lora = counts.lora + t:numel() end
      if lora or not name:find "^vision" then counts[2] = counts[2] + t:numel() end
      if not name:find "^vision" then counts[1] = counts[1] + t:numel() end
    end
    local log = tiny.read(run.dir .. "/log.txt")
    local commas = weft.nn.commas
    assert.truthy(log:find("\nPhase 1: LoRA adapters FROZEN | Trainable params: " .. commas(counts[1]) .. "\n", 1, true), log)
    assert.truthy(log:find("\nPhase 2: LoRA adapters UNFROZEN | Trainable params: " .. commas(counts[2]) .. "\n", 1, true))
    assert.truthy(log:find("vision: trainable params: 256 || all params: 16,448 || trainable%: 1.5564", 1, true))
    -- rank 2, A and B, query and value of two layers, 16 wide
    assert.equal(2 * 2 * 2 * 2 * 16, counts.lora)
    assert.equal(counts.lora, counts[2] - counts[1])
    local result = tiny.json(run.dir .. "/result.json")
    assert.same({ ["Phase 1"] = counts[1], ["Phase 2"] = counts[2] }, result.trainable)
    assert.is_true(result.frozen_unchanged)
  end)

  it("keep B at exactly 0, A as it was and the output that of the base model all through phase 1", function()
    local run = new_run()
    local before = values(run, "^vision")
    local pixels = run.data.test:batch_of({ 1, 2 }).pixels:keep()
    local base = weft.no_grad(function() return run.model:eval().vision(pixels).last_hidden_state end)
    run.model:train()
    steps(run, 8)
    assert.equal(1, run.phase.index)
    for name, t in run.model:named_parameters() do
      if name:find "^vision" then assert.is_true(same(before[name], t:detach()), name) end
      if name:find "lora_B" then assert.equal(0, t:abs():max():item(), name) end
    end
    -- also with dropout drawn: a branch with B at 0 adds nothing
    local now = weft.no_grad(function() return run.model.vision(pixels).last_hidden_state end)
    assert.is_true(same(base, now))
  end)

  it("give every trainable tensor a gradient at the second step of each phase, and no frozen one any", function()
    local run = new_run { "fusion.layers=2" }
    local n = { 0, 0 }
    run.evaluate = function() end
    steps(run, 10, function()
      n[run.phase.index] = n[run.phase.index] + 1
      if n[run.phase.index] ~= 2 then return end
      for name, t in run.model:named_parameters() do
        local g = gradient(t)
        if t.requires_grad then assert.is_true(g ~= nil and g > 0, run.phase.name .. ": " .. name)
        else assert.is_nil(g, run.phase.name .. ": " .. name) end
      end
    end)
    assert.same({ 8, 2 }, n)
  end)

  it("leave what lies behind a gate at 0 without a gradient at the first step alone", function()
    local run = new_run()
    local behind = { "^fusion%.text%.%d%.[qkvo]_proj%.weight", "^fusion%.text%.%d%.norm", "from_text%.[qkvo]_proj%.weight" }
    local step = 0
    steps(run, 2, function()
      step = step + 1
      local seen = 0
      for name, t in run.model:named_parameters() do
        for _, pattern in ipairs(behind) do
          if name:find(pattern) then
            seen = seen + 1
            if step == 1 then assert.equal(0, gradient(t), name) else assert.is_true(gradient(t) > 0, name) end
          end
        end
        if name:find "%.gate$" then assert.is_true(gradient(t) > 0, name) end
      end
      assert.equal(9, seen)
    end)
  end)

  for _, switch in ipairs { "rebuild", "extend" } do
    it(("leave every lora_A without a gradient at the first step of phase 2, not at the second (%s)"):format(switch), function()
      local run = at_phase_2 { "phase_switch=" .. switch }
      local step = 0
      steps(run, 2, function()
        step = step + 1
        local seen = 0
        for name, t in run.model:named_parameters() do
          if name:find "lora_A" then
            seen = seen + 1
            if step == 1 then assert.equal(0, gradient(t), name) else assert.is_true(gradient(t) > 0, name) end
          elseif name:find "lora_B" then
            assert.is_true(gradient(t) > 0, name)
          end
        end
        assert.equal(4, seen)
      end)
    end)
  end

  it("keep what Adam knows with extend and lose it with rebuild", function()
    for _, switch in ipairs { "extend", "rebuild" } do
      local run = at_phase_2 { "phase_switch=" .. switch }
      local old, new = 0, 0
      for _, e in ipairs(run.optimizer:entries()) do
        if e.name:find "lora_" then
          new = new + 1
          assert.equal(0, e.steps, e.name)
        else
          old = old + 1
          assert.equal(switch == "extend" and 8 or 0, e.steps, e.name)
          assert.equal(switch == "extend", e.m ~= nil, e.name)
        end
      end
      assert.equal(8, new)
      assert.is_true(old > 20)
      steps(run, 1)
      for _, e in ipairs(run.optimizer:entries()) do
        assert.equal((switch == "extend" and not e.name:find "lora_") and 9 or 1, e.steps, e.name)
      end
    end
  end)

  it("stop a run in which no loss reaches a trainable tensor, naming it, by the third step", function()
    local run = new_run()
    run.model.idle = weft.nn.Linear(3, 2)
    run.evaluate = function() end
    local ok, message = pcall(steps, run, 4)
    assert.is_false(ok)
    assert.truthy(tostring(message):find("Phase 1: idle.weight has had no gradient in three steps", 1, true), tostring(message))
    assert.is_true(run.step < 3)
  end)

  it("stop it also when weight decay alone would move that tensor", function()
    local run = new_run()
    run.model.idle = weft.nn.Linear(3, 2)
    local losses = run.model.losses
    run.model.losses = function(self, batch)
      local out = losses(self, batch)
      out.lm = out.lm + (self.idle.weight:sum() + self.idle.bias:sum()) * 0
      return out
    end
    run.evaluate = function() end
    local ok, message = pcall(steps, run, 4)
    assert.is_false(ok)
    assert.truthy(tostring(message):find("idle.weight has had no gradient", 1, true), tostring(message))
  end)

  it("stop it also when it was resumed before the third step of a phase", function()
    local more = { "checkpoint_every=1" }
    for _, step in ipairs { 1, 9 } do
      local run = new_run(more)
      run.evaluate = function(self) self.history = self.history or {} end
      steps(run, step)
      if step > 1 then assert.equal(2, run.phase.index) end
      local again = assert(weft.train.open(run.dir, { quiet = true }))
      again.evaluate = run.evaluate
      again.model:train()
      local ok, message = pcall(steps, again, 4, nil, function(b)
        local losses = again.model:losses(b)
        return { lm = losses.lm }
      end)
      assert.is_false(ok)
      assert.truthy(tostring(message):find("Phase %d: %S+ has had no gradient in three steps"), tostring(message))
      assert.truthy(tostring(message):find("anything to compare: itc, itm, memory", 1, true), tostring(message))
      assert.equal(step + 2, again.step)
    end
  end)

  it("let a run go on whose matching finds no negative at first, or that leaves a loss out", function()
    for _, more in ipairs { { "batch=1", "epochs=1", "warmup_epochs=1" }, { "weights.itm=0" }, { "weights.lm=0" }, { "weights.itc=0" },
      { "weights.lm=0", "weights.itm=0" } } do
      local run = new_run(more)
      run.evaluate = function() end
      assert.has_no.errors(function() steps(run, 5) end)
      assert.equal(0, run.skipped)
    end
  end)

  it("refuse a phase with nothing to train, and a pattern that matches nothing", function()
    local run = new_run()
    assert.has_error(function() phases.freeze(run.model, { name = "P", frozen = { "visoin.base" } }) end,
      "P: frozen: no parameter matches visoin.base; did you mean vision?")
    local all = {}
    for _, key in ipairs { "vision", "compress", "language", "fusion", "memory", "itc", "itm" } do all[#all + 1] = key end
    local ok, message = pcall(run.set_phase, run, { name = "P", index = 1, frozen = all })
    assert.is_false(ok)
    assert.truthy(tostring(message):find("P: nothing to train", 1, true))
  end)
end)

describe("learning rates", function()
  local plan = phases.plan({ { name = "a", epochs = 5 }, { name = "b", on_enter = "rebuild" } }, 50)
  local extended = phases.plan({ { name = "a", epochs = 5 }, { name = "b", on_enter = "extend" } }, 50)
  local o = { steps_per_epoch = 40, epochs = 50, warmup_steps = 1000, lr_floor = 0.1 }
  local function near(expected, got) assert.is_true(math.abs(expected - got) < 1e-12, ("%.15g is not %.15g"):format(got, expected)) end
  local function cosine(s, w, T) return math.max(0.1, 0.5 * (1 + math.cos(math.pi * (s - w) / (T - w)))) end

  it("warm up over at most a tenth of the phase, then run a cosine over all steps, in phase 1", function()
    -- a phase of 200 steps: 20 of warm-up; 2,000 steps in all
    for _, p in ipairs { plan, extended } do
      near(1 / 20, phases.rate(p, o, 0, "decay"))
      near(10 / 20, phases.rate(p, o, 9, "decay"))
      near(1, phases.rate(p, o, 19, "decay"))
      near(1, phases.rate(p, o, 20, "decay"))
      near(cosine(199, 20, 2000), phases.rate(p, o, 199, "decay"))
    end
  end)

  it("warm up again and run the cosine over what is left with rebuild", function()
    -- 1,800 steps are left: 180 of warm-up
    near(1 / 180, phases.rate(plan, o, 200, "decay"))
    near(90 / 180, phases.rate(plan, o, 289, "lora_A"))
    near(1, phases.rate(plan, o, 379, "decay"))
    near(cosine(900, 180, 1800), phases.rate(plan, o, 1100, "decay"))
    near(0.1, phases.rate(plan, o, 1999, "lora_B"))
  end)

  it("go on with the main curve with extend, LoRA with a warm-up of its own", function()
    for _, s in ipairs { 200, 289, 1100, 1999 } do near(cosine(s, 20, 2000), phases.rate(extended, o, s, "decay")) end
    near(cosine(200, 20, 2000) / 180, phases.rate(extended, o, 200, "lora_A"))
    near(cosine(289, 20, 2000) * 90 / 180, phases.rate(extended, o, 289, "lora_B"))
    near(cosine(379, 20, 2000), phases.rate(extended, o, 379, "lora_B"))
    near(cosine(1100, 20, 2000), phases.rate(extended, o, 1100, "lora_A"))
  end)

  it("never warm up for longer than asked", function()
    local short = { steps_per_epoch = 40, epochs = 50, warmup_steps = 7, lr_floor = 0.1 }
    near(1 / 7, phases.rate(plan, short, 0, "decay"))
    near(1, phases.rate(plan, short, 6, "decay"))
    near(cosine(8, 7, 2000), phases.rate(plan, short, 8, "decay"))
    near(1 / 7, phases.rate(plan, short, 200, "decay"))
  end)

  it("warm up where there is no first phase", function()
    for _, switch in ipairs { "rebuild", "extend" } do
      local p = phases.plan({ { name = "a", epochs = 0 }, { name = "b", on_enter = switch } }, 10)
      near(1 / 40, phases.rate(p, o, 0, "decay"))
    end
  end)

  it("reach the optimizer group by group, times the factors of LoRA and heads", function()
    local run = at_phase_2 { "lora_lr=2", "lora_plus_ratio=4", "head_lr=5", "lr=0.001" }
    steps(run, 1)
    local factor, seen = phases.rate(run.plan, run.options, 8, "decay"), {}
    for i, g in ipairs(run.optimizer.groups) do
      seen[g.name] = run.rates[i] / factor
      assert.equal((g.name:find "no_decay" or g.name:find "lora") and 0 or 0.05, g.weight_decay, g.name)
    end
    for name, expected in pairs { lora_A = 0.002, lora_B = 0.008, ["heads.decay"] = 0.005, ["heads.no_decay"] = 0.005, decay = 0.001,
      no_decay = 0.001 } do
      near(expected, seen[name])
      seen[name] = nil
    end
    assert.same({}, seen)
  end)

  it("decay matrices alone: no bias, norm, gate, embedding, temperature or adapter", function()
    local run = at_phase_2()
    local decays = {}
    for _, g in ipairs(run.optimizer.groups) do
      for _, e in ipairs(g.entries) do decays[e.name] = g.weight_decay > 0 end
    end
    for name, t in run.model:named_parameters() do
      if t.requires_grad then
        local matrix = t.ndim >= 2 and not name:find "embed" and not name:find "lora_"
        assert.equal(matrix, decays[name], name)
      end
    end
  end)
end)

describe("the count of DINOv2-base", function()
  it("is 589,824 of 87,170,304 with rank 16 on query and value", function()
    local line = require("weft.nn.module").base.on_meta(function()
      local model = weft.models.dinov2.new { hidden_size = 768, num_hidden_layers = 12, num_attention_heads = 12, image_size = 518, patch_size = 14 }
      return weft.peft.describe(weft.peft.lora(model, { rank = 16, alpha = 32, dropout = 0.1, targets = { "query", "value" } }))
    end)
    assert.truthy(line:find("trainable params: 589,824 || all params: 87,170,304 || trainable%: 0.6766", 1, true), line)
  end)
end)

