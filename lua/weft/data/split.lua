-- split.lua: which pictures train and which are held out. Pictures with equal captions form a group
-- and stay together, so that no held-out caption was trained on.
local columns = require "weft.data.columns"
local random = require "weft.random"
local rows_of = require "weft.data.rows"

local M = {}

-- Groups of equal captions, whatever the case of their letters: how many, row i's, and a row's words.
local function grouped(rows)
  if rows_of.is_rows(rows) then
    local caption = rows_of.reader(rows, "caption")
    return rows:number_captions(), rows_of.reader(rows, "caption_id"), function(i) return caption(i):lower() end
  end
  local number, n, of = {}, 0, {}
  for i, row in ipairs(rows) do
    local key = row.caption:lower()
    if not number[key] then n, number[key] = n + 1, n + 1 end
    of[i] = number[key]
  end
  return n, function(i) return of[i] end, function(i) return rows[i].caption:lower() end
end

local SLICES = 64        -- of the draws, so that no list of all groups is made
local ABSENT = 2         -- the draw of a group without a row: none

-- Groups in the order of their draws, and of their words where those are equal, a slice at a time.
local function in_order(draws, words_of_group, fn)
  local slices = math.min(SLICES, math.ceil(draws.n / 1024))
  for slice = 0, slices - 1 do
    local list = {}
    for g = 1, draws.n do
      local draw = draws:get(g - 1)
      if draw ~= ABSENT and math.floor(draw * slices) == slice then list[#list + 1] = g end
    end
    table.sort(list, function(a, b)
      local x, y = draws:get(a - 1), draws:get(b - 1)
      return x < y or x == y and a ~= b and words_of_group(a) < words_of_group(b)
    end)
    if fn(list) then return end
  end
end

---Splits rows into train and test by groups of equal captions. The same seed and data give the same
---split, whatever else changes.
---@param rows weft.Rows|table[]  rows, or a list of { caption = ... }
---@param share number  part of the pictures to hold out, 0..1
---@param seed integer
---@return weft.Rows|table[] train, weft.Rows|table[] test
function M.by_caption(rows, share, seed)
  local total = rows_of.size(rows)
  local n, group, words = grouped(rows)
  local sizes, held = columns.numbers("int32"):extend(n, 0), columns.numbers("uint8"):extend(n, 0)
  -- A group's draw depends on its caption alone. The hash by itself won't do: captions that differ in their last
  -- letters have hashes side by side, and would be held out together.
  local draws = columns.numbers("float64"):extend(n, ABSENT)
  for i = 1, total do
    local g = group(i) - 1
    if sizes:get(g) == 0 then draws:set(g, random.uniform(random.hash("split/" .. words(i), seed), 0ULL)) end
    sizes:set(g, sizes:get(g) + 1)
  end
  local function words_of_group(g)
    for i = 1, total do
      if group(i) == g then return words(i) end
    end
  end
  local want, taken = math.floor(share * total + 0.5), 0
  in_order(draws, words_of_group, function(list)
    for _, g in ipairs(list) do
      local size = sizes:get(g - 1)
      if taken + size <= want then
        held:set(g - 1, 1)
        taken = taken + size
      end
    end
    return taken == want
  end)
  sizes:free()
  draws:free()
  local train = rows_of.select(rows, function(i) return held:get(group(i) - 1) == 0 end)
  local test = rows_of.select(rows, function(i) return held:get(group(i) - 1) == 1 end)
  held:free()
  return train, test
end

return M
