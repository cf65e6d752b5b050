-- help.lua: weft help [NAME]: the overview, a verb's page, or what is known of a name (weft.help).
local words = require "weft.cli.words"

local M = {
  summary = "this overview, a verb, an operator or a function",
  usage = "[NAME]",
  about = "Without a name, lists the verbs. A name is a verb, an operator, or a function or class such as\n"
    .. "peft.lora; parts of operators' names list what matches. Positions and dims count from 1 (negative\n"
    .. "from the end); [x] may be left out.",
  examples = { "weft help layer_norm", "weft help peft.lora", "weft help inspect" },
}

---What is known of an operator, as text; nil and a message with the nearest names when there is none.
---@param name string
---@return string?, string?
function M.operator(name)
  local ops = require "weft.ops"
  if ops.signatures[name] then
    return ("weft.%s\n    %s\n"):format(ops.signatures[name], ops.docs[name])
  end
  local known, inside = {}, {}
  for other in pairs(getmetatable(require "weft").names) do known[#known + 1] = other end
  for op in pairs(ops.signatures) do
    known[#known + 1] = op
    if #name > 2 and op:find(name, 1, true) then inside[#inside + 1] = op end
  end
  if #inside > 0 then
    table.sort(inside)
    local lines = {}
    for i, op in ipairs(inside) do lines[i] = ("weft.%s\n    %s\n"):format(ops.signatures[op], ops.docs[op]) end
    return table.concat(lines)
  end
  table.sort(known)
  return nil, ("nothing is called %s%s"):format(name, words.suggest(name, known))
end

function M.run(args)
  local cli = require "weft.cli"
  local name = args[1]
  if not name then
    io.write(cli.overview())
    return
  end
  name = name:gsub("^weft%.", "")
  local verb = cli.verb(name)
  if verb then
    io.write(cli.help(name, verb))
    return
  end
  local text, problem = require("weft.help").text(name)
  if not text then error(problem, 0) end
  io.write(text)
end

return M
