-- train_spec.lua: the two-phase training of stage 1 on a GPU (WEFT_TEST_DEVICE; the simulated one in the
-- suite): beside the CPU, twice, resumed in each phase, in bfloat16.
local weft = require "weft"
local tiny = require "tests.support.tiny"
local train = require "weft.train"

local device = os.getenv "WEFT_TEST_DEVICE" or "cpu"

if device == "cpu" then
  describe("training on a GPU", function()
    it("is a key of the config, refused by name where there is none", function()
      if weft.cuda.is_available() then return end
      local root, remove = tiny.pictures(12)
      local ok, message = pcall(tiny.run, root, { "device=cuda" })
      assert.is_false(ok)
      assert.matches("config: device: cuda:0 can't be used: ", message)
      ok, message = pcall(tiny.run, root, { "dtype=bfloat16" })
      assert.is_false(ok)
      assert.matches("dtype=bfloat16 wants a GPU", message)
      ok, message = pcall(tiny.run, root, { "dtype=int8" })
      assert.is_false(ok)
      assert.matches("float32, bfloat16 .* is expected, got int8", message)
      remove()
    end)
  end)
  return
end

describe("training on " .. device, function()
  local root, remove_pictures
  setup(function() root, remove_pictures = tiny.pictures(12) end)
  teardown(function() remove_pictures() end)

  local short = { "warmup_epochs=1", "epochs=2" }
  local function words(more)
    local list = { unpack(short) }
    for _, text in ipairs(more) do list[#list + 1] = text end
    return list
  end
  local function whole(more)
    local run, remove = tiny.run(root, words(more))
    local result = run:train()
    local rows = tiny.metrics(run.dir)
    remove()
    return result, rows
  end

  local cpu, cpu_rows, mine, rows
  setup(function()
    cpu, cpu_rows = whole { "device=cpu" }
    mine, rows = whole { "device=" .. device }
  end)

  it("follows the CPU's losses, step by step through both phases", function()
    assert.equal(#cpu_rows, #rows)
    for i, row in ipairs(cpu_rows) do
      for _, name in ipairs { "loss_itc", "loss_lm", "loss_memory" } do
        assert(math.abs(row[name] - rows[i][name]) <= 2e-4 * (1 + math.abs(row[name])),
          ("step %d %s: %g, on the CPU %g"):format(i, name, rows[i][name], row[name]))
      end
    end
    assert.same(cpu.trainable, mine.trainable)
    assert.equal(cpu.hashes.initial, mine.hashes.initial)
    assert.is_true(mine.frozen_unchanged)
  end)

  it("gives the same bits twice #slow", function()
    assert.equal(mine.hashes.final, (whole { "device=" .. device }).hashes.final)
  end)

  for phase = 1, 2 do
    it(("resumes in phase %d as if nothing had been #slow"):format(phase), function()
      local more = words { "device=" .. device, "checkpoint_every=1", "keep_checkpoints=1" }
      local run, remove = tiny.run(root, more)
      local stop = phase == 1 and 1 or run.options.steps_per_epoch + 1
      run.should_stop = function() return run.step == stop end
      local ok, message = pcall(run.train, run)
      assert.is_false(ok)
      assert.is_table(message)
      local again = assert(train.open(run.dir, { recipe = tiny.recipe(root, more), quiet = true }))
      assert.equal(stop, again.step)
      assert.equal(mine.hashes.final, again:train().hashes.final)
      remove()
    end)
  end

  it("stays near float32 in bfloat16, whose masters are in the checkpoint", function()
    local run, remove = tiny.run(root, words { "device=" .. device, "dtype=bfloat16" })
    assert.equal("bfloat16", run.model.compress:parameters()[1].dtype)
    assert.equal("float32", run.model.itc.tau.dtype)
    local result = run:train()
    for _, name in ipairs { "itc", "lm", "total" } do
      assert(math.abs(result.losses[name] - cpu.losses[name]) <= 0.02 * cpu.losses[name],
        ("%s: %g, in float32 %g"):format(name, result.losses[name], cpu.losses[name]))
    end
    local state = run.optimizer:state()
    local masters = 0
    for name, t in pairs(state.tensors) do
      assert.equal("float32", t.dtype)
      if name:find "^master%." then masters = masters + 1 end
    end
    assert.is_true(masters > 10)
    remove()
  end)

  it("asks the driver for no memory once a phase is under way #slow", function()
    local run, remove = tiny.run(root, { "warmup_epochs=1", "epochs=2", "device=" .. device, "data.held_out=0.1" })
    local report, calls, phase = run.report, {}, {}
    run.report = function(self)
      report(self)
      calls[#calls + 1], phase[#phase + 1] = weft.memory(device).system_calls, self.phase.index
    end
    run:train()
    local n = #calls
    assert.equal(2, phase[n])
    assert.equal(phase[n - 1], 2)
    if os.getenv "WEFT_CUDA_NO_CACHE" ~= "1" then assert.equal(calls[n - 1], calls[n]) end
    remove()
  end)
end)
