-- optim: what moves parameters: AdamW, SGD, schedules, clipping by norm, moving averages.
local A = require "weft.args"

local files = {
  AdamW = "adamw", SGD = "sgd", EMA = "ema", schedule = "schedule", clip_grad_norm = "clip", grad_norm = "clip",
}

return setmetatable({}, {
  names = files,
  __index = function(t, key)
    local file = files[key]
    if not file then
      local known = {}
      for name in pairs(files) do known[#known + 1] = name end
      A.raise("optim has no %s%s", tostring(key), A.suggest(key, known))
    end
    local found = require("weft.optim." .. file)
    if file == "clip" then found = found[key] end
    rawset(t, key, found)
    return found
  end,
})
