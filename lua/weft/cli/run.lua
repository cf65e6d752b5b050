-- run.lua: weft run: a Lua script, or a line of Lua, with weft at hand, wherever weft lies.
local M = {
  summary = "run a Lua script that requires weft",
  usage = "SCRIPT.lua [ARGUMENT ...] | -e CODE [ARGUMENT ...]",
  about = "In the script, arg[1] is the first argument. `return N` at its end sets the exit code; an error makes it 1.\n"
    .. "`weft SCRIPT.lua` and `weft -e CODE` are short for these; in CODE, weft is there without require.",
  examples = { "weft run fit.lua", "weft fit.lua runs/quickstart/2026-11-23-run", "weft -e 'print(weft.arange(5):sum())'" },
  raw = true,
}

function M.run(args)
  if not args[1] then error({ usage = "a script is expected" }, 0) end
  local chunk, message
  local first = 2
  if args[1] == "-e" then
    if not args[2] then error({ usage = "-e wants Lua code after it" }, 0) end
    chunk, message = loadstring(args[2], "=-e")
    if chunk then setfenv(chunk, setmetatable({ weft = require "weft" }, { __index = _G, __newindex = _G })) end
    first = 3
  else
    chunk, message = loadfile(args[1])
    package.path = (args[1]:match "^(.*)/[^/]*$" or ".") .. "/?.lua;" .. package.path
  end
  if not chunk then error(message, 0) end
  _G.arg = { [0] = args[first - 1], unpack(args, first) }
  local code = chunk(unpack(args, first))
  return type(code) == "number" and code or 0
end

return M
