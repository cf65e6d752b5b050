-- decompose.lua: adapters that begin as a part of the weight, which the base then lacks: PiSSA (Meng et
-- al. 2024, arXiv 2404.02948) from its singular vectors, OLoRA (Buyukakyuz 2024, arXiv 2406.01775) from QR.
local ops = require("weft.ops").functions
local no_grad = require("weft.autograd").no_grad

local M = {}

local function pissa(w, rank, scale)
  local u, s, vh = ops.svd(w)
  local root = (s:narrow(1, 1, rank) / scale):sqrt()
  return vh:narrow(1, 1, rank) * root:unsqueeze(2), u:narrow(2, 1, rank) * root:unsqueeze(1)
end

local function olora(w, rank)
  local q, r = ops.qr(w)
  return r:narrow(1, 1, rank), q:narrow(2, 1, rank)
end

---Fills an adapter's A and B and takes s B A out of the base. What they began as is kept, so that the
---adapter can be written as one for the unchanged base.
function M.start(module, name, kind)
  no_grad(function()
    local base, rank, scale = module.base_layer, module.settings[name].rank, module:scale_of(name)
    local w = base.weight:detach()
    local a, b = (kind == "pissa" and pissa or olora)(w, rank, scale)
    local la, lb = module.lora_A[name], module.lora_B[name]
    la.weight:copy_(a)
    lb.weight:copy_(b)
    local rest = (w - ops.matmul(lb.weight, la.weight) * scale):keep()
    base.weight = rest:requires_grad_(false)
    la._given.weight, lb._given.weight, base._given.weight = true, true, true
    module.settings[name].start = { a = la.weight:detach():clone():keep(), b = lb.weight:detach():clone():keep(), kind = kind }
  end)
end

return M
