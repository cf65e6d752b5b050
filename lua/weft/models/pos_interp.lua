-- pos_interp.lua: a learned table of positions resized to another grid of patches, by the three rules
-- of the field. They differ by up to a quarter of a source cell, which a model's output shows.
local A = require "weft.args"
local ops = require("weft.ops").functions

local M = {}

---offset: bicubic with the source step g / (h + 0.1), as the first models were trained;
---size: bicubic by sizes alone; antialias: by sizes, with a support widened when shrinking.
M.rules = { offset = true, size = true, antialias = true }

---Table [1, k + g*g, d] -> [1, k + h*w, d]. The first k slots (no patches: CLS) stay.
---@param table_ weft.Tensor
---@param h integer      rows of patches
---@param w integer      patches a row
---@param rule string    offset, size or antialias
---@param slots? integer k, 1
---@return weft.Tensor  the table itself where the grid is its own
function M.resize(table_, h, w, rule, slots)
  if not M.rules[rule] then
    A.raise("pos_interp: unknown rule %s%s", tostring(rule), A.suggest(tostring(rule), { "offset", "size", "antialias" }))
  end
  slots = slots or 1
  local d, patches = table_:size(3), table_:size(2) - slots
  local g = math.floor(math.sqrt(patches) + 0.5)
  if g * g ~= patches then A.raise("pos_interp: a table of %d patches is no square", patches) end
  if h == g and w == g then return table_ end
  local grid = table_:narrow(2, slots + 1, patches):reshape(1, g, g, d):permute(1, 4, 2, 3)
  local scale_h, scale_w = 0, 0
  if rule == "offset" then scale_h, scale_w = (h + 0.1) / g, (w + 0.1) / g end
  local resized = ops.interpolate(grid, h, w, scale_h, scale_w, rule == "antialias")
  local flat = resized:permute(1, 3, 4, 2):reshape(1, h * w, d)
  if slots == 0 then return flat end
  return (ops.cat({ table_:narrow(2, 1, slots), flat }, 2))
end

return M
