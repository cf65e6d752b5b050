-- pool.lua: one vector a sequence.
local A = require "weft.args"
local ops = require("weft.ops").functions
local create = require("weft.tensor").create

local M = {}

---State of the last real token (EOS) of each row: hidden [B, N, d] -> [B, d].
---@param hidden weft.Tensor
---@param mask? weft.Tensor  [B, N] bool, true for tokens; padding is on the right. None: no padding.
function M.last_token(hidden, mask)
  local batch, n, d = hidden:size(1), hidden:size(2), hidden:size(3)
  if mask == nil then return (hidden:select(2, n)) end
  if mask:size(1) ~= batch or mask:size(2) ~= n then
    A.raise("last_token: mask [%s] does not fit states [%s]", table.concat(mask.shape, ","), table.concat(hidden.shape, ","))
  end
  local length = mask:to("int64"):sum(2):maximum(1)
  local first = create.arange(0, batch * n, n, { dtype = "int64", device = hidden.device })
  return (ops.index_select(hidden:reshape(batch * n, d), first + length - 1, 1))
end

---Columns of padded rows up to the longest real one (right padding), at least one.
---@param mask weft.Tensor  [B, N] on the CPU
---@return integer
function M.longest(mask)
  if mask.device ~= "cpu" or mask:size(1) == 0 then return mask:size(2) end
  return math.max(1, mask:to("int64"):sum(2):max():item())
end

return M
