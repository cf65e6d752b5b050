-- args.lua: the tensor handle, and the checks that every wrapper shares. Errors land on the first
-- line outside weft: the user's.
local ffi = require "ffi"
local nearest = require "weft.nearest"
local core = require "weft.core"
local forget = require("weft.autograd.functions").forget
local C, state = core.lib, core.state

local A = {}

ffi.cdef [[
typedef struct weft_ref { weft_tensor *p; uint64_t gen; } weft_ref;
]]

local here = debug.getinfo(1, "S").source:match "^(.*)args%.lua$"
local wrappers = "/weft/ops.lua" -- generated, so in the build folder when run from a checkout
local istype, gc = ffi.istype, ffi.gc
local Tensor = ffi.typeof "weft_ref"
A.Tensor = Tensor
A.outs = ffi.new "weft_tensor *[8]"

-- Level of the nearest function outside weft's own files, as error() in our caller counts it; 0, for a
-- message without a place, when only weft's own files run (the command).
local function user_level()
  local level = 3
  while true do
    local info = debug.getinfo(level, "S")
    if not info then return 0 end
    local source = info.source
    if info.what ~= "C" and source:sub(1, #here) ~= here and source:sub(-#wrappers) ~= wrappers then
      return level - 1
    end
    level = level + 1
  end
end

---Raises message at the user's line. `raise` has no level to get wrong.
---@param message string
function A.raise(message, ...)
  if select("#", ...) > 0 then message = message:format(...) end
  error(message, user_level())
end
local raise = A.raise

local function release(t)
  if t.p ~= nil and t.gen == t.p.gen then C.weft_free(t.p) end
end
A.release = release

-- Memory that Lua's collector can't see: once the core's live bytes have doubled since the last
-- collection (and are worth it), collect.
local FLOOR = 256 * 2 ^ 20
local threshold = FLOOR
local function collect()
  forget()
  collectgarbage()
  local live = tonumber(state.cpu.live)
  threshold = math.max(FLOOR, 2 * live)
end
A.collect = collect

---A Lua tensor for a handle that C returned. Outside scopes it gets a finalizer.
function A.wrap(p)
  local t = Tensor(p, p.gen)
  if state.scope_depth == 0 then gc(t, release) end
  if state.cpu.live > threshold then collect() end
  return t
end

function A.owned(t)
  return gc(t, release)
end

---Raises the core's last error, with `where` in front of what the core can't name.
function A.fail(where)
  error((where and where .. ": " or "") .. ffi.string(C.weft_error()), user_level())
end

---Frees what nobody holds any more: twice, since finalizers of the first collection let go of more.
function A.make_room()
  collectgarbage()
  forget()
  collectgarbage()
  C.weft_empty_cache(-1)
end

---Calls a C function that returns a handle; where memory ran out, once more with room made.
function A.make(where, fn, ...)
  local p = fn(...)
  if p == nil then
    if C.weft_error_code() ~= C.WEFT_ENOMEM then A.fail(where) end
    A.make_room()
    p = fn(...)
    if p == nil then A.fail(where) end
  end
  return p
end

---The same for one that returns a status and writes nothing when it fails.
function A.run(fn, ...)
  if fn(...) ~= 0 then
    A.relieve()
    if fn(...) ~= 0 then A.fail() end
  end
end

---After a failed call: when memory ran out, makes room and returns so that the call can be tried
---once more; otherwise raises.
function A.relieve()
  if C.weft_error_code() ~= C.WEFT_ENOMEM then error(ffi.string(C.weft_error()), user_level()) end
  A.make_room()
end

---Raises unless status is 0.
function A.check(status)
  if status ~= 0 then A.fail() end
end

local function typename(v)
  if istype(Tensor, v) then return "a tensor" end
  if v == nil then return "nothing" end
  if type(v) == "string" then return ("the string %q"):format(v) end
  return "a " .. type(v) .. (type(v) == "number" and " (" .. tostring(v) .. ")" or "")
end
A.typename = typename

function A.is_tensor(v) return istype(Tensor, v) end

---The handle behind a tensor, or an error that says what came instead.
function A.tensor(v, op, name)
  if istype(Tensor, v) then
    if v.p ~= nil and v.gen == v.p.gen then return v.p end
    raise("%s: %s was freed, or its scope has ended; return it from the scope or keep() it there", op, name)
  end
  raise("%s: %s: a tensor is expected, got %s", op, name, typename(v))
end

function A.tensors(list, op, name)
  if type(list) ~= "table" then raise("%s: %s: a table of tensors is expected, got %s", op, name, typename(list)) end
  local n = #list
  local p = ffi.new("const weft_tensor *[?]", math.max(n, 1))
  for i = 1, n do p[i - 1] = A.tensor(list[i], op, ("%s[%d]"):format(name, i)) end
  return p, n
end

function A.number(v, op, name)
  if type(v) ~= "number" then raise("%s: %s: a number is expected, got %s", op, name, typename(v)) end
end
function A.integer(v, op, name)
  raise("%s: %s: a whole number is expected, got %s", op, name, typename(v))
end
function A.position(v, op, name)
  if v == 0 then raise("%s: %s: positions count from 1 (or from the end, -1), got 0", op, name) end
  raise("%s: %s: a position is expected, got %s", op, name, typename(v))
end

local buffer = ffi.new "int64_t[16]"
local function fill(list, op, name, shift)
  local n = #list
  if n > 16 then raise("%s: %s: at most 16 entries, got %d", op, name, n) end
  for i = 1, n do
    local v = list[i]
    if type(v) ~= "number" or v % 1 ~= 0 then raise("%s: %s[%d]: a whole number is expected, got %s", op, name, i, typename(v)) end
    if shift then
      if v == 0 then raise("%s: %s: dims count from 1 (or from the end, -1), got 0", op, name) end
      buffer[i - 1] = v > 0 and v - 1 or v
    else
      buffer[i - 1] = v
    end
  end
  return buffer, n
end

function A.shape(v, op, name)
  if type(v) ~= "table" then raise("%s: %s: a table of sizes is expected, got %s", op, name, typename(v)) end
  return fill(v, op, name, false)
end
A.ints = A.shape

function A.dims(v, op, name)
  if v == nil then return buffer, 0 end
  if type(v) == "number" then v = { v } end
  if type(v) ~= "table" then raise("%s: %s: a dim or a table of dims is expected, got %s", op, name, typename(v)) end
  return fill(v, op, name, true)
end

A.nearest, A.suggest = nearest.nearest, nearest.suggest

---Refuses keys of options that defaults doesn't have; fills the missing ones.
---@param options table?
---@param defaults table   name -> default; use A.required for what has none, A.none for nil
---@param where string
function A.options(options, defaults, where)
  local out = {}
  local config = package.loaded["weft.config"]
  if config and config.is_section(options) then options = config.plain(options) end
  if options ~= nil and type(options) ~= "table" then raise("%s: a table of options is expected, got %s", where, typename(options)) end
  for k in pairs(options or {}) do
    if defaults[k] == nil then
      local known = {}
      for name in pairs(defaults) do known[#known + 1] = tostring(name) end
      raise("%s: unknown option %s%s", where, tostring(k), A.suggest(k, known))
    end
  end
  for k, default in pairs(defaults) do
    local v = options and options[k]
    if v == nil then v = default end
    if v == A.required then raise("%s: %s is missing", where, k) end
    if v == A.none then v = nil end
    out[k] = v
  end
  return out
end
A.required, A.none = {}, {}

function A.dtype(v, op)
  local n = type(v) == "string" and C.weft_dtype_of(v) or -1
  if n < 0 then
    raise("%s: unknown dtype %s%s", op, tostring(v), A.suggest(tostring(v),
      { "float32", "float64", "bfloat16", "float16", "int32", "int64", "uint8", "bool" }))
  end
  return n
end

function A.device(v, op)
  local n = type(v) == "string" and C.weft_device_of(v) or -1
  if n < 0 then raise("%s: unknown device %s; cpu, cuda, cuda:1 or meta are expected", op, tostring(v)) end
  return n
end

function A.choice(v, map, op, name)
  local known = {}
  for k in pairs(map) do known[#known + 1] = k end
  raise("%s: %s: unknown choice %s%s", op, name, tostring(v), A.suggest(tostring(v), known))
end

function A.rng(v, op)
  return require("weft.random").take(v, op)
end

return A
