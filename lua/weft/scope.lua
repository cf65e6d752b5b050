-- scope.lua: handles made inside a scope are released at its end, but for those that it returns.
local C = require("weft.core").lib
local A = require "weft.args"
local bounded = require "weft.bounded"
local forget = require("weft.autograd.functions").forget
local state = require("weft.core").state

local M = {}

local function escape(v, seen)
  if A.is_tensor(v) then
    if v.p ~= nil and v.gen == v.p.gen then
      C.weft_scope_escape(v.p)
      if state.scope_depth == 1 then A.owned(v) end
    end
  elseif type(v) == "table" and not seen[v] then
    seen[v] = true
    for _, x in pairs(v) do escape(x, seen) end
  end
end

local function finish(id, ok, ...)
  if ok then
    local seen = {}
    for i = 1, select("#", ...) do escape((select(i, ...)), seen) end
  end
  C.weft_scope_end(id)
  forget()
  if not ok then error((...), 0) end
  return ...
end

---Runs fn(...). Tensors made inside are freed when it returns or fails, except those it returns
---(also inside returned tables) and those that keep() or a module took. Yielding inside is refused.
---@param fn function
---@return any ...  what fn returned
---
---    local norm = weft.scope(function() return (a * b):sum() end)
function M.scope(fn, ...)
  local id = C.weft_scope_begin()
  if id == 0 then A.fail() end
  return finish(id, bounded.call("weft.scope", fn, ...))
end

return M
