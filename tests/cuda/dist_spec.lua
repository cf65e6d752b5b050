-- dist_spec.lua: collective operations of a GPU: one rank on the device under test (WEFT_TEST_DEVICE), and
-- several in processes of their own: on the simulated device, or where there are as many GPUs.
local weft = require "weft"
local command = require "tests.support.command"
local gpu = require "tests.support.gpu"

local C = require("weft.core").lib
local device = gpu.device
local it = gpu.guard(it, pending)

describe("a group on a GPU", function()
  local function join() return weft.dist.join { provider = "nccl", device = device } end

  it("of one rank gives back every dtype's own numbers", function()
    local group = join()
    for _, dtype in ipairs { "float32", "float64", "bfloat16", "float16", "int32", "int64", "uint8" } do
      local t = weft.arange(6):to(dtype):to(device):reshape(2, 3)
      for _, how in ipairs { "sum", "max", dtype:find "float" and "mean" or "sum" } do
        group:all_reduce_(t, how)
        assert.same({ { 0, 1, 2 }, { 3, 4, 5 } }, t:totable())
        assert.same({ { 0, 1, 2 }, { 3, 4, 5 } }, group:reduce_scatter(t, how):totable())
      end
      assert.same({ { 0, 3 }, { 1, 4 }, { 2, 5 } }, group:all_gather(t:transpose(1, 2)):totable())
      assert.same({ { 3, 4, 5 } }, group:all_gather(t:narrow(1, 2, 1)):totable())
      assert.same({ { 0, 1, 2 }, { 3, 4, 5 } }, group:broadcast_(t):totable())
    end
    assert.same({ 1, 0 }, group:all_gather(weft.tensor({ 1, 0 }, { dtype = "bool" }):to(device)):to("int32"):totable())
    assert.same({ 7 }, group:all_gather(weft.tensor(7):to(device)):totable())
    assert.same({ 0, 3 }, group:all_gather(weft.zeros { 0, 3, device = device }).shape)
    group:barrier()
    group:leave()
  end)

  it("is one launch an operation, without waiting", function()
    local group, t = join(), weft.ones { 8, device = device }
    local before, version = weft.cuda.counters(device), C.weft_version_of(t.p)
    group:all_reduce_(t)
    group:broadcast_(t)
    local after = weft.cuda.counters(device)
    assert.equal(2, after.launches - before.launches)
    assert.equal(before.synchronizations, after.synchronizations)
    assert.equal(version + 2, C.weft_version_of(t.p))   -- the tape sees both writes
    group:leave()
  end)

  it("refuses tensors of another device by name", function()
    local group = join()
    local ok, message = pcall(group.all_reduce_, group, weft.ones { 2 })
    assert.is_false(ok)
    assert.matches(("%%[2%%] is on cpu, the group's ranks compute on %s"):format((device:gsub("%-", "%%-"))), message)
    group:leave()
  end)

  it("refuses a file that is there already, or is no meeting", function()
    local folder, remove = command.folder()
    local path = folder .. "/here"
    local f = assert(io.open(path, "w"))
    f:write "something else"
    f:close()
    local ok, message = pcall(weft.dist.join, { device = device, size = 2, rank = 0, meeting = path })
    assert.is_false(ok)
    assert.matches("here is there already", message)
    ok, message = pcall(weft.dist.join, { device = device, size = 2, rank = 1, meeting = path })
    assert.is_false(ok)
    assert.matches("is not what rank 0 of a group writes", message)
    ok, message = pcall(weft.dist.join, { device = device, size = 2, rank = 1, meeting = folder .. "/none", timeout = 0.02 })
    assert.is_false(ok)
    assert.matches("rank 0 did not come to .*/none within 0.02 seconds", message)
    ok, message = pcall(weft.dist.join, { device = device, size = 2, rank = 0, meeting = folder .. "/no/folder" })
    assert.is_false(ok)
    assert.matches("can't be written: No such file", message)
    ok, message = pcall(weft.dist.join, { device = device, size = 2 })
    assert.is_false(ok)
    assert.matches("2 ranks meet at a file that all of them see; its path is missing", message)
    remove()
  end)

  it("of several ranks gives the sum, mean, max and parts of all", function()
    local many = device == "cuda-sim" and 3 or math.min(4, weft.cuda.device_count())
    if many < 2 then return pending "there is one GPU" end
    local folder, remove = command.folder()
    local started = {}
    for r = many - 1, 0, -1 do
      local where = device == "cuda-sim" and device or "cuda:" .. r
      started[#started + 1] = ("luajit tests/dist/ranks.lua %s %d %d %s/meeting & last=\"$last $!\""):format(where, r, many, folder)
    end
    local _, out, err = command.run(table.concat(started, "\n") .. "\nfor p in $last; do wait $p || echo failed; done; ls " .. folder)
    remove()
    assert.equal(("ok\n"):rep(many), out, err)
  end)
end)
