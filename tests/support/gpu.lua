-- gpu.lua: the GPU that specs of cuda/ run on: what WEFT_TEST_DEVICE names, else the simulated one
-- where it was built. Without one their tests are skipped.
local ffi = require "ffi"
local C = require("weft.core").lib

local M = { device = os.getenv "WEFT_TEST_DEVICE" or "cuda-sim" }
local there = M.device ~= "cpu" and C.weft_memory_of(C.weft_device_of(M.device)) ~= nil
local why = M.device == "cpu" and "no GPU is under test" or not there and ffi.string(C.weft_error())

---busted's `it` for tests that need the GPU: they are skipped where there is none.
---    local it = gpu.guard(it, pending)
function M.guard(it, pending)
  return function(name, fn)
    it(name, function()
      if not there then return pending(why) end
      fn()
    end)
  end
end

---Kernels that were started while fn ran.
function M.launches(fn)
  local counters = C.weft_counters_of(C.weft_device_of(M.device))
  local before = counters.launches
  fn()
  return tonumber(counters.launches - before)
end

return M
