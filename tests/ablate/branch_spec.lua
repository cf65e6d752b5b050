local weft = require "weft"
local command = require "tests.support.command"
local support = require "tests.ablate.support"
local train = require "weft.train"
local branch = require "weft.train.branch"

local RECIPE = "recipes/stage1.lua"

describe("a shared first phase", function()
  local root, remove, folder, remove_folder, threads

  setup(function()
    root, remove = support.pictures()
    folder, remove_folder = command.folder()
    threads = weft.threads()
    local run = train.start(train.load_recipe(RECIPE, support.overrides(root)), { dir = folder .. "/warm", quiet = true })
    branch.stop_after(run, "Phase 1")
    run:train()
  end)
  teardown(function()
    weft.threads(threads)
    remove()
    remove_folder()
  end)

  local count = 0
  local function result(more, from, n_threads)
    count = count + 1
    weft.threads(n_threads)
    local recipe = train.load_recipe(RECIPE, support.overrides(root, more))
    local options = { dir = ("%s/run%d"):format(folder, count), quiet = true }
    local run = from and train.branch(recipe, from, options) or train.start(recipe, options)
    return run:train(), run
  end

  it("ends with a mark and a checkpoint, and without a result", function()
    local files = require "weft.files"
    local ended = branch.ended(folder .. "/warm")
    assert.equal("Phase 1", ended.phase)
    assert.truthy(files.is_dir(folder .. "/warm/ckpt/" .. ended.checkpoint))
    assert.falsy(files.exists(folder .. "/warm/result.json"))
  end)

  local others = {
    ["lora.rank"] = { "lora.rank=5" }, ["lora.alpha"] = { "lora.alpha=1.5" }, ["lora.scale"] = { "lora.scale=3" }, ["lora.dropout"] = { "lora.dropout=0.4" },
    ["lora.targets"] = { "lora.targets=[query,dense]" }, ["lora_lr"] = { "lora_lr=3" }, ["lora_plus_ratio"] = { "lora_plus_ratio=4" },
  }
  for _, key in ipairs { "lora.rank", "lora.alpha", "lora.scale", "lora.dropout", "lora.targets", "lora_lr", "lora_plus_ratio" } do
    it(("gives the weights of a whole run, bit for bit, whatever %s"):format(key), function()
      local whole = result(others[key], nil, 1)
      local branched = result(others[key], folder .. "/warm", 2)
      assert.equal(whole.hashes.final, branched.hashes.final)
      assert.equal(whole.hashes.initial, branched.hashes.initial)
      assert.same(whole.retrieval, branched.retrieval)
      assert.same(whole.trainable, branched.trainable)
    end)
  end

  it("is tested for every key that the recipe declares", function()
    for _, key in ipairs(train.load_recipe(RECIPE).after_warmup) do assert.truthy(others[key], key) end
  end)

  it("gives the same also with an optimizer that is extended, and a momentum copy", function()
    local both = { "phase_switch=extend", "itc.momentum=0.9", "itc.alpha=0.4", "features.enabled=false" }
    local dir = folder .. "/warm_momentum"
    local run = train.start(train.load_recipe(RECIPE, support.overrides(root, both)), { dir = dir, quiet = true })
    branch.stop_after(run, "Phase 1")
    run:train()
    both[#both + 1] = "lora.rank=3"
    assert.equal(result(both, nil, 1).hashes.final, result(both, dir, 2).hashes.final)
  end)

  -- --- recipes that declare what is not so
  local function lying(text)
    local path = ("%s/lying%d.lua"):format(folder, count)
    count = count + 1
    assert(require("weft.files").write(path, 'local recipe = assert(loadfile "recipes/stage1.lua")()\n' .. text .. "\nreturn recipe\n"))
    return path
  end
  local function caught(path, more, expected)
    local dir = path:gsub("%.lua$", "")
    local run = train.start(train.load_recipe(path, support.overrides(root)), { dir = dir, quiet = true })
    branch.stop_after(run, "Phase 1")
    run:train()
    local ok, message = pcall(train.branch, train.load_recipe(path, support.overrides(root, more)), dir, { dir = dir .. "_no", quiet = true })
    assert.falsy(ok)
    assert.truthy(tostring(message):find(expected, 1, true), message)
    -- under the warm-up's own values all is well
    assert.truthy(train.branch(train.load_recipe(path, support.overrides(root)), dir, { dir = dir .. "_yes", quiet = true }))
    return message
  end

  it("catches a key that touches the first phase's rates, though the recipe says that it does not", function()
    local message = caught(lying "recipe.after_warmup = { 'lora.rank', 'lr' }", { "lora.rank=3", "lr=0.001" },
      "the learning rates of its steps differ")
    assert.truthy(message:find("does not depend on lora.rank, lr, but", 1, true), message)
    assert.truthy(message:find("lr is 0.002 there and 0.001 here", 1, true), message)
  end)

  it("catches a key that touches its first step", function()
    caught(lying "recipe.after_warmup = { 'compress.dropout' }", { "compress.dropout=0.2" }, "its first step, made again")
  end)

  it("catches a key that touches it late: its last step is made again too", function()
    caught(lying [[
      local Model = recipe.model
      recipe.model = function(c, data)
        local model = Model(c, data)
        local losses = model.losses
        function model:losses(batch)
          local out = losses(self, batch)
          if self.queue:filled() == 6 then out.lm = out.lm * c.lora.alpha end
          return out
        end
        return model
      end]], { "lora.alpha=8" }, "its last step, made again")
  end)

  it("catches a key that touches the pictures", function()
    caught(lying "recipe.after_warmup = { 'data.held_out' }", { "data.held_out=0.5" }, "the training pictures are not those of")
  end)

  it("takes over the figures of the first phase", function()
    local _, run = result({ "lora.rank=3" }, folder .. "/warm", 1)
    local steps = {}
    for line in io.lines(run.dir .. "/metrics.jsonl") do steps[#steps + 1] = tonumber(line:match '"step":%s*(%d+)') end
    assert.equal(12, #steps)
    for i, step in ipairs(steps) do assert.equal(i, step) end
    assert.equal("before", run.history[1].label)
    assert.equal("Phase 1", run.history[2].label)
  end)

  it("refuses a config that differs elsewhere, by the key's name", function()
    local recipe = train.load_recipe(RECIPE, support.overrides(root, { "lr=0.001" }))
    local ok, message = pcall(train.branch, recipe, folder .. "/warm", { dir = folder .. "/no", quiet = true })
    assert.falsy(ok)
    assert.truthy(tostring(message):find("lr differs", 1, true), message)
  end)

  it("refuses adapters that have moved", function()
    local recipe = train.load_recipe(RECIPE, support.overrides(root))
    local checkpoint = require "weft.train.checkpoint"
    local read = checkpoint.read
    checkpoint.read = function(dir)
      local parts, s = read(dir)
      for name, t in pairs(parts.model) do
        if name:find "lora_B" then t:fill_(0.5) end
      end
      return parts, s
    end
    local ok, message = pcall(train.branch, recipe, folder .. "/warm", { dir = folder .. "/moved", quiet = true })
    checkpoint.read = read
    assert.falsy(ok)
    assert.truthy(tostring(message):find("has moved in the first phase", 1, true), message)
  end)
end)
