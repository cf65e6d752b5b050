-- residual.lua: the residual stream of a transformer and the norm that follows it.

---x + m * scale and its norm: in one pass, unless somebody listens to the norm or it is no plain one.
---@param norm table?  a LayerNorm or RMSNorm, or any module
---@param x weft.Tensor
---@param m weft.Tensor
---@param scale? weft.Tensor  [width]
---@return weft.Tensor sum, weft.Tensor? normed
return function(norm, x, m, scale)
  if norm and norm.of_sum and not norm:listened() then
    local sum, normed = norm:of_sum(x, m, scale)
    return sum, normed
  end
  local sum = x + (scale and m * scale or m)
  return sum, norm and norm(sum)
end
