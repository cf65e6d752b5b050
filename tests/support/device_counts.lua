-- device_counts.lua: a simulated device that counts and computes nothing, and what it counted (see
-- tests/cuda_on_cpu/count.h). Require it before weft opens a device.
local ffi = require "ffi"

ffi.cdef [[
int setenv(const char *name, const char *value, int overwrite);
typedef struct sim_kernel_count { const char *name; int64_t launches, bytes_read, bytes_written; } sim_kernel_count;
typedef struct sim_runtime_count {
  int64_t allocations, frees, pinned_allocations, stream_waits, event_waits;
  int64_t uploads, upload_bytes, downloads, download_bytes, copies, copy_bytes, clears, clear_bytes;
} sim_runtime_count;
void sim_count_reset(void);
int sim_count_kernels(void);
const sim_kernel_count *sim_count_kernel(int i);
sim_runtime_count *sim_count_runtime(void);
]]

for name, value in pairs { WEFT_SIM_DRY = "1", WEFT_SIM_TWO_ORDERS = "0", WEFT_CUDA_BLOCKING = "0", WEFT_CUDA_NO_CACHE = "0" } do
  ffi.C.setenv(name, value, 1)
end

local M = { device = "cuda-sim" }

local lib = ffi.load((os.getenv "WEFT_BUILD" or "build") .. "/libweft_cuda_sim.so")
local fields = { "allocations", "frees", "pinned_allocations", "stream_waits", "event_waits", "uploads", "upload_bytes", "downloads",
  "download_bytes", "copies", "copy_bytes", "clears", "clear_bytes" }

---What the device does while fn runs: { kernels = { [name] = { launches, read, written } }, launches, read,
---written } and the calls of the runtime by name.
---@param fn function
function M.during(fn)
  lib.sim_count_reset()
  fn()
  local out = { kernels = {}, launches = 0, read = 0, written = 0 }
  for i = 0, lib.sim_count_kernels() - 1 do
    local row = lib.sim_count_kernel(i)
    local k = { launches = tonumber(row.launches), read = tonumber(row.bytes_read), written = tonumber(row.bytes_written) }
    out.kernels[ffi.string(row.name)] = k
    for name, n in pairs(k) do out[name] = out[name] + n end
  end
  local runtime = lib.sim_count_runtime()
  for _, name in ipairs(fields) do out[name] = tonumber(runtime[name]) end
  return out
end

---The counts as lines, most bytes first.
function M.text(counts)
  local names, lines = {}, {}
  for name in pairs(counts.kernels) do names[#names + 1] = name end
  local function bytes(name) return counts.kernels[name].read + counts.kernels[name].written end
  table.sort(names, function(a, b) return bytes(a) > bytes(b) end)
  for i, name in ipairs(names) do
    local k = counts.kernels[name]
    lines[i] = ("%-32s %6d launches  %10.2f MB read  %10.2f MB written"):format(name, k.launches, k.read / 1e6, k.written / 1e6)
  end
  lines[#lines + 1] = ("%-32s %6d launches  %10.2f MB read  %10.2f MB written"):format("all", counts.launches, counts.read / 1e6, counts.written / 1e6)
  return table.concat(lines, "\n")
end

return M
