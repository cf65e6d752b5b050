-- words.lua: command-line words: options told from words, and the nearest name to a mistaken one.
-- Needs no C library, so that help and mistakes answer at once.
local M = {}

local function distance(a, b)
  local row = {}
  for j = 0, #b do row[j] = j end
  for i = 1, #a do
    local diagonal = row[0]
    row[0] = i
    for j = 1, #b do
      local keep = row[j]
      local cost = a:byte(i) == b:byte(j) and 0 or 1
      row[j] = math.min(row[j] + 1, row[j - 1] + 1, diagonal + cost)
      diagonal = keep
    end
  end
  return row[#b]
end

---At most count of the known names, nearest first, none that is far off.
---@param name string
---@param known string[]
---@param count integer?  3
---@return string[]
function M.nearest(name, known, count)
  local scored = {}
  for _, k in ipairs(known) do
    local d = distance(name:lower(), k:lower())
    if #name > 2 and (k:find(name, 1, true) or name:find(k, 1, true)) then d = math.min(d, 2) end
    if d <= math.max(1, #name * 0.4) then scored[#scored + 1] = { d, k } end
  end
  table.sort(scored, function(x, y) return x[1] < y[1] or x[1] == y[1] and x[2] < y[2] end)
  local out = {}
  for i = 1, math.min(count or 3, #scored) do out[i] = scored[i][2] end
  return out
end

---"; did you mean a or b?", or the known names where none is near and they are few.
function M.suggest(name, known)
  local near = M.nearest(name, known)
  if #near > 0 then return ("; did you mean %s?"):format(table.concat(near, " or ")) end
  if #known == 0 or #known > 20 then return "" end
  return "; known: " .. table.concat(known, ", ")
end

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
