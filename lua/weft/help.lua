-- help.lua: weft.help "NAME": what is known of an operator, a function or a class: its signature and the
-- comment above its definition. `weft help` and ?NAME at the prompt say the same.
local M = {}

local function lines_of(path)
  local f = io.open(path)
  if not f then return nil end
  local lines = {}
  for line in f:lines() do lines[#lines + 1] = line end
  f:close()
  return lines
end

---The block of `---` comments right above a line, without its dashes; nil where there is none.
---@param lines string[]
---@param at integer  line of the definition
---@return string[]?
function M.comment(lines, at)
  local first = at
  while first > 1 and lines[first - 1]:find "^%s*%-%-%-" do first = first - 1 end
  if first == at then return nil end
  local out = {}
  for i = first, at - 1 do out[#out + 1] = (lines[i]:gsub("^%s*%-%-%-", "")) end
  return out
end

local function page(name, lines, at)
  local comment = M.comment(lines, at)
  if not comment then return nil end
  local parameters = lines[at]:match "function[^(]*%((.-)%)"
  local out = { parameters and ("weft.%s(%s)"):format(name, parameters) or "weft." .. name }
  for _, line in ipairs(comment) do out[#out + 1] = line == "" and "" or "    " .. line end
  return table.concat(out, "\n") .. "\n"
end

local function of_function(name, fn)
  local info = debug.getinfo(fn, "S")
  local lines = info.what == "Lua" and lines_of(info.source:sub(2))
  if not lines then return nil end
  local text = page(name, lines, info.linedefined)
  if text then return text end
  -- one that another function made: M.zeros = filled(...)
  for at, line in ipairs(lines) do
    if line:find("^[%w_]+%." .. name:match "[^.]+$" .. "%s*=") then return page(name, lines, at) end
  end
end

-- A class: what its init takes, or else the first comment of the file that returns it.
local function of_table(name, value)
  local init = rawget(value, "init")
  local text = type(init) == "function" and of_function(name, init)
  if text then return text end
  for module, loaded in pairs(package.loaded) do
    local path = loaded == value and module:find "^weft%." and package.searchpath(module, package.path)
    for at, line in ipairs(path and lines_of(path) or {}) do
      if not line:find "^%-%-" and line ~= "" then
        text = page(name, lines_of(path), at)
        if text then return text end
      end
    end
  end
end

-- What a dotted path such as "peft.lora" names below weft, or nil.
local function found(path)
  local at = require "weft"
  for key in path:gmatch "[^.]+" do
    if type(at) ~= "table" then return nil end
    local ok, value = pcall(function() return at[key] end)
    if not ok or value == nil then return nil end
    at = value
  end
  return at
end

---What is known of a value that a session calls by a name: a function or a class; nil where that is nothing.
---@param name string
---@param value any
---@return string?
function M.of(name, value)
  local text
  if type(value) == "function" then text = of_function(name, value)
  elseif type(value) == "table" then text = of_table(name, value) end
  return text and (text:gsub("^weft%.", "", 1))
end

---What is known of a name, as text; nil and a message with the nearest names when there is nothing.
---@param name string  "softmax", "peft.lora", "nn.Linear", "optim.schedule.cosine"
---@return string? text, string? message
function M.text(name)
  name = name:gsub("^weft%.", "")
  local value = found(name)
  local text
  if type(value) == "function" then text = of_function(name, value)
  elseif type(value) == "table" then text = of_table(name, value) end
  if text then return text end
  local message
  text, message = require("weft.cli.help").operator(name)
  return text, message
end

return setmetatable(M, { __call = function(_, name)
  if name == nil then
    io.write('weft.help "softmax", "peft.lora", "nn.Linear": what is known of a name; docs/reference.md has all of them\n')
    return
  end
  local text, message = M.text(tostring(name))
  io.write(text or message .. "\n")
end })
