-- files_spec.lua: damaged files end in a tensor or in a message, never in a crash. A short run here;
-- WEFT_FUZZ=20000 makes a long one, WEFT_FUZZ_SEED another one.
local image = require "weft.io.image"
local json = require "weft.io.json"
local safetensors = require "weft.io.safetensors"
local tokenizer = require "weft.io.tokenizer"
local mutate = require "tests.fuzz.mutate"
local support = require "tests.io.support"

local rounds = tonumber(os.getenv "WEFT_FUZZ") or 150
local seed = tonumber(os.getenv "WEFT_FUZZ_SEED") or 1
local golden = support.golden

describe("damaged", function()
  local dir
  setup(function() dir = support.directory() end)
  teardown(support.cleanup)

  -- read(bytes) returns a value, or nil and a message.
  local function survive(seeds, read)
    local next = mutate.random(seed)
    local refused = 0
    for i = 1, rounds do
      local bytes = mutate.damage(seeds[i % #seeds + 1], next)
      local value, message = read(bytes)
      if value == nil then
        assert.equal("string", type(message))
        assert.is_true(#message > 0)
        refused = refused + 1
      end
    end
    return refused
  end

  it("safetensors files are read or refused", function()
    local path = dir .. "f.safetensors"
    local a = support.tensor({ 1, 2, 3, 4, 5, 6 }, { 2, 3 })
    local b = support.tensor({ 1, 0 }, { 2 }, "bool")
    safetensors.save(path, { a = a, b = b, c = support.tensor({ 7 }, {}, "int64") }, { k = "v" })
    local whole = support.read(path)
    assert.is_true(survive({ whole }, function(bytes)
      support.write(path, bytes)
      local tensors, message = safetensors.load(path)
      for _, t in pairs(tensors or {}) do support.values(t) end
      return tensors, message
    end) > rounds / 3)
  end)

  it("JSON is read or refused", function()
    local text = '{"a": [1, 2.5e3, null, true], "b": {"c": "\\u00e9x", "d": []}, "é": "text"}'
    assert.is_true(survive({ text }, function(bytes)
      local value, message = json.decode(bytes)
      if value ~= nil then json.encode(value) end
      return value, message
    end) > rounds / 3)
  end)

  it("tokenizers are read or refused, and what is read can encode", function()
    local trained = tokenizer.train({ "the cat sat on the mat" }, { vocab_size = 262, special_tokens = { "<s>" } })
    trained:save(dir .. "t.json")
    assert.is_true(survive({ support.read(dir .. "t.json") }, function(bytes)
      local t, message = tokenizer.parse(bytes)
      if t then t:decode(t:encode "the <s> cat \255 sat  北京") end
      return t, message
    end) > rounds / 10)
  end)

  it("text is encoded, whatever its bytes", function()
    local t = assert(tokenizer.load(golden .. "tokenizer/tokenizer.json"))
    survive({ "the cat's <s> 北京 \240\159\144\142 naïve 12\n\n  x", ("a"):rep(50) }, function(bytes)
      return t:decode(t:encode(bytes))
    end)
  end)

  local small = support.read(golden .. "preprocess/small.png")
  local palette = support.read(golden .. "preprocess/palette.png")
  local jpeg = support.read(golden .. "preprocess/exif6.jpg")
  local options = { max_pixels = 1e6 }

  it("PNGs are read or refused", function()
    assert.equal(rounds, survive({ small:sub(1, 3000), palette:sub(1, 3000) }, function(bytes) return image.decode(bytes, options) end))
    survive({ small, palette }, function(bytes) return image.decode(mutate.repair_png(bytes), options) end)
  end)

  it("JPEGs are read or refused", function()
    survive({ jpeg, jpeg:sub(1, 700) .. "\255\217" }, function(bytes) return image.decode(bytes, options) end)
  end)

  it("BMPs are read or refused", function()
    local le = support.le
    local bmp = "BM" .. le(54 + 64, 4) .. le(0, 4) .. le(54, 4) .. le(40, 4) .. le(4, 4) .. le(4, 4) .. le(1, 2) .. le(24, 2)
      .. le(0, 4) .. le(48, 4) .. le(0, 16) .. ("\7"):rep(48)
    survive({ bmp }, function(bytes) return image.decode(bytes, options) end)
  end)
end)
