-- run_spec.lua: tests/gpu/run on the simulated device: a stage that fails or takes too long is told, the
-- rest go on, and the results say so.
local command = require "tests.support.command"
local json = require "weft.io.json"

local build = os.getenv "WEFT_BUILD" or "build"
local usable = command.run "python3 -c 'import json, tarfile'" == 0 and not build:find "asan"

describe("tests/gpu/run", function()
  local function run(words, environment)
    local folder, remove = command.folder()
    -- LuaJIT here must come with no paths but its own
    local code, out, err = command.run(("env -u WEFT_TEST_DEVICE %s tests/gpu/run %s/out --device cuda-sim --short --build %s %s"):format(
      environment or "", folder, build, words))
    local stages = {}
    local results = json.read(folder .. "/out/results.json")
    for _, row in ipairs(results and results.stages or {}) do stages[row.stage] = row end
    local f = io.open(folder .. "/out/summary.md")
    local summary = f and f:read "*a" or ""
    if f then f:close() end
    local logs = command.run(("tar -tzf %s/out/logs.tar.gz >/dev/null"):format(folder))
    remove()
    return { code = code, out = out .. err, stages = stages, summary = summary, logs = logs }
  end

  local function it_where(name, fn)
    it(name, function()
      if not usable then return pending "wants python3 and the release build" end
      fn()
    end)
  end

  it_where("runs its stages and writes what came of them", function()
    local r = run "--stage doctor,kernels"
    assert(r.code == 0, r.out)
    assert.equal("ok", r.stages.doctor.state)
    assert.is_true(r.stages.kernels.passed > 3)
    assert.matches("Device: a simulated GPU", r.summary)
    assert.matches("| kernels | .- | %d+ | 0 | %d+ | ok |", r.summary)
    assert.equal(0, r.logs)
  end)

  it_where("tells of a stage that fails, and the rest go on", function()
    local r = run("--stage sizes,doctor,late", "WEFT_CUDA_SIM_LIBRARY=/nowhere.so")
    assert.equal(1, r.code)
    assert.equal("ok", r.stages.doctor.state)
    for _, name in ipairs { "sizes", "late" } do
      assert.matches("^FAILED", r.stages[name].state)
      assert.is_true(r.stages[name].failed > 0)
    end
    assert.matches("/nowhere.so: cannot open", r.summary)
  end)

  it_where("stops what takes too long, and the rest go on", function()
    local r = run "--stage sizes,late --limits sizes=0"
    assert.equal(1, r.code)
    assert.matches("stopped after", r.stages.sizes.state)
    assert.equal("ok", r.stages.late.state)
  end)

  it_where("says what was left out, and refuses a stage that it has not", function()
    local r = run "--stage doctor,late --budget 0.5"
    assert.matches("no time was left", r.stages.late.state)
    r = run "--stage memcheck"
    assert.matches("left out: the simulated device has none", r.stages.memcheck.state)
    r = run "--stage nothing"
    assert.equal(1, r.code)
    assert.matches("there is no stage nothing", r.out)
  end)
end)
