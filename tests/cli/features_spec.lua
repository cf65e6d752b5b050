-- features_spec.lua: `weft features` on the golden model: what comes out, for which pictures, and what is
-- said about broken ones.
local run = require "tests.support.command"
local weft = require "weft"
local compare = require "tests.models.compare"
local json = require "weft.io.json"
local safetensors = require "weft.io.safetensors"

local golden = "tests/golden/dinov2_mlp"

describe("weft features", function()
  local folder, remove, model
  setup(function()
    folder, remove = run.folder()
    model = folder .. "/model"
    assert(os.execute(("mkdir %s && cp %s/config.json %s/model.safetensors %s/"):format(model, golden, golden, model)) == 0)
    assert(json.write(model .. "/preprocessor_config.json", { size = { shortest_edge = 80 }, crop_size = { height = 70, width = 70 } }))
    assert(require("weft.files").write(folder .. "/broken.png", "no picture"))
  end)
  teardown(function() remove() end)

  local function features(words, input)
    local code, out, err = run.weft(("features %s --output %s/y.safetensors %s"):format(model, folder, words), input)
    local tensors, metadata = safetensors.load(folder .. "/y.safetensors")
    return code, tensors, metadata, out .. err
  end

  -- The model on a picture, by hand.
  local function expected(name)
    local image = require "weft.io.image"
    local rule = require("weft.io.preprocess").read(model)
    local pixels = rule:apply(assert(image.load("tests/golden/preprocess/" .. name, { alpha = "drop", orientation = false })))
    return weft.no_grad(weft.models.dinov2.from_pretrained(model), pixels:unsqueeze(1))
  end

  it("gives each picture what the model gives it, and its name", function()
    local code, y, metadata, text = features("--batch 2 tests/golden/preprocess/wide.png tests/golden/preprocess/grey.png tests/golden/preprocess/tall.png")
    assert.equal(0, code, text)
    assert.same({ 3, 26, 48 }, y.last_hidden_state.shape)
    assert.same({ "tests/golden/preprocess/wide.png", "tests/golden/preprocess/grey.png", "tests/golden/preprocess/tall.png" },
      json.decode(metadata.names))
    compare.close(y.last_hidden_state:narrow(1, 3, 1), expected("tall.png").last_hidden_state, 1e-5)
    compare.close(y.pooler_output:narrow(1, 2, 1), expected("grey.png").pooler_output, 1e-5)
    assert.matches("resize 80 bicubic antialiased, crop 70", text)
  end)

  it("reports a broken picture, goes on, and exits with 1", function()
    local code, y, metadata, text = features("--pool cls - ", ("%s/broken.png\ntests/golden/preprocess/small.png\n"):format(folder))
    assert.equal(1, code)
    assert.matches("broken.png", text)
    assert.matches("1 of 2 pictures could not be read", text)
    assert.same({ "tests/golden/preprocess/small.png" }, json.decode(metadata.names))
    compare.close(y.pooler_output, expected("small.png").pooler_output, 1e-5)
    assert.is_nil(y.last_hidden_state)
  end)

  it("says how many pictures of a folder it can't read by their kind", function()
    local place = folder .. "/mixed"
    assert(os.execute(("mkdir %s && cp tests/golden/preprocess/small.png %s/ && : >%s/a.webp && : >%s/b.TIFF && : >%s/notes.txt")
      :format(place, place, place, place, place)) == 0)
    local code, _, metadata, text = features("--pool cls " .. place)
    assert.equal(0, code, text)
    assert.same({ place .. "/small.png" }, json.decode(metadata.names))
    assert.matches("2 pictures of other kinds left out (PNG, JPEG and BMP are read)", text, 1, true)
  end)

  it("takes pixels as they are, pools, and writes the dtype asked for", function()
    local g = compare.golden "dinov2_mlp/io.safetensors"
    assert(safetensors.save(folder .. "/x.safetensors", { pixel_values = g["native.pixel_values"] }))
    local input = "--input " .. folder .. "/x.safetensors"
    local _, y = features(input)
    compare.close(y.last_hidden_state, g["native.last_hidden_state"], 2e-5)
    local _, half = features(input .. " --pool mean --dtype float16")
    assert.equal("float16", half.mean.dtype)
    compare.close(half.mean:to "float32", g["native.last_hidden_state"]:narrow(2, 2, 25):mean(2), 1e-3)
    local _, double = features(input .. " --pool patches --dtype float64")
    assert.equal("float64", double.patches.dtype)
  end)

  it("merges an adapter and says what that changes; refuses one that saw other pictures, unless forced", function()
    local preprocess = require "weft.io.preprocess"
    local encoder = weft.models.dinov2.from_pretrained(model)
    weft.peft.lora(encoder, { rank = 2, init = "random", seed = 4 })
    weft.peft.save(encoder, folder .. "/same", { preprocessing = preprocess.read(model) })
    weft.peft.save(encoder, folder .. "/other", { preprocessing = preprocess.new { size = { shortest_edge = 60 }, crop_size = 56 } })
    local picture = "tests/golden/preprocess/tall.png"
    local code, y, _, text = features(("--adapter %s/same --merge %s"):format(folder, picture))
    assert.equal(0, code, text)
    assert.matches("merging changes the output by at most %d%.?%d*e%-0[5678], %d%.?%d*e%-0[678] on average", text)
    local beside = select(2, features(("--adapter %s/same %s"):format(folder, picture)))
    compare.close(y.last_hidden_state, beside.last_hidden_state, 1e-5)
    local refused
    refused, _, _, text = features(("--adapter %s/other %s"):format(folder, picture))
    assert.equal(1, refused)
    assert.matches("prepared by another rule:\n  there  resize 60 .*\n  here   resize 80", text)
    assert.equal(0, (features(("--adapter %s/other --force %s"):format(folder, picture))))
    -- what was read is kept when it is written again
    local back = weft.peft.load(weft.models.dinov2.from_pretrained(model), folder .. "/other")
    weft.peft.save(back, folder .. "/again")
    local _, metadata = safetensors.load(folder .. "/again/adapter_model.safetensors")
    assert.matches("^%x+ resize 60", metadata["weft.preprocessing"])
  end)

  it("keeps of each picture what it writes, and nothing of what that came from", function()
    local input, command = folder .. "/many.safetensors", require "weft.cli.features"
    local function peak(n)
      assert(safetensors.save(input, { pixel_values = weft.randn { n, 3, 28, 28 } }))
      collectgarbage()
      collectgarbage()
      weft.reset_peak()
      local before = weft.memory().live
      assert.equal(0, command.run { model, input = input, output = folder .. "/cls.safetensors", pool = "cls", batch = 1 })
      return weft.memory().peak - before
    end
    peak(4)
    local few, many = peak(4), peak(64)
    -- a vector is 192 bytes, the tokens that it is one of are 960
    assert.is_true(many - few < 60 * 192 * 2, ("60 more pictures take %d bytes"):format(many - few))
    assert.same({ 64, 48 }, assert(safetensors.load(folder .. "/cls.safetensors")).pooler_output.shape)
  end)

  it("names a device that is not there", function()
    local code, _, _, text = features "--device cuda:9 tests/golden/preprocess/tall.png"
    assert.equal(1, code)
    assert.matches("cuda:9", text)
  end)

  it("takes pictures of any size where the rule does not crop", function()
    assert(json.write(model .. "/preprocessor_config.json", { do_resize = false, do_center_crop = false }))
    local image = require "weft.io.image"
    assert(image.save(folder .. "/a.png", image.canvas(28, 42, 9)))
    assert(image.save(folder .. "/b.png", image.canvas(70, 14, 200)))
    local code, y = features(("%s/a.png %s/b.png --pool mean"):format(folder, folder))
    assert.equal(0, code)
    assert.same({ 2, 48 }, y.mean.shape)
    local failed, _, _, text = features(("%s/a.png %s/b.png"):format(folder, folder))
    assert.not_equal(0, failed)
    assert.matches("use %-%-pool cls or %-%-pool mean", text)
  end)

  it("says what is wrong with its words", function()
    for words, pattern in pairs { ["--dtype int8 x.png"] = "float64, float16 or bfloat16 is expected, got int8",
      ["--batch 0 x.png"] = "a whole number from 1", ["--merge x.png"] = "goes with %-%-adapter", [""] = "pictures, a folder" } do
      local code, _, _, text = features(words)
      assert.not_equal(0, code)
      assert.matches(pattern, text)
    end
  end)

  it("says before it begins that the features could not be written, or that a folder holds no picture", function()
    local function message(words) return (select(3, run.weft("features " .. model .. " " .. words))) end
    assert.equal(("weft features: --output %s/nowhere/x.safetensors: there is no folder %s/nowhere\n"):format(folder, folder),
      message(("tests/golden/preprocess --output %s/nowhere/x.safetensors"):format(folder)))
    assert.matches("a name that ends in .safetensors is expected, got x.npz", message "tests/golden/preprocess --output x.npz", 1, true)
    assert.matches("tests/cli: no PNG, JPEG or BMP is in this folder or below it", message(("tests/cli --output %s/x.safetensors"):format(folder)), 1, true)
  end)
end)
