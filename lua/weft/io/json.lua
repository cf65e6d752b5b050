-- json.lua: JSON to Lua tables and back. Reading is jansson's; writing is here.
-- Arrays keep a metatable, so that an empty one stays an array; null is json.null.
local ffi = require "ffi"
local C = require("weft.core").lib

local json = {}

---What null becomes, and what becomes null. It is a value like any other: `x == json.null`.
json.null = setmetatable({}, { __tostring = function() return "null" end, __newindex = function()
  error("json.null cannot be changed", 2)
end })

local array_mt, object_mt, float_mt = { __name = "json array" }, { __name = "json object" }, { __name = "json float" }

---Marks t as an array (it is written as one, also when empty).
---@param t table?
---@return table
function json.array(t) return setmetatable(t or {}, array_mt) end

---A number that is written with a decimal point also where it is whole: readers with types want 1.0 there.
---    json.encode(json.float(1)) == "1.0"
---@param n number
function json.float(n) return setmetatable({ n }, float_mt) end

---Marks t as an object. Unmarked tables are arrays when they have a first element.
---@param t table?
---@return table
function json.object(t) return setmetatable(t or {}, object_mt) end

---Whether t is written as an array.
function json.is_array(t)
  local mt = getmetatable(t)
  return mt == array_mt or (mt ~= object_mt and #t > 0)
end

local function build(items, at)
  local item = items[at]
  local kind, size = item.kind, tonumber(item.size)
  if kind == C.WEFT_JSON_STRING then return ffi.string(item.text, size), at + 1 end
  if kind == C.WEFT_JSON_NUMBER then return item.number, at + 1 end
  if kind == C.WEFT_JSON_TRUE then return true, at + 1 end
  if kind == C.WEFT_JSON_FALSE then return false, at + 1 end
  if kind == C.WEFT_JSON_NULL then return json.null, at + 1 end
  local t = {}
  at = at + 1
  if kind == C.WEFT_JSON_ARRAY then
    for i = 1, size do t[i], at = build(items, at) end
    return json.array(t), at
  end
  for _ = 1, size do
    local key, value_at = build(items, at)
    t[key], at = build(items, value_at)
  end
  return size == 0 and json.object(t) or t, at
end

local function take(parsed)
  if parsed == nil then return nil, ffi.string(C.weft_error()) end
  local ok, value = pcall(build, C.weft_json_items(parsed), 0)
  C.weft_json_free(parsed)
  if not ok then return nil, value end
  return value
end

---Reads a JSON text. Numbers are doubles: integers are exact up to 2^53.
---    local t = json.decode '{"a": [1, 2.5, null]}'      -- t.a[3] == json.null
---@param text string
---@return any value, string? message   nil and a message when the text is not JSON
function json.decode(text)
  if type(text) ~= "string" then error("json.decode: a string is expected, got " .. type(text), 2) end
  local value, message = take(C.weft_json_parse(text, #text))
  return value, message
end

---Reads a JSON file.
---@param path string
---@return any value, string? message
function json.read(path)
  if type(path) ~= "string" then error("json.read: a path is expected, got " .. type(path), 2) end
  local value, message = take(C.weft_json_read(path))
  return value, message
end

local escapes = { ['"'] = '\\"', ["\\"] = "\\\\", ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t",
  ["\b"] = "\\b", ["\f"] = "\\f" }
local function escape(c) return escapes[c] or ("\\u%04x"):format(c:byte()) end

local function write_string(s, where)
  local bad = tonumber(C.weft_utf8_check(s, #s))
  if bad >= 0 then error(("%s: the string is not UTF-8 at byte %d"):format(where, bad + 1), 0) end
  return '"' .. s:gsub('[%z\1-\31\127"\\]', escape) .. '"'
end

-- The shortest of the forms that read back as the same double.
local function write_number(v, where)
  if v ~= v or v == math.huge or v == -math.huge then
    error(("%s is %s, which JSON cannot hold"):format(where, tostring(v)), 0)
  end
  if v % 1 == 0 and v > -2 ^ 53 and v < 2 ^ 53 then return ("%.0f"):format(v) end
  for digits = 15, 16 do
    local s = ("%." .. digits .. "g"):format(v)
    if tonumber(s) == v then return s end
  end
  return ("%.17g"):format(v)
end

local int64, uint64 = ffi.typeof "int64_t", ffi.typeof "uint64_t"
local write

local function write_items(out, open, close, n, state, depth, item)
  if n == 0 then
    out[#out + 1] = open .. close
    return
  end
  local pad = state.indent and "\n" .. (" "):rep(state.indent * (depth + 1)) or ""
  out[#out + 1] = open
  for i = 1, n do
    out[#out + 1] = (i > 1 and (state.indent and "," or ", ") or "") .. pad
    item(i)
  end
  out[#out + 1] = (state.indent and "\n" .. (" "):rep(state.indent * depth) or "") .. close
end

local function write_object(out, v, where, state, depth)
  local keys = {}
  for k in pairs(v) do
    if type(k) ~= "string" then
      local form = "%s: the key %s is a %s; an object's keys are strings"
      error(form:format(where, tostring(k), type(k)), 0)
    end
    keys[#keys + 1] = k
  end
  if state.sort then table.sort(keys) end
  write_items(out, "{", "}", #keys, state, depth, function(i)
    local path = where .. "." .. keys[i]
    out[#out + 1] = write_string(keys[i], path) .. ": "
    write(out, v[keys[i]], path, state, depth + 1)
  end)
end

local function write_array(out, v, where, state, depth)
  for k in pairs(v) do
    if type(k) ~= "number" or k < 1 or k > #v or k % 1 ~= 0 then
      error(("%s: the key %s does not belong in an array of %d"):format(where, tostring(k), #v), 0)
    end
  end
  write_items(out, "[", "]", #v, state, depth, function(i)
    write(out, v[i], ("%s[%d]"):format(where, i), state, depth + 1)
  end)
end

function write(out, v, where, state, depth)
  local kind = type(v)
  if depth > 500 then error(where:sub(1, 60) .. "...: more than 500 levels deep, or a cycle", 0) end
  if v == json.null then
    out[#out + 1] = "null"
  elseif kind == "string" then
    out[#out + 1] = write_string(v, where)
  elseif kind == "number" then
    out[#out + 1] = write_number(v, where)
  elseif kind == "boolean" then
    out[#out + 1] = tostring(v)
  elseif kind == "cdata" and (ffi.istype(int64, v) or ffi.istype(uint64, v)) then
    out[#out + 1] = (tostring(v):gsub("U?LL$", ""))
  elseif kind == "table" and getmetatable(v) == float_mt then
    local text = write_number(v[1], where)
    out[#out + 1] = text:find "[.e]" and text or text .. ".0"
  elseif kind == "table" then
    if json.is_array(v) then write_array(out, v, where, state, depth)
    else write_object(out, v, where, state, depth) end
  else
    error(("%s is a %s, which JSON cannot hold"):format(where, kind), 0)
  end
end

---Writes a value as JSON text. Raises, naming the place, for what JSON cannot hold.
---    json.encode({ r = 16, targets = { "query", "value" } }, { indent = 2 })
---@param value any
---@param options { indent: integer?, sort: boolean? }?   sort is true unless switched off
---@return string
function json.encode(value, options)
  local args = require "weft.args"
  local o = args.options(options, { indent = args.none, sort = true }, "json.encode")
  local out = {}
  local ok, message = pcall(write, out, value, "value", o, 0)
  if not ok then error("json.encode: " .. message, 2) end
  return table.concat(out)
end

---Writes a value to a file, indented and sorted; the file is replaced whole or not at all.
---@param path string
---@param value any
---@return true?, string? message
function json.write(path, value)
  local text = json.encode(value, { indent = 2 }) .. "\n"
  if C.weft_file_write(path, text, #text) ~= C.WEFT_OK then return nil, ffi.string(C.weft_error()) end
  return true
end

return json
