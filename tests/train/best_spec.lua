-- best_spec.lua: the checkpoint of the phase that ended best stays in best/, and opens like a run.
local weft = require "weft"
local tiny = require "tests.support.tiny"
local command = require "tests.support.command"
local files = require "weft.files"
local checkpoint = require "weft.train.checkpoint"

describe("best/", function()
  local root, remove_pictures, work, remove_work
  setup(function()
    root, remove_pictures = tiny.pictures(24)
    work, remove_work = command.folder()
  end)
  teardown(function()
    remove_pictures()
    remove_work()
  end)

  -- A finished run whose mean recall at each evaluation is given.
  local function scored(recalls, name)
    local more = { "checkpoint_every=1", "keep_checkpoints=1" }
    local run = weft.train.start(tiny.recipe(root, more), { dir = work .. "/" .. name, quiet = true, overrides = tiny.overrides(root, more) })
    local n, evaluate = 0, run.recipe.evaluate
    run.recipe.evaluate = { function(r)
      n = n + 1
      local out = evaluate[1](r)
      out.retrieval.r_mean = recalls[n]
      return out
    end }
    rawset(run.recipe, "finish", nil)
    return run, run:train()
  end

  local function listing(dir)
    local _, out = command.run(("cd %s && find . -type f | sort | xargs cksum"):format(dir))
    return out
  end

  describe("of a run whose second phase ended below the first", function()
    local run, result, dir
    setup(function()
      run, result = scored({ 0.1, 0.4, 0.3 }, "worse")
      dir = run.dir
    end)

    it("is the checkpoint of the first, which the log and the result name", function()
      assert.equal("Phase 1", result.best.label)
      assert.truthy(tiny.read(dir .. "/log.txt"):find(
        ("\nPhase 2 ended below Phase 1: mean recall 0.300 after 0.400; %s/best is the checkpoint after Phase 1\n"):format(dir), 1, true))
      assert.equal(listing(dir .. "/ckpt/step_00000008"), listing(dir .. "/best"))
      local parts = assert(checkpoint.read(dir .. "/best"))
      for name in run.model:named_parameters() do
        if name:find "lora_B" then assert.equal(0, parts.model[name]:abs():max():item(), name) end
      end
    end)

    it("is opened by its path, also when the other checkpoints are gone", function()
      local copy = work .. "/alone"
      assert.equal(0, (command.run(("cp -r %s %s && rm -r %s/ckpt"):format(dir, copy, copy))))
      for _, options in ipairs { { quiet = true }, { quiet = true, for_use = true } } do
        local again = assert(weft.train.open(copy .. "/best/", options))
        assert.equal(8, again.step)
        assert.equal(copy, again.dir)
        assert.equal("Phase 1", again.phase.name)
      end
      assert.equal(16, assert(weft.train.open(dir, { quiet = true })).step)
      assert.equal(8, assert(weft.train.open(dir .. "/ckpt/step_00000008", { quiet = true })).step)
    end)

    it("is scored, captioned with and exported by its path, in the run's folder too", function()
      local code, out, err = command.weft("eval retrieval " .. dir .. "/best")
      assert.equal(0, code, err)
      assert.truthy(out:find("best, step 8: ", 1, true), out)
      code, out, err = command.weft(("caption %s/best %s/01.png"):format(dir, root))
      assert.equal(0, code, err)
      assert.truthy(out:find "01.png\t")
      code, out, err = command.weft(("export %s/best %s/exported"):format(dir, work))
      assert.equal(1, code, out)   -- it is of the first phase
      assert.truthy(err:find("every B is zero", 1, true), err)
      code, out, err = command.weft(("export %s/best %s/exported --force"):format(dir, work))
      assert.equal(0, code, out .. err)
      assert.is_true(files.exists(work .. "/exported/whole/model.safetensors"))
      code, out, err = command.run(("w=$PWD/bin/weft; cd %s && $w caption best %s/01.png"):format(dir, root))
      assert.equal(0, code, err)
      assert.truthy(out:find "01.png\t")
    end)

    it("is gone on from in a folder beside, and nothing of the run is lost", function()
      local before = listing(dir)
      local code, out, err = command.weft(("train --resume %s/best"):format(dir))
      assert.equal(0, code, err)
      assert.truthy(out:find(("%s has later checkpoints: this run goes on from %s/best in %s-from-8"):format(dir, dir, dir), 1, true), out)
      assert.equal(before, listing(dir))
      local made = tiny.json(dir .. "-from-8/result.json")
      assert.equal(result.hashes.final, made.hashes.final)
      assert.equal(16, #tiny.metrics(dir .. "-from-8"))
      local log = tiny.read(dir .. "-from-8/log.txt")
      assert.truthy(log:find("\nresume check: ", 1, true))
      local _, n = log:gsub("\nPhase 2: LoRA", "")
      assert.equal(1, n)
      code, _, err = command.weft(("train --resume %s/best --dir %s"):format(dir, work))
      assert.equal(1, code)
      assert.truthy(err:find(work .. " is there already; another folder is wanted", 1, true), err)
    end)

    it("that is damaged is refused with the reason", function()
      local copy = work .. "/damaged"
      assert.equal(0, (command.run(("cp -r %s %s && printf x >>%s/best/state.json"):format(dir, copy, copy))))
      local opened, message = weft.train.open(copy .. "/best", { quiet = true })
      assert.is_nil(opened)
      assert.truthy(message:find("best/state.json has", 1, true), message)
      assert.equal(16, assert(weft.train.open(copy, { quiet = true })).step)
    end)
  end)

  it("is the last checkpoint where the last phase ended best, or as well; the log then says nothing", function()
    for i, recalls in ipairs { { 0.1, 0.3, 0.4 }, { 0.1, 0.3, 0.3 } } do
      local run, result = scored(recalls, "better" .. i)
      assert.equal("Phase 2", result.best.label)
      assert.is_nil(tiny.read(run.dir .. "/log.txt"):find("ended below", 1, true))
      assert.equal(listing(run.dir .. "/ckpt/step_00000016"), listing(run.dir .. "/best"))
      -- from the newest checkpoint a run goes on where it is
      assert.equal(run.dir, require("weft.train.resume").place(run.dir .. "/best"))
      assert.is_false(files.exists(run.dir .. "/.writing_best"))
    end
  end)

  it("copies where there are no links", function()
    local from, to = work .. "/from", work .. "/to"
    local bytes = ("0123456789\0"):rep(200000)
    tiny.write(from, bytes)
    assert(files.duplicate(from, to))
    assert.equal(bytes, tiny.read(to))
    -- a folder that is none can't be linked into, nor copied
    local ok, message = files.duplicate(from, work .. "/none/to")
    assert.is_nil(ok)
    assert.truthy(message:find(work .. "/none/to", 1, true), message)
    assert.is_nil((files.duplicate(work .. "/nothing", work .. "/other")))
    -- another file system
    if files.is_dir "/dev/shm" then
      local far = "/dev/shm/" .. os.tmpname():match "[^/]+$"
      assert(files.duplicate(from, far))
      assert.equal(bytes, tiny.read(far))
      os.remove(far)
    end
  end)
end)
