local tiny = require "tests.support.tiny"
local command = require "tests.support.command"
local files = require "weft.files"
local weft = require "weft"

local root, remove_pictures, work, remove_work
setup(function()
  root, remove_pictures = tiny.pictures(24)
  work, remove_work = command.folder()
end)
teardown(function()
  remove_pictures()
  remove_work()
end)

local function train(words) return command.weft("train " .. words) end
local function lines(text)
  local _, n = text:gsub("\n", "")
  return n
end

-- Exit code, one message of one line, and nothing on the way out.
local function fails(words, code, expected)
  local got, _, err = train(words)
  assert.equal(code, got, err)
  assert.truthy(err:find(expected, 1, true), err)
  assert.is_nil(err:find("stack traceback", 1, true))
  assert.is_nil(err:find("lua/weft/", 1, true), err)
  return err
end

describe("weft train", function()
  it("runs a recipe into a dated folder, and prints plain lines with the phases in them", function()
    local code, out, err = train(tiny.words(root, { "epochs=2", "warmup_epochs=1", "batch=6" }) .. " --runs " .. work .. "/runs --name try")
    assert.equal(0, code, err)
    local dir = ("%s/runs/stage1/%s-try"):format(work, os.date "%Y-%m-%d")
    assert.is_true(files.exists(dir .. "/result.json"))
    assert.is_nil(out:find("\r", 1, true))
    assert.is_nil(out:find("\27", 1, true))
    for _, line in ipairs { "Phase 1: LoRA adapters FROZEN | Trainable params: ", "Phase 2: LoRA adapters UNFROZEN | Trainable params: ",
      "trainable params: 256 || all params: 16,448 || trainable%: 1.5564",
      "vision: adapter default: r 2, alpha 4: x2; 4 modules (query 2, value 2)\n", "before training", "after Phase 2", "chance", "run " .. dir } do
      assert.truthy(out:find(line, 1, true), line)
    end
    assert.truthy(out:find("\nrecipe recipes/stage1.lua, seed 3; config: accumulate=1 batch=6 ", 1, true) and out:find(" lora.rank=2 ", 1, true), out)
    assert.truthy(out:find "\ndevice: cpu, float32: %S+ kernels, [^\n]*, %d+ threads\n", out)
    assert.is_nil(out:find("accumulation adds no negatives", 1, true))
    -- how pictures are prepared: in words, and by its hash in the run and beside the adapter
    local data = weft.io.json.read(dir .. "/data.json")
    local metadata = assert(weft.io.safetensors.open(dir .. "/adapter/adapter_model.safetensors")).metadata
    assert.truthy(out:find(("\npreprocessing: short edge %d bicubic antialiased, crop %d: keeps "):format(data.resize, data.size), 1, true), out)
    assert.equal(weft.io.preprocess.of_run(data):hash(), data.preprocessing)
    assert.equal(data.preprocessing, metadata["weft.preprocessing"]:match "^%x+")
    -- what was printed is what the log holds
    assert.equal(out, tiny.read(dir .. "/log.txt"))
    -- the same name again is another folder
    assert.equal(0, (train(tiny.words(root, { "epochs=1", "warmup_epochs=1", "batch=6" }) .. " --quiet --runs " .. work .. "/runs --name try")))
    assert.is_true(files.exists(dir .. "-2/result.json"))
  end)

  it("prints the config after overrides, sorted, one key a line", function()
    local code, out = train "recipes/stage1.lua --print-config lora.rank=32 'lora.targets=[query, key]' data.flip=true"
    assert.equal(0, code)
    assert.truthy(out:find("\nlora.rank=32\n", 1, true))
    assert.truthy(out:find("\nlora.targets=[query,key]\n", 1, true))
    assert.truthy(out:find("\ndata.flip=true\n", 1, true))
    assert.truthy(out:find("\nencoder.pretrained=facebook/dinov2-base\n", 1, true))
    local before
    for line in out:gmatch "([^=\n]+)=" do
      assert.is_true(before == nil or before < line, line)
      before = line
    end
  end)

  it("takes one step in a dry run and leaves nothing", function()
    local here = work .. "/dry"
    assert(files.make_dirs(work .. "/for a moment"))
    local code, out, err = command.run(("TMPDIR='%s/for a moment' bin/weft train %s --dry-run --runs %s"):format(work,
      tiny.words(root, { "accumulate=2", "batch=3" }), here))
    assert.equal(0, code, err)
    assert.truthy(out:find("accumulation adds no negatives: what is compared is compared within 3 pictures and with the queue", 1, true))
    assert.truthy(out:find "dry run: Phase 1: 6 steps, one of 6 pictures took [%d.]+ s\n")
    assert.truthy(out:find "dry run: Phase 2: 6 steps, one of 6 pictures took [%d.]+ s\n")
    assert.truthy(out:find "peak of tensors %d+ MiB, of the process %d+ MiB; a checkpoint takes [%d.]+ MiB; nothing was kept")
    assert.truthy(out:find("Phase 1: LoRA adapters FROZEN", 1, true))
    assert.is_false(files.exists(here))
    assert.same({}, files.list(work .. "/for a moment"))
    -- nor when its recipe fails in the middle of it
    local _
    code, _, err = command.run(("TMPDIR='%s/for a moment' bin/weft train %s --dry-run --memory 1"):format(work, tiny.words(root)))
    assert.equal(1, code)
    assert.truthy(err:find("out of memory", 1, true), err)
    assert.same({}, files.list(work .. "/for a moment"))
    code, _, err = command.run(("TMPDIR=%s/none bin/weft train %s --dry-run"):format(work, tiny.words(root)))
    assert.equal(1, code)
    assert.truthy(err:find(work .. "/none: no temporary folder can be made there", 1, true), err)
  end)

  it("leaves nothing either when Ctrl-C comes in the middle of a dry run", function()
    local _, out = command.run(([[
      TMPDIR='%s/for a moment'; export TMPDIR; bin/weft train %s --dry-run >%s/cut.txt 2>&1 &
      for i in $(seq 200); do sleep 0.02; [ -n "$(ls "$TMPDIR")" ] && break; done
      sleep 0.1; kill -INT $!; wait $!; echo "code $?"; tail -n 1 %s/cut.txt]]):format(work, tiny.words(root), work, work))
    -- where it was done already there is nothing to be said
    assert.truthy(out == "code 130\nweft train: interrupted\n" or out:find "^code 0\n.*nothing was kept", out)
    assert.same({}, files.list(work .. "/for a moment"))
  end)

  it("says in one message what is missing or wrong, with exit code 1 or 2", function()
    fails("", 2, "a recipe is expected, such as recipes/stage1.lua")
    fails("a.lua b.lua", 2, "one recipe is expected, got a.lua and b.lua")
    fails("a.lua --resume x", 2, "--resume takes its recipe from the run")
    fails("recipes/none.lua", 1, "there is no recipes/none.lua")
    fails("recipes/stage1", 1, "there is no recipes/stage1; did you mean recipes/stage1.lua?")
    tiny.write(work .. "/empty.lua", "return 3\n")
    fails(work .. "/empty.lua", 1, "does not return a recipe; end it with `return train.recipe { ... }`")
    tiny.write(work .. "/broken.lua", "return {\n")
    fails(work .. "/broken.lua", 1, "broken.lua:2:")
    tiny.write(work .. "/partly.lua", "return require('weft').train.recipe { config = {} }\n")
    fails(work .. "/partly.lua", 1, "recipe: ")
    fails("recipes/stage1.lua lora.rnak=3", 1, "unknown key lora.rnak; did you mean lora.rank")
    fails("--resume " .. work .. "/none", 1, work .. "/none is no run")
  end)

  it("leaves no folder behind when a run can't begin", function()
    local runs = work .. "/none-yet"
    local words = tiny.words(root, { "data.root=" }) .. " --runs " .. runs
    local err = fails(words, 1, "data.root is not set: pass data.root=FOLDER")
    assert.equal(1, lines(err), err)
    fails(tiny.words(work .. "/nothing") .. " --runs " .. runs, 1, work .. "/nothing is not a folder")
    local _, out = command.run("ls -A " .. runs .. "/stage1 2>/dev/null")
    assert.equal("", out)
  end)

  it("says so when the folder of runs can't be written", function()
    tiny.write(work .. "/file", "in the way")
    local err = fails(tiny.words(root) .. " --runs " .. work .. "/file", 1, "can't make the run's folder: ")
    assert.truthy(err:find(work .. "/file", 1, true))
    assert.equal(1, lines(err), err)
  end)

  it("keeps what was in a folder that it was given when the run can't begin", function()
    assert(os.execute("mkdir " .. work .. "/mine") == 0)
    tiny.write(work .. "/mine/letter", "dear")
    fails(tiny.words(root, { "batch=500" }) .. " --dir " .. work .. "/mine", 1, "make no step of batch 500")
    assert.equal("dear", tiny.read(work .. "/mine/letter"))
  end)

  it("goes on only with the word for a key that changes training", function()
    local dir = work .. "/allowed"
    assert.equal(0, (train(tiny.words(root, { "epochs=2", "warmup_epochs=1", "batch=6" }) .. " --quiet --dir " .. dir)))
    fails("--resume " .. dir .. " epochs=3", 1, "config: epochs was 2, is 3\nthis changes what the run trains; if that is meant, pass --allow epochs")
    local code, out, err = train("--resume " .. dir .. " epochs=3 log_every=5 --allow epochs")
    assert.equal(0, code, err)
    assert.truthy(out:find("note: config: epochs was 2, is 3\n", 1, true))
    assert.truthy(out:find("note: config: log_every was 1, is 5\n", 1, true))
    assert.truthy(out:find "resume check: ([%d.]+) = %1\n")
    assert.equal(9, tiny.json(dir .. "/result.json").step)
  end)
end)

