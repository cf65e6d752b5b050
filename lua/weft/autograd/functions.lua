-- functions.lua: Lua functions that the core knows by number: gradients of custom functions, and
-- hooks. The core says which numbers died.
local C = require("weft.core").lib

local M = { by_id = {} }
local by_id, last_id = M.by_id, 0

---Lets go of the functions of nodes and hooks that died since.
function M.forget()
  repeat
    local id = tonumber(C.weft_next_released())
    by_id[id] = nil
  until id == 0
end

---A number for fn.
function M.new_id(fn)
  M.forget()
  last_id = last_id + 1
  by_id[last_id] = fn
  return last_id
end

return M
