local weft = require "weft"
local tiny = require "tests.support.tiny"
local command = require "tests.support.command"
local compare = require "tests.models.compare"

local root, remove_pictures, removers
setup(function() root, remove_pictures = tiny.pictures(24) end)
teardown(function() remove_pictures() end)
before_each(function() removers = {} end)
after_each(function() for _, fn in ipairs(removers) do fn() end end)

local function new_run(more, pictures)
  local run, remove = tiny.run(pictures or root, more)
  table.insert(removers, remove)
  run.evaluate = function(self) self.history = self.history or { { label = "none", step = self.step, values = {} } } end
  run.model:train()
  return run
end

local function steps(run, n, losses)
  losses = losses or function(b) return run.model:losses(b) end
  for _ in run:epochs() do
    for batch in run:batches() do
      run:train_step(batch, losses)
      n = n - 1
      if n == 0 then return end
    end
  end
end

local function weights(run)
  local out = {}
  for name, t in run.model:named_parameters() do out[name] = t:detach():clone() end
  return out
end

local function difference(a, b)
  local most = 0
  for name, t in pairs(a) do
    if t:numel() > 0 then most = math.max(most, (t - b[name]):abs():max():item()) end
  end
  return most
end

-- A copy of the pictures in which some are no pictures.
local function damaged(names)
  local dir, remove = command.folder()
  table.insert(removers, remove)
  assert(os.execute(("cp %s/* %s"):format(root, dir)) == 0)
  for _, name in ipairs(names) do tiny.write(dir .. "/" .. name, "no picture") end
  return dir
end