describe("weft caption", function()
  local dir, samples
  setup(function()
    dir = work .. "/captions"
    local code, _, err = train(tiny.words(root, { "lr=0.01" }) .. " --quiet --dir " .. dir)
    assert.equal(0, code, err)
    samples = tiny.json(dir .. "/samples/captions.json")
  end)

  it("says of a picture what the run said of it", function()
    local words = {}
    for i, s in ipairs(samples) do words[i] = root .. "/" .. s.picture end
    local code, out, err = command.weft(("caption %s %s"):format(dir, table.concat(words, " ")))
    assert.equal(0, code, err)
    local expected = {}
    for i, s in ipairs(samples) do expected[i] = ("%s\t%s\n"):format(words[i], s.generated) end
    assert.equal(table.concat(expected), out)
    assert.is_true(#samples >= 4)
  end)

  it("needs neither the pictures that it was trained on nor the checkpoint's data", function()
    local picture = work .. "/one.png"
    assert(os.execute(("cp %s/%s %s && mv %s %s.away"):format(root, samples[1].picture, picture, root, root)) == 0)
    local code, out, err = command.weft(("caption %s %s --beams 2"):format(dir, picture))
    assert(os.execute(("mv %s.away %s"):format(root, root)) == 0)
    assert.equal(0, code, err)
    assert.truthy(out:find("^" .. picture:gsub("%p", "%%%0") .. "\t.*\n$"))
  end)

  it("draws words when asked, the same with the same seed, and refuses what can't be", function()
    local picture = root .. "/" .. samples[1].picture
    local function said(options)
      local code, out, err = command.weft(("caption %s %s %s"):format(dir, picture, options))
      assert.equal(0, code, err)
      return out
    end
    local one = said "--top-p 1 --seed 3"
    assert.equal(one, said "--top-p 1 --seed 3")
    assert.are_not.equal(one, said "--top-p 1 --seed 4")
    assert.equal(said "", said "--top-p 0.001")
    for options, message in pairs { ["--top-p 2"] = "--top-p wants a number from 0.001 to 1, got 2",
      ["--beams 0"] = "--beams wants a whole number from 1, got 0", ["--beams 2 --top-p 0.5"] = "--beams and --top-p exclude each other" } do
      local code, _, err = command.weft(("caption %s %s %s"):format(dir, picture, options))
      assert.equal(2, code)
      assert.truthy(err:find(message, 1, true), err)
    end
  end)

  it("names pictures that it can't read, goes on, and exits with 1", function()
    tiny.write(work .. "/bad.png", "no picture")
    local good = root .. "/" .. samples[1].picture
    local code, out, err = command.weft(("caption %s %s/bad.png %s"):format(dir, work, good))
    assert.equal(1, code)
    assert.truthy(err:find(work .. "/bad.png", 1, true))
    assert.equal(("%s\t%s\n"):format(good, samples[1].generated), out)
  end)

  it("says what is expected, and what is no run", function()
    local code, _, err = command.weft("caption " .. dir)
    assert.equal(2, code)
    assert.truthy(err:find("a run and at least one picture are expected", 1, true))
    code, _, err = command.weft("caption " .. work .. "/none " .. root .. "/01.png")
    assert.equal(1, code)
    assert.truthy(err:find(work .. "/none is no run", 1, true), err)
  end)
end)
