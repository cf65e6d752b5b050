local weft = require "weft"
local tiny = require "tests.support.tiny"
local command = require "tests.support.command"
local files = require "weft.files"
local checkpoint = require "weft.train.checkpoint"

local root, remove_pictures, work, remove_work
setup(function()
  root, remove_pictures = tiny.pictures(24)
  work, remove_work = command.folder()
end)
teardown(function()
  remove_pictures()
  remove_work()
end)

local number = 0
local function new_dir()
  number = number + 1
  return ("%s/%d"):format(work, number)
end

local function start(more, dir)
  return weft.train.start(tiny.recipe(root, more), { dir = dir or new_dir(), quiet = true, overrides = tiny.overrides(root, more) })
end

local function open(dir, options)
  options = options or {}
  options.quiet = true
  return weft.train.open(dir, options)
end

local known = {}
local function whole(more)
  local key = table.concat(more, " ")
  known[key] = known[key] or start(more):train().hashes
  return known[key]
end

-- A run stopped after a step, as a signal would.
local function stopped_at(step, more)
  local run = start(more)
  run.should_stop = function() return run.step == step end
  local ok, problem = pcall(run.train, run)
  assert.is_false(ok)
  assert.is_true(type(problem) == "table" and problem.stopped, tostring(problem))
  return run.dir
end

local function resumed(dir, options)
  local run, message = open(dir, options)
  assert(run, message)
  return run:train(), run
end