describe("accumulation", function()
  it("gives one LM gradient whether a step is 1 x 8, 2 x 4, 4 x 2 or 8 x 1", function()
    local grads = {}
    for _, way in ipairs { { 8, 1 }, { 4, 2 }, { 2, 4 }, { 1, 8 } } do
      local run = new_run { "batch=" .. way[1], "accumulate=" .. way[2], "compress.dropout=0", "lora.dropout=0", "memory.kind=none",
        "clip=1000000", "warmup_epochs=0" }
      local lm
      -- the caption pass alone; the weights stay as they are, so that only the gradient counts
      run.optimizer_step = function(self)
        lm = self.sums.lm
        grads[#grads + 1] = {}
        for name, t in self.model:named_parameters() do
          local g = t.grad
          if g then grads[#grads][name] = g:clone() end
        end
      end
      run.report = function() end
      steps(run, way[2], function(b) return { lm = run.model:losses(b).lm } end)
      grads[#grads].loss = weft.tensor { lm }
    end
    local size = 0
    for name, t in pairs(grads[1]) do
      if name ~= "loss" then size = math.max(size, t:abs():max():item()) end
    end
    for i = 2, 4 do
      local count = 0
      for name in pairs(grads[1]) do
        assert.truthy(grads[i][name], name)
        count = count + 1
      end
      assert.is_true(count > 20)
      assert.is_true(difference(grads[1], grads[i]) < 2e-6 * size, ("way %d: %g of %g"):format(i, difference(grads[1], grads[i]), size))
    end
  end)

  it("counts steps, pictures and rows of metrics by whole steps", function()
    local run = new_run { "batch=2", "accumulate=2" }
    run:train()
    local rows = tiny.metrics(run.dir)
    assert.equal(16, #rows)
    for i, row in ipairs(rows) do
      assert.equal(i, row.step)
      assert.equal(4, row.images)
    end
  end)
end)

describe("metrics", function()
  it("hold every loss, what was compared with and what was left out", function()
    local run = new_run()
    run:train()
    local rows = tiny.metrics(run.dir)
    local last = rows[#rows]
    local sum = last.loss_itc + 0.5 * last.loss_itm + last.loss_lm + 0.1 * last.loss_memory
    assert.is_true(math.abs(sum - last.loss_total) < 1e-4 * sum)
    assert.equal(8, last.queue)
    local same = 0
    for _, row in ipairs(rows) do
      same = same + row.itc_same_picture + row.itc_same_caption
      -- four rows against four and what the queue holds, less the pair itself and what is left out
      local columns = 4 + math.min(8, 4 * (row.step - 1))
      assert.equal(4 * columns - 4 - row.itc_same_picture - row.itc_same_caption, row.itc_negatives)
      for _, key in ipairs { "itm_acc", "itm_majority", "itc_skipped", "itm_skipped", "tau", "lr", "grad_norm", "seconds" } do
        assert.equal("number", type(row[key]), key)
      end
    end
    assert.is_true(same > 0)
    assert.truthy(tiny.read(run.dir .. "/log.txt"):find(("Phase 2: negatives %d (%d same picture, %d same caption left out)"):format(
      last.itc_negatives, last.itc_same_picture, last.itc_same_caption), 1, true))
  end)

  it("hold the loss on plain text, which has a weight of its own", function()
    local path = os.tmpname()
    tiny.write(path, "a dog runs\nthe cat sleeps\nso it goes\nand on\n")
    local run = new_run { "data.text=" .. path, "weights.text=0.25" }
    run:train()
    os.remove(path)
    local rows = tiny.metrics(run.dir)
    local first, last = rows[1], rows[#rows]
    local sum = last.loss_itc + 0.5 * last.loss_itm + last.loss_lm + 0.25 * last.loss_text + 0.1 * last.loss_memory
    assert.is_true(math.abs(sum - last.loss_total) < 1e-4 * sum)
    assert.is_true(math.abs(first.loss_text - math.log(290)) < 0.5)
    assert.is_true(last.loss_text < first.loss_text)
  end)
end)

describe("a step that is not finite", function()
  local function logged(run) return tiny.read(run.dir .. "/log.txt") end

  it("is skipped and counted, moves nothing, and names the loss and the module", function()
    local run = new_run()
    steps(run, 1)
    local before = weights(run)
    local relu = run.model.compress[2]
    local forward = relu.forward
    rawset(relu, "forward", function(self, x) return forward(self, x) * (0 / 0) end)
    steps(run, 1)
    rawset(relu, "forward", nil)
    assert.equal(1, run.skipped)
    assert.equal(2, run.step)
    assert.equal(0, difference(before, weights(run)))
    local line = logged(run):match "\n(step 2 skipped[^\n]*)"
    assert.truthy(line:find("the output of compress.1 is not", 1, true), line)
    assert.truthy(line:find("(1 skipped so far)", 1, true), line)
    steps(run, 1)
    assert.equal(1, run.skipped)
    assert.is_true(difference(before, weights(run)) > 0)
    for _, row in ipairs(tiny.metrics(run.dir)) do
      if row.step == 2 then assert.equal(1, row.skipped) end
    end
    -- nothing of it stays in the queue
    for _, name in ipairs { "image", "text" } do
      assert.equal(1, weft.isfinite(run.model.queue:get(name)):to("int64"):min():item())
    end
  end)

  it("names the weight that is not finite", function()
    local run = new_run()
    steps(run, 1)
    run.model.fusion.text[1].q_proj.weight:detach():narrow(1, 1, 1):fill_(math.huge)
    steps(run, 1)
    assert.equal(1, run.skipped)
    assert.truthy(logged(run):find("the weight fusion.text.0.q_proj.weight is not", 1, true), logged(run))
  end)

  it("names the gradient when only that is not finite", function()
    local run = new_run()
    steps(run, 1)
    local before = weights(run)
    steps(run, 1, function(b)
      local losses = run.model:losses(b)
      local w = run.model.itm.head.bias
      losses.extra = ((w - w:detach()):abs() + 1e-30):sqrt():sum() * 1e30   -- finite; its slope is not, in float32
      return losses
    end)
    assert.equal(1, run.skipped, logged(run))
    assert.equal(0, difference(before, weights(run)))
    assert.truthy(logged(run):find("the gradient of %S+ is not finite"), logged(run))
  end)

  it("skips the whole of an accumulated step, and the good one after it moves", function()
    local run = new_run { "accumulate=2", "batch=2" }
    steps(run, 2)
    local before, n = weights(run), 0
    steps(run, 2, function(b)
      n = n + 1
      local losses = run.model:losses(b)
      if n == 1 then losses.lm = losses.lm * (0 / 0) end
      return losses
    end)
    assert.equal(1, run.skipped)
    assert.equal(0, difference(before, weights(run)))
    assert.truthy(logged(run):find("the loss lm (nan)", 1, true) or logged(run):find("the loss lm (-nan)", 1, true))
    steps(run, 2)
    assert.is_true(difference(before, weights(run)) > 0)
  end)
end)

describe("what can't be compared", function()
  -- Pictures and captions of which some are the same.
  local function copies(picture, caption)
    local dir, remove = command.folder()
    table.insert(removers, remove)
    for i = 1, 24 do
      assert(os.execute(("cp %s/%02d.png %s/%02d.png"):format(root, picture or i, dir, i)) == 0)
      tiny.write(("%s/%02d.txt"):format(dir, i), caption or "thing number " .. i)
    end
    return dir
  end

  it("is skipped and counted, and the run comes to its end and opens again", function()
    for _, case in ipairs {
      { { "batch=1", "itc.queue=1" }, 0 }, { { "batch=1", "itc.queue=1", "weights.lm=0", "memory.kind=none" }, 1 },
      { { "batch=8", "itc.queue=2" }, 0 }, { { "batch=4", "itc.queue=0" }, 0 } } do
      local more = { "epochs=2", "warmup_epochs=1", unpack(case[1]) }
      local run = new_run(more)
      rawset(run.recipe, "finish", nil)
      local result = run:train()
      -- without LM a step that has one pair alone has no loss
      assert.equal(case[2] == 1, result.skipped > 0 and result.skipped < 8, table.concat(more, " "))
      assert.is_true(compare.finite(run.model.itc.tau))
      local again = assert(weft.train.open(run.dir, { quiet = true }))
      assert.equal(result.step, again.step)
      again:resume_check()
      assert.equal(run.model.itc.skipped, again.model.itc.skipped)
      assert.equal(run.model.itm.skipped_rows, again.model.itm.skipped_rows)
      local last = tiny.metrics(run.dir)[result.step]
      if case[1][1] == "batch=1" then assert.is_true(last.itc_skipped >= 1 and last.itm_skipped >= 2) end
    end
  end)

  it("stops a run in which nothing can be compared, saying why", function()
    for _, case in ipairs { { copies(1), "itc, itm" }, { copies(nil, "same"), "itc, itm" } } do
      local run = new_run({ "batch=4", "data.held_out=0" }, case[1])
      local ok, message = pcall(run.train, run)
      assert.is_false(ok)
      assert.truthy(tostring(message):find("no loss reaches it (none of these had anything to compare: " .. case[2], 1, true), tostring(message))
    end
  end)

  it("leaves a checkpoint without a loss to check, where the loss of its last batch is none or not finite", function()
    for _, value in ipairs { 0 / 0, math.huge, false } do
      local run = new_run { "checkpoint_every=1" }
      steps(run, 1)
      local losses = run.model.losses
      rawset(run.model, "losses", function(...)
        local lm = losses(...).lm
        return { lm = value and lm * value or nil }
      end)
      run:save()
      assert.is_nil(run.check)
      local again = assert(weft.train.open(run.dir, { quiet = true }))
      again:resume_check()
      assert.is_nil(tiny.read(run.dir .. "/log.txt"):find("resume check", 1, true))
    end
  end)
end)

describe("a damaged picture", function()
  it("is skipped, counted and named in the log, and the run goes on to its end", function()
    local run = tiny.run(damaged { "03.png", "07.png" })
    table.insert(removers, function() os.execute("rm -rf " .. run.dir) end)
    local result = run:train()
    assert.equal(2, result.damaged)
    assert.equal(16, result.step)
    assert.equal(0, result.skipped)
    local log = tiny.read(run.dir .. "/log.txt")
    for _, name in ipairs { "03.png", "07.png" } do
      local _, n = log:gsub("picture " .. name:gsub("%.", "%%.") .. " skipped: [^\n]*", "")
      assert.equal(1, n, name)
    end
    assert.truthy(log:find("(2 so far)", 1, true))
  end)

  it("takes a step with it where all of its pictures are, and the schedule keeps its place", function()
    local names = {}
    for i = 1, 24, 2 do names[#names + 1] = ("%02d.png"):format(i) end
    local more = { "batch=1", "epochs=2", "warmup_epochs=1", "checkpoint_every=1" }
    local dir = damaged(names)
    local run = new_run(more, dir)
    local total = run.options.steps_per_epoch * 2
    assert.equal(run.data.train:size(), run.options.steps_per_epoch)
    local result = run:train()
    assert.equal(total, result.step)
    assert.is_true(result.skipped > 0 and result.skipped < total)
    assert.equal(total, #tiny.metrics(run.dir))
    assert.truthy(tiny.read(run.dir .. "/log.txt"):find "step %d+ skipped: no picture of it can be read")
    -- stopped right after such a step, it goes on to the same bits
    local again = new_run(more, dir)
    again.should_stop = function() return again.step >= 5 and again.pictures == 0 end
    assert.is_false(pcall(again.train, again))
    local resumed = assert(weft.train.open(again.dir, { quiet = true }))
    resumed.evaluate = run.evaluate
    assert.equal(result.hashes.final, resumed:train().hashes.final)
  end)
end)

describe("features of the frozen encoder", function()
  -- Runs to the end and counts pictures through the encoder in phase 1 and 2.
  local function count(more)
    local run = new_run(more)
    local seen = { 0, 0 }
    run.model.vision:register_forward_hook(function(_, out)
      if run.model.training then seen[run.phase.index] = seen[run.phase.index] + out.patches:size(1) end
    end)
    local alone = run.model.features
    local result = run:train()
    return seen, result, run, alone
  end

  it("are made once a picture, whatever company it comes in", function()
    -- 18 pictures, 16 of them in an epoch; two epochs see all but those that were never drawn
    local seen, result, run = count { "warmup_epochs=4", "epochs=5" }
    local all, n = {}, 0
    for epoch = 1, 4 do
      local plan = run.data.train:plan(3, epoch, 4)
      for k = 1, plan.n do
        for _, i in ipairs(plan[k]) do
          local id = run.data.train.rows[i].image_id
          if not all[id] then n = n + 1 end
          all[id] = true
        end
      end
    end
    local kept = run.model.features
    assert.equal(n, kept.computed)
    assert.equal(64 - n, kept.served)
    -- one picture more, to see whether it has the same bits alone; on a CPU it has
    assert.is_falsy(kept.alone)
    assert.equal(n + 1, seen[1])
    assert.equal(16, seen[2])
    assert.equal(0, result.skipped)
    -- what that cost and saves is said once, after the first epoch
    local log = tiny.read(run.dir .. "/log.txt")
    local _, times = log:gsub("\nfeatures: a picture takes [%d.]+ ms in the encoder, [%d.]+ ms as it was kept; "
      .. "16 of 16 are kept %([%d.]+ MiB in memory, 0%.0 on disk%), which saves about [%d.]+ s an epoch\n", "")
    assert.equal(1, times, log)
    -- and they are gone when the encoder changes
    assert.same({}, kept.held)
    assert.equal(0, kept.bytes)
  end)

  it("give the weights of a run without them, in memory, on disk or in both", function()
    local large = { "encoder.image=70", "data.size=70", "data.resize=70" }
    local function with(...)
      local more = { unpack(large) }
      for _, text in ipairs { ... } do more[#more + 1] = text end
      local seen, result, run = count(more)
      return result.hashes.final, seen, run
    end
    local off, seen = with "features.enabled=false"
    assert.equal(32, seen[1])
    local on, _, run = with "features.memory=4"
    assert.is_falsy(run.model.features.alone)
    assert.equal(on, off)
    -- a picture's features are 25 x 16 floats
    local stored = 0
    local cache = require "weft.train.features"
    local clear = cache.clear
    function cache.clear(self)
      for _ in pairs(self.stored) do stored = stored + 1 end
      return clear(self)
    end
    local both, seen_both, third = with("features.memory=0.01", "features.disk=1")
    cache.clear = clear
    assert.equal(off, both)
    assert.is_true(stored > 5, stored)
    assert.is_true(seen_both[1] < 22)
    assert.is_false(require("weft.files").exists(third.dir .. "/features"))
    assert.truthy(tiny.read(third.dir .. "/log.txt"):find "kept %(0%.0 MiB in memory, 0%.0 on disk%)")
    -- nothing fits
    local _, _, none = with("features.memory=0.0001", "features.disk=0")
    assert.truthy(tiny.read(none.dir .. "/log.txt"):find("features: none of 16 pictures fits into what features.memory", 1, true))
    -- too little of both: what does not fit is made again
    local few, seen_few = with("features.memory=0.005", "features.disk=0.005")
    assert.equal(off, few)
    assert.is_true(seen_few[1] > 22 and seen_few[1] < 32)
  end)

  it("are not kept when pictures are flipped, and the log says so", function()
    local seen, _, run = count { "data.flip=true" }
    assert.equal(32, seen[1])
    assert.equal(0, run.model.features.computed)
    local log = tiny.read(run.dir .. "/log.txt")
    assert.truthy(log:find("features: not kept, since data.flip or data.random_crop makes a picture differ from itself", 1, true))
  end)
end)

describe("what a run says of itself", function()
  local function flat_run(values, priors)
    local run = new_run()
    steps(run, 1)
    local watch = require "weft.train.watch"
    run.model.priors = function() return priors end
    for i = 1, watch.FLAT_STEPS + 50 do
      run.sums = values(i)
      run:watch_priors()
    end
    return tiny.read(run.dir .. "/log.txt")
  end

  it("names a loss that stays where its input is ignored, once, with the gates", function()
    local log = flat_run(function() return { itm = 0.64, itc = 2 } end, { itm = 0.6365, itc = math.log(12) })
    local _, n = log:gsub("note: the loss itm has stayed beside 0.6365 for 200 steps", "")
    assert.equal(1, n)
    assert.truthy(log:find("2 gates of mean size [%d.e-]+, gradient norm [%d.e-]+, hard negatives at a mean similarity of"))
    assert.is_nil(log:find("the loss itc has stayed", 1, true))
    log = flat_run(function() return { itm = 0.5, itc = 2.48 } end, { itm = 0.6365, itc = math.log(12) })
    assert.truthy(log:find("the loss itc has stayed beside 2.4849", 1, true))
  end)

  it("says nothing of one that leaves now and then", function()
    local log = flat_run(function(i) return { itm = i % 150 == 0 and 0.6 or 0.6365 } end, { itm = 0.6365 })
    assert.is_nil(log:find("has stayed beside", 1, true))
  end)

  it("knows the priors: the entropy of the pairs, and the log of what is compared with", function()
    local run = new_run()
    steps(run, 4)
    local priors = run.model:priors()
    assert.is_true(math.abs(priors.itm - 0.6365) < 1e-4, priors.itm)
    assert.equal(math.log(4 + 8), priors.itc)
  end)

  it("names waiting for pictures, with its measured cause and a remedy, once", function()
    for _, case in ipairs { { 0.004, 0.001, "reading one takes 4.0 ms, decoding it 1.0 ms; the disk is what is slow: " },
      { 0.0004, 0.02, "reading one takes 0.4 ms, decoding it 20.0 ms; decoding is what is slow: raise data.threads" } } do
      local run = new_run()
      run.picture_times = function() return case[1], case[2] end
      for _ = 1, 250 do run:watch_waiting(0.3, 1) end
      local log = tiny.read(run.dir .. "/log.txt")
      local _, n = log:gsub("note: 30 %% of the last 100 steps went into waiting for pictures: ", "")
      assert.equal(1, n)
      assert.truthy(log:find(case[3], 1, true), log)
    end
    local run = new_run({}, damaged { "03.png" })
    local read, decode = run:picture_times()
    assert.is_true(read > 0 and decode > 0 and read + decode < 1)
    local other = new_run()
    for _ = 1, 250 do other:watch_waiting(0.1, 1) end
    assert.is_false(require("weft.files").exists(other.dir .. "/log.txt"))
  end)
end)

describe("what a recipe's own functions return", function()
  local function refused(run, losses)
    local ok, message = pcall(steps, run, 1, losses)
    assert.is_false(ok)
    return message
  end

  it("is refused by name where it is no table of scalar losses", function()
    local run = new_run()
    assert.matches("losses: a table of losses by name is expected, such as { caption = loss }, got a number (3)",
      refused(run, function() return 3 end), 1, true)
    assert.matches("losses: a table of losses by name", refused(run, function() return weft.zeros {} end), 1, true)
    assert.matches("losses: own: a tensor is expected, got a number (3)", refused(run, function() return { own = 3 } end), 1, true)
    assert.matches("losses: own: one element is expected, got [2,3]; reduce it with :mean() or :sum()",
      refused(run, function() return { own = weft.zeros { 2, 3 } } end), 1, true)
  end)

  it("may be tensors of one element among the metrics", function()
    local run = new_run()
    local own = run.model.metrics
    run.model.metrics = function(self)
      local out = own(self)
      out.gate = self.fusion.text[1].gate
      return out
    end
    steps(run, 1)
    local row = tiny.metrics(run.dir)[1]
    assert.equal(run.model.fusion.text[1].gate:item(), row.gate)
    assert.is_number(row.tau)
    run.model.metrics = function() return { wide = weft.zeros { 2 } } end
    assert.matches("metrics: wide: a number, or a tensor of one element", refused(run), 1, true)
    run.model.metrics = function() return 3 end
    assert.matches("metrics: numbers by name are expected, got a number (3)", refused(run), 1, true)
  end)

  it("is refused where an evaluation's figures have no name", function()
    local run = new_run()
    run.evaluate = nil
    for value, got in pairs { [3] = "a number (3)", [{ exact = 0.5 }] = "exact = a number (0.5)" } do
      run.recipe.evaluate = { function() return { fine = { a = 1 } } end, function() return value end }
      local ok, message = pcall(run.evaluate, run, "before")
      assert.is_false(ok)
      assert.matches("evaluate[2] is to return figures under a name, such as { exact = { share = 0.5 } }; it returned " .. got, message, 1, true)
    end
  end)
end)
