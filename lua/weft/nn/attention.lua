-- attention.lua: multi-head attention, of a sequence on itself or on another one (cross attention, with
-- keys of a width of their own). Vaswani et al. 2017.
local module = require "weft.nn.module"
local Linear = require "weft.nn.linear"
local A = require "weft.args"
local ops = require("weft.ops").functions

local MultiHeadAttention = module.class("MultiHeadAttention", module.base)

---Projections q_proj, k_proj, v_proj [heads * head_dim, ...] and o_proj [width, heads * head_dim].
---@param width integer  of the queries and of the result
---@param heads integer
---@param options? table key_width (width), value_width (key_width), head_dim (width / heads), bias (true),
--- dropout (0, on the weights), init
function MultiHeadAttention:init(width, heads, options)
  local o = A.options(options, { key_width = width, value_width = A.none, head_dim = A.none, bias = true,
    dropout = 0, init = A.none }, "MultiHeadAttention")
  if type(heads) ~= "number" or heads < 1 or (not o.head_dim and width % heads ~= 0) then
    A.raise("MultiHeadAttention: %s heads do not divide a width of %s", tostring(heads), tostring(width))
  end
  self.width, self.heads, self.dropout = width, heads, o.dropout
  self.head_dim = o.head_dim or width / heads
  local inner, linear = heads * self.head_dim, { bias = o.bias, init = o.init }
  self.q_proj = Linear(width, inner, linear)
  self.k_proj = Linear(o.key_width, inner, linear)
  self.v_proj = Linear(o.value_width or o.key_width, inner, linear)
  self.o_proj = Linear(inner, width, linear)
end

-- [B, N, heads * head_dim] -> [B, heads, N, head_dim]
local function split(self, x)
  return x:reshape(x:size(1), x:size(2), self.heads, self.head_dim):transpose(2, 3)
end

-- A mask of keys [B, M] or of pairs [B, N, M] as [B, heads or 1, N or 1, M].
local function spread(mask)
  if mask == nil then return nil end
  local n = mask.ndim
  if n == 2 then return mask:reshape(mask:size(1), 1, 1, mask:size(2)) end
  if n == 3 then return mask:unsqueeze(2) end
  return mask
end

---query [B, N, width]; key [B, M, key_width] and value (key) default to query.
---@param query weft.Tensor
---@param key? weft.Tensor
---@param value? weft.Tensor
---@param options? table mask ([B, M], [B, N, M] or [B, H, N, M]: bool, true where a query may look, or
--- added to the scores), causal (false)
---@return weft.Tensor  [B, N, width]
function MultiHeadAttention:forward(query, key, value, options)
  local o = A.options(options, { mask = A.none, causal = false }, self.type)
  key = key or query
  value = value or key
  self:expect(query, self.width, "query")
  if query.ndim ~= 3 or key.ndim ~= 3 then
    A.raise("%s: query [%s], key [%s]: [B, N, width] is expected", self:where(),
      table.concat(query.shape, ","), table.concat(key.shape, ","))
  end
  local q, k, v = split(self, self.q_proj(query)), split(self, self.k_proj(key)), split(self, self.v_proj(value))
  local p = self.training and self.dropout or 0
  local y = ops.scaled_dot_product_attention(q, k, v, spread(o.mask), o.causal, 0, p, p > 0 and self:rng "weights" or nil)
  return self.o_proj(y:transpose(2, 3):reshape(query:size(1), query:size(2), self.heads * self.head_dim))
end

function MultiHeadAttention:describe()
  local dropout = self.dropout > 0 and (", dropout %g"):format(self.dropout) or ""
  return ("%d heads of %d%s"):format(self.heads, self.head_dim, dropout)
end

return MultiHeadAttention
