-- lora_embedding.lua: an Embedding with low-rank branches beside it: y = W[id] + s B A[:, id]. A is
-- [r, count] and begins at zero, B is [width, r].
local module = require "weft.nn.module"
local args = require "weft.args"
local ops = require("weft.ops").functions
local initial = require "weft.nn.initial"
local LoraLayer = require "weft.peft.lora_layer"

local LoraEmbedding = module.class("LoraEmbedding", LoraLayer)

LoraEmbedding.a_name, LoraEmbedding.b_name = "lora_embedding_A", "lora_embedding_B"

function LoraEmbedding:sizes(base) self.n, self.width, self.n_rows = base.n, base.width, base.width end

function LoraEmbedding:parts(o)
  if o.lora_bias then args.raise("peft.lora: %s: lora_bias does not go with an Embedding", self.base_layer:where()) end
  return o, o
end

-- A and B are tensors under the adapter's name, as PEFT calls them: no module is around them.
function LoraEmbedding:put(name, o)
  self.lora_embedding_A:parameter(name, { o.rank, self.n }, o.init == "random" and initial.normal(1) or initial.zeros)
  self.lora_embedding_B:parameter(name, { self.width, o.rank }, initial.normal(1))
end

function LoraEmbedding:tensors(name)
  local list = {}
  for i, part in ipairs { "lora_embedding_A", "lora_embedding_B" } do
    local owner = self[part]
    list[i] = { tail = part, tensor = owner[name], owner = owner, field = name, shape = owner[name].shape }
  end
  local m = self.lora_magnitude_vector[name]
  if m then list[3] = { tail = "lora_magnitude_vector", tensor = m.weight, owner = m, field = "weight", shape = m.weight.shape } end
  return list
end

function LoraEmbedding.file_shapes(base, o, out)
  out.lora_embedding_A, out.lora_embedding_B = { o.rank, base.n }, { base.width, o.rank }
end

function LoraEmbedding.magnitude_shape(base) return { base.width } end

function LoraEmbedding.branch_bias() end
function LoraEmbedding:ab(name) return self.lora_embedding_A[name], self.lora_embedding_B[name] end
function LoraEmbedding.rows(_, w) return (w:t()) end
function LoraEmbedding.unrows(_, m) return (m:t()) end

---The table without what adapters add: what an output layer shares that is tied to it.
function LoraEmbedding:plain_weight() return self.kept and self.kept.weight or self.base_layer.weight end

---ids [...] int64 -> [..., width]
function LoraEmbedding:forward(ids)
  local y = self.base_layer(ids)
  if self.disabled or self.merged then return y end
  local base = y
  for _, name in ipairs(self.active) do
    local a, b = self:ab(name)
    local branch = ops.linear(ops.embedding(ids, a:t():contiguous()), b) * self:scale_of(name)
    if self.settings[name].dora then
      local factors = self:row_factors(name)
      branch = base * (factors - 1) + branch * factors
    end
    y = y + branch
  end
  return y
end

return LoraEmbedding
