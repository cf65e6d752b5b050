-- run.lua: weft run: a Lua script with weft at hand, wherever weft lies.
local M = {
  summary = "run a Lua script that requires weft",
  usage = "SCRIPT.lua [ARGUMENT ...]",
  about = "In the script, arg[1] is the first argument. `return N` at its end sets the exit code.",
  examples = { "weft run fit.lua", "weft run report.lua runs/quickstart/2026-11-23-run" },
  raw = true,
}

function M.run(args)
  if not args[1] then error({ usage = "a script is expected" }, 0) end
  local chunk, message = loadfile(args[1])
  if not chunk then error(message, 0) end
  _G.arg = { [0] = args[1], unpack(args, 2) }
  local beside = (args[1]:match "^(.*)/[^/]*$" or ".") .. "/?.lua"
  package.path = beside .. ";" .. package.path
  local code = chunk(unpack(args, 2))
  return type(code) == "number" and code or 0
end

return M
