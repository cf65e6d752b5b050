-- cdef.lua: turns the preprocessed weft.h into a Lua module that ffi.cdef can take.
-- luajit cdef.lua weft.i OUT
local f = assert(io.open(arg[1])); local text = f:read "*a"; f:close()
-- only what follows our own marker: the system's headers come before it
text = text:gsub("^.-typedef enum weft_status", "typedef enum weft_status", 1)
local out = assert(io.open(arg[2], "w"))
out:write("-- Generated from weft.h.\nreturn [==[\n", text, "]==]\n")
out:close()
