require "weft"
local command = require "tests.support.command"
local files = require "weft.files"
local json = require "weft.io.json"
local prune = require "weft.ablate.prune"
local support = require "tests.ablate.support"
local train = require "weft.train"

describe("the epochs at which settings are compared", function()
  it("halve the settings at a half, a quarter, an eighth of what is not shared", function()
    assert.same({ 13, 17, 25 }, prune.rungs(8, 10, 40))
    assert.same({ 17, 25 }, prune.rungs(5, 10, 40))
    assert.same({ 25 }, prune.rungs(2, 10, 40))
    assert.same({}, prune.rungs(1, 10, 40))
  end)

  it("are none twice, and none where there is no epoch for one", function()
    assert.same({ 1, 2 }, prune.rungs(8, 0, 4))
    assert.same({}, prune.rungs(8, 3, 4))
  end)

  it("cost what is left of the settings", function()
    assert.equal((1 * 10 + 0.5 * 20 + 0.25 * 10) / 40, prune.share({ 10, 30 }, 0, 40))
  end)
end)

describe("what pruning decides", function()
  local folder, remove, plan, tasks
  before_each(function()
    folder, remove = command.folder()
    plan = { keys = { "lr", "seed" }, prune = { metric = "retrieval.r_mean", better = "higher", rungs = { 2, 4 } } }
    tasks = {}
    for i = 1, 4 do
      for seed = 1, 2 do
        local t = { kind = "cell", name = ("lr%d-seed%d"):format(i, seed), dir = ("%s/%d-%d"):format(folder, i, seed),
          cell = { values = { lr = tostring(i), seed = tostring(seed) } } }
        t.failed = t.dir .. "/failed"
        assert(files.make_dirs(t.dir))
        tasks[#tasks + 1] = t
      end
    end
  end)
  after_each(function() remove() end)

  local function reach(t, epoch, score)
    assert(json.write(prune.mark(t.dir, epoch), { values = { retrieval = { r_mean = score } } }))
  end
  local function goals()
    local decide, out = prune.decide(plan, tasks), {}
    for i, t in ipairs(tasks) do
      local rung = decide(t)
      out[i] = rung == nil and "waits" or rung
    end
    return out
  end

  it("waits until all have come to the epoch, then halves by the mean over seeds", function()
    assert.same({ 2, 2, 2, 2, 2, 2, 2, 2 }, goals())
    -- of one seed setting 1 is best, of both it is third
    for i, score in ipairs { 0.9, 0.1, 0.6, 0.7, 0.4, 0.5 } do reach(tasks[i], 2, score) end
    assert.same({ "waits", "waits", "waits", "waits", "waits", "waits", 2, 2 }, goals())
    reach(tasks[7], 2, 0.55)
    reach(tasks[8], 2, 0.55)
    assert.same({ false, false, 4, 4, false, false, 4, 4 }, goals())
    local _, why = prune.decide(plan, tasks)(tasks[1])
    assert.equal("pruned after epoch 2: retrieval.r_mean 0.5, the last one kept 0.55", why)
    for _, i in ipairs { 3, 4, 7, 8 } do reach(tasks[i], 4, i < 5 and 0.5 or 0.8) end
    assert.same({ false, false, false, false, false, false, "end", "end" }, goals())
  end)

  it("prefers low figures of losses", function()
    plan.prune.better = "lower"
    for i, t in ipairs(tasks) do reach(t, 2, i) end
    assert.same({ 4, 4, 4, 4, false, false, false, false }, goals())
  end)

  it("puts a setting that failed last, and does not wait for it", function()
    for i = 3, 8 do reach(tasks[i], 2, i == 3 and 0.01 or 0.5) end
    assert(files.write(tasks[1].failed, "x"))
    assert(files.write(tasks[2].failed, "x"))
    assert.same({ false, false }, { goals()[1], goals()[3] })
    assert.equal(4, goals()[5])
  end)

  it("names the figures there are where the metric is none", function()
    for _, t in ipairs(tasks) do reach(t, 2, 1) end
    plan.prune.metric = "retrieval.rmean"
    assert.error_matches(goals, "no figure retrieval.rmean; did you mean retrieval.r_mean")
  end)
end)

describe("weft ablate --prune", function()
  local root, remove, folder, remove_folder
  setup(function()
    root, remove = support.pictures()
    folder, remove_folder = command.folder()
  end)
  teardown(function()
    remove()
    remove_folder()
  end)

  it("leaves the best with the weights of a whole run, and says what it pruned and why", function()
    local fixed = {}
    for _, text in ipairs(support.overrides(root, { "epochs=6", "warmup_epochs=2" })) do
      if not text:find "^lr=" then fixed[#fixed + 1] = "'" .. text .. "'" end
    end
    local dir = folder .. "/halved"
    local line = ("ablate recipes/stage1.lua %s lr=0.00001,0.002,0.003,0.00002 --prune captions.loss --metric captions.loss --jobs 2 --out %s")
      :format(table.concat(fixed, " "), dir)
    local code, out, err = command.weft(line)
    assert.equal(0, code, out .. err)
    assert.truthy(out:find("after epoch 3, 4 the worse half of what is left by captions.loss goes no further", 1, true), out)
    local found, done, pruned = support.json(dir .. "/table.json"), {}, 0
    for _, s in ipairs(found.settings) do
      if s.mean then done[#done + 1] = s elseif s.pruned then pruned = pruned + 1 end
    end
    assert.equal(1, #done)
    assert.equal(3, pruned)
    assert.truthy(done[1].best)
    assert.truthy(out:find("pruned after epoch 3: captions.loss", 1, true), out)
    assert.truthy(out:find("pruned after epoch 4: captions.loss", 1, true), out)
    -- the small rates go first
    local csv = files.read(dir .. "/table.csv")
    assert.truthy(csv:find("lr1e-05,1e-05,2,pruned", 1, true), csv)
    assert.truthy(csv:find("lr2e-05,2e-05,2,pruned", 1, true), csv)
    local lr = done[1].values.lr
    local whole = train.start(train.load_recipe("recipes/stage1.lua", support.overrides(root, { "epochs=6", "warmup_epochs=2", "lr=" .. lr })),
      { dir = folder .. "/whole", quiet = true }):train()
    local cell = support.json(("%s/cells/lr%s/result.json"):format(dir, lr))
    assert.equal(whole.hashes.final, cell.hashes.final)
    local labels = {}
    for i, e in ipairs(cell.evaluations) do labels[i] = e.label end
    assert.same({ "before", "Phase 1", "epoch 3", "epoch 4", "Phase 2" }, labels)

    -- again: nothing is left to do
    local again
    code, again = command.weft(line)
    assert.equal(0, code, again)
    assert.falsy(again:find("started", 1, true), again)
    -- and without pruning it is another plan
    code, out, err = command.weft((line:gsub("%-%-prune captions.loss ", "")))
    assert.equal(1, code)
    assert.truthy(err:find("its prune is", 1, true), out .. err)
  end)
end)

describe("what a plan takes", function()
  local estimate = require "weft.ablate.estimate"
  local root, remove
  setup(function() root, remove = support.pictures() end)
  teardown(function() remove() end)

  local function plan_of(more)
    local axes, fixed = require("weft.ablate.grid").parse(more)
    for _, text in ipairs(support.overrides(root)) do
      if not text:find "^batch=" and not text:find "^lora.rank=" and not text:find "^seed=" then table.insert(fixed, 1, text) end
    end
    return require("weft.ablate.plan").new { recipe = "recipes/stage1.lua", axes = axes, fixed = fixed }
  end

  it("grows at most with the square of a key, and is unknown for words", function()
    local plan = { keys = { "batch", "seed", "kind" }, cells = { { values = { batch = "4", seed = "1", kind = "a" } } } }
    local function growth(batch, seed, kind) return estimate.growth(plan, { values = { batch = batch, seed = seed, kind = kind } }) end
    assert.equal(1, growth("4", "9", "a"))
    assert.equal(4, growth("8", "1", "a"))
    assert.equal(1, growth("2", "1", "a"))
    assert.equal(math.huge, growth("4", "1", "b"))
  end)

  it("is refused, cell by cell, where memory does not hold it", function()
    local plan = plan_of { "batch=4,5", "seed=1" }
    local small = estimate.check(plan, { threads = 1, jobs = 1, dir = ".", memory = 1 })
    assert.equal("batch4", small.too_large[1].cell.name)
    local text = estimate.refusal(small, { jobs = 1 })
    assert.truthy(text:find("batch4: ", 1, true), text)
    local enough = estimate.check(plan, { threads = 1, jobs = 1, dir = ".", memory = 2000 })
    assert.same({}, enough.too_large)
    assert.is_nil(estimate.refusal(enough, { jobs = 1 }))
    assert.is_true(enough.seconds > 0 and enough.disk > 0 and enough.cell.mib < 2000)
  end)

  it("measures a cell that could be too large, and refuses it alone #slow", function()  -- sanitizers take memory too
    local plan = plan_of { "language.width=24,1440", "seed=1", "batch=4" }
    local first = estimate.measure(plan, plan.cells[1], 1)
    local e = estimate.check(plan, { threads = 1, jobs = 1, dir = ".", memory = first.mib * 2 })
    assert.equal(1, #e.too_large)
    assert.equal("width1440", e.too_large[1].cell.name)
  end)

  it("is refused where the disk is too small", function()
    local text = estimate.refusal({ too_large = {}, disk = 3000, free_disk = 1000, room = 1 }, { jobs = 1 })
    assert.truthy(text:find("the cells leave about 2.9 GiB and 1000 MiB of disk are free", 1, true), text)
  end)
end)
