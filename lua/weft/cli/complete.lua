-- complete.lua: what a word at the prompt may become: names in tables, methods after a colon.
local M = {}

local keywords = { "and", "break", "do", "else", "elseif", "end", "false", "for", "function", "if",
  "in", "local", "nil", "not", "or", "repeat", "return", "then", "true", "until", "while" }

-- A tensor's methods live behind its ctype, where pairs cannot see them.
local function tensor_methods()
  local ok, methods = pcall(require, "weft.tensor.methods")
  return ok and type(methods) == "table" and methods or {}
end

local function add(names, t)
  for k in pairs(type(t) == "table" and t or {}) do
    if type(k) == "string" and k:find "^[%a_][%w_]*$" then names[k] = true end
  end
end

local function collect(names, object)
  local depth = 0
  if type(object) == "table" then
    -- what a module holds, and a config's keys, lie behind their metatables
    for _, kind in ipairs { "_children", "_parameters", "_buffers" } do add(names, rawget(object, kind)) end
    local config = package.loaded["weft.config"]
    if config and config.is_section(object) then
      add(names, config.values(object))
      return
    end
  end
  while type(object) == "table" and depth < 8 do
    add(names, object)
    local mt = getmetatable(object)
    object = type(mt) == "table" and rawget(mt, "__index") or nil
    depth = depth + 1
  end
end

-- "name(a, b)" of a function of Lua, by its definition's line.
local function of_function(name, fn)
  local info = debug.getinfo(fn, "S")
  local f = info.what == "Lua" and io.open(info.source:sub(2))
  if not f then return nil end
  local n, list = 0, nil
  for line in f:lines() do
    n = n + 1
    if n == info.linedefined then
      list = line:match "function[^(]*%((.-)%)"
      break
    end
  end
  f:close()
  return list and ("%s(%s)"):format(name, list) or nil
end

---The arguments of the function that is about to be called: of what stands before the parenthesis.
---@param before string  "x = weft.softmax"
---@param env table
---@return string?
function M.arguments(before, env)
  local path = before:match "([%a_][%w_.:]*)$"
  if not path then return nil end
  local operator = path:match "[^.:]+$"
  local object, owner = env, nil
  for name in path:gmatch "[^.:]+" do
    local ok, value = pcall(function() return object[name] end)
    if not ok or value == nil then return nil end
    owner, object = object, value
  end
  local ops = require "weft.ops"
  local signature = ops.signatures[operator]
  if signature and (type(owner) == "cdata" or path:find "^weft%.[^.]+$") then
    if type(owner) ~= "cdata" then return "weft." .. signature end
    return path .. signature:gsub("^[^(]*%([^,)]*,?%s*", "(")  -- the tensor itself stands before the colon
  end
  if type(object) == "function" then return of_function(path, object) end
  local init = type(object) == "table" and rawget(object, "init")
  if type(init) == "function" then return of_function(path, init) end
end

---All names that the dotted word may become, sorted.
---@param word string   "weft.soft", "x:ma"
---@param env table     where its first name is looked up
---@return string[]
function M.names(word, env)
  local path, last = word:match "^(.*[.:])([%w_]*)$"
  if not path then path, last = "", word end
  local object, names = env, {}
  for name in path:gmatch "([%w_]+)[.:]" do
    local ok, value = pcall(function() return object[name] end)
    if not ok or value == nil then return {} end
    object = value
  end
  if path == "" then
    for _, k in ipairs(keywords) do names[k] = true end
    collect(names, _G)
  end
  if type(object) == "cdata" then
    collect(names, tensor_methods())
  else
    collect(names, object)
  end
  local list = {}
  for name in pairs(names) do
    local hidden = name:sub(1, 1) == "_" and last:sub(1, 1) ~= "_"
    if name:sub(1, #last) == last and not hidden then list[#list + 1] = path .. name end
  end
  table.sort(list)
  return list
end

return M
