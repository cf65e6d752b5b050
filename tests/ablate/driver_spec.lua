local weft = require "weft"
local command = require "tests.support.command"
local support = require "tests.ablate.support"
local files = require "weft.files"
local train = require "weft.train"

local RECIPE = "recipes/stage1.lua"
local LONG = { "epochs=10", "warmup_epochs=3" }

describe("weft ablate", function()
  local root, remove, folder, remove_folder

  setup(function()
    root, remove = support.pictures()
    folder, remove_folder = command.folder()
  end)
  teardown(function()
    remove()
    remove_folder()
  end)

  local function words(grid, more)
    local fixed = {}
    for _, text in ipairs(support.overrides(root, more)) do
      if not text:find "^seed=" and not text:find "^lora.rank=" then fixed[#fixed + 1] = "'" .. text .. "'" end
    end
    return ("ablate %s %s %s"):format(RECIPE, table.concat(fixed, " "), grid)
  end

  local function final(dir) return support.json(dir .. "/result.json").hashes.final end

  local function whole(more)
    local dir = folder .. "/whole" .. table.concat(more, "_"):gsub("[^%w]", "_")
    if not files.exists(dir .. "/result.json") then
      train.start(train.load_recipe(RECIPE, support.overrides(root, more)), { dir = dir, quiet = true }):train()
    end
    return final(dir)
  end

  it("prints the plan and makes nothing with --dry-run", function()
    local code, out = command.weft(words("lora.rank=2,3 seed=1,2 --dry-run --out " .. folder .. "/dry"))
    assert.equal(0, code)
    assert.truthy(out:find("4 cells over lora.rank, seed", 1, true))
    assert.truthy(out:find("Phase 1 once for 2 cells", 1, true))
    assert.truthy(out:find("from one step of each phase %([%d.]+ s, [%d.]+ s%) on %d+ thread"), out)
    assert.truthy(out:find("a cell takes %d+ MiB of memory .* of disk %("), out)
    assert.falsy(files.exists(folder .. "/dry"))
    local err
    code, out, err = command.weft(words("lora.rank=2,3 lora.dropout=2 seed=1 --dry-run"))
    assert.equal(1, code)
    assert.truthy((out .. err):find("the first cell does not begin.*dropout must lie in"), err)
  end)

  it("trains cells from a shared first phase to the weights of whole runs, and repeats nothing", function()
    local dir = folder .. "/grid"
    local line = words("lora.rank=2,3 lora.dropout=0,1.5 seed=3 --jobs 2 --out " .. dir)
    local code, out = command.weft(line)
    assert.equal(1, code) -- a dropout of 1.5 fails
    for _, rank in ipairs { 2, 3 } do
      assert.equal(whole { "lora.rank=" .. rank, "lora.dropout=0" }, final(("%s/cells/dropout0-rank%d"):format(dir, rank)))
    end
    assert.truthy(out:find("cell dropout1.5-rank2 FAILED (exit code 1)", 1, true), out)
    assert.truthy(out:find("failed: dropout1%.5%-rank3: exit code 1 | .*dropout must lie in"), out)
    assert.truthy(out:find("done in %d+ s; retrieval.r_mean [%d.]+; 2 of 4 cells"), out)
    local steps = select(2, files.read(dir .. "/cells/dropout0-rank2/log.txt"):gsub("branched from", ""))
    assert.equal(1, steps)

    local again
    code, again = command.weft(line)
    assert.equal(1, code)
    assert.falsy(again:find("dropout0-rank2 started", 1, true))
    assert.falsy(again:find("warm-up %x+ started"))
    assert.truthy(again:find("cell dropout1.5-rank2 started", 1, true)) -- another chance

    local csv = files.read(dir .. "/table.csv")
    assert.truthy(csv:find("cell,lora.dropout,lora.rank,effective_scale,state,retrieval.r_mean,trainable,seconds,note\n", 1, true))
    assert.truthy(csv:find("dropout0-rank2,0,2,2,done,", 1, true))
    assert.truthy(csv:find("dropout1.5-rank2,1.5,2,,failed,", 1, true))
    local found = support.json(dir .. "/table.json")
    assert.equal("retrieval.r_mean", found.metric)
    assert.equal(4, #found.settings)
    assert.truthy(found.settings[1].best)
    code, out = command.weft("ablate --status " .. dir)
    assert.equal(0, code)
    assert.truthy(out:find("one seed: not separable", 1, true), out)
  end)

  it("does not believe a recipe that says lr leaves the first phase alone: the cells that it touches fail", function()
    local path = folder .. "/lying.lua"
    assert(files.write(path, 'local r = assert(loadfile "recipes/stage1.lua")()\nr.after_warmup = { "lr" }\nreturn r\n'))
    local line = words("lr=0.002,0.004 seed=3 --out " .. folder .. "/lies"):gsub("recipes/stage1.lua", path):gsub("'lr=0.002'", "")
    local code, out = command.weft(line)
    assert.equal(1, code)
    assert.truthy(out:find("cell lr0.002 done", 1, true), out)
    assert.truthy(out:find("cell lr0.004 FAILED", 1, true), out)
    assert.truthy(out:find("says that Phase 1 does not depend on lr, but the learning rates of its steps differ", 1, true), out)
    assert.truthy(out:find("lr is 0.002 there and 0.004 here", 1, true), out)
  end)

  it("refuses the folder of another plan", function()
    local code, _, err = command.weft(words("lora.alpha=2,4 seed=3 --out " .. folder .. "/grid"))
    assert.equal(1, code)
    assert.truthy(err:find("holds another plan", 1, true), err)
  end)

  it("goes on after kill -9 of the driver and a cell, with two drivers, to the same weights", function()
    local dir = folder .. "/killed"
    local line = "bin/weft " .. words("lora.rank=2,3 seed=3 --out " .. dir, LONG)
    local code, out, err = command.run(([[
      %s >%s/first.txt 2>&1 &
      driver=$!
      for i in $(seq 600); do
        [ "$(ls %s/cells/rank2/ckpt 2>/dev/null | grep -c '^step_')" -gt 0 ] && break
        sleep 0.05
      done
      kill -9 $driver
      kill -9 $(tail -n 1 %s/locks/cells-rank2 | cut -d" " -f1)
      wait $driver
      [ -f %s/cells/rank2/result.json ] && echo too late
      %s >%s/second.txt 2>&1 &
      other=$!
      %s || exit 3
      wait $other || exit 4
    ]]):format(line, folder, dir, dir, dir, line, folder, line))
    assert.equal(0, code, out .. err)
    assert.falsy(out:find("too late", 1, true))
    local both = out .. files.read(folder .. "/second.txt")
    assert.equal(1, select(2, both:gsub("cell rank2 started", "")))
    assert.equal(1, select(2, both:gsub("cell rank3 started", "")))
    assert.falsy(both:find("warm-up %x+ started"))
    assert.truthy(files.read(dir .. "/cells/rank2/log.txt"):find("resume check", 1, true))
    for _, rank in ipairs { 2, 3 } do
      assert.equal(whole { LONG[1], LONG[2], "lora.rank=" .. rank }, final(("%s/cells/rank%d"):format(dir, rank)))
    end
  end)

  it("stops politely at a signal and goes on later", function()
    local dir = folder .. "/stopped"
    local line = "bin/weft " .. words("lora.rank=2,3 seed=3 --out " .. dir, LONG)
    local code, out = command.run(([[
      %s &
      driver=$!
      for i in $(seq 600); do
        [ "$(ls %s/cells/rank2/ckpt 2>/dev/null | grep -c '^step_')" -gt 0 ] && break
        sleep 0.05
      done
      kill -TERM $driver
      wait $driver
      exit $?
    ]]):format(line, dir))
    assert.equal(75, code, out)
    assert.truthy(out:find("cell rank2 was stopped", 1, true), out)
    assert.equal(0, (command.run(line)))
    assert.equal(whole { LONG[1], LONG[2], "lora.rank=2" }, final(dir .. "/cells/rank2"))
  end)
end)

describe("an ablation's verdict", function()
  local results = require "weft.ablate.results"
  local plan = { keys = { "lora.rank", "seed" }, labels = { ["lora.rank"] = "rank", seed = "seed" } }
  local function setting(rank, mean, spread, n)
    return { values = { ["lora.rank"] = tostring(rank), seed = "1" }, mean = mean, spread = spread, n = n or 3 }
  end

  it("puts the difference beside the spread over seeds", function()
    local line, apart = results.compare(plan, setting(16, 60.4, 0.9), setting(8, 60, 0.9))
    assert.equal("rank 16 - 8 = 0.4, spread over seeds 0.9: not separable", line)
    assert.falsy(apart)
    line, apart = results.compare(plan, setting(16, 64, 0.9), setting(8, 60, 0.9))
    assert.equal("rank 16 - 8 = 4, spread over seeds 0.9: separable", line)
    assert.truthy(apart)
  end)

  it("asks more of few seeds than of many, by Student's t", function()
    assert.falsy(select(2, results.compare(plan, setting(16, 62, 0.9), setting(8, 60, 0.9))))  -- t = 2.72, below 2.776
    assert.truthy(select(2, results.compare(plan, setting(16, 62, 0.9, 6), setting(8, 60, 0.9, 6))))
    assert.falsy(select(2, results.compare(plan, setting(16, 62, 0, 3), setting(8, 62, 0, 3))))
    assert.truthy(select(2, results.compare(plan, setting(16, 63, 0, 3), setting(8, 62, 0, 3))))
  end)

  it("does not judge by one seed", function()
    assert.truthy(results.compare(plan, setting(16, 64, nil, 1), setting(8, 60, nil, 1)):find "one seed: not separable")
  end)
end)

describe("hashes that should agree", function()
  local results = require "weft.ablate.results"
  local folder, remove = command.folder()
  teardown(remove)

  local function flags(keys, first, second)
    local json = require "weft.io.json"
    local cells = {}
    for i, hashes in ipairs { first, second } do
      cells[i] = { name = "cell" .. i, group = "g", values = { seed = "1" }, overrides = json.array {} }
      for _, key in ipairs(keys) do cells[i].values[key] = tostring(i) end
      assert(files.make_dirs(("%s/cells/cell%d"):format(folder, i)))
      assert(json.write(("%s/cells/cell%d/result.json"):format(folder, i), { m = i, hashes = hashes }))
    end
    assert(json.write(folder .. "/plan.json", { cells = cells, warmups = json.array {}, keys = json.array(keys), metric = "m",
      labels = { [keys[1]] = keys[1] } }))
    return results.collect(folder).flags
  end

  it("are flagged where they do not: data, and the end of a first phase that should be the same", function()
    assert.same({}, flags({ "lr" }, { data = "a", first_phase = "b" }, { data = "a", first_phase = "b" }))
    assert.same({ "cell1 and cell2 saw other data, though nothing of theirs says so" }, flags({ "lr" }, { data = "a" }, { data = "b" }))
    assert.same({}, flags({ "data.limit" }, { data = "a" }, { data = "b" }))
    local found = flags({ "lora.rank" }, { data = "a", first_phase = "b" }, { data = "a", first_phase = "c" })
    assert.equal(1, #found)
    assert.truthy(found[1]:find("left their first phase with other weights", 1, true))
  end)
end)

describe("threads of the next task", function()
  local function share(threads, jobs, ...) return require("weft.ablate.driver").share({ threads = threads, jobs = jobs }, ...) end

  it("are all that are free where it is alone, else its part", function()
    assert.equal(8, share(8, 4, 0, 0, 1, 0, 8))  -- a warm-up that all wait for
    assert.equal(2, share(8, 4, 0, 0, 9, 0, 8))
    assert.equal(2, share(8, 4, 2, 1, 8, 0, 8))
    assert.equal(4, share(8, 4, 4, 2, 1, 0, 8))  -- the last one takes what the others leave
    assert.equal(1, share(2, 4, 2, 2, 9, 0, 2))  -- more jobs than cores, as asked for
  end)

  it("leave alone what other drivers use on the machine", function()
    assert.equal(5, share(8, 1, 0, 0, 1, 3, 8))
    assert.equal(1, share(1, 1, 0, 0, 1, 1, 2))
    assert.is_nil(share(8, 1, 0, 0, 1, 8, 8))
    assert.is_nil(share(8, 2, 4, 1, 1, 4, 8))
  end)
end)

describe("a lock", function()
  local C = require("weft.core").lib
  it("is held by one, and free once dropped", function()
    local path = os.tmpname()
    local fd = C.weft_lock_take(path)
    assert.is_true(fd >= 0)
    assert.equal(-1, C.weft_lock_take(path))
    C.weft_lock_drop(fd)
    local again = C.weft_lock_take(path)
    assert.is_true(again >= 0)
    C.weft_lock_drop(again)
    os.remove(path)
    assert.truthy(weft)
  end)
end)
