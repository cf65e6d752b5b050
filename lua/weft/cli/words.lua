-- words.lua: command-line words: options told from words, and the nearest name to a mistaken one.
-- Needs no C library, so that help and mistakes answer at once.
local near = require "weft.nearest"

local M = {}

M.nearest = near.nearest

---"; did you mean a or b?", or the known names where none is near and they are few.
function M.suggest(name, known) return (near.suggest(name, known, 20)) end

---Splits words by a verb's options. --name VALUE and --name=VALUE are the same; -- ends options.
---@return table? args  nil and a message when a word is no option of this verb
function M.parse(words, options)
  local args, known, by_name = {}, { "--help" }, {}
  for _, option in ipairs(options) do
    by_name[option[1]] = option
    known[#known + 1] = "--" .. option[1]
  end
  local i, plain = 1, false
  while i <= #words do
    local word = words[i]
    local name, value = word:match "^%-%-([^=]+)=?(.*)$"
    if plain or word == "-" or word:sub(1, 1) ~= "-" then
      args[#args + 1] = word
    elseif word == "--" then
      plain = true
    elseif name == "help" or word == "-h" then
      args.help = true
    elseif not name or not by_name[name] then
      return nil, ("unknown option %s%s"):format(word, M.suggest(word, known))
    elseif by_name[name].value then
      if not word:find("=", 1, true) then
        i = i + 1
        value = words[i]
      end
      if value == nil then return nil, ("--%s wants %s after it"):format(name, by_name[name].value) end
      args[name] = value
    elseif value ~= "" then
      return nil, ("--%s is a switch and takes no value, got %q"):format(name, value)
    else
      args[name] = true
    end
    i = i + 1
  end
  return args
end

return M
