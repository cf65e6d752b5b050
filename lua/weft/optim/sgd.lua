-- sgd.lua: gradient descent with momentum: g += wd p;  b = momentum b + g;  p -= lr b, or with
-- nesterov p -= lr (g + momentum b).
local C = require("weft.core").lib
local Optimizer = require "weft.optim.optimizer"

---SGD(params, options): groups as in AdamW, with momentum and nesterov.
local SGD = Optimizer.class("SGD", { lr = 1e-2, momentum = 0, weight_decay = 0, nesterov = false }, { "momentum" })

-- Without momentum the row reads no buffer, and none is kept.
function SGD:wants_slots(group) return group.momentum ~= 0 end

function SGD:move(group, list, n, lr)
  return C.weft_sgd_(list, n, lr, group.momentum, group.weight_decay, group.nesterov and 1 or 0)
end

return SGD
