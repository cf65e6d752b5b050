-- group_spec.lua: a group of one rank, and what every group refuses. Those of GPUs: tests/cuda/dist_spec.lua.
local weft = require "weft"
local command = require "tests.support.command"

local function refused(pattern, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok)
  assert.matches(pattern, message)
  assert.matches("group_spec.lua:%d+: ", message)   -- it lands here, not in weft's own files
end

describe("a group of one rank", function()
  local group = weft.dist.join()

  it("says who it is", function()
    assert.equal(0, group.rank)
    assert.equal(1, group.size)
    assert.equal("rank 0 of 1 (self)", tostring(group))
  end)

  it("leaves tensors as they are and starts nothing", function()
    local core = require "weft.core"
    local state, version_of = core.state, function(t) return core.lib.weft_version_of(t.p) end
    for _, dtype in ipairs { "float32", "float64", "bfloat16", "float16", "int32", "int64", "uint8" } do
      local t = weft.arange(6):to(dtype):reshape(2, 3)
      local calls, version = state.calls, version_of(t)
      for _, how in ipairs { "sum", "max" } do assert.equal(t, group:all_reduce_(t, how)) end
      if dtype:find "float" then group:all_reduce_(t, "mean") end
      assert.equal(t, group:broadcast_(t))
      assert.equal(calls, state.calls)
      assert.equal(version, version_of(t))
      assert.same({ { 0, 1, 2 }, { 3, 4, 5 } }, t:totable())
    end
    group:barrier()
  end)

  it("gathers and scatters into copies", function()
    for _, t in ipairs { weft.arange(6):reshape(2, 3), weft.arange(6):reshape(3, 2):transpose(1, 2), weft.arange(6):narrow(1, 3, 2),
      weft.zeros { 0, 3 } } do
      for _, y in ipairs { group:all_gather(t), group:reduce_scatter(t, "mean") } do
        assert.same(t.shape, y.shape)
        assert.same(t:totable(), y:totable())
        y:fill_(-1)
        if t:numel() > 0 then assert.is_true(t:min():item() >= 0) end
      end
    end
    assert.same({ 7 }, group:all_gather(weft.tensor(7)):totable())
    assert.same({ 1, 0 }, group:all_gather(weft.tensor({ 1, 0 }, { dtype = "bool" })):to("int32"):totable())
    assert.same({ 2, 3 }, group:all_gather(weft.zeros { 2, 3, device = "meta" }).shape)
  end)

  it("refuses what has no meaning, in words", function()
    refused("bool has no sum, mean or max", group.all_reduce_, group, weft.ones { 2, dtype = "bool" })
    refused("the mean of int64 over ranks is no int64", group.all_reduce_, group, weft.ones { 2, dtype = "int64" }, "mean")
    refused("reduction: unknown choice mena; did you mean mean", group.all_reduce_, group, weft.ones { 2 }, "mena")
    refused("requires a gradient", group.all_reduce_, group, weft.ones { 2, requires_grad = true })
    refused("expanded view", group.broadcast_, group, weft.ones({ 1 }):expand(4))
    refused("no rank 1 of 1", group.broadcast_, group, weft.ones { 2 }, 1)
    refused("a whole number is expected, got a number %(0.5%)", group.broadcast_, group, weft.ones { 2 }, 0.5)
    refused("does not pass between ranks", group.all_gather, group, weft.ones { 2, requires_grad = true })
    refused("first dim of %[%] is not cut evenly", group.reduce_scatter, group, weft.tensor(1))
    refused("a tensor is expected, got a number", group.all_gather, group, 1)
  end)

  it("is of no use once it was left", function()
    local left = weft.dist.join()
    left:leave()
    assert.equal("rank 0 of 1 (self), left", tostring(left))
    refused("the group was left", left.barrier, left)
    refused("the group was left", left.leave, left)
  end)

  it("costs a training step nothing, inside a scope too", function()
    local w = weft.ones { 3, requires_grad = true }
    collectgarbage() collectgarbage()
    local before = require("weft.core").state.handles
    weft.scope(function()
      (w * 2):sum():backward()
      group:all_reduce_(w.grad, "mean")
    end)
    assert.same({ 2, 2, 2 }, w.grad:totable())
    w:zero_grad()
    collectgarbage() collectgarbage()
    assert.equal(before, require("weft.core").state.handles)
  end)
end)

describe("joining", function()
  it("refuses ranks and providers that are not", function()
    refused("no rank 2 of 2", weft.dist.join, { rank = 2, size = 2 })
    refused("no rank %-1 of 1", weft.dist.join, { rank = -1 })
    refused("no rank 0 of 0", weft.dist.join, { size = 0 })
    refused('self is one rank, not 2: several want provider "nccl"', weft.dist.join, { provider = "self", size = 2 })
    refused('no provider "mpi"', weft.dist.join, { provider = "mpi" })
    refused("cpu has no collective operations", weft.dist.join, { provider = "nccl", device = "cpu" })
    refused("unknown option ranks", weft.dist.join, { ranks = 2 })
    refused("size: a whole number is expected", weft.dist.join, { size = 1.5 })
    refused("meeting: a string is expected, got a number", weft.dist.join, { meeting = 5 })
  end)

  it("says where a GPU is missing", function()
    local _, out, err = command.run([[WEFT_CUDA_LIBRARY=/nowhere.so luajit -e 'require("weft").dist.join { size = 2, meeting = "/tmp/x" }']])
    assert.matches("cuda:0 can't be used", out .. err)
  end)
end)
