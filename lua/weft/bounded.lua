-- bounded.lua: calls a function so that no coroutine can yield out of it: what was set up before the
-- call is taken down after it, with nothing of another coroutine in between.
local gsub = string.gsub

local M = {}
local calls, depth = {}, 0

local function store(call, ...)
  call.results, call.n_results = { ... }, select("#", ...)
end

local function run()
  local call = calls[depth]
  store(call, call.fn(unpack(call, 1, call.n)))
end

---Calls fn(...) and returns true and its results, or false and its error. Yielding out of fn is an
---error: gsub is a C function, and LuaJIT yields across none. Coroutines inside fn are free to yield.
---@param what string  names the caller in that error
function M.call(what, fn, ...)
  local level = depth + 1
  depth = level
  local call = { fn = fn, n = select("#", ...), ... }
  calls[level] = call
  local ok, message = pcall(gsub, "x", "x", run)
  calls[level] = nil
  depth = level - 1
  if ok then return true, unpack(call.results, 1, call.n_results) end
  if type(message) == "string" then
    message = message:gsub("attempt to yield across C%-call boundary", function()
      return ("a coroutine can't yield inside %s; end it first"):format(what)
    end)
  end
  return false, message
end

return M
