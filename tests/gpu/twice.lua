-- twice.lua: three steps of phase 2 of the stage-1 model on a GPU in float32 and bfloat16, as checksums:
-- two processes must print the same lines. Usage: luajit tests/gpu/twice.lua DEVICE [base|small]
package.path = "tests/bench/?.lua;" .. package.path
local weft = require "weft"
local stage1 = require "weft_stage1"
local checksum = require("weft.train.checkpoint").checksum

local device, size = arg[1] or "cuda", arg[2] or "base"
local c = size == "small" and stage1.tiny or stage1.base

for _, dtype in ipairs { "float32", "bfloat16" } do
  weft.manual_seed(11)
  local model = stage1.model(c)
  model:to { device = device, dtype = dtype ~= "float32" and dtype or nil }
  local params = {}
  for _, t in model:named_parameters() do
    if t.requires_grad then params[#params + 1] = t end
  end
  local optimizer = weft.optim.AdamW(params, { lr = 1e-3 })
  local batch = stage1.on(stage1.batch(c, c.data.batch, 1), device, dtype)
  for step = 1, 3 do
    weft.scope(function()
      weft.random.set_step(1, step)
      optimizer:zero_grad()
      local losses = model:losses(batch)
      stage1.total(losses, c.weights):backward()
      optimizer:step()
      local parts = {}
      for _, name in ipairs { "itc", "itm", "lm", "memory" } do parts[#parts + 1] = ("%s %.9g"):format(name, losses[name]:item()) end
      print(dtype, step, table.concat(parts, ", "))
      assert(losses.lm:item() == losses.lm:item(), "a loss is not a number")
    end)
  end
  local named = {}
  for name, t in model:named_parameters() do named[name] = t end
  print(dtype, "parameters", tostring(checksum(named)))
end
