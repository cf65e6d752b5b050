-- files.lua: what saving and loading adapters share: names of tensors, the checksum of a base.
local A = require "weft.args"
local C = require("weft.core").lib
local adapters = require "weft.peft.adapters"

local M = { prefix = "base_model.model.", config = "adapter_config.json", weights = "adapter_model.safetensors",
  base_key = "weft.base", pictures_key = "weft.preprocessing", positions_key = "weft.positions" }

---Every tensor of an adapter as { path, tail, tensor }: the module's path and what follows it in files.
---@param holder table
---@param name string
---@param c table  settings
function M.tensors(holder, name, c)
  local list = {}
  local function put(path, tail, t) list[#list + 1] = { path, tail, t } end
  for path, m in adapters.wrapped(holder) do
    if m.is_lora and m.settings[name] then
      for _, e in ipairs(m:tensors(name)) do
        put(path, e.tail, #e.shape == e.tensor.ndim and e.tensor or e.tensor:detach():reshape(e.shape))
      end
    elseif m.type == "SavedModule" and m.modules_to_save[name] then
      for tail, t in m.modules_to_save[name]:named_parameters() do put(path, tail, t) end
    end
  end
  for _, b in ipairs(M.biases(holder, c)) do put(b[1], b[2], b[3]) end
  return list
end

---The biases of the base that settings train: { path, tail, tensor }.
function M.biases(holder, c)
  local list = {}
  if c.bias == "none" then return list end
  local inside
  for path, m in holder:named_modules() do
    if not (inside and path:sub(1, #inside) == inside) then
      inside = nil
      if m.is_lora then
        inside = path .. "."
        local kept = m.kept or m.base_layer
        if kept.bias and (c.bias == "all" or m.settings[c.adapter]) then list[#list + 1] = { path, "base_layer.bias", kept.bias } end
      elseif m.type == "SavedModule" then inside = path .. "."
      elseif c.bias == "all" and m._parameters.bias then list[#list + 1] = { path, "bias", m._parameters.bias } end
    end
  end
  return list
end

---How the model that an adapter sits on resizes its table of positions; nil where it has none.
function M.positions(holder)
  local c = rawget(holder, "config")
  return type(c) == "table" and c.pos_interp or nil
end

---A checksum of the weights that an adapter sits beside: of what it was trained on. nil where an
---adapter has taken a part out of them.
---@param modules table[]  wrapped or not, in order
function M.base_sum(modules)
  local sum = 0ULL
  for _, m in ipairs(modules) do
    local weight = m.is_lora and (m.kept or m.base_layer).weight or m.weight
    for _, s in pairs(m.is_lora and m.settings or {}) do
      if s.start then return nil end
    end
    if weight.device ~= "cpu" then return nil end
    sum = C.weft_checksum(A.tensor(weight, "peft", "weight"), sum)
  end
  return (tostring(sum):gsub("ULL$", ""))
end

return M
