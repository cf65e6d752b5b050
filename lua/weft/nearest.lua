-- nearest.lua: the known names that a mistaken one may have meant. Needs no C library.
local M = {}

-- Letters to change, add or drop on the way from a to b (Levenshtein 1965).
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

---The known names nearest to name, nearest first; none that is far off.
---@param name string
---@param known string[]
---@param count? integer  at most so many: 3
---@return string[]
function M.nearest(name, known, count)
  local scored = {}
  for _, k in ipairs(known) do
    local d = distance(name:lower(), k:lower())
    local inside = #name > 2 and (k:find(name, 1, true) or #k > 2 and name:find(k, 1, true))
    if inside then d = math.min(d, 2) end
    if inside or d <= (#name <= 3 and 1 or math.max(2, #name * 0.4)) then scored[#scored + 1] = { d, k } end
  end
  table.sort(scored, function(x, y) return x[1] < y[1] or x[1] == y[1] and x[2] < y[2] end)
  local out = {}
  for i = 1, math.min(count or 3, #scored) do out[i] = scored[i][2] end
  return out
end

---"; did you mean a or b?", or where none is near the known names, unless they are more than most.
---@param name any
---@param known string[]
---@param most? integer
---@return string
function M.suggest(name, known, most)
  local near = M.nearest(tostring(name), known)
  if #near > 0 then return ("; did you mean %s?"):format(table.concat(near, " or ")) end
  if #known == 0 or most and #known > most then return "" end
  table.sort(known)
  return "; known: " .. table.concat(known, ", ")
end

return M
