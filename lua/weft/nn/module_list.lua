-- module_list.lua: modules in a row. list[1] is the first, #list counts, ipairs(list) walks; their
-- names in checkpoints count from 0.
local module = require "weft.nn.module"

local ModuleList = module.class("ModuleList", module.base)
ModuleList.numbered = true

---ModuleList{ a, b, c }, or ModuleList() and append.
---@param modules? table[]
function ModuleList:init(modules)
  for _, m in ipairs(modules or {}) do self:append(m) end
end

---Adds a module at the end; returns the list.
function ModuleList:append(m)
  self[#self + 1] = m
  return self
end

function ModuleList:describe() return tostring(#self) end

return ModuleList
