-- init.lua: the weft command. A verb is a module weft.cli.<verb>, loaded only when it is asked for:
--   summary   one line
--   usage     what follows "weft <verb>"
--   about     optional paragraph
--   options   list of { name, help, value = "N" (none: a switch), default = shown as text }
--   examples  list of lines
--   run       function(args) -> exit code (nil: 0); args[1..] are the words, args.name the options
--   raw       true: words and unknown options reach run as they were typed, in args
local A = require "weft.cli.words"

local M = {}

---Exit codes of every verb.
M.OK, M.ERROR, M.USAGE, M.STOPPED, M.INTERRUPTED = 0, 1, 2, 75, 130

-- In the order in which help lists them; those whose module is not installed are left out.
local order = { "new", "train", "ablate", "eval", "caption", "features", "fetch", "inspect", "export", "adapter", "report",
  "run", "repl", "doctor", "help" }

local function installed(verb)
  return package.searchpath("weft.cli." .. verb, package.path) ~= nil
end

---Names of the verbs at hand.
function M.verbs()
  local list = {}
  for _, verb in ipairs(order) do
    if installed(verb) then list[#list + 1] = verb end
  end
  return list
end

---The module of a verb, or nil.
function M.verb(name)
  for _, verb in ipairs(order) do
    if verb == name and installed(verb) then return require("weft.cli." .. verb) end
  end
end

---The page that `weft VERB --help` prints.
function M.help(name, verb)
  local lines = { ("weft %s %s"):format(name, verb.usage or ""), "", verb.summary }
  if verb.about then lines[#lines + 1] = "\n" .. verb.about end
  local options = { { "help", "this page" } }
  for _, option in ipairs(verb.options or {}) do table.insert(options, #options, option) end
  lines[#lines + 1] = "\nOptions:"
  for _, o in ipairs(options) do
    local left = "--" .. o[1] .. (o.value and " " .. o.value or "")
    local default = o.default and (" (default: %s)"):format(tostring(o.default)) or ""
    lines[#lines + 1] = ("  %-24s %s%s"):format(left, o[2], default)
  end
  lines[#lines + 1] = "\nExamples:"
  for _, example in ipairs(verb.examples or {}) do lines[#lines + 1] = "  " .. example end
  return table.concat(lines, "\n") .. "\n"
end

---The page that `weft help` prints. Loads no verb but for its summary, and not the C library.
function M.overview()
  local lines = { "weft: tensors, autograd and training, scripted in Lua\n",
    "  weft                       the prompt; weft SCRIPT.lua and weft -e CODE run Lua" }
  for _, name in ipairs(M.verbs()) do
    lines[#lines + 1] = ("  weft %-21s %s"):format(name, M.verb(name).summary)
  end
  lines[#lines + 1] = "\n  weft VERB --help           a verb's options, defaults and examples"
  lines[#lines + 1] = "  weft help NAME             a verb, an operator or a function"
  lines[#lines + 1] = "\nExit codes: 0 done, 1 error, 2 usage, 75 stopped by a signal with a "
    .. "checkpoint written (try again), 130 Ctrl-C"
  return table.concat(lines, "\n") .. "\n"
end

local function complain(where, message)
  io.stdout:flush()
  io.stderr:write(where, ": ", message, "\n")
end

-- An error as the user should read it: the message alone, or with its trace when asked for.
local function handler(e)
  if type(e) == "table" then return e end
  e = tostring(e)
  if os.getenv "WEFT_TRACE" then e = debug.traceback(e, 2) end
  return e
end

---Runs one command line and returns its exit code.
---@param words string[]
---@return integer
function M.main(words)
  local name = table.remove(words, 1)
  if name == nil then name = "repl" end
  if name == "--help" or name == "-h" then name = "help" end
  if name == "--version" then
    io.write("weft ", require("weft.core").version, "\n")
    return M.OK
  end
  if name == "-e" or name:find "%.lua$" and not M.verb(name) then
    table.insert(words, 1, name)
    name = "run"
  end
  local verb = M.verb(name)
  if not verb then
    complain("weft", ("no verb %s%s"):format(name, A.suggest(name, M.verbs())))
    return M.USAGE
  end
  local args, problem
  if verb.raw then
    words.help = words[1] == "--help" or words[1] == "-h"  -- what comes after is a script's own
    args = words
  else
    args, problem = A.parse(words, verb.options or {})
  end
  if not args then
    complain("weft " .. name, problem .. ("\nweft %s --help lists what there is"):format(name))
    return M.USAGE
  end
  if args.help then
    io.write(M.help(name, verb))
    return M.OK
  end
  local ok, code = xpcall(verb.run, handler, args)
  if ok then
    io.stdout:flush()
    return code or M.OK
  end
  if type(code) == "table" and code.usage then
    complain("weft " .. name, code.usage .. ("\nweft %s --help lists what there is"):format(name))
    return M.USAGE
  end
  if tostring(code):find "interrupted!$" then  -- LuaJIT's own word for Ctrl-C
    complain("weft " .. name, "interrupted")
    return M.INTERRUPTED
  end
  complain("weft " .. name, type(code) == "table" and tostring(code.message) or code)
  return M.ERROR
end

return M
