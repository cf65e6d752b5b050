-- layers.lua: which modules take low-rank branches, and what wraps each of them.
local M = {}

local wrappers = { Linear = "lora_linear", Conv2d = "lora_conv2d", Embedding = "lora_embedding" }

---Whether adapters can go on this module, or already sit on it.
function M.takes(m) return m.is_lora == true or wrappers[m.type] ~= nil end

---The class that wraps a module.
function M.class_of(m) return m.is_lora and getmetatable(m) or require("weft.peft." .. wrappers[m.type]) end

---Whether it is a Linear, wrapped or not: what "all-linear" means.
function M.is_linear(m) return m.type == "Linear" or m.type == "LoraLinear" end

---The module beneath, wrapped or not.
function M.base_of(m) return m.is_lora and m.base_layer or m end

---Shapes in files of an adapter's tensors on this module.
---@param m table
---@param o table  rank, dora, lora_bias
function M.expected(m, o)
  local class, base, out = M.class_of(m), M.base_of(m), {}
  class.file_shapes(base, o, out)
  if o.dora then out.lora_magnitude_vector = class.magnitude_shape(base) end
  return out
end

return M
