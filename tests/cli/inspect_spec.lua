local run = require "tests.support.command"
local weft = require "weft"
local safetensors = require "weft.io.safetensors"

describe("weft inspect", function()
  local folder, remove
  setup(function()
    folder, remove = run.folder()
    local tensors = { ["head.weight"] = weft.tensor { { 1, -2 }, { 3, 0 / 0 } } }
    for i = 0, 11 do tensors[("layer.%d.weight"):format(i)] = weft.ones { 10, 100 } end
    assert(safetensors.save(folder .. "/model.safetensors", tensors, { format = "pt" }))
  end)
  teardown(function() remove() end)

  it("shows a tree with shapes, dtypes and counts, layers that look alike once", function()
    local code, out = run.weft("inspect " .. folder .. "/model.safetensors")
    assert.equal(0, code)
    assert.truthy(out:find("13 tensors (13 F32), 12,004 elements", 1, true), out)
    assert.truthy(out:find("format: pt", 1, true))
    assert.truthy(out:find("[0..11]", 1, true))
    assert.truthy(out:find("F32 [10,100]", 1, true))
    local _, times = out:gsub("10,100", "")
    assert.equal(1, times)
  end)

  it("shows every layer when asked", function()
    local _, out = run.weft("inspect --all " .. folder .. "/model.safetensors")
    local _, times = out:gsub("10,100", "")
    assert.equal(12, times)
  end)

  it("counts NaN and leaves them out of the statistics", function()
    local _, out = run.weft("inspect --stats " .. folder)
    assert.truthy(out:find("min -2  mean 0.6667  max 3  1 NaN", 1, true), out)
  end)

  it("finds the files of a directory, and says when there is none", function()
    local code, out = run.weft("inspect " .. folder)
    assert.equal(0, code)
    assert.truthy(out:find("model.safetensors", 1, true))
    local failed, _, err = run.weft "inspect lua"
    assert.equal(1, failed)
    assert.truthy(err:find("no .safetensors file", 1, true))
  end)

  it("refuses what is no such file, and no file at all", function()
    local code, _, err = run.weft "inspect /no/such/file"
    assert.equal(1, code)
    assert.equal("weft inspect: /no/such/file: there is no such file or directory\n", err)
    code, _, err = run.weft "inspect LICENSE"
    assert.equal(1, code)
    assert.truthy(err:find("LICENSE", 1, true))
    assert.equal(2, (run.weft "inspect"))
  end)

  it("says of two what differs, and nothing where they are equal", function()
    local a, b = folder .. "/a.safetensors", folder .. "/b.safetensors"
    local nan = 0 / 0
    assert(safetensors.save(a, { same = weft.tensor { 1, nan }, value = weft.tensor { 1, 2 }, shape = weft.ones { 2 }, left = weft.ones { 1 },
      broken = weft.tensor { 1, 2 } }))
    assert(safetensors.save(b, { same = weft.tensor { 1, nan }, value = weft.tensor { 1, 2.5 }, shape = weft.ones { 3 },
      right = weft.ones { 1 }, broken = weft.tensor { 1, nan } }))
    local code, out = run.weft(("inspect %s %s"):format(a, b))
    assert.equal(0, code)
    for _, line in ipairs { "value: values differ by up to 0.5", "shape: float32 [2] and float32 [3]", "only in the first: left",
      "only in the second: right", "broken: NaN on one side only", "1 tensors are equal, 5 differences" } do
      assert.truthy(out:find(line, 1, true), line .. " in " .. out)
    end
    local _, equal = run.weft(("inspect %s %s"):format(a, a))
    assert.truthy(equal:find("5 tensors are equal, and nothing differs", 1, true), equal)
    local _, adapters = run.weft "inspect tests/golden/lora/plain tests/golden/lora/rslora"
    assert.truthy(adapters:find("adapter_config.json: use_rslora: false and true", 1, true), adapters)
  end)

  it("says of an adapter its settings, whose names it has and what it trains", function()
    local peft, dinov2 = weft.peft, weft.models.dinov2
    local model = peft.lora(dinov2.from_pretrained "tests/golden/dinov2_mlp", { rank = 4, alpha = 8, rslora = true, modules_to_save = { "layernorm" } })
    for which, words in pairs { both = "of transformers 4 and 5", transformers4 = "of transformers 4\n", transformers5 = "of transformers 5\n" } do
      peft.save(model, folder .. "/" .. which, { dialect = which, base = "someone/tiny" })
      local code, out = run.weft("inspect " .. folder .. "/" .. which)
      assert.equal(0, code)
      assert.truthy(out:find("adapter: r 4, alpha 8: x4, rsLoRA; 6 modules (query 3, value 3)", 1, true), out)
      assert.truthy(out:find("names: " .. words, 1, true), out)
      -- 6 modules of 4 x (48 + 48), and a norm of 2 x 48
      assert.truthy(out:find("trainable: 2,400 elements", 1, true), out)
      assert.truthy(out:find("saved whole: layernorm", 1, true), out)
      assert.truthy(out:find("base: someone/tiny", 1, true), out)
    end
    local _, out = run.weft "inspect tests/golden/lora_layers/embedding"
    assert.truthy(out:find("names: the same in transformers 4 and 5", 1, true), out)
  end)

  it("shows shards by their index: which holds what, one tree, and what is wrong", function()
    local json, dir = require "weft.io.json", folder .. "/shards"
    assert(require("weft.files").make_dirs(dir))
    local first, second, map = {}, { ["norm.weight"] = weft.ones { 3 } }, { ["norm.weight"] = "model-2.safetensors" }
    for i = 0, 5 do
      local name = ("encoder.layer.%d.weight"):format(i)
      local shard = i < 4 and first or second
      shard[name], map[name] = weft.ones { 10, 10 }, i < 4 and "model-1.safetensors" or "model-2.safetensors"
    end
    assert(safetensors.save(dir .. "/model-1.safetensors", first))
    assert(safetensors.save(dir .. "/model-2.safetensors", second))
    assert(json.write(dir .. "/model.safetensors.index.json", { metadata = { total_size = 2412 }, weight_map = map }))
    local code, out = run.weft("inspect " .. dir)
    assert.equal(0, code, out)
    assert.truthy(out:find("7 tensors in 2 files, 603 elements, 2.4 KiB", 1, true), out)
    assert.truthy(out:find("model-1.safetensors: 4 tensors, 1.6 KiB: encoder.layer.0..3\n", 1, true), out)
    assert.truthy(out:find("model-2.safetensors: 3 tensors, 812 B: encoder.layer.4..5, norm\n", 1, true), out)
    assert.truthy(out:find("[0..5]", 1, true), out)
    assert.is_nil(out:find "wrong")
    map["norm.weight"], map.lost = "model-1.safetensors", "model-3.safetensors"
    assert(json.write(dir .. "/model.safetensors.index.json", { metadata = { total_size = 99 }, weight_map = map }))
    code, out = run.weft("inspect --stats " .. dir .. "/model.safetensors.index.json")
    assert.equal(1, code)
    assert.truthy(out:find("wrong: norm.weight should be in model-1.safetensors, and is not", 1, true), out)
    assert.truthy(out:find("wrong: norm.weight is in model-2.safetensors, and the index does not name it there", 1, true), out)
    assert.truthy(out:find("wrong: model-3.safetensors is missing", 1, true), out)
    assert.truthy(out:find("wrong: the index says 99 bytes in all, the shards hold 2412", 1, true), out)
    assert.truthy(out:find("min 1  mean 1  max 1", 1, true), out)
  end)
end)

describe("weft doctor", function()
  it("names every part of the machine, and its product is right", function()
    local code, out = run.weft "doctor"
    for _, part in ipairs { "CPU", "BLAS", "memory", "disk", "GPU", "LuaJIT" } do
      assert.truthy(out:find(part, 1, true), part)
    end
    assert.truthy(out:find("GFLOP/s", 1, true))
    assert.truthy(code == 0 or out:find("to repair", 1, true))
  end)

  it("says when more threads than cores are asked for", function()
    local code, out = run.run "WEFT_THREADS=500 bin/weft doctor"
    if out:find(" 500 threads", 1, true) then
      assert.equal(1, code)
      assert.truthy(out:find("more threads than cores", 1, true))
    end
  end)
end)