describe("a run that was stopped", function()
  for _, switch in ipairs { "rebuild", "extend" } do
    for _, where in ipairs { { "in phase 1", 3 }, { "one step before the switch", 7 }, { "at the switch", 8 }, { "one step after it", 9 },
      { "in phase 2", 14 } } do
      it(("%s goes on to the same bits (%s)"):format(where[1], switch), function()
        local more = { "phase_switch=" .. switch }
        local dir = stopped_at(where[2], more)
        local result, run = resumed(dir)
        assert.same(whole(more), result.hashes)
        assert.equal(16, result.step)
        local labels = {}
        for i, e in ipairs(result.evaluations) do labels[i] = ("%s %d"):format(e.label, e.step) end
        assert.same({ "before 0", "Phase 1 8", "Phase 2 16" }, labels)
        local log = tiny.read(dir .. "/log.txt")
        local before, after = log:match "\nresume check: ([%d.]+) = ([%d.]+)\n"
        assert.equal(before, after)
        assert.truthy(before)
        assert.equal(run.trainable["Phase 1"] + 256, run.trainable["Phase 2"])
        for phase = 1, 2 do
          local _, n = log:gsub(("\nPhase %d: LoRA"):format(phase), "")
          assert.equal(1, n)
        end
        local rows = tiny.metrics(dir)
        for i, row in ipairs(rows) do assert.equal(i, row.step) end
        assert.equal(16, #rows)
      end)
    end
  end

  it("goes on to the same bits with momentum, accumulation, flips and plain text", function()
    tiny.write(work .. "/text.txt", "a red dog\n\nthe blue bird sings\nso it goes\nno more than this\nand one more\n")
    local more = { "itc.momentum=0.9", "itc.alpha=0.4", "accumulate=2", "batch=2", "data.flip=true", "average=0.9", "data.text=" .. work .. "/text.txt",
      "fusion.layers=2" }
    for _, step in ipairs { 5, 11 } do assert.same(whole(more), (resumed(stopped_at(step, more))).hashes) end
  end)

  it("has the same bits with one thread and with two", function()
    local more = { "encoder.width=64", "language.width=64", "batch=8", "data.length=16" }
    local before = weft.threads()
    weft.threads(1)
    local one = start(more):train().hashes
    weft.threads(2)
    local two = start(more):train().hashes
    weft.threads(before)
    assert.same(one, two)
  end)

  it("draws on from where it was, also what a recipe draws from the common stream", function()
    local run = start {}
    run.should_stop = function()
      weft.rand { 3 }
      return run.step == 3
    end
    pcall(run.train, run)
    local expected = weft.rand({ 4 }):totable()
    weft.manual_seed(991)
    weft.rand { 7 }
    assert(open(run.dir))
    assert.same(expected, weft.rand({ 4 }):totable())
  end)

  it("has other bits with another seed", function()
    local a, b = whole { "seed=3" }, whole { "seed=4" }
    for _, key in ipairs { "initial", "data", "final" } do assert.are_not.equal(a[key], b[key]) end
  end)

  it("keeps the checkpoint of each phase's end also when it was resumed", function()
    local more = { "checkpoint_every=1", "keep_checkpoints=1" }
    local dir = stopped_at(10, more)
    resumed(dir)
    assert.same({ "step_00000016", "step_00000008" }, checkpoint.list(dir))
  end)

  it("says what it is when it is done and resumed again", function()
    local run = start {}
    local first = run:train()
    local again = resumed(run.dir)
    assert.same(first.hashes, again.hashes)
    assert.same(first.losses, again.losses)
    assert.same(first.retrieval, again.retrieval)
    assert.equal(16, #tiny.metrics(run.dir))
  end)
end)

describe("a run that goes on", function()
  local function copy(dir)
    local new = new_dir()
    assert(os.execute(("cp -r %s %s"):format(dir, new)) == 0)
    return new
  end

  it("is stopped by another caption, another picture, or one less", function()
    local pictures = new_dir()
    assert(os.execute(("cp -r %s %s"):format(root, pictures)) == 0)
    local run = weft.train.start(tiny.recipe(pictures), { dir = new_dir(), quiet = true })
    run.should_stop = function() return run.step == 3 end
    pcall(run.train, run)
    local train = {}
    for _, row in run.data.train.rows:each() do train[#train + 1] = row.name:match "^%d+" end
    local function refused()
      local ok, message = pcall(open, run.dir)
      assert.is_false(ok)
      assert.truthy(tostring(message):find("resume: the training pictures, their captions or their split are not those", 1, true), message)
    end
    local caption = pictures .. "/" .. train[1] .. ".txt"
    local text = tiny.read(caption)
    tiny.write(caption, "Something else.\n")
    refused()
    tiny.write(caption, text)
    assert.truthy(open(run.dir))
    tiny.picture(pictures .. "/" .. train[2] .. ".png", "red", "cross", 77)
    refused()
    os.remove(pictures .. "/" .. train[3] .. ".png")
    refused()
  end)

  it("passes over a damaged checkpoint with the reason, and comes to the same bits", function()
    local dir = stopped_at(9, { "checkpoint_every=2" })
    local newest = dir .. "/ckpt/step_00000009/model.safetensors"
    assert.truthy(files.exists(newest))
    for _, damage in ipairs {
      { "a byte", function(path)
        local bytes = tiny.read(path)
        tiny.write(path, bytes:sub(1, -2) .. string.char((bytes:byte(-1) + 1) % 256))
      end, "the checksum does not agree" },
      { "the end", function(path) tiny.write(path, tiny.read(path):sub(1, -9)) end, "bytes, the manifest says" },
      { "the whole file", os.remove, "bytes, the manifest says" },
      { "the manifest", function(path) os.remove((path:gsub("model%.safetensors", "manifest.json"))) end, "manifest.json" },
      { "the state", function(path) tiny.write((path:gsub("model%.safetensors", "state.json")), "{}") end, "state.json" },
    } do
      local other = copy(dir)
      damage[2](other .. "/ckpt/step_00000009/model.safetensors")
      local run = assert(open(other))
      assert.equal(8, run.step, damage[1])
      local result = run:train()
      local log = tiny.read(other .. "/log.txt")
      local line = log:match "note: (step_00000009 passed over: [^\n]*)"
      assert.truthy(line and line:find(damage[3], 1, true), damage[1] .. ": " .. tostring(line))
      assert.equal(whole({ "checkpoint_every=2" }).final, result.hashes.final)
      assert.equal(16, #tiny.metrics(other))
    end
  end)

  it("ignores a half-written checkpoint and clears it away", function()
    local dir = stopped_at(4, {})
    assert(os.execute(("cp -r %s/ckpt/step_00000004 %s/ckpt/.writing_step_00000006"):format(dir, dir)) == 0)
    os.remove(dir .. "/ckpt/.writing_step_00000006/manifest.json")
    local run = assert(open(dir))
    assert.equal(4, run.step)
    run:train()
    assert.is_false(files.exists(dir .. "/ckpt/.writing_step_00000006"))
  end)

  it("finds the checkpoint that was set aside by a save that did not end", function()
    local dir = stopped_at(4, {})
    assert(os.rename(dir .. "/ckpt/step_00000004", dir .. "/ckpt/.old_step_00000004"))
    assert.equal(4, assert(open(dir)).step)
  end)

  it("says so when there is no checkpoint that can be read", function()
    local dir = stopped_at(3, {})
    os.remove(dir .. "/ckpt/step_00000003/manifest.json")
    local run, message = open(dir)
    assert.is_nil(run)
    assert.truthy(message:find("step_00000003 passed over", 1, true), message)
    local fresh = start {}
    run, message = open(fresh.dir)
    assert.is_nil(run)
    assert.truthy(message:find("no checkpoint in " .. fresh.dir .. "/ckpt", 1, true), message)
    run, message = open(work)
    assert.is_nil(run)
    assert.truthy(message:find(work .. " is no run", 1, true), message)
  end)

  it("shows what differs in the config, and needs a word for what changes training", function()
    local dir = stopped_at(4, {})
    local run, message = open(copy(dir), { overrides = { "lr=0.01", "epochs=5", "log_every=3" } })
    assert.is_nil(run)
    assert.truthy(message:find("config: epochs was 4, is 5\nconfig: lr was 0.002, is 0.01\n", 1, true), message)
    assert.truthy(message:find("--allow epochs,lr", 1, true), message)
    assert.is_nil(message:find("log_every", 1, true))
    local other = copy(dir)
    run = assert(open(other, { overrides = { "lr=0.01", "epochs=5", "log_every=3" }, allow = { "lr", "epochs" } }))
    local result = run:train()
    assert.equal(20, result.step)
    local log = tiny.read(other .. "/log.txt")
    for _, line in ipairs { "epochs was 4, is 5", "lr was 0.002, is 0.01", "log_every was 1, is 3" } do
      assert.truthy(log:find("note: config: " .. line, 1, true), line)
    end
    assert.equal(5, tiny.json(other .. "/config.json").config.epochs)
    assert.truthy(tiny.read(other .. "/overrides.txt"):find("\nlr=0.01\n", 1, true))
    -- what was changed stays changed
    assert.equal(0.01, assert(open(other)).options.lr)
  end)

  it("refuses the checkpoint of another model, naming tensors", function()
    local dir = stopped_at(4, {})
    local ok, message = pcall(open, dir, { overrides = { "lora.rank=3" }, allow = { "lora.rank" } })
    assert.is_false(ok)
    assert.truthy(tostring(message):find("lora_A.default.weight is [2,16], expected [3,16]", 1, true)
      or tostring(message):find("lora_A%S* is %[2,16%], expected %[3,16%]"), message)
  end)

  it("refuses a checkpoint that lacks a module's state, or has one of a module that is not there", function()
    local dir = stopped_at(4, {})
    local parts, state = checkpoint.read(dir .. "/ckpt/step_00000004")
    for _, case in ipairs { { "itm", nil, "it has no state of itm" }, { "gone", { x = 1 }, "it has a state of gone, which the model lacks" } } do
      local other = copy(dir)
      local kept = state.modules[case[1]]
      state.modules[case[1]] = case[2]
      assert(checkpoint.save(other, 5, parts, state))
      state.modules[case[1]] = kept
      local ok, message = pcall(open, other)
      assert.is_false(ok)
      assert.truthy(tostring(message):find("the checkpoint does not fit the model: " .. case[3], 1, true), message)
    end
  end)

  it("stops when the frozen weights are not those it began with", function()
    local run = start {}
    run.should_stop = function() return run.step == 3 end
    local old = run.train_step
    function run:train_step(...)
      old(self, ...)
      self.model.vision:get("layernorm").weight:data()[0] = 3
    end
    local ok, message = pcall(run.train, run)
    assert.is_false(ok)
    assert.truthy(tostring(message):find("frozen weights have changed during training", 1, true), tostring(message))
  end)

  it("leaves the checkpoints before as they are when the disk is full or can't be written", function()
    local run = start { "checkpoint_every=2" }
    local free = files.disk_free
    files.disk_free = function() return run.step > 2 and 1000 or 2 ^ 40 end
    local ok, message = pcall(run.train, run)
    files.disk_free = free
    assert.is_false(ok)
    assert.truthy(tostring(message):find("checkpoint: no room for a checkpoint in " .. run.dir, 1, true), tostring(message))
    assert.same({ "step_00000002" }, checkpoint.list(run.dir))
    assert.equal(2, assert(open(run.dir)).step)
    assert.equal(whole({ "checkpoint_every=2" }).final, resumed(run.dir).hashes.final)
  end)
end)

describe("weft train, on a disk that takes no more", function()
  -- A write beyond the limit fails as on a full disk: files larger than this many KiB can't be.
  local function limited(kib, words)
    local script = new_dir()
    tiny.write(script, ("trap '' XFSZ; (ulimit -f %d; exec bin/weft train --quiet %s) 2>&1 >/dev/null | cat >&2; exit ${PIPESTATUS[0]}")
      :format(kib, words))
    return command.run("bash " .. script)
  end

  it("says so in one message, keeps the checkpoints that stand, and goes on once there is room", function()
    local more = {}
    local dir = new_dir()
    local code, _, err = command.weft(("train --quiet %s --until 1 --dir %s"):format(tiny.words(root, more), dir))
    assert.equal(0, code, err)
    local before = checkpoint.list(dir)
    assert.same({ "step_00000004" }, before)
    for _, kib in ipairs { 1, 20, 100 } do
      code, _, err = limited(kib, "--resume " .. dir)
      assert.equal(1, code)
      assert.equal(1, select(2, err:gsub("\n", "")), err)
      assert.truthy(err:find("File too large", 1, true), err)
      assert.truthy(err:find(dir, 1, true), err)
      assert.same(before, checkpoint.list(dir))
      assert.same({ "latest", "step_00000004" }, files.list(dir .. "/ckpt"))
    end
    code, _, err = command.weft("train --quiet --resume " .. dir)
    assert.equal(0, code, err)
    assert.same(whole(more), tiny.json(dir .. "/result.json").hashes)
    assert.equal(16, #tiny.metrics(dir))
  end)

  it("leaves no folder of a run that can't begin", function()
    local dir = new_dir()
    local code, _, err = limited(0, tiny.words(root, {}) .. " --dir " .. dir)
    assert.equal(1, code)
    assert.truthy(err:find("File too large", 1, true), err)
    assert.equal(1, select(2, err:gsub("\n", "")), err)
    assert.is_false(files.exists(dir))
  end)

  it("names what is in the way of a checkpoint", function()
    local dir = stopped_at(3, {})
    assert.equal(0, (command.run(("mv %s/ckpt %s/moved && cp -r %s/moved/step_00000003 %s/best && echo x >%s/ckpt"):format(dir, dir, dir, dir, dir))))
    local run = assert(open(dir .. "/best"))
    local ok, message = pcall(run.train, run)
    assert.is_false(ok)
    assert.truthy(tostring(message):find("checkpoint: ", 1, true) and tostring(message):find(dir .. "/ckpt", 1, true), message)
    assert.equal("x\n", tiny.read(dir .. "/ckpt"))
  end)
end)

describe("weft train, killed #slow", function()
  -- Starts or resumes, waits for rows of metrics, sends a signal: exit status of the process.
  local function run_until(words, dir, rows, signal)
    local script = ([[
      mkdir -p $(dirname %s); bin/weft train %s --quiet >%s.out 2>&1 & pid=$!
      while kill -0 $pid 2>/dev/null && [ "$(cat %s/metrics.jsonl 2>/dev/null | wc -l)" -lt %d ]; do sleep 0.01; done
      kill -%s $pid 2>/dev/null
      wait $pid; echo $?]]):format(dir, words, dir, dir, rows, signal)
    local _, out = command.run(script)
    return tonumber(out:match "(%d+)%s*$")
  end

  local more = { "batch=2", "checkpoint_every=3", "data.held_out=0.25" }

  local function place(switch)
    local runs = new_dir()
    local words = tiny.words(root, { unpack(more), "phase_switch=" .. switch }) .. " --runs " .. runs .. " --name k"
    return words, ("%s/stage1/%s-k"):format(runs, os.date "%Y-%m-%d")
  end

  for _, switch in ipairs { "rebuild", "extend" } do
    it(("comes to the bits of a run that was not (%s)"):format(switch), function()
      local list = { unpack(more) }
      list[#list + 1] = "phase_switch=" .. switch
      local through = start(list)
      local expected = through:train().hashes
      local words, dir = place(switch)
      words = tiny.words(root, list) .. words:match(" %-%-runs.*$")
      math.randomseed(os.time())
      local at = { 4 + math.random(0, 10), 20 + math.random(0, 5), 29 + math.random(0, 4) }
      for i, rows in ipairs(at) do
        local status = run_until(i == 1 and words or "--resume " .. dir, dir, rows, "KILL")
        assert.equal(137, status, ("kill %d at row %d: %s"):format(i, rows, tiny.read(dir .. ".out")))
        assert.is_false(files.exists(dir .. "/result.json"))
      end
      local code, _, err = command.weft("train --quiet --resume " .. dir)
      assert.equal(0, code, err)
      local result = tiny.json(dir .. "/result.json")
      assert.same(expected, result.hashes, ("killed at rows %s"):format(table.concat(at, ", ")))
      -- each step once, with the losses of the run that went through
      local a, b = tiny.metrics(through.dir), tiny.metrics(dir)
      assert.equal(36, #b)
      for i = 1, #a do
        for _, key in ipairs { "seconds", "step_seconds", "waited" } do a[i][key], b[i][key] = nil, nil end
        assert.same(a[i], b[i])
      end
      local log = tiny.read(dir .. "/log.txt")
      for _, line in ipairs { "\nPhase 1: LoRA", "\nPhase 2: LoRA", "\nbefore  retrieval" } do
        local _, n = log:gsub(line, "")
        assert.equal(1, n, line)
      end
    end)
  end

  it("politely, writes a checkpoint, exits with 75 and goes on", function()
    local words, dir = place "rebuild"
    local list = { unpack(more) }
    list[#list + 1] = "checkpoint_every=0"
    words = tiny.words(root, list) .. words:match(" %-%-runs.*$")
    assert.equal(75, run_until(words, dir, 5, "TERM"))
    local newest = checkpoint.list(dir)[1]
    assert.truthy(newest)
    assert.equal(#tiny.metrics(dir), tonumber(newest:match "%d+"))
    assert.truthy(tiny.read(dir .. "/log.txt"):find("stopped; a checkpoint is written: weft train --resume " .. dir, 1, true))
    local code, _, err = command.weft("train --quiet --resume " .. dir)
    assert.equal(0, code, err)
    assert.equal(start(list):train().hashes.final, tiny.json(dir .. "/result.json").hashes.final)
    -- the line about stopping went with what came after the checkpoint
    assert.equal(36, #tiny.metrics(dir))
  end)
end)
