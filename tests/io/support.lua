-- support.lua: what the specs of files share: temporary directories, tensors of any dtype, bytes.
require "weft"
local ffi = require "ffi"
local A = require "weft.args"
local C = require("weft.core").lib

local M = { golden = "tests/golden/" }

---A fresh directory, removed by M.cleanup.
local made = {}
function M.directory()
  local name = os.tmpname()
  os.remove(name)
  assert(os.execute("mkdir -p '" .. name .. "'"))
  made[#made + 1] = name
  return name .. "/"
end
function M.cleanup()
  for _, name in ipairs(made) do os.execute("chmod -R u+w '" .. name .. "'; rm -rf '" .. name .. "'") end
  made = {}
end

function M.tensor(values, shape, dtype)
  local sizes = ffi.new("int64_t[8]", shape)
  local t = A.wrap(C.weft_empty(sizes, #shape, C.weft_dtype_of(dtype or "float32"), C.WEFT_CPU))
  local c = ffi.new("double[?]", #values + 1)
  for i, v in ipairs(values) do c[i - 1] = v end
  A.check(C.weft_write(t.p, c, #values))
  return t
end

---Flat values, shape and dtype of a tensor.
function M.values(t)
  local v, out, shape = t.p.v, {}, {}
  local n = tonumber(v.numel)
  local c = ffi.new("double[?]", n + 1)
  A.check(C.weft_read(t.p, c, n))
  for i = 1, n do out[i] = c[i - 1] end
  for d = 1, v.ndim do shape[d] = tonumber(v.shape[d - 1]) end
  return out, shape, ffi.string(C.weft_dtype_name(v.dtype))
end

function M.read(path)
  local f = assert(io.open(path, "rb"))
  local bytes = f:read "*a"
  f:close()
  return bytes
end

function M.write(path, bytes)
  local f = assert(io.open(path, "wb"))
  f:write(bytes)
  f:close()
  return path
end

---Little-endian bytes of a number.
function M.le(n, bytes)
  local out = {}
  for i = 1, bytes do
    out[i] = string.char(n % 256)
    n = math.floor(n / 256)
  end
  return table.concat(out)
end

---Runs Lua code in another process, after shell commands that limit it; its output.
function M.elsewhere(before, code)
  local file = M.write(M.directory() .. "code.lua", code)
  local pipe = assert(io.popen(before .. " luajit '" .. file .. "' 2>&1"))
  local out = pipe:read "*a"
  pipe:close()
  return out
end

return M
