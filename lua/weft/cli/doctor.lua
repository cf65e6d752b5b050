-- doctor.lua: what works on this machine, what does not, and what to do about it.
local ffi = require "ffi"

local M = {
  summary = "CPU, BLAS, memory, disk, GPU: what works, what does not, what to do",
  usage = "",
  about = "The exit code is 1 when something is found that must be repaired.",
  examples = { "weft doctor", "weft doctor | grep CPU" },
}

local function read(path)
  local f = io.open(path)
  if not f then return "" end
  local text = f:read "*a" or ""
  f:close()
  return text
end

local function shell(command)
  local p = io.popen(command .. " 2>/dev/null")
  if not p then return "" end
  local text = p:read "*a" or ""
  p:close()
  return text
end

local GIB = 2 ^ 30

-- Each check returns what it found, and, when something is wrong, what to do.

local function cpu(lib)
  local info = read "/proc/cpuinfo"
  local model = info:match "model name%s*:%s*([^\n]+)" or jit.arch
  local path = ffi.string(lib.weft_cpu_path())
  local cores = tonumber(shell "nproc") or 1
  local threads = lib.weft_threads()
  local text = ("%s, %d cores; %s kernels, %d threads"):format(model, cores, path, threads)
  if threads > cores then
    return text, ("more threads than cores: unset WEFT_THREADS, or set it to %d"):format(cores)
  end
  return text
end

-- A product whose result is known, timed.
local function product(weft, lib)
  local n = 512
  local a = weft.full { n, n, value = 2 }
  local clock = require("weft.cli.repl").clock
  local best, value = math.huge, nil
  for _ = 1, 3 do
    local began = clock()
    local y = a:matmul(a)
    best = math.min(best, clock() - began)
    value = y:sum():item()
  end
  local text = ("%s, %.0f GFLOP/s in a product of %d by %d"):format(ffi.string(lib.weft_blas_name()),
    2 * n ^ 3 / best / 1e9, n, n)
  if value ~= 4 * n ^ 3 then
    return text, ("the product is wrong (%g instead of %g): install another BLAS"):format(value, 4 * n ^ 3)
  end
  return text
end

local function memory()
  local info = read "/proc/meminfo"
  local total = (tonumber(info:match "MemTotal:%s*(%d+)") or 0) * 1024
  local free = (tonumber(info:match "MemAvailable:%s*(%d+)") or 0) * 1024
  local limit = tonumber((read "/sys/fs/cgroup/memory.max"))
  local text = ("%.1f GiB free of %.1f"):format(free / GIB, total / GIB)
  if limit and limit < total then
    text = text .. (", limited to %.1f here"):format(limit / GIB)
    free = math.min(free, limit)
  end
  if free < 1.5 * GIB then return text, "the quickstart wants 1.5 GiB: close something, or use a smaller batch" end
  return text
end

local function disk()
  local cache = os.getenv "XDG_CACHE_HOME"
  if not cache or cache == "" then cache = (os.getenv "HOME" or "/tmp") .. "/.cache" end
  local worst, list = math.huge, {}
  for _, place in ipairs { ".", cache } do
    local kib = tonumber((shell(("df -Pk '%s' | awk 'NR == 2 { print $4 }'"):format((place:gsub("'", "'\\''"))))))
    if kib then
      worst = math.min(worst, kib * 1024)
      list[#list + 1] = ("%.1f GiB free at %s"):format(kib * 1024 / GIB, place)
    end
  end
  local text = #list > 0 and table.concat(list, ", ") or "unknown"
  if worst < GIB then return text, "pictures, features and checkpoints of the quickstart want 1 GiB" end
  return text
end

-- The first use of each GPU also runs a kernel and checks what it gave.
local function gpu(cuda)
  local names = shell "nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader"
  local found = names:match "[^\n]+" or (read "/proc/driver/nvidia/version" ~= "" and "a driver without nvidia-smi") or "none"
  local usable, reason = cuda.is_available()
  if not usable then return ("%s: %s; everything runs on the CPU"):format(found, reason) end
  local list, advice = {}, nil
  for i = 1, cuda.device_count() do
    local name = "cuda:" .. i - 1
    local ok, text = pcall(cuda.describe, name)
    list[i] = ok and name .. " " .. text or name
    if not ok then advice = (text:gsub("^.-: (cuda:%d+ can't)", "%1")) end
  end
  return table.concat(list, "; "), advice
end

local function editing()
  for _, name in ipairs { "libedit.so.2", "libedit.so.0", "libedit.so" } do
    if pcall(ffi.load, name) then return "by libedit" end
  end
  return "plain: for history and editing, install Debian's package libedit2"
end

function M.run()
  local core = require "weft.core"
  local weft = require "weft"
  local lib = core.lib
  local checks = {
    { "weft", function() return ("%s, %d operators, %s"):format(core.version, lib.weft_n_ops(), core.path) end },
    { "LuaJIT", function() return jit.version .. ", JIT " .. (jit.status() and "on" or "off") end },
    { "CPU", function() return cpu(lib) end },
    { "BLAS", function() return product(weft, lib) end },
    { "memory", memory },
    { "disk", disk },
    { "GPU", function() return gpu(weft.cuda) end },
    { "prompt", editing },
  }
  if weft.cuda.about() then table.insert(checks, #checks, { "CUDA", weft.cuda.about }) end
  local bad = 0
  for _, check in ipairs(checks) do
    local ok, text, advice = pcall(check[2])
    if not ok then text, advice = "failed", tostring(text) end
    io.write(("%-8s %s\n"):format(check[1], text))
    if advice then
      bad = bad + 1
      io.write(("         ! %s\n"):format(advice))
    end
  end
  io.write(bad == 0 and "all is well\n" or ("%d to repair\n"):format(bad))
  return bad == 0 and 0 or 1
end

return M
