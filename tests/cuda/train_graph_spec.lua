-- train_graph_spec.lua: the training step as one graph (graph=true) on a GPU (WEFT_TEST_DEVICE; the simulated
-- one in the suite): bit for bit what the step without one gives, in both phases and where it falls back.
local weft = require "weft"
local tiny = require "tests.support.tiny"
local train = require "weft.train"

local device = os.getenv "WEFT_TEST_DEVICE" or "cpu"

-- A run's weights and metrics, and what it said of graphs. change(run) comes before it trains.
local function outcome(root, words, change)
  local run, remove = tiny.run(root, words)
  run.evaluate = function(self) self.history = self.history or { { label = "none", step = self.step, values = {} } } end
  rawset(run.recipe, "finish", nil)
  if change then change(run) end
  local before = device ~= "cpu" and weft.cuda.counters(device).graphs or 0
  local result = run:train()
  local graphs = device ~= "cpu" and weft.cuda.counters(device).graphs - before or 0
  local rows, log = tiny.metrics(run.dir), tiny.read(run.dir .. "/log.txt")
  run:drop_graph()
  remove()
  for _, row in ipairs(rows) do row.seconds, row.step_seconds, row.waited = nil, nil, nil end
  return { hash = result.hashes.final, rows = rows, log = log, graphs = graphs, steps = result.step, skipped = result.skipped }
end

if device == "cpu" then
  describe("graph=true without a GPU", function()
    it("says why there is none, once, and trains as without", function()
      local root, remove = tiny.pictures(12)
      local words = { "warmup_epochs=1", "epochs=2" }
      local plain = outcome(root, words)
      words[3] = "graph=true"
      local asked = outcome(root, words)
      local _, said = asked.log:gsub("graph: not used: the CPU has none %(device=cuda has%)\n", "")
      assert.equal(1, said)
      assert.equal(plain.hash, asked.hash)
      assert.is_nil(plain.log:find("graph:", 1, true))
      remove()
    end)
  end)
  return
end

