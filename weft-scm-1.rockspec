rockspec_format = "3.0"
package = "weft"
version = "scm-1"
source = {
  -- `luarocks make` builds the checkout and fetches nothing; a source rock is packed from this archive
  url = "file://weft-scm-1.tar.gz",
  dir = "weft-scm-1",
}
description = {
  summary = "A Lua-scriptable numerical toolkit: tensors, operators and autograd in C, scripted in LuaJIT",
  license = "MIT",
}
dependencies = { "lua == 5.1" }
build = {
  type = "cmake",
  variables = {
    CMAKE_BUILD_TYPE = "Release",
    WEFT_LUADIR = "$(LUADIR)",
    WEFT_LIBDIR = "$(LIBDIR)",
    WEFT_BINDIR = "$(BINDIR)",
    WEFT_INCLUDEDIR = "$(PREFIX)/include",
  },
}
-- the launcher is a shell script: a Lua wrapper around it would not start
deploy = { wrap_bin_scripts = false }
