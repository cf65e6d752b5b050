-- complete.lua: what a word at the prompt may become: names in tables, methods after a colon, arguments of a
-- call; inside a string files, modules and keys of the config.
local M = {}

local keywords = { "and", "break", "do", "else", "elseif", "end", "false", "for", "function", "if",
  "in", "local", "nil", "not", "or", "repeat", "return", "then", "true", "until", "while" }

local function add(names, t, only)
  for k, v in pairs(type(t) == "table" and t or {}) do
    if type(k) == "string" and k:find "^[%a_][%w_]*$" and (not only or type(v) == only) then names[k] = true end
  end
end

-- What can stand behind an object's dot, or its colon (only functions).
local function collect(names, object, only)
  if type(object) == "cdata" then
    if require("weft.args").is_tensor(object) then
      local tensor = require "weft.tensor"
      add(names, tensor.functions, only)
      if not only then add(names, tensor.fields) end
    end
    return
  end
  if type(object) ~= "table" then return end
  if not only then
    -- what a module holds, and a config's keys, lie behind their metatables
    for _, kind in ipairs { "_children", "_parameters", "_buffers" } do add(names, rawget(object, kind)) end
    local config = package.loaded["weft.config"]
    if config and config.is_section(object) then
      add(names, config.values(object))
      return
    end
  end
  local depth = 0
  while type(object) == "table" and depth < 12 do
    add(names, object, only)
    local mt = getmetatable(object)
    if type(mt) == "table" and not only then add(names, rawget(mt, "names")) end  -- what loads when first used
    local index = type(mt) == "table" and rawget(mt, "__index") or nil
    object = type(index) == "function" and mt or index
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
    local ok, value = pcall(function() return object[tonumber(name) or name] end)
    if not ok or value == nil then return {} end
    object = value
  end
  if path == "" then
    for _, k in ipairs(keywords) do names[k] = true end
    collect(names, _G)
  end
  collect(names, object, path:sub(-1) == ":" and "function" or nil)
  local list = {}
  for name in pairs(names) do
    local hidden = name:sub(1, 1) == "_" and last:sub(1, 1) ~= "_"
    if name:sub(1, #last) == last and not hidden then list[#list + 1] = path .. name end
  end
  table.sort(list)
  return list
end

-- The text of a line from the quote that is open at its end; the parenthesis that is.
local function open_at_end(line)
  local quote, from, calls = nil, nil, {}
  local i = 1
  while i <= #line do
    local c = line:sub(i, i)
    if quote then
      if c == "\\" then i = i + 1 elseif c == quote then quote = nil end
    elseif c == '"' or c == "'" then quote, from = c, i + 1
    elseif c == "(" then calls[#calls + 1] = i
    elseif c == ")" then calls[#calls] = nil end
    i = i + 1
  end
  return quote and line:sub(from) or nil, calls[#calls]
end

local function add_paths(list, text)
  local files = require "weft.files"
  local dir, last = text:match "^(.*/)([^/]*)$"
  if not dir then dir, last = "", text end
  for _, name in ipairs(files.list(dir == "" and "." or dir) or {}) do
    if name:sub(1, #last) == last and (name:sub(1, 1) ~= "." or last:sub(1, 1) == ".") then
      list[#list + 1] = dir .. name .. (files.is_dir(dir .. name) and "/" or "")
    end
  end
end

-- Names of modules and tensors up to their next dot, and keys of the config.
local function add_parts(list, text, env)
  local seen = {}
  local function part(name)
    if name:sub(1, #text) ~= text then return end
    name = text .. name:sub(#text + 1):match "^%.?[^.]*"
    if name ~= text and not seen[name] then
      seen[name] = true
      list[#list + 1] = name
    end
  end
  local model, config = rawget(env, "model"), rawget(env, "config")
  if model and model.named_modules then
    for name in model:named_modules() do part(name) end
    for name in model:named_parameters() do part(name) end
  end
  local sections = package.loaded["weft.config"]
  if sections and sections.is_section(config) then
    for name in pairs((sections.flat(config))) do part(name) end
  end
end

---What may stand in a string that begins with a text, sorted: of a folder's files, of the model's modules and
---tensors (up to the next dot), of the config's keys.
---@param text string
---@param env table
---@return string[]
function M.inside(text, env)
  local list = {}
  add_paths(list, text)
  if not text:find "/" then add_parts(list, text, env) end
  table.sort(list)
  return list
end

---What a word may become: a list of words, or the arguments of the call that it stands in, as a text to be read.
---@param before string  the line in front of the word
---@param word string
---@param env table
---@return string[]|string
function M.complete(before, word, env)
  local text, call = open_at_end(before .. word)
  if text then
    local list = M.inside(text, env)
    for i, name in ipairs(list) do list[i] = name:sub(#text - #word + 1) end
    return list
  end
  if before:find "^%s*%?%s*$" then
    local list = M.names("weft." .. word:gsub("^weft%.", ""), env)
    for i, name in ipairs(list) do list[i] = word:find "^weft%." and name or name:sub(6) end
    return list
  end
  if word == "" and call and before:find "[(,]%s*$" then
    local shown = M.arguments(before:sub(1, call - 1), env)
    if shown then return shown end
  end
  -- what stands behind an index: model[1].we
  local owner = word:find "^[.:]" and (before:match "[%a_][%w_.:%[%]\"']*$" or ""):gsub("%[[\"']?([%w_]+)[\"']?%]", ".%1")
  if owner then
    local list = M.names(owner .. word, env)
    for i, name in ipairs(list) do list[i] = name:sub(#owner + 1) end
    return list
  end
  return M.names(word, env)
end

return M