describe("training by graphs on " .. device, function()
  local root, remove_pictures
  setup(function() root, remove_pictures = tiny.pictures(14) end)
  teardown(function() remove_pictures() end)

  local function words(...)
    return { "device=" .. device, "warmup_epochs=3", "epochs=5", "itc.queue=4", "data.held_out=0.1", ... }
  end
  local function with_graph(list)
    list[#list + 1] = "graph=true"
    return list
  end
  local function same(plain, graph)
    assert.equal(#plain.rows, #graph.rows)
    for i, row in ipairs(plain.rows) do assert.same(row, graph.rows[i]) end
    assert.equal(plain.hash, graph.hash)
    assert.equal(plain.skipped, graph.skipped)
    assert.equal(0, plain.graphs)
  end
  local function both(change, ...)
    local plain, graph = outcome(root, words(...), change), outcome(root, with_graph(words(...)), change)
    same(plain, graph)
    return graph, plain
  end

  local plain, graph
  setup(function() graph, plain = both(nil) end)

  it("gives the bits and the metrics of the step without one, through the switch of phases", function()
    assert.is_true(#plain.rows >= 10)
    for phase = 1, 2 do
      assert.matches(("graph: step %%d+ of Phase %d captured: %%d+ kernels, %%d+ MiB"):format(phase), graph.log)
    end
    -- each phase begins without: until all of it has been seen to train
    assert.is_true(graph.graphs >= graph.steps - 6 and graph.graphs < graph.steps)
    assert.is_nil(graph.log:find "not used")
    assert.is_nil(graph.log:find "ran without")
  end)

  it("does so with micro-steps, momentum, an average, plain text and an optimizer that goes on #slow", function()
    local text = os.tmpname()
    tiny.write(text, "a dog runs\nthe cat sleeps\na bird sings\n")
    local g = both(nil, "batch=3", "accumulate=2", "itc.momentum=0.9", "itc.alpha=0.4", "average=0.9", "phase_switch=extend",
      "data.text=" .. text, "epochs=6", "features.enabled=false")
    assert.is_true(g.graphs >= 4)
    assert.matches("of Phase 2 captured", g.log)
    os.remove(text)
  end)

  it("does so in bfloat16 #slow", function()
    local g = both(nil, "dtype=bfloat16", "itm.source=batch", "memory.kind=none")
    assert.is_true(g.graphs >= 4)
  end)

  it("goes on from a checkpoint in either phase as if nothing had been #slow", function()
    for _, stop in ipairs { 5, 11 } do
      local list = with_graph(words("checkpoint_every=1", "keep_checkpoints=1"))
      local run, remove = tiny.run(root, list)
      run.evaluate = function(self) self.history = self.history or { { label = "none", step = self.step, values = {} } } end
      run.should_stop = function() return run.step == stop end
      assert.is_false((pcall(run.train, run)))
      run:drop_graph()
      local again = assert(train.open(run.dir, { recipe = tiny.recipe(root, list), quiet = true }))
      again.evaluate = run.evaluate
      rawset(again.recipe, "finish", nil)
      assert.equal(stop, again.step)
      local before = weft.cuda.counters(device).graphs
      assert.equal(plain.hash, again:train().hashes.final)
      if stop == 5 then assert.is_true(weft.cuda.counters(device).graphs > before) end
      again:drop_graph()
      remove()
    end
  end)

  it("skips a step whose loss is not finite, of which nothing stays #slow", function()
    local g = both(function(run)
      local prepare = run.model.prepare
      run.model.prepare = function(model, batch)
        prepare(model, batch)
        if run.step == 5 then batch.patches:fill_(0 / 0) end
      end
    end)
    assert.equal(1, g.skipped)
    assert.matches("graph: a step ran without it: .* not finite", g.log)
    assert.matches("step 6 skipped: ", g.log)
  end)

  it("makes a step without one where a picture is missing from its batch #slow", function()
    local g = both(function(run)
      local batches = run.batches
      run.batches = function(self)
        local next_batch = batches(self)
        return function()
          local batch = next_batch()
          if batch and self.step == 5 then
            local short = self.data.train:batch_of({ unpack(batch.indices, 1, 3) })
            short.waited, short.micro, short.token_share = batch.waited, batch.micro, batch.token_share
            return short
          end
          return batch
        end
      end
    end)
    assert.matches("graph: a step ran without it: its batch is 3 pictures", g.log)
    assert.is_true(g.graphs >= 4)
  end)

  it("falls back for a phase where a step can't be captured, and says why", function()
    local g = outcome(root, with_graph(words "epochs=4"), function(run)
      local losses = run.model.losses
      run.model.losses = function(model, batch)
        local out = losses(model, batch)
        if run.phase.index == 1 and out.lm:item() < 0 then error "never" end
        return out
      end
    end)
    assert.matches("graph: not used in Phase 1: .*a value is read while a graph is captured", g.log)
    local _, times = g.log:gsub("not used", "")
    assert.equal(1, times)
    local p = outcome(root, words "epochs=4")
    assert.equal(p.hash, g.hash)
  end)

  it("reads nothing of a batch that a graph would take for the next one's too", function()
    local g = outcome(root, with_graph(words "epochs=3"), function(run)
      local losses = run.model.losses
      run.model.losses = function(model, batch)
        local _ = batch.captions[1]
        return losses(model, batch)
      end
    end)
    assert.matches("graph: not used in Phase 1: the batch's captions is the host's", g.log)
    assert.equal(0, g.graphs)
  end)

  it("is one launch, asks the driver for nothing and waits only for what is logged", function()
    local run, remove = tiny.run(root, with_graph(words("epochs=3", "features.enabled=false")))
    run.evaluate = function(self) self.history = self.history or { { label = "none", step = self.step, values = {} } } end
    rawset(run.recipe, "finish", nil)
    local seen = {}
    local step = run.train_step
    run.train_step = function(self, ...)
      local before, calls = weft.cuda.counters(device), weft.memory(device).system_calls
      step(self, ...)
      local after = weft.cuda.counters(device)
      for k, v in pairs(after) do after[k] = v - before[k] end
      after.calls = weft.memory(device).system_calls - calls
      seen[#seen + 1] = after
    end
    run:train()
    run:drop_graph()
    remove()
    local last = seen[#seen]
    assert.equal(1, last.graphs)
    -- the step's values in one copy, and the temperature in the row of metrics
    assert.equal(2, last.downloads)
    if os.getenv "WEFT_CUDA_BLOCKING" ~= "1" then assert.equal(2, last.synchronizations) end
    -- the batch's copies into place, and the numbers of the step
    assert.is_true(last.launches <= 16, last.launches)
    if os.getenv "WEFT_CUDA_NO_CACHE" ~= "1" then assert.equal(0, last.calls) end
  end)
end)
