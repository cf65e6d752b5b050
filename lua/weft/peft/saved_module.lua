-- saved_module.lua: a module that an adapter trains whole: a copy for each adapter, beside the original.
local nn = require "weft.nn"

local Copies = nn.Module "Copies"
local SavedModule = nn.Module "SavedModule"

function SavedModule:init(original)
  self.original_module = original
  self.modules_to_save = Copies()
  self.active, self.disabled, self.merged = {}, false, false
end

function SavedModule:add(name) self.modules_to_save[name] = self.original_module:copy():unfreeze() end

function SavedModule:remove(name)
  self.modules_to_save[name] = nil
  for i = #self.active, 1, -1 do
    if self.active[i] == name then table.remove(self.active, i) end
  end
end

function SavedModule:forward(...)
  local name = not self.disabled and self.active[#self.active]
  local m = name and self.modules_to_save[name] or self.original_module
  return m(...)
end

return SavedModule
