local weft = require "weft"
local tiny = require "tests.support.tiny"
local config = require "weft.config"
local files = require "weft.files"

local root, remove_pictures, text
setup(function()
  root, remove_pictures = tiny.pictures(24)
  -- some are wide, so that how they are fitted shows
  local image = require "weft.io.image"
  for i = 1, 6 do
    local path = ("%s/%02d.png"):format(root, i)
    assert(image.save(path, image.resize(assert(image.load(path)), { 28, 56 })))
  end
  text = os.tmpname()
  tiny.write(text, "a dog runs\nthe cat sleeps\n")
end)
teardown(function()
  remove_pictures()
  os.remove(text)
end)

local base = { "warmup_epochs=1", "epochs=2", "batch=6", "checkpoint_every=0", "fusion.layers=1", "language.layers=3",
  "encoder.patch=7" }

-- What a short run comes to: everything that a key could move, as one text.
local function outcome(more)
  local list = { unpack(base) }
  for _, item in ipairs(more) do list[#list + 1] = item end
  local run, remove = tiny.run(root, list)
  run.evaluate = function(self) self.history = self.history or { { label = "none", step = self.step, values = {} } } end
  rawset(run.recipe, "finish", nil)
  local result = run:train()
  local checkpoints, kept = table.concat(require("weft.train.checkpoint").list(run.dir), " "), run.model.features
  local log = tiny.read(run.dir .. "/log.txt")
  remove()
  local _, lines = log:gsub("\n", "")
  local set = run.data.train
  local bytes = set.loader_:cached()
  return { hash = table.concat({ result.hashes.initial, result.hashes.data, result.hashes.final }, " "), checkpoints = checkpoints, lines = lines,
    features = ("%d %d %g %g"):format(kept.computed, kept.served, kept.budget, kept.disk_budget), cached = bytes,
    threads = set.options.threads }, run
end

-- Key -> another value, and what it moves (the hash of weights and data, if nothing is said).
local moves = {
  seed = 4, ["encoder.width"] = 32, ["encoder.layers"] = 3, ["encoder.heads"] = 4, ["encoder.image"] = 42, ["encoder.patch"] = 14,
  ["encoder.init_range"] = 0.1, ["lora.rank"] = 3, ["lora.alpha"] = 8, ["lora.scale"] = 5, ["lora.dropout"] = 0.5, ["lora.targets"] = "[key]",
  ["compress.hidden"] = 24, ["compress.width"] = 8, ["compress.dropout"] = 0.3, ["language.width"] = 32, ["language.layers"] = 2,
  ["language.ff"] = 40, ["language.heads"] = 4, ["language.dropout"] = 0.2, ["fusion.layers"] = 2, ["fusion.heads"] = 4, ["fusion.ff"] = 24,
  ["fusion.gate"] = 0.3,
  ["memory.kind"] = "none", ["memory.slots"] = 8, ["itc.dim"] = 12, ["itc.queue"] = 6, ["itc.tau"] = 0.1, ["itc.alpha"] = 0.4,
  ["itc.momentum"] = 0.9, ["itc.patch_dropout"] = 0.5, ["itc.like"] = 0.3,
  ["itm.source"] = "batch", ["weights.itc"] = 0.5, ["weights.itm"] = 0.25, ["weights.lm"] = 0.5,
  ["weights.memory"] = 0.3, ["weights.text"] = { 0.5, with = function() return { "data.text=" .. text } end },
  warmup_epochs = 0, epochs = 3, phase_switch = "extend", batch = 3, accumulate = 3, lr = 0.004, lora_lr = 3, head_lr = 2,
  lora_plus_ratio = 4, weight_decay = 0.5, betas = "[0.8,0.98]", eps = 1e-3, clip = 0.01, warmup_steps = { 1, with = function() return { "epochs=30" } end },
  lr_floor = { 0.9 }, device = "cuda-sim", dtype = "float64",
  average = 0.9, ["data.held_out"] = 0.4, ["data.length"] = 8, ["data.vocab"] = 280, ["data.size"] = 14,
  ["data.resize"] = 40, ["data.identify"] = "path", ["data.fit"] = "stretch", ["data.flip"] = "true", ["data.random_crop"] = 0.5,
  ["data.vary_after"] = { 1, with = function() return { "data.flip=true" } end }, ["data.limit"] = 20, ["data.text"] = function() return text end,
  ["features.enabled"] = { "false", moves = "features" }, ["features.memory"] = { 0.002, moves = "features" },
  ["features.disk"] = { 1, moves = "features" }, ["data.threads"] = { 2, moves = "threads" }, ["data.cache"] = { 0, moves = "cached" },
  checkpoint_every = { 1, moves = "checkpoints" }, keep_checkpoints = { 1, moves = "checkpoints", with = function() return { "checkpoint_every=1" } end },
  log_every = { 100, moves = "lines" },
  graph = { "true", moves = "lines" },      -- without a GPU: a line that says so (tests/cuda/train_graph_spec.lua)
}
-- Keys that have specs of their own.
local elsewhere = { ["encoder.pretrained"] = true, ["lora.init_from"] = true, ["data.kind"] = true, ["data.root"] = true, ["data.tokenizer"] = true }

describe("the config of stage 1", function()
  it("has no key that a run does not read", function()
    local run, remove = tiny.run(root, { "data.text=" .. text })
    run:train()
    remove()
    assert.same({}, config.unread(run.config))
  end)

  it("has no key that moves nothing #slow", function()
    local plain = outcome {}
    local dead, unknown, seen = {}, {}, {}
    local _, paths = config.flat(tiny.recipe(root).config)
    for _, path in ipairs(paths) do
      local change = moves[path]
      seen[path] = true
      if change == nil then
        if not elsewhere[path] then unknown[#unknown + 1] = path end
      else
        if type(change) == "function" then change = { change() } end
        if type(change) ~= "table" then change = { change } end
        local with = change.with and change.with() or {}
        local before = change.with and outcome(with) or plain
        local key = change.moves or "hash"
        -- a floor shows at the end of a longer run
        with[#with + 1] = path .. "=" .. tostring(change[1])
        local after = outcome(with)
        if before[key] == after[key] then dead[#dead + 1] = path end
        if key ~= "hash" and before.hash ~= after.hash then dead[#dead + 1] = path .. " moves the weights" end
      end
    end
    assert.same({}, dead)
    assert.same({}, unknown)
    for path in pairs(moves) do assert.truthy(seen[path], path) end
  end)

  it("refuses keys that it doesn't have, with the nearest, and values of another type", function()
    local function fails(item, expected)
      local ok, message = pcall(tiny.recipe, root, { item })
      assert.is_false(ok)
      assert.truthy(tostring(message):find(expected, 1, true), message)
    end
    fails("lora.rnak=3", "config: unknown key lora.rnak; did you mean lora.rank")
    fails("lora=3", "config: unknown key lora")
    fails("lr=fast", 'config: lr: a number such as 0.002 is expected, got "fast"')
    fails("data.flip=maybe", 'config: data.flip: true or false is expected, got "maybe"')
    fails("lora.targets=query", 'config: lora.targets: a list such as [a,b] is expected, got "query"')
    fails("lr", 'config: key.sub=value is expected, got "lr"')
  end)

  it("says which value can't be", function()
    local function fails(item, expected)
      local ok, message = pcall(tiny.run, root, { item })
      assert.is_false(ok)
      assert.truthy(tostring(message):find(expected, 1, true), message)
    end
    fails("batch=0", "config: batch: a whole number from 1 is expected, got 0")
    fails("epochs=1.5", "config: epochs: a whole number from 1 is expected, got 1.5")
    fails("batch=50", "18 training pictures make no step of batch 50 x accumulate 1")
    fails("data.kind=zip", "data.kind: unknown kind zip")
    fails("data.tokenizer=/none.json", "data.tokenizer: ")
    fails("itm.source=dream", "dream")
    fails("phase_switch=restart", "phase_switch")
  end)

  it("takes what names the data from where it says", function()
    local run, remove = tiny.run(root, { "data.kind=folder" })
    assert.equal(root, run.config.data.root)
    local saved = run.dir .. "/tokenizer.json"
    local again, remove_again = tiny.run(root, { "data.tokenizer=" .. saved, "data.vocab=5" })
    assert.equal(290, again.data.vocab)
    remove_again()
    remove()
  end)
end)

describe("the files of a run", function()
  local run, remove, result
  setup(function()
    run, remove = tiny.run(root, { "lora.rank=2" })
    result = run:train()
  end)
  teardown(function() remove() end)

  it("are those that are promised, and no others", function()
    local names = {}
    for _, name in ipairs(files.list(run.dir)) do names[#names + 1] = (name:gsub("^(events%.out%.tfevents)%..*", "%1")) end
    assert.same({ "adapter", "best", "ckpt", "config.json", "curves.png", "data.json", "env.json", "events.out.tfevents", "log.txt",
      "metrics.jsonl", "model.json", "overrides.txt", "report.html", "result.json", "samples", "tokenizer.json" }, names)
    assert.same({ "latest", "step_00000008", "step_00000016" }, files.list(run.dir .. "/ckpt"))
    assert.equal("step_00000016\n", tiny.read(run.dir .. "/ckpt/latest"))
    assert.same({ "manifest.json", "model.safetensors", "optimizer.safetensors", "state.json" }, files.list(run.dir .. "/best"))
  end)

  it("say what was run and where", function()
    local record = tiny.json(run.dir .. "/config.json")
    assert.equal("stage1", record.recipe)
    assert.equal(files.hash(tiny.read "recipes/stage1.lua"), record.hash)
    assert.same(config.values(run.config).lora.rank, record.config.lora.rank)
    assert.equal(root, record.config.data.root)
    assert.truthy(tiny.read(run.dir .. "/overrides.txt"):find("\nlora.rank=2\n", 1, true))
    local env = tiny.json(run.dir .. "/env.json")
    for _, key in ipairs { "weft", "luajit", "os", "arch", "cpu_path", "blas", "threads" } do assert.truthy(env[key], key) end
  end)

  it("hold the result by name", function()
    local r = tiny.json(run.dir .. "/result.json")
    for _, key in ipairs { "phase", "epoch", "step", "skipped", "damaged", "seconds", "peak_rss_mib" } do
      assert.equal("number", type(r[key]), key)
    end
    assert.equal(2, r.phase)
    assert.equal(4, r.epoch)
    assert.equal(16, r.step)
    assert.is_true(r.frozen_unchanged)
    for _, key in ipairs { "initial", "data", "final" } do assert.truthy(r.hashes[key]:find "^%x+$" and #r.hashes[key] == 16) end
    for _, key in ipairs { "tr1", "tr5", "tr10", "ir1", "ir5", "ir10", "chance1", "chance10", "r_mean" } do
      local v = r.retrieval[key]
      assert.is_true(v >= 0 and v <= 1, key)
    end
    assert.equal("number", type(r.itm_acc))
    assert.equal(r.itm.itm_acc, r.itm_acc)
    for _, key in ipairs { "itc", "itm", "lm", "memory", "total" } do assert.equal("number", type(r.losses[key]), key) end
    local labels = {}
    for i, e in ipairs(r.evaluations) do labels[i] = e.label .. " " .. e.step end
    assert.same({ "before 0", "Phase 1 8", "Phase 2 16" }, labels)
    local best = r.evaluations[2].values.retrieval.r_mean > r.evaluations[3].values.retrieval.r_mean and 2 or 3
    assert.equal(r.evaluations[best].label, r.best.label)
    assert.equal(({ nil, "step_00000008", "step_00000016" })[best], r.best.checkpoint)
    assert.is_true(files.is_dir(run.dir .. "/ckpt/" .. r.best.checkpoint))
    assert.equal(result.hashes.final, r.hashes.final)
  end)

  it("hold an adapter that loads back and gives the same", function()
    local bare = weft.models.dinov2.new { hidden_size = 16, num_hidden_layers = 2, num_attention_heads = 2, image_size = 28, patch_size = 14 }
    local own = run.model.vision
    local state = {}
    for name, t in pairs(own:state_dict()) do
      if not name:find "lora_" then state[(name:gsub("%.base_layer%.", "."))] = t end
    end
    bare:load_state_dict(state)
    local pixels = run.data.test:batch_of({ 1, 2, 3 }).pixels
    run.model:eval()
    local expected = weft.no_grad(function() return own(pixels).last_hidden_state end)
    local plain = weft.no_grad(function() return bare:eval()(pixels).last_hidden_state end)
    assert.is_true((expected - plain):abs():max():item() > 0)
    weft.peft.load(bare, run.dir .. "/adapter")
    local got = weft.no_grad(function() return bare:eval()(pixels).last_hidden_state end)
    assert.equal(0, (expected - got):abs():max():item())
    assert.truthy(files.exists(run.dir .. "/adapter/README.md"))
  end)

  it("show samples and curves as pictures", function()
    local image = require "weft.io.image"
    for _, name in ipairs { "samples/sheet.png", "curves.png" } do
      local picture = assert(image.load(run.dir .. "/" .. name))
      assert.is_true(picture:size(1) > 200 and picture:size(2) > 400, name)
      assert.is_true(picture:to("float32"):var():item() > 100, name)
    end
    local rows = tiny.json(run.dir .. "/samples/captions.json")
    assert.equal(#result.captions.samples, #rows)
    for i, row in ipairs(rows) do
      assert.equal(result.captions.samples[i].caption, row.caption)
      assert.equal("string", type(row.generated))
    end
  end)

  it("hold checkpoints of everything with state", function()
    local parts, state = require("weft.train.checkpoint").read(run.dir .. "/ckpt/step_00000016")
    for name, t in pairs(run.model:state_dict()) do
      assert.truthy(parts.model[name], name)
      assert.equal(t.dtype, parts.model[name].dtype)
    end
    for _, name in ipairs { "queue.image", "queue.tokens", "queue.position", "itc.tau", "memory.memory_mean" } do assert.truthy(parts.model[name], name) end
    for _, key in ipairs { "step", "epoch", "position", "phase", "random", "hashes", "check", "history" } do assert.truthy(state[key], key) end
  end)
end)

