-- settings_spec.lua: settings of models and adapters with one value put wrong: each is taken, or refused in words
-- that name the file or the key. Never a crash, nor an error of the program's own.
local weft = require "weft"
local run = require "tests.support.command"
local files = require "weft.files"
local json = require "weft.io.json"
local dinov2 = require "weft.models.dinov2"
local peft = weft.peft

-- What another program, or a hand, may write in the place of any value.
local wrongs = { "null", "true", "false", '"x"', '""', "-1", "0", "0.5", "1e18", "-1e308", "[]", "{}", "[1, 2]", '["x", 3]', '{"x": null}', "[[]]" }

-- Errors that Lua itself raises.
local function raw(text)
  for _, sign in ipairs { "attempt to", "bad argument", "stack overflow", "cannot convert", "not enough memory", "expected a table", "invalid order" } do
    if text:find(sign, 1, true) then return true end
  end
end

-- Each key of a JSON object with each wrong value, as text.
local function each_wrong(path, fn)
  local object = json.read(path)
  local keys = {}
  for key in pairs(object) do keys[#keys + 1] = key end
  table.sort(keys)
  for _, key in ipairs(keys) do
    for _, wrong in ipairs(wrongs) do
      local parts = {}
      for _, k in ipairs(keys) do parts[#parts + 1] = json.encode(k) .. ": " .. (k == key and wrong or json.encode(object[k])) end
      fn("{" .. table.concat(parts, ", ") .. "}", key, wrong)
    end
  end
end

describe("settings put wrong", function()
  local folder, remove
  setup(function() folder, remove = run.folder() end)
  teardown(function() remove() end)

  local function survive(from, name, load)
    local dir = folder .. "/" .. name .. from:gsub("%W", "")
    assert(os.execute(("cp -r %s %s"):format(from, dir)) == 0)
    local refused, n = 0, 0
    each_wrong(from .. "/" .. name, function(text, key, wrong)
      assert(files.write(dir .. "/" .. name, text))
      local ok, message = pcall(load, dir)
      n = n + 1
      if not ok then
        refused = refused + 1
        assert(type(message) == "string" and not raw(message), ("%s = %s: %s"):format(key, wrong, tostring(message)))
        assert(#message > 10 and #message < 4000, ("%s = %s: %s"):format(key, wrong, message))
      end
    end)
    return refused / n
  end

  for _, kind in ipairs { "dinov2_mlp", "dinov2_swiglu" } do
    it("in config.json of " .. kind, function()
      assert.is_true(survive("tests/golden/" .. kind, "config.json", function(dir)
        weft.scope(function() dinov2.from_pretrained(dir) end)
      end) > 0.2)
    end)
  end

  it("in a LLaMA's config.json", function()
    assert.is_true(survive("tests/golden/llama_tiny", "config.json", function(dir)
      weft.scope(function() weft.models.llama.from_pretrained(dir) end)
    end) > 0.1)
  end)

  for _, name in ipairs { "plain", "patterns", "saved" } do
    it("in adapter_config.json of " .. name, function()
      local model = dinov2.from_pretrained "tests/golden/dinov2_mlp"
      assert.is_true(survive("tests/golden/lora/" .. name, "adapter_config.json", function(dir)
        local ok, message = pcall(peft.load, model, dir)
        if ok then peft.delete(model, "default") end
        assert.is_nil(peft.describe(model))
        if not ok then error(message, 0) end
      end) > 0.2)
      assert.is_true(survive("tests/golden/lora/" .. name, "adapter_config.json", function(dir)
        peft.convert(dir, folder .. "/converted")
      end) > 0.1)
    end)
  end

  it("in preprocessor_config.json", function()
    local dir = folder .. "/rule"
    assert(files.make_dirs(dir))
    assert(json.write(dir .. "/preprocessor_config.json", weft.io.preprocess.to_file { resize = 32, size = 28, mean = { 0, 0, 0 }, std = { 1, 1, 1 } }))
    local picture = weft.io.image.canvas(40, 50, { 1, 2, 3 })
    local from = folder .. "/rule-copy"
    assert(os.execute(("cp -r %s %s"):format(dir, from)) == 0)
    assert.is_true(survive(from, "preprocessor_config.json", function(where)
      local rule = weft.io.preprocess.read(where)
      local size = rule:size()
      if not size or size[1] < 1000 then rule:apply(picture) end
    end) > 0.2)
  end)

  it("in an index of shards", function()
    local from = folder .. "/index"
    assert(files.make_dirs(from))
    assert(os.execute(("cp tests/golden/dinov2_mlp/config.json %s/ && cp tests/golden/dinov2_mlp/model.safetensors %s/a.safetensors"):format(from, from)) == 0)
    local map = {}
    for _, name in ipairs(assert(weft.io.safetensors.open(from .. "/a.safetensors")).names) do map[name] = "a.safetensors" end
    assert(json.write(from .. "/model.safetensors.index.json", { metadata = { total_size = 1 }, weight_map = map }))
    dinov2.from_pretrained(from)
    assert.is_true(survive(from, "model.safetensors.index.json", function(dir) dinov2.from_pretrained(dir) end) > 0.2)
  end)
end)
