require "weft"
local command = require "tests.support.command"
local files = require "weft.files"
local json = require "weft.io.json"
local tiny = require "tests.support.tiny"
local train = require "weft.train"

local here = io.popen("pwd"):read "*l"

describe("weft new", function()
  local work, remove
  before_each(function() work, remove = command.folder() end)
  after_each(function() remove() end)

  local function new(words) return command.run(("cd %s && %s/bin/weft new %s"):format(work, here, words)) end

  local function folder(name, n)
    local root, gone = tiny.pictures(n or 12)
    command.run(("mv %s '%s/%s'"):format(root, work, name))
    gone()
    return work .. "/" .. name
  end

  local function config_of(name) return train.load_recipe(("%s/%s.lua"):format(work, name)).config end

  it("writes a recipe whose data section is filled, and says what it found", function()
    local root = folder "photos"
    tiny.picture(root .. "/bare.png", "red", "bar")
    local code, out, err = new "mine --data photos"
    assert.equal(0, code, err)
    assert.truthy(out:find(("12 captioned pictures of %s: pictures, each with a .txt beside it"):format(root), 1, true), out)
    assert.truthy(out:find("left out: 1 pictures without a caption", 1, true), out)
    assert.truthy(out:find("Next: weft train mine.lua\n", 1, true), out)
    local c = config_of "mine"
    assert.equal(root, c.data.root)
    assert.equal("folder", c.data.kind)
    assert.equal(28, c.data.size)  -- the pictures are small
    assert.equal(28, c.encoder.image)
    assert.is_true(c.batch <= 4)
  end)

  it("trains at once, from wherever it is", function()
    folder("photos", 24)
    new "mine --data photos"
    local code, out, err = command.run(("cd %s && %s/bin/weft train mine.lua epochs=2 warmup_epochs=1 encoder.width=16 encoder.layers=1 "
      .. "language.width=24 language.layers=1 language.ff=16 --runs r --name first"):format(work, here))
    assert.equal(0, code, err)
    assert.truthy(out:find("Phase 2: LoRA adapters UNFROZEN", 1, true), out)
    local _, list = command.run(("ls %s/r/mine"):format(work))
    local run = tiny.json(("%s/r/mine/%s/result.json"):format(work, list:match "%S+"))
    assert.equal(2, run.epoch)
    -- and an ablation can branch it: the recipe says what comes after the warm-up
    code, out = command.run(("cd %s && %s/bin/weft ablate mine.lua lora.rank=2,4 --dry-run encoder.width=16 encoder.layers=1"):format(work, here))
    assert.equal(0, code)
    assert.truthy(out:find("Phase 1 once for 2 cells", 1, true), out)
  end)

  it("recognises each kind of list, in a folder or named itself", function()
    local root = folder "photos"
    local rows, objects, images, annotations = {}, {}, {}, {}
    for i = 1, 8 do
      rows[i] = ("%02d.png,caption %d"):format(i, i)
      objects[i] = ('{"image": "%02d.png", "caption": "caption %d"}'):format(i, i)
      images[i] = { id = i, file_name = ("%02d.png"):format(i) }
      annotations[i] = { image_id = i, caption = "caption " .. i }
    end
    local coco = { images = images, annotations = annotations }
    local function check(name, place, kind, n)
      local code, out, err = new(("%s --data %s"):format(name, place))
      assert.equal(0, code, err)
      assert.truthy(out:find(("%d captioned pictures"):format(n or 8), 1, true), out)
      assert.equal(kind, config_of(name).data.kind)
      return out
    end
    tiny.write(root .. "/list.csv", table.concat(rows, "\n") .. "\n")
    tiny.write(root .. "/list.jsonl", table.concat(objects, "\n") .. "\n")
    assert.truthy(check("a", "photos/list.csv", "csv"):find("captions.csv: picture,caption", 1, true))
    check("b", "photos/list.jsonl", "jsonl")
    assert(json.write(root .. "/some.json", coco))
    assert.truthy(check("c", "photos/some.json", "coco"):find("COCO", 1, true))
    check("d", "photos", "folder", 12)
    command.run(("mv %s/list.jsonl %s/captions.jsonl"):format(root, root))
    check("e", "photos", "jsonl")
    -- COCO as it is given out: annotations/captions_NAME.json beside NAME/
    command.run(("mkdir -p %s/coco/annotations && cp -r %s %s/coco/val2017"):format(work, root, work))
    assert(json.write(work .. "/coco/annotations/captions_val2017.json", coco))
    check("f", "coco/annotations/captions_val2017.json", "coco")
    -- what was written trains from that list
    local found = require("weft.data.pairs").find(config_of("f").data.root, "coco")
    assert.equal(8, found:size())
    assert.truthy(files.exists(found[1].path))
  end)

  it("writes strange paths so that Lua reads them back", function()
    local root = folder [[a "quoted" \ place]]
    local code, _, err = new [[mine --data 'a "quoted" \ place']]
    assert.equal(0, code, err)
    assert.equal(root, config_of("mine").data.root)
  end)

  it("asks more of few pictures: more epochs, smaller batches", function()
    folder("few", 8)
    folder("many", 72)
    new "few --data few"
    new "many --data many"
    local few, many = config_of "few", config_of "many"
    assert.is_true(few.batch < many.batch)
    assert.is_true(few.epochs >= many.epochs)
  end)

  it("without pictures writes the recipe and says what to set", function()
    local code, out = new "sub/plain"
    assert.equal(0, code)
    assert.truthy(out:find("Next: weft train sub/plain.lua data.root=FOLDER", 1, true), out)
    assert.equal("", config_of("sub/plain").data.root)
  end)

  it("never writes over a file, and refuses what is no name or no data", function()
    tiny.write(work .. "/mine.lua", "mine")
    local code, _, err = new "mine"
    assert.equal(1, code)
    assert.truthy(err:find("mine.lua is there already", 1, true), err)
    assert.equal("mine", tiny.read(work .. "/mine.lua"))
    assert.equal(2, (new "'a b'"))
    assert.equal(2, (new ""))
    code, _, err = new "x --data nowhere"
    assert.equal(1, code)
    assert.truthy(err:find("nowhere is not a folder", 1, true), err)
    assert.is_false(files.exists(work .. "/x.lua"))
  end)
end)

describe("a recipe's own schedule", function()
  it("is the factor of each group's rate", function()
    local root, gone = tiny.pictures(12)
    local recipe = tiny.recipe(root, { "warmup_epochs=1", "epochs=2", "lora_lr=3" })
    recipe.schedule = function(step, steps, group) return group:find "^lora" and 0.5 or 1 - step / steps end
    local dir, remove = command.folder()
    local run = train.start(recipe, { dir = dir .. "/run", quiet = true })
    run:train()
    local rows = tiny.metrics(dir .. "/run")
    for i, row in ipairs(rows) do
      assert.is_true(math.abs(row.lr_decay - 0.002 * (1 - (i - 1) / #rows)) < 1e-12)
      if row.phase == 2 then assert.is_true(math.abs(row.lr_lora_A - 0.002 * 3 * 0.5) < 1e-12) end
    end
    remove()
    gone()
  end)

  it("is refused where it returns no factor", function()
    local root, gone = tiny.pictures(12)
    local recipe = tiny.recipe(root)
    recipe.schedule = function() end
    local dir, remove = command.folder()
    local run = train.start(recipe, { dir = dir .. "/run", quiet = true })
    assert.error_matches(function() run:train() end, "schedule: a factor from 0 is expected, got nil")
    remove()
    gone()
  end)
end)
