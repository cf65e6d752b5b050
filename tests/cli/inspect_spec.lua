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
