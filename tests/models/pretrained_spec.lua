-- pretrained_spec.lua: model directories as people have them: shards, half precision, classifiers, other
-- formats, damage. What comes out is the golden model, or an error that names the tensor.
local weft = require "weft"
local compare = require "tests.models.compare"
local dinov2 = require "weft.models.dinov2"
local json = require "weft.io.json"
local safetensors = require "weft.io.safetensors"

local golden = "tests/golden/dinov2_mlp"
local made = {}

-- An empty directory.
local function bare()
  local dir = os.tmpname()
  os.remove(dir)
  made[#made + 1] = dir
  assert(require("weft.files").make_dirs(dir))
  return dir
end

-- A copy of the golden directory with other files; state = nil leaves the weights out.
local function directory(state, config)
  local dir = bare()
  local c = assert(json.read(golden .. "/config.json"))
  for k, v in pairs(config or {}) do c[k] = v end
  assert(json.write(dir .. "/config.json", c))
  if state then assert(safetensors.save(dir .. "/model.safetensors", state)) end
  return dir
end

local function weights() return (assert(safetensors.load(golden .. "/model.safetensors"))) end
local pixels = compare.golden("dinov2_mlp/io.safetensors")["native.pixel_values"]
local function output(model) return weft.no_grad(function() return model(pixels).last_hidden_state end) end
local expected = output((dinov2.from_pretrained(golden)))

local function refuses(pattern, dir)
  local ok, text = pcall(dinov2.from_pretrained, dir)
  assert.is_false(ok)
  assert.matches(pattern, text)
end

describe("a pretrained directory", function()
  teardown(function()
    for _, dir in ipairs(made) do os.execute(("rm -rf '%s'"):format(dir)) end
  end)

  local function sharded(change)
    local dir, parts, map, i = directory(), { {}, {}, {} }, {}, 0
    for name, t in pairs(weights()) do
      i = i % 3 + 1
      local file = ("model-0000%d-of-00003.safetensors"):format(i)
      parts[i][name], map[name] = t, file
    end
    if change then change(map, parts) end
    for n, part in ipairs(parts) do
      assert(safetensors.save(("%s/model-0000%d-of-00003.safetensors"):format(dir, n), part))
    end
    assert(json.write(dir .. "/model.safetensors.index.json", { metadata = json.object {}, weight_map = map }))
    return dir
  end

  it("is read from shards by their index", function()
    assert.is_true(compare.same(output((dinov2.from_pretrained(sharded()))), expected))
  end)

  it("names what is wrong with shards", function()
    refuses("layernorm.weight should be in .*model%-00001.*, and is not", sharded(function(map, parts)
      for _, part in ipairs(parts) do part["layernorm.weight"] = nil end
      map["layernorm.weight"] = "model-00001-of-00003.safetensors"
    end))
    refuses("the shard .*model%-00004.* is missing", sharded(function(map)
      map["layernorm.weight"] = "model-00004-of-00003.safetensors"
    end))
    refuses("a file beside the index is expected, got ../x.safetensors", sharded(function(map)
      map["layernorm.weight"] = "../x.safetensors"
    end))
    refuses("layernorm.bias is in .* the index does not name it", sharded(function(map) map["layernorm.bias"] = nil end))
  end)

  for dtype, tolerance in pairs { float16 = 2e-2, bfloat16 = 2e-1 } do
    it("becomes float32 from " .. dtype, function()
      local half = {}
      for name, t in pairs(weights()) do half[name] = t:to(dtype) end
      local dir = directory(half)
      collectgarbage "stop"
      local model = dinov2.from_pretrained(dir)
      local maps = assert(io.open "/proc/self/maps"):read "*a"
      collectgarbage "restart"
      assert.is_nil(maps:find(dir, 1, true), "the file's pages are still held")
      for name, t in model:named_parameters() do
        assert.equal("float32", t.dtype)
        assert.is_true(compare.same(t, half[name]:to "float32"), name)
      end
      compare.close(output(model), expected, tolerance)
    end)
  end

  it("may be a classifier's, whose head is left out with a note", function()
    local state = {}
    for name, t in pairs(weights()) do state["dinov2." .. name] = t end
    state["classifier.weight"], state["classifier.bias"] = weft.zeros { 5, 96 }, weft.zeros { 5 }
    local model, note = dinov2.from_pretrained(directory(state))
    assert.is_true(compare.same(output(model), expected))
    assert.matches("left out: classifier.bias, classifier.weight$", note)
    assert.is_nil((select(2, dinov2.from_pretrained(golden))))
  end)

  it("with pickles alone is refused with the line that converts it", function()
    local dir = directory()
    assert(require("weft.files").write(dir .. "/pytorch_model.bin", "x"))
    refuses("pytorch_model.bin is a pickle.*python3 %-c .*pytorch_model.bin .*model.safetensors", dir)
    refuses("dinov2_vitb14_pretrain.pth is a pickle", "somewhere/dinov2_vitb14_pretrain.pth")
    refuses("neither model.safetensors nor model.safetensors.index.json is there", directory())
  end)

  it("says which tensors are missing, extra or misshapen, with the nearest name", function()
    local state = weights()
    state["encoder.layer.1.norm1.wieght"], state["encoder.layer.1.norm1.weight"] = state["encoder.layer.1.norm1.weight"], nil
    local dir = directory(state)
    refuses("2 tensors do not fit:\n  missing encoder.layer.1.norm1.weight; did you mean encoder.layer.1.norm1.wieght%?\n"
      .. "  extra encoder.layer.1.norm1.wieght; did you mean encoder.layer.1.norm1.weight%?", dir)
    state = weights()
    state["layernorm.weight"] = weft.ones { 47 }
    refuses("layernorm.weight is %[47%], expected %[48%]", directory(state))
    state = weights()
    state["dinov2.layernorm.bias"] = state["layernorm.bias"]
    refuses("are both layernorm.bias", directory(state))
    refuses("18 tensors do not fit:\n  missing encoder.layer.3.attention.attention.key.bias\n.*and 10 more", directory(weights(), { num_hidden_layers = 4 }))
  end)

  it("of float32 is not copied: parameters lie in the file's pages, and training leaves the file alone", function()
    local dir = directory(weights())
    local function bytes()
      local f = assert(io.open(dir .. "/model.safetensors", "rb"))
      local text = f:read "*a"
      f:close()
      return text
    end
    local before, C = bytes(), require("weft.core").lib
    local held = tonumber(C.weft_memory_of(0).live)
    local model = dinov2.from_pretrained(dir)
    local grown = tonumber(C.weft_memory_of(0).live) - held
    assert.is_true(grown < 4096, grown)
    assert.is_true(model.layernorm.weight.requires_grad)
    weft.no_grad(function() model.layernorm.weight:mul_(2) end)
    assert.is_false(compare.same(output(model), expected))
    assert.equal(before, bytes())
  end)

  it("may be the original project's weights alone: their shapes tell the sizes", function()
    local keys = dinov2.keys
    for _, kind in ipairs { "mlp", "swiglu", "registers" } do
      local dir, from = bare(), "tests/golden/dinov2_" .. kind
      assert(weft.save(dir .. "/model.safetensors", keys.to_their_names(assert(weft.load(from .. "/model.safetensors")))))
      local ok, message = pcall(dinov2.from_pretrained, dir)
      assert.is_false(ok)
      assert.matches("a width of 48 is no multiple of 64, so that the shapes do not tell num_attention_heads", message, 1, true)
      local model, note = dinov2.from_pretrained(dir, { num_attention_heads = 3 })
      assert.matches("no config.json: sizes by the shapes", note, 1, true)
      assert.equal(kind == "registers" and "antialias" or "offset", model.config.pos_interp)
      local g = compare.golden("dinov2_" .. kind .. "/io.safetensors")
      compare.close(weft.no_grad(model, g["native.pixel_values"]).last_hidden_state, g["native.last_hidden_state"], 2e-5, kind)
    end
    -- of a published width nothing has to be told
    local dir = bare()
    local wide = dinov2.new { hidden_size = 128, num_hidden_layers = 1, num_attention_heads = 2, image_size = 28, mlp_ratio = 2 }
    assert(weft.save(dir .. "/model.safetensors", keys.to_their_names(wide:state_dict())))
    local c = dinov2.from_pretrained(dir).config
    assert.same({ 128, 2, 1, 28, 2 }, { c.hidden_size, c.num_attention_heads, c.num_hidden_layers, c.image_size, c.mlp_ratio })
  end)

  it("is a directory: a file, one without a config and one with pickles alone are told apart", function()
    local function message(path) return select(2, pcall(dinov2.from_pretrained, path)) end
    assert.matches("is a file; the directory is expected", message "tests/golden/dinov2_mlp/model.safetensors", 1, true)
    local dir = bare()
    os.execute(("cp tests/golden/dinov2_mlp/model.safetensors %s"):format(dir))
    assert.matches("there is no config.json in this directory", message(dir), 1, true)
    os.execute(("rm %s/* && touch %s/dinov2_vitb14_pretrain.pth"):format(dir, dir))
    assert.matches("dinov2_vitb14_pretrain.pth is a pickle.*python3 %-c", message(dir))
  end)
end)
