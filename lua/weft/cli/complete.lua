-- complete.lua: what a word at the prompt may become: names in tables, methods after a colon.
local M = {}

local keywords = { "and", "break", "do", "else", "elseif", "end", "false", "for", "function", "if",
  "in", "local", "nil", "not", "or", "repeat", "return", "then", "true", "until", "while" }

-- A tensor's methods live behind its ctype, where pairs cannot see them.
local function tensor_methods()
  local ok, methods = pcall(require, "weft.tensor.methods")
  return ok and type(methods) == "table" and methods or {}
end

local function collect(names, object)
  local depth = 0
  while type(object) == "table" and depth < 8 do
    for k in pairs(object) do
      if type(k) == "string" and k:find "^[%a_][%w_]*$" then names[k] = true end
    end
    local mt = getmetatable(object)
    object = type(mt) == "table" and rawget(mt, "__index") or nil
    depth = depth + 1
  end
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
