-- device_spec.lua: GPUs as devices: what is said when there is none, moving, memory, counters, errors
-- that come late. On the simulated GPU (WEFT_TEST_DEVICE=cuda-sim).
local weft = require "weft"
local command = require "tests.support.command"

local device = os.getenv "WEFT_TEST_DEVICE" or "cpu"
local build = os.getenv "WEFT_BUILD" or "build"

describe("without a GPU", function()
  it("says so, with the reason, and everything else works", function()
    local usable, reason = weft.cuda.is_available()
    if usable then return end
    assert.is_string(reason)
    assert.equal(0, weft.cuda.device_count())
    local ok, message = pcall(weft.zeros, { 2, device = "cuda" })
    assert.is_false(ok)
    assert.matches("cuda:0 can't be used: ", message)
    assert.equal(2, weft.ones { 2 }:sum():item())
  end)

  it("refuses a library that is not weft's, or of another operator table", function()
    local function tried(library)
      local _, out = command.run(("WEFT_CUDA_LIBRARY=%s bin/weft doctor"):format(library))
      return out
    end
    assert.matches("was not loaded", tried "/nowhere/libweft_cuda.so")
    assert.matches("it is not weft's", tried "libm.so.6")
    local folder, remove = command.folder()
    local source = folder .. "/other.c"
    local f = assert(io.open(source, "w"))
    f:write [[
      #include <stdint.h>
      static struct { uint32_t abi; uint64_t hash; void *f[4]; } door;
      const void *weft_device_entry(const void *host) { (void)host; door.abi = ABI; door.hash = 7; return &door; }
    ]]
    f:close()
    for abi, want in pairs { [2] = "another operator table", [99] = "version 99 of the device interface" } do
      local library = ("%s/other%d.so"):format(folder, abi)
      assert.equal(0, os.execute(("gcc -shared -fPIC -DABI=%d -o %s %s"):format(abi, library, source)))
      assert.matches(want, tried(library))
    end
    remove()
  end)

  local simulated = ("%s/libweft_cuda_sim.so"):format(build)
  local function it_where(name, fn)
    it(name, function()
      local f = io.open(simulated)
      if not f then return pending "wants the simulated device" end
      f:close()
      fn()
    end)
  end
  -- What a program and the doctor say on such a machine.
  local function on(machine)
    local environment = ("env -u WEFT_SIM_DRY WEFT_CUDA_LIBRARY=%s WEFT_SIM_MACHINE='%s' "):format(simulated, machine)
    local _, usable = command.run(environment .. [[luajit -e '
      local weft = require "weft"
      print(weft.cuda.is_available())
      print(weft.cuda.device_count(), weft.ones{ 3 }:sum():item())
      print(pcall(weft.ones, { 3, device = "cuda" }))']])
    local code, doctor = command.run(environment .. "bin/weft doctor")
    return usable, doctor, code
  end

  it_where("tells a missing driver, an old one, no GPU and an old GPU apart #slow", function()
    for machine, want in pairs {
      ["no driver"] = "no NVIDIA driver was found %(libcuda.so.1%)",
      ["old driver"] = "driver is too old: it speaks CUDA 12.4, and this library wants 13.0; install a newer driver",
      ["no gpu"] = "the NVIDIA driver sees no GPU",
      ["old gpu"] = "a simulated GPU is too old: it has compute capability 7.5, and kernels are compiled for 8.0 and later",
    } do
      local said, doctor = on(machine)
      assert.matches("^false\t[^\n]*" .. want .. "[^\n]*\n0\t3\nfalse\t[^\n]*cuda:0 can't be used: [^\n]*" .. want, said)
      assert.matches("\nGPU  [^\n]*" .. want .. "[^\n]*; everything runs on the CPU\n", doctor)
      assert.matches("\nCUDA  +built for the CPU with CUDA 13.0; the", doctor)
    end
  end)

  it_where("runs a kernel when a GPU is first used, and does not use one that gives a wrong result", function()
    local want = "cuda:0 can't be used: its first kernel gave a wrong result %(number 0 is %-?nan and not 65025%)"
    local said, doctor, code = on "broken gpu"
    assert.matches("\nfalse\t[^\n]*" .. want, said)
    assert.matches("! " .. want, doctor)
    assert.equal(1, code)
    said, doctor, code = on ""
    assert.matches("^true\n1\t3\ntrue\t", said)
    assert.matches("GPU  +cuda:0 a simulated GPU", doctor)
    assert.equal(0, code)
  end)

  it_where("says what a library wants that can't be loaded", function()
    local folder, remove = command.folder()
    local wants = "gcc -shared -fPIC -Wl,-soname,libwanted.so -o %s/libwanted.so -x c /dev/null && "
      .. "gcc -shared -fPIC -o %s/lib.so -x c /dev/null -Wl,--no-as-needed -L%s -lwanted && rm %s/libwanted.so"
    assert.equal(0, os.execute((wants:gsub("%%s", folder))))
    local _, out = command.run(("WEFT_CUDA_LIBRARY=%s/lib.so bin/weft doctor"):format(folder))
    assert.matches("libwanted.so: cannot open shared object file[^\n]*; install what it wants, or name that folder in LD_LIBRARY_PATH", out)
    remove()
  end)
end)

if device ~= "cpu" then
  describe("on " .. device, function()
    local function counters() return weft.cuda.counters(device) end

    it("moves tensors there and back, gradients too", function()
      local x = weft.randn { 3, 4, requires_grad = true }
      local y = (x:to(device):transpose(1, 2) * 2):to "cpu"
      assert.equal("cpu", y.device)
      y:sum():backward()
      assert.equal("cpu", x.grad.device)
      assert.equal(2, x.grad:narrow(1, 1, 1):max(2):item())
    end)

    it("keeps bits of every dtype on the way", function()
      for _, dtype in ipairs { "float32", "float64", "bfloat16", "float16", "int32", "int64", "uint8", "bool" } do
        local x = (weft.randn { 37 } * 9):to(dtype)
        local y = x:to(device):to "cpu"
        assert.equal(dtype, y.dtype)
        assert.is_true(require("tests.support.near").same(x, y))
      end
    end)

    it("waits only where a value is asked for", function()
      local a, b = weft.randn { 8, 8 }:to(device), weft.randn { 8, 8 }:to(device)
      local blocking = os.getenv "WEFT_CUDA_BLOCKING" == "1"
      local before = counters()
      local y = ((a + b) * a):exp():sum()
      local after = counters()
      assert.equal(4, after.launches - before.launches)
      if not blocking then assert.equal(0, after.synchronizations - before.synchronizations) end
      y:item()
      assert.equal(1, counters().downloads - after.downloads)
    end)

    it("counts its memory to the byte, and gives it back", function()
      collectgarbage() collectgarbage()
      local m = weft.memory(device)
      local x = weft.zeros { 1000, 1000, device = device }
      assert.is_true(weft.memory(device).live - m.live >= 4e6)
      x:free()
      assert.equal(m.live, weft.memory(device).live)
    end)

    it("says what was asked for, live, cached and free when memory runs out", function()
      local ok, message = pcall(weft.zeros, { 2 ^ 20, 2 ^ 20, device = device })
      assert.is_false(ok)
      assert.matches("out of memory on " .. device:gsub("%-", "%%-") .. ": requested %d+ bytes, live %d+, cached %d+, free on the device %d+", message)
    end)

    it("refuses operands of two devices by name", function()
      local ok, message = pcall(function() return weft.ones { 2 } + weft.ones { 2, device = device } end)
      assert.is_false(ok)
      assert.matches("is on " .. device:gsub("%-", "%%-") .. ", a on cpu; move one with to", message)
    end)

    it("tells of an index out of range at the next wait at the latest", function()
      local table_ = weft.randn { 5, 2 }:to(device)
      local ids = weft.tensor({ 1, 7 }, { dtype = "int64" }):to(device)
      local ok, message = pcall(function() return weft.embedding(ids, table_):sum():item() end)
      assert.is_false(ok)
      assert.matches("embedding.*7", message)
      assert.equal(10, weft.ones({ 5, 2, device = device }):sum():item())  -- and goes on
    end)

    it("prints, fills, writes parts of itself and takes tensors of the CPU", function()
      local t = weft.zeros { 3, 4, device = device }
      t[2]:fill_(7)
      t:transpose(1, 2)[1]:copy_(weft.tensor { 1, 2, 3 })
      assert.same({ { 1, 0, 0, 0 }, { 2, 7, 7, 7 }, { 3, 0, 0, 0 } }, t:totable())
      assert.matches(device:gsub("%-", "%%-") .. ".*7.0000", tostring(t))
    end)

    it("saves and hashes what lies there", function()
      local folder, remove = command.folder()
      local x = weft.randn { 5, 3 }
      assert(weft.io.safetensors.save(folder .. "/x.safetensors", { x = x:to(device) }))
      local back = assert(weft.io.safetensors.load(folder .. "/x.safetensors")).x
      assert.is_true(require("tests.support.near").same(x, back))
      local sum = require("weft.train.checkpoint").checksum
      assert.equal(sum { x = x }, sum { x = x:to(device) })
      remove()
    end)
  end)
end
