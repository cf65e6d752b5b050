-- preprocess_spec.lua: preprocessor_config.json, obeyed: goldens of Hugging Face's processor, each switch
-- by its formula, and refusals.
local image = require "weft.io.image"
local json = require "weft.io.json"
local preprocess = require "weft.io.preprocess"
local safetensors = require "weft.io.safetensors"
local support = require "tests.io.support"

local golden = support.golden .. "preprocess/"
local expected = assert(safetensors.load(golden .. "expected.safetensors"))

-- As BitImageProcessor writes it.
local config = json.decode [[{"crop_size": {"height": 224, "width": 224}, "do_center_crop": true, "do_convert_rgb": true,
  "do_normalize": true, "do_rescale": true, "do_resize": true, "image_mean": [0.485, 0.456, 0.406],
  "image_processor_type": "BitImageProcessor", "image_std": [0.229, 0.224, 0.225], "resample": 3,
  "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 256}}]]

local function with(changes)
  local c = {}
  for k, v in pairs(config) do c[k] = v end
  for k, v in pairs(changes) do c[k] = v end
  return preprocess.new(c, "x.json")
end

-- Largest difference over row 100, in steps of one byte.
local function distance(pixels, name)
  local got, row, most = support.values(pixels), support.values(expected[name .. ".row100"]), 0
  for c = 0, 2 do
    for x = 0, 223 do
      local d = math.abs(got[c * 50176 + 100 * 224 + x + 1] - row[c * 224 + x + 1]) * 255 * image.std[c + 1]
      most = math.max(most, d)
    end
  end
  return most
end

local function picture() return (assert(image.load(golden .. "small.png", preprocess.decoding))) end

describe("preprocessing by a file", function()
  for _, name in ipairs { "wide.png", "tall.png", "small.png", "grey.png", "rgba.png", "palette.png", "photo.jpg", "exif6.jpg" } do
    it("gives the golden pixels of " .. name .. ", in hand and through the loader", function()
      local rule = preprocess.new(config)
      local most = name:find "jpg" and 3.001 or 0.001
      assert.is_true(distance(rule:apply(assert(image.load(golden .. name, preprocess.decoding))), name) < most)
      local loader, plan = rule:loader { threads = 1 }
      local pixels, problems = loader:take(loader:submit { plan(golden .. name) })
      assert.same({}, problems)
      assert.is_true(distance(pixels:select(1, 1), name) < most)
      loader:close()
    end)
  end

  it("says itself in words", function()
    assert.equal("resize 256 bicubic antialiased, crop 224: keeps 77 % of a square picture", tostring(preprocess.new(config)))
    assert.equal("resize 56 x 28 bilinear antialiased", tostring(with { size = { height = 56, width = 28 }, resample = 2,
      do_center_crop = false }))
    assert.equal("pictures as they are", tostring(with { do_resize = false, do_center_crop = false }))
  end)

  it("obeys height and width, filter, and the switch of the crop", function()
    local rule = with { size = { height = 30, width = 50 }, resample = 2, do_center_crop = false }
    local want = image.normalize(image.resize(picture(), { 30, 50 }, "bilinear"))
    assert.same({ support.values(want) }, { support.values(rule:apply(picture())) })
    assert.same({ 30, 50 }, rule:size())
    assert.is_nil(with({ do_center_crop = false }):size())
    assert.same({ 3, 256, 390 }, with({ do_center_crop = false }):apply(picture()).shape)
    assert.same({ 3, 40, 61 }, with({ do_center_crop = false, do_resize = false }):apply(picture()).shape)
    assert.same({ 3, 20, 24 }, with({ crop_size = { height = 20, width = 24 } }):apply(picture()).shape)
  end)

  it("obeys mean, std, the rescale factor and their switches", function()
    local bare = { do_resize = false, do_center_crop = false }
    local function first(changes)
      for k, v in pairs(bare) do changes[k] = v end
      return support.values(with(changes):apply(picture()))[1]
    end
    local byte = support.values(picture())[1]
    local function near(want, got) assert.is_true(math.abs(want - got) <= 1e-5 * math.max(1, math.abs(want)), got) end
    near((byte / 255 - 0.485) / 0.229, first {})
    near((byte / 255 - 0.1) / 0.5, first { image_mean = { 0.1, 0.2, 0.3 }, image_std = { 0.5, 0.5, 0.5 } })
    near(byte / 255, first { do_normalize = false })
    near((byte * 0.5 - 0.485) / 0.229, first { rescale_factor = 0.5 })
    near((byte - 0.485) / 0.229, first { do_rescale = false })
    near(byte, first { do_rescale = false, do_normalize = false })
  end)

  it("refuses what it can't compute, by name", function()
    local function refuses(pattern, changes)
      local ok, text = pcall(with, changes)
      assert.is_false(ok)
      assert.matches(pattern, text)
    end
    refuses("x.json: resample 0 %(nearest%)", { resample = 0 })
    refuses("x.json: do_pad is set", { do_pad = true })
    refuses("x.json: size: shortest_edge", { size = { shortest_edge = 0 } })
    refuses("longest_edge", { size = { shortest_edge = 3, longest_edge = 9 } })
    refuses("crop_size: height and width", { crop_size = { height = 3 } })
    refuses("image_std: numbers above 0", { image_std = { 0, 1, 1 } })
    refuses("image_mean: three numbers", { image_mean = { 0, 1 } })
    refuses("rescale_factor", { rescale_factor = 0 })
  end)

  it("is told from another by its hash, whatever words were used for it", function()
    local a = preprocess.new { size = { shortest_edge = 256 }, crop_size = 224 }
    assert.equal(preprocess.new({}):hash(), a:hash())
    assert.equal(a:hash(), preprocess.of_run({ resize = 256, size = 224, fit = "crop" }):hash())
    local seen = { [a:hash()] = true }
    for _, other in ipairs { { size = { shortest_edge = 224 } }, { crop_size = 210 }, { resample = 2 }, { image_mean = { 0, 0, 0 } },
      { image_std = { 1, 1, 1 } }, { do_center_crop = false }, { do_resize = false }, { rescale_factor = 1 } } do
      local hash = preprocess.new(other):hash()
      assert.is_nil(seen[hash])
      seen[hash] = true
    end
  end)
end)
