-- cuda.lua: GPUs: which can be used, and what they have done. Their library is loaded when first asked for.
local ffi = require "ffi"
local A = require "weft.args"
local C = require("weft.core").lib
local graph = require "weft.graph"

local M = {}

---Whether a GPU can be used, and the reason when not. Everything runs on the CPU then.
---@return boolean usable, string? reason
function M.is_available()
  if C.weft_cuda_count() > 0 then return true end
  return false, ffi.string(C.weft_error())
end

---GPUs that can be used: cuda:0 to cuda:n-1.
---@return integer
function M.device_count() return tonumber(C.weft_cuda_count()) end

---What a device is: "NVIDIA H200, 140 GiB, compute capability 9.0, 132 multiprocessors".
---@param device? string  cuda:0
---@return string
function M.describe(device)
  local text = C.weft_cuda_describe(A.device(device or "cuda", "describe"))
  if text == nil then A.fail() end
  return (ffi.string(text))
end

---What the library of GPUs was built for, and the versions of CUDA, the driver and other libraries that it
---found; nil and the reason where it can't be loaded.
---@return string? about, string? reason
function M.about()
  local text = C.weft_cuda_about()
  if text == nil then return nil, ffi.string(C.weft_error()) end
  return (ffi.string(text))
end

---Waits until a device has done all that it was given, and raises what its kernels complained of. Reading
---a value (t:item(), t:totable(), printing) does the same; otherwise operators return before they are done.
---@param device? string  cuda:0
function M.synchronize(device) A.check(C.weft_synchronize(A.device(device or "cuda", "synchronize"))) end

---What a device has done since the program began: launches, uploads, downloads, upload_bytes,
---download_bytes, synchronizations, graphs (launches of them, whose kernels are not counted again).
---@param device? string  cuda:0
---@return table
function M.counters(device)
  local c = C.weft_counters_of(A.device(device or "cuda", "counters"))
  if c == nil then A.fail() end
  local out = {}
  for _, name in ipairs { "launches", "uploads", "downloads", "upload_bytes", "download_bytes", "synchronizations", "graphs" } do
    out[name] = tonumber(c[name])
  end
  return out
end

M.graph = graph.capture

return M
