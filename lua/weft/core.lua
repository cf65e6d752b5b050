-- core.lua: finds and opens the C library, and hands its declarations to the FFI. Nothing else does.
local ffi = require "ffi"

if not (jit and ffi.abi "64bit" and ffi.abi "gc64") then
  error("weft wants a 64-bit LuaJIT with 64-bit GC (gc64); this one holds at most 2 GB of Lua objects", 0)
end

ffi.cdef(require "weft.cdef")

local function find_library()
  local path = package.searchpath("weft.libweft", package.cpath) or package.searchpath("libweft", package.cpath)
  if path then return path end
  error("weft: libweft.so was not found; looked in package.cpath = " .. package.cpath
    .. "\nbuild it (cmake --build build) or install the rock (luarocks make)", 0)
end

local path = find_library()
local lib = ffi.load(path)

return {
  lib = lib,
  path = path,
  state = lib.weft_get_state(),
  version = ffi.string(lib.weft_version()),
}
