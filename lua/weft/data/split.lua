-- split.lua: which pictures train and which are held out. Pictures with equal captions form a group
-- and stay together, so that no held-out caption was trained on.
local random = require "weft.random"
local ops = require("weft.ops").functions

local M = {}

---Splits pairs into train and test by groups of equal captions. The same seed and data give the same
---split, whatever else changes.
---@param pairs_ table[]  { caption = ... }
---@param share number  part of the pictures to hold out, 0..1
---@param seed integer
---@return table[] train, table[] test
function M.by_caption(pairs_, share, seed)
  local groups, order = {}, {}
  for _, p in ipairs(pairs_) do
    local key = p.caption:lower()
    if not groups[key] then
      groups[key] = {}
      order[#order + 1] = key
    end
    table.insert(groups[key], p)
  end
  -- A group's place depends on its caption alone. The hash by itself won't do: captions that differ in
  -- their last letters have hashes side by side, and would be held out together.
  local keyed = {}
  for i, key in ipairs(order) do
    local draw = ops.rand({ 1 }, "float64", "cpu", { key = random.hash("split/" .. key, seed), counter = 0ULL })
    keyed[i] = { draw:data()[0], key }
    draw:free()
  end
  table.sort(keyed, function(a, b) return a[1] < b[1] or a[1] == b[1] and a[2] < b[2] end)
  local want, test_groups, n = math.floor(share * #pairs_ + 0.5), {}, 0
  for _, k in ipairs(keyed) do
    local size = #groups[k[2]]
    if n + size <= want then
      test_groups[k[2]] = true
      n = n + size
    end
  end
  local train, test = {}, {}
  for _, p in ipairs(pairs_) do
    local list = test_groups[p.caption:lower()] and test or train
    list[#list + 1] = p
  end
  return train, test
end

return M
