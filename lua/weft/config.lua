-- config.lua: a run's settings: one table of defaults in the recipe, changed by key.sub=value, each
-- read noted (so that a key which no code reads can be found).
local A = require "weft.args"

local M = {}
local pending, recorded  -- the command line's overrides and a run's values, for the next weft.config
local RAW, READS, PATH, DEFAULTS = {}, {}, {}, {}  -- keys of a section's own data

local function is_section(v) return type(v) == "table" and getmetatable(v) ~= nil and rawget(v, RAW) ~= nil end
M.is_section = is_section

-- A table with only positions 1..n (or nothing) is a list: one value.
local function is_list(v)
  if type(v) ~= "table" then return false end
  local n = 0
  for k in pairs(v) do
    if type(k) ~= "number" then return false end
    n = n + 1
  end
  return n == #v
end

local section

local mt = {}
mt.__index = function(self, key)
  local v = rawget(self, RAW)[key]
  if v == nil then
    local known = {}
    for k in pairs(rawget(self, RAW)) do known[#known + 1] = k end
    A.raise("config has no key %s%s", rawget(self, PATH) .. tostring(key), A.suggest(tostring(key), known))
  end
  rawget(self, READS)[rawget(self, PATH) .. key] = true
  return v
end
mt.__newindex = function(self, key)
  A.raise("config: %s%s can't be set here; pass %s%s=value on the command line", rawget(self, PATH), key, rawget(self, PATH), key)
end

function section(data, path, reads)
  local raw = {}
  for k, v in pairs(data) do
    raw[k] = (type(v) == "table" and not is_list(v)) and section(v, path .. k .. ".", reads) or v
  end
  return setmetatable({ [RAW] = raw, [READS] = reads, [PATH] = path }, mt)
end

---A key's value, or default where the recipe has no such key.
function M.get(s, key, default)
  if rawget(s, RAW)[key] == nil then return default end
  return s[key]
end

---The plain table of a section, its keys noted as read: for functions that take options.
function M.plain(s)
  local out = {}
  for k, v in pairs(rawget(s, RAW)) do
    rawget(s, READS)[rawget(s, PATH) .. k] = true
    out[k] = is_section(v) and M.plain(v) or v
  end
  return out
end

---All values as nested plain tables, without noting reads: for config.json.
function M.values(s)
  local out = {}
  for k, v in pairs(rawget(s, RAW)) do out[k] = is_section(v) and M.values(v) or v end
  return out
end

---Keys by full path -> value, sorted paths second.
function M.flat(s, out, paths)
  out, paths = out or {}, paths or {}
  for k, v in pairs(rawget(s, RAW)) do
    local path = rawget(s, PATH) .. k
    if is_section(v) then M.flat(v, out, paths) else
      out[path] = v
      paths[#paths + 1] = path
    end
  end
  table.sort(paths)
  return out, paths
end

---Paths that nothing has read so far.
function M.unread(s)
  local _, paths = M.flat(s)
  local reads, out = rawget(s, READS), {}
  for _, path in ipairs(paths) do
    if not reads[path] then out[#out + 1] = path end
  end
  return out
end

-- --- overrides
local function parse(text, like, path)
  local kind = is_list(like) and "list" or type(like)
  if kind == "number" then
    local n = tonumber(text)
    if not n then A.raise("config: %s: a number such as %s is expected, got %q", path, tostring(like), text) end
    return n
  elseif kind == "boolean" then
    if text == "true" or text == "1" or text == "yes" then return true end
    if text == "false" or text == "0" or text == "no" then return false end
    A.raise("config: %s: true or false is expected, got %q", path, text)
  elseif kind == "list" then
    local inner = text:match "^%[(.*)%]$"
    if not inner then A.raise("config: %s: a list such as [a,b] is expected, got %q", path, text) end
    local out = {}
    for item in inner:gmatch "[^,]+" do
      item = item:match "^%s*(.-)%s*$"
      out[#out + 1] = like[1] ~= nil and parse(item, like[1], path) or tonumber(item) or item
    end
    return out
  end
  return text
end

---Applies "key.sub=value" texts to a table of defaults, typed by the default's type.
---@param defaults table
---@param overrides string[]
function M.apply(defaults, overrides)
  local known = {}
  local function collect(t, path)
    for k, v in pairs(t) do
      if type(v) == "table" and not is_list(v) then collect(v, path .. k .. ".") else known[#known + 1] = path .. k end
    end
  end
  collect(defaults, "")
  for _, text in ipairs(overrides) do
    local path, value = text:match "^([%w_%.]+)=(.*)$"
    if not path then A.raise("config: key.sub=value is expected, got %q", text) end
    local at, keys = defaults, {}
    for key in path:gmatch "[^.]+" do keys[#keys + 1] = key end
    for i = 1, #keys - 1 do at = type(at) == "table" and at[keys[i]] or nil end
    local last = keys[#keys]
    if type(at) ~= "table" or at[last] == nil or (type(at[last]) == "table" and not is_list(at[last])) then
      A.raise("config: unknown key %s%s", path, A.suggest(path, known))
    end
    at[last] = parse(value, at[last], path)
  end
  return defaults
end

local function copy(t)
  if type(t) ~= "table" then return t end
  local out = {}
  for k, v in pairs(t) do out[k] = copy(v) end
  return out
end

---For the next weft.config call: overrides of the command line, and values that a run recorded,
---which stand in place of the recipe's defaults.
function M.set_next(overrides, values) pending, recorded = overrides, values end

-- Recorded values over defaults; keys that the recipe no longer has are left out.
local function replace(defaults, values)
  for k, v in pairs(values) do
    local d = defaults[k]
    if type(d) == "table" and not is_list(d) and type(v) == "table" then replace(d, v)
    elseif d ~= nil then defaults[k] = v end
  end
end

---A recipe's settings: its defaults, changed by what the command line says.
---@param defaults table
function M.new(defaults)
  local data, overrides, values = copy(defaults), pending, recorded
  pending, recorded = nil, nil
  if values then replace(data, values) end
  if overrides then M.apply(data, overrides) end
  local self = section(data, "", {})
  rawset(self, DEFAULTS, defaults)
  return self
end

---What differs from the recipe's own defaults: path -> default value.
function M.changed(s)
  local out = {}
  local function compare(now, default, path)
    for k, v in pairs(now) do
      local d = default[k]
      if is_section(v) then compare(rawget(v, RAW), d, path .. k .. ".")
      else
        local same = v == d or type(v) == "table" and type(d) == "table" and table.concat(v, "\n") == table.concat(d, "\n")
        if not same then out[path .. k] = d end
      end
    end
  end
  compare(rawget(s, RAW), rawget(s, DEFAULTS), "")
  return out
end

return setmetatable(M, { __call = function(_, defaults) return (M.new(defaults)) end })
