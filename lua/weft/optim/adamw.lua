-- adamw.lua: AdamW (Loshchilov and Hutter 2019), decoupled weight decay:
-- p *= 1 - lr wd;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;
-- p -= lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps), t counted for each parameter. Of a bfloat16
-- parameter a float32 master is moved, and the parameter is rounded from it.
local A = require "weft.args"
local C = require("weft.core").lib
local Optimizer = require "weft.optim.optimizer"

---AdamW(params, options): params is a module, tensors by name, or a list of groups
---{ params =, name =, lr =, weight_decay =, betas =, eps =, schedule = }.
---
---    local o = weft.optim.AdamW({ { params = matrices, weight_decay = 0.05 }, { params = rest } }, { lr = 2e-4 })
---    loss:backward(); weft.optim.clip_grad_norm(o, 1.0); o:step(); o:zero_grad()
local AdamW = Optimizer.class("AdamW", { lr = 1e-3, betas = { 0.9, 0.98 }, eps = 1e-8, weight_decay = 0 }, { "m", "v" },
  { "m", "v", "master" })

AdamW.needs_slots = true
function AdamW:wants_slots() return true end

function AdamW:move(group, list, n, lr, t, dtype)
  local betas = group.betas
  if type(betas) ~= "table" or #betas ~= 2 then A.raise("AdamW: %s: betas: a table of two is expected", group.name) end
  local row = dtype == "bfloat16" and C.weft_adamw_mixed_ or C.weft_adamw_
  return row(list, n, lr, betas[1], betas[2], group.eps, group.weight_decay, t)
end

-- The numbers of a step that a captured one reads on the device.
function AdamW:rates(group, lr, t, out)
  C.weft_adamw_rates(lr, group.betas[1], group.betas[2], group.weight_decay, t, out)
end

return AdamW
