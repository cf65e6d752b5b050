-- rows.lua: results of the exchange as a table: a line a size and variant, a column a way.
local json = require "weft.io.json"

local M = { limit = 1e-5 }

local ways = { "4 writes, we read", "5 writes, we read", "we write, 4 reads", "we write, 5 reads" }

local function cell(row)
  if not row then return "" end
  if row.failed then return "**failed**" end
  if row.skipped then return "cannot" end
  if not (row.difference <= M.limit) then return ("**%.1e**"):format(row.difference) end
  return row.difference == 0 and "0" or ("%.1e"):format(row.difference)
end

---Prints the table; returns 1 where anything failed, lies too far apart or was warned of.
---@param path string   a JSON object a line
---@param title string
function M.print(path, title)
  local order, by_name, notes, bad = {}, {}, {}, 0
  for line in io.lines(path) do
    local row = assert(json.decode(line))
    local key = row.size .. " | " .. row.variant
    if not by_name[key] then
      by_name[key] = {}
      order[#order + 1] = key
    end
    by_name[key][row.way] = row
    if row.failed or row.difference and not (row.difference <= M.limit) or row.heard and row.heard ~= "" then bad = bad + 1 end
    local said = row.failed or row.skipped or row.heard ~= "" and row.heard or row.note
    if said then notes[#notes + 1] = ("- %s, %s: %s"):format(key:gsub(" | ", ", "), row.way, said) end
  end
  print(title .. "\n")
  print("| size | variant | " .. table.concat(ways, " | ") .. " |")
  print("|---|---|" .. ("--:|"):rep(#ways))
  for _, key in ipairs(order) do
    local cells = {}
    for i, way in ipairs(ways) do cells[i] = cell(by_name[key][way]) end
    print("| " .. key .. " | " .. table.concat(cells, " | ") .. " |")
  end
  if #notes > 0 then print("\n" .. table.concat(notes, "\n")) end
  print(("\n%d lines; %d failed, lie above %g or were warned of"):format(#order, bad, M.limit))
  return bad == 0 and #order > 0 and 0 or 1
end

return M
