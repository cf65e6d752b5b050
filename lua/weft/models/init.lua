-- models: networks by name. Parts load when first used.
local A = require "weft.args"

local files = {
  dinov2 = "weft.models.dinov2", pos_interp = "weft.models.pos_interp", llama = "weft.models.llama",
  fiber = "weft.models.fiber", gpm = "weft.models.gpm", generate = "weft.models.generate",
  pool = "weft.models.pool",
}

return setmetatable({}, {
  names = files,
  __index = function(t, key)
    local file = files[key]
    if not file then
      local known = {}
      for name in pairs(files) do known[#known + 1] = name end
      A.raise("models has no %s%s", tostring(key), A.suggest(key, known))
    end
    local found = require(file)
    rawset(t, key, found)
    return found
  end,
})
