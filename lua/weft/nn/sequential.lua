-- sequential.lua: modules, each fed by the one before. seq[1] is the first; its name is 0.
local module = require "weft.nn.module"
local ModuleList = require "weft.nn.module_list"

local Sequential = module.class("Sequential", ModuleList)

---Sequential(a, b, c) or Sequential{ a, b, c }.
function Sequential:init(...)
  local first = ...
  local list = type(first) == "table" and not module.is_module(first) and first or { ... }
  for i = 1, #list do self:append(list[i]) end
end

function Sequential:forward(x, ...)
  for i = 1, #self do
    if i == 1 then x = self[1](x, ...) else x = self[i](x) end
  end
  return x
end

Sequential.describe = false

return Sequential
