-- nn: modules. One layer a file.
local module = require "weft.nn.module"

local M = { initial = require "weft.nn.initial", is_module = module.is_module, commas = module.commas,
  on_meta = module.base.on_meta, unfilled = module.base.unfilled }

---A new module class: local Block = nn.Module "Block"; function Block:init(...) end; function Block:forward(x) end.
---Block(...) makes one. A second argument is the class to extend.
---@param name string
function M.Module(name, base) return module.class(name, base or module.base) end

local files = {
  Linear = "linear", Embedding = "embedding", LayerNorm = "layer_norm", RMSNorm = "rms_norm", Dropout = "dropout",
  GELU = "activation", ReLU = "activation", SiLU = "activation", Tanh = "activation", Sequential = "sequential",
  ModuleList = "module_list", Conv2d = "conv2d", MultiHeadAttention = "attention", DropPath = "drop_path",
}

return setmetatable(M, {
  names = files,
  __index = function(t, key)
    local file = files[key]
    if not file then
      local A = require "weft.args"
      local known = { "Module" }
      for name in pairs(files) do known[#known + 1] = name end
      A.raise("nn has no %s%s", tostring(key), A.suggest(key, known))
    end
    local found = require("weft.nn." .. file)
    if found.type == nil then found = found[key] end
    rawset(t, key, found)
    return found
  end,
})
