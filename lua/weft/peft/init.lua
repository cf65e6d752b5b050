-- peft: adapters on frozen models: LoRA and its kin, and directories that PEFT reads and writes.
local A = require "weft.args"

local files = {
  lora = "lora", describe = "adapters", summary = "adapters", freeze = "adapters", unfreeze = "adapters", scale = "adapters", scales = "adapters",
  activate = "adapters", active = "adapters", disable = "adapters", merge = "merge", unmerge = "merge", merge_and_unload = "merge",
  merged_state = "merge", with = "with", idle = "merge",
  delete = "adapters", adapters = "adapters", save = "save", load = "load", spectrum = "spectrum",
  add_weighted_adapter = "combine", convert = "convert", eva = "eva", groups = "groups",
}

return setmetatable({}, {
  names = files,
  __index = function(t, key)
    local file = files[key]
    if not file then
      local known = {}
      for name in pairs(files) do known[#known + 1] = name end
      A.raise("peft has no %s%s", tostring(key), A.suggest(key, known))
    end
    local found = require("weft.peft." .. file)[key]
    rawset(t, key, found)
    return found
  end,
})
