-- main.lua: what bin/weft runs. Points Lua at the tree that this file lies in, then runs the command.
local root = arg[0]:match "^(.*)/weft/cli/main%.lua$" or "."

local function readable(path)
  local f = io.open(path)
  if f then f:close() end
  return f ~= nil
end

if readable(root .. "/../core/ops.def") then -- a checkout: what was generated lies in the build folder
  local build = root .. "/../" .. (os.getenv "WEFT_BUILD" or "build")
  package.path = ("%s/?.lua;%s/?/init.lua;%s/generated/lua/?.lua;"):format(root, root, build)
    .. package.path
  package.cpath = build .. "/?.so;" .. package.cpath
  if not readable(build .. "/libweft.so") then
    package.preload["weft.core"] = function()
      error("weft is not built here yet: run bin/quickstart, or: "
        .. "cmake -S . -B build -G Ninja && ninja -C build", 0)
    end
  end
else
  package.path = ("%s/?.lua;%s/?/init.lua;"):format(root, root) .. package.path
  package.cpath = root .. "/../../../lib/lua/5.1/?.so;" .. package.cpath
end

os.exit(require("weft.cli").main({ unpack(arg) }))
