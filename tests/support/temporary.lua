-- temporary.lua: os.tmpname below TMPDIR, which bin/test makes and takes away; LuaJIT's own knows /tmp alone.
local ffi = require "ffi"

pcall(ffi.cdef, "int mkstemp(char *template);")
pcall(ffi.cdef, "int close(int fd);")

local own, place = os.tmpname, os.getenv "TMPDIR"

local function tmpname()
  local name = place .. "/lua_XXXXXX"
  local path = ffi.new("char[?]", #name + 1, name)
  local fd = ffi.C.mkstemp(path)
  if fd < 0 then error(place .. ": no temporary file can be made there") end
  ffi.C.close(fd)
  return ffi.string(path)
end

rawset(os, "tmpname", place and place ~= "" and tmpname or own)
