-- decompose.lua: adapters that begin as a part of the weight, which the base then lacks: PiSSA (Meng et
-- al. 2024, arXiv 2404.02948) from its singular vectors, OLoRA (Buyukakyuz 2024, arXiv 2406.01775) from QR.
local A = require "weft.args"
local ops = require("weft.ops").functions
local create = require("weft.tensor").create
local no_grad = require("weft.autograd").no_grad

local M = {}

-- Singular vectors of the largest values by random projection (Halko, Martinsson, Tropp 2011, arXiv
-- 0909.4061): `steps` power iterations sharpen the subspace, a few spare columns widen it.
local function random_svd(w, rank, steps, rng)
  local n = math.min(rank + 8, w:size(1), w:size(2))
  local q = ops.qr(ops.matmul(w, create.randn { w:size(2), n, dtype = w.dtype, device = w.device, rng = rng }))
  for _ = 1, steps do
    q = ops.qr(ops.matmul(w:t(), q))
    q = ops.qr(ops.matmul(w, q))
  end
  local u, s, vh = ops.svd(ops.matmul(q:t(), w))
  return ops.matmul(q, u), s, vh
end
M.random_svd = random_svd

local function pissa(w, rank, scale, steps, rng)
  if rank > math.min(w:size(1), w:size(2)) then
    A.raise("peft.lora: pissa: rank %d is more than the %d x %d weight has", rank, w:size(1), w:size(2))
  end
  local u, s, vh
  if steps then u, s, vh = random_svd(w, rank, steps, rng) else u, s, vh = ops.svd(w) end
  local root = (s:narrow(1, 1, rank) / scale):sqrt()
  return vh:narrow(1, 1, rank) * root:unsqueeze(2), u:narrow(2, 1, rank) * root:unsqueeze(1)
end

local function olora(w, rank)
  if rank > math.min(w:size(1), w:size(2)) then
    A.raise("peft.lora: olora: rank %d is more than the %d x %d weight has", rank, w:size(1), w:size(2))
  end
  local q, r = ops.qr(w)
  return r:narrow(1, 1, rank), q:narrow(2, 1, rank)
end

---Fills A and B so that both are large and s B A is zero: rows of an orthogonal matrix keep them apart.
function M.orthogonal(module, name, rng)
  no_grad(function()
    local rank, a, b = module.settings[name].rank, module:matrices(name)
    if rank % 2 ~= 0 then A.raise("peft.lora: orthogonal: an even rank is expected, got %d", rank) end
    local half, n, rows = rank / 2, a:size(2), b:size(1)
    local function normal(h, w, use)
      return create.randn { h, w, dtype = a.dtype, device = a.device, rng = { key = rng.key, counter = use } }
    end
    local q = ops.qr(normal(rank, rank, 0ULL))
    local odd, even = q:narrow(1, 1, half), q:narrow(1, half + 1, half)
    module:set_matrices(name, ops.matmul(odd:t(), normal(half, n, 1ULL)) * 0.1,
      ops.matmul(normal(rows, half, 2ULL), even) * 0.1)
  end)
end

---Fills an adapter's A and B and takes s B A out of the base. What they began as is kept, so that the
---adapter can be written as one for the unchanged base.
function M.start(module, name, kind, rng)
  no_grad(function()
    local base, rank, scale = module.base_layer, module.settings[name].rank, module:scale_of(name)
    local w = module:rows(base.weight:detach())
    local a, b
    if kind == "olora" then a, b = olora(w, rank)
    else a, b = pissa(w, rank, scale, tonumber(kind:match "^pissa_niter_(%d+)$"), rng) end
    module:set_matrices(name, a, b)
    a, b = module:matrices(name)
    base.weight = module:unrows(w - ops.matmul(b, a) * scale):contiguous():keep():requires_grad_(false)
    base._given.weight = true
    module.settings[name].start = { a = a:detach():clone():keep(), b = b:detach():clone():keep(), kind = kind }
  end)
end

return M
