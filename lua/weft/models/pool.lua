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
  -- 0, n, 2 n, ...: made where the states are, so that nothing is uploaded
  local first = ops.cumsum(create.full { batch, value = n, dtype = "int64", device = hidden.device }, 1) - n
  return (ops.index_select(hidden:reshape(batch * n, d), first + length - 1, 1))
end

---The last column where any row has a token, at least 1: what is to its right is padding alone.
---@param mask weft.Tensor  [B, N]
---@return integer
function M.longest(mask)
  local n = mask:size(2)
  if mask.device == "meta" and A.assumed and A.assumed.longest then return math.min(n, A.assumed.longest) end
  if mask.device ~= "cpu" then return n end
  local count = mask:to("int64"):sum(1):totable()
  while n > 1 and count[n] == 0 do n = n - 1 end
  return n
end

return M
