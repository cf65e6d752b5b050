-- rows.lua: captioned pictures by row, kept as columns: a hundred bytes a row where a Lua table takes a
-- thousand. rows[i] reads like { path, name, caption, image_id, caption_id, hash, token_count, ids }. A plain
-- list of such tables serves wherever rows do.
local bit = require "bit"
local ffi = require "ffi"
local C = require("weft.core").lib
local columns = require "weft.data.columns"
local files = require "weft.files"

local Rows = {}

-- Fields of a row by its place in the store, from 0.
local fields = {}
function fields.name(s, r) return ffi.string(s.texts:name(r)) end
function fields.caption(s, r) return ffi.string(s.texts:caption(r)) end
function fields.path(s, r)
  local name = fields.name(s, r)
  return name:sub(1, 1) == "/" and name or s.root .. "/" .. name
end
function fields.image_id(s, r) return s.image_id and s.image_id:get(r) end
function fields.caption_id(s, r) return s.caption_id and s.caption_id:get(r) end
function fields.hash(s, r) return s.hash and files.hex(ffi.cast("uint64_t", s.hash:get(r))) end
function fields.token_count(s, r) return s.token_count and s.token_count:get(r) end
function fields.ids(s, r) return s.encode and s.encode(fields.caption(s, r)) end

local Row = {
  __index = function(row, field)
    local get = fields[field]
    return get and get(row[1], row[2])
  end,
  __tostring = function(row) return ("%s: %s"):format(row.name, row.caption) end,
}

function Rows.__index(rows, key)
  if type(key) ~= "number" then return Rows[key] end
  local r = rows:place(key)
  return r and setmetatable({ rows.store, r }, Row)
end
function Rows.__tostring(rows) return ("%d captioned pictures"):format(rows:size()) end

---No rows yet, of pictures whose names are below a folder or whole paths.
---@param root string
---@return weft.Rows
function Rows.new(root) return setmetatable({ store = { root = root, texts = columns.texts() } }, Rows) end

function Rows:root() return self.store.root end
function Rows:set_root(root) self.store.root = root end

---Appends a picture with its caption.
function Rows:add(name, caption) self.store.texts:push(name, caption) end

---How many rows there are.
function Rows:size() return (self.places or self.store.texts.at).n end

---Place of row i in the store, from 0; nil where there is no such row.
function Rows:place(i)
  if i < 1 or i > self:size() or i % 1 ~= 0 then return nil end
  return self.places and self.places:get(i - 1) or i - 1
end

---Goes through all rows: for i, row in rows:each() do ... end
function Rows:each()
  local i = 0
  return function()
    i = i + 1
    local row = self[i]
    if row then return i, row end
  end
end

---Leaves the first n rows; before anything is numbered.
function Rows:cut(n) self.store.texts.at.n = math.min(n, self.store.texts.at.n) end

---The rows for which keep(i) holds, over the same store.
---@param keep fun(i: integer): boolean
---@return weft.Rows
function Rows:select(keep)
  local places = columns.numbers "int32"
  for i = 1, self:size() do
    if keep(i) then places:push(self:place(i)) end
  end
  return setmetatable({ store = self.store, places = places }, Rows)
end

local scratch, room = nil, 0

-- A caption in small letters (those of ASCII, as string.lower has them), and its bytes.
local function lower(p, n)
  if n > room then
    room = 2 * n
    scratch = ffi.new("uint8_t[?]", room)
  end
  for k = 0, n - 1 do
    local c = p[k]
    scratch[k] = c >= 65 and c <= 90 and c + 32 or c
  end
  return scratch, n
end

local function hash_of(p, n) return bit.tobit(tonumber(bit.band(C.weft_hash_bytes(p, n, 0), 0xffffffffULL))) end

-- Both from the end: names that are counted up differ there.
local function same_letters(p, n, q, m)
  if n ~= m then return false end
  for k = n - 1, 0, -1 do
    local c, d = p[k], q[k]
    if c ~= d and (c >= 65 and c <= 90 and c + 32 or c) ~= (d >= 65 and d <= 90 and d + 32 or d) then return false end
  end
  return true
end

local function same_bytes(p, n, q, m)
  if n ~= m then return false end
  for k = n - 1, 0, -1 do
    if p[k] ~= q[k] then return false end
  end
  return true
end

-- Numbers of rows from 1, the same for equal ones, in the order in which they are met; and how many there are.
local function numbered(index, rows)
  local ids, n = columns.numbers "int32", 0
  for r = 0, rows - 1 do
    local first = index:find(r)
    if first == r then n = n + 1 end
    ids:push(first == r and n or ids:get(first))
  end
  index:free()
  return ids, n
end

---Numbers captions that are equal but for the case of their letters: caption_id, from 1. How many there are.
---@return integer
function Rows:number_captions()
  local s = self.store
  if not s.caption_id then
    local texts = s.texts
    s.caption_id, s.captions = numbered(columns.index(function(r) return hash_of(lower(texts:caption(r))) end, function(a, b)
      local p, n = texts:caption(a)
      return same_letters(p, n, texts:caption(b))
    end), texts.at.n)
  end
  return s.captions
end

---Numbers pictures by their names alone, whatever the files hold: image_id, from 1. How many there are.
---@return integer
function Rows:number_names()
  local texts = self.store.texts
  local ids, n = numbered(columns.index(function(r) return hash_of(texts:name(r)) end, function(a, b)
    local p, bytes = texts:name(a)
    return same_bytes(p, bytes, texts:name(b))
  end), texts.at.n)
  self.store.image_id = ids
  return n
end

---Numbers pictures by what their files hold: image_id, from 1, and hash. How many there are; nil, message where
---one can't be read.
---@return integer?, string? message
function Rows:number_pictures()
  local s, hashes = self.store, columns.numbers "int64"
  for r = 0, s.texts.at.n - 1 do
    local bytes, message = files.read(fields.path(s, r))
    if not bytes then return nil, message end
    hashes:push(ffi.cast("int64_t", C.weft_hash_bytes(bytes, #bytes, 0)))
  end
  local ids, n = numbered(columns.index(function(r) return bit.tobit(tonumber(bit.band(hashes:get(r), 0xffffffffLL))) end,
    function(a, b) return hashes:get(a) == hashes:get(b) end), s.texts.at.n)
  s.hash, s.image_id = hashes, ids
  return n
end

---Says how captions become ids, and counts those of each row.
---@param encode fun(caption: string): integer[]
---@param count fun(caption: string): integer  how many ids encode gives
---@param most integer  no count is above this
function Rows:set_tokens(encode, count, most)
  local s = self.store
  s.encode, s.token_count = encode, columns.numbers(most < 256 and "uint8" or "int32")
  for r = 0, s.texts.at.n - 1 do s.token_count:push(count(fields.caption(s, r))) end
end

local M = { new = Rows.new }

local function is_rows(rows) return getmetatable(rows) == Rows end

---How many rows there are, in columns or in a list.
function M.size(rows) return is_rows(rows) and rows:size() or #rows end

---A field's reader by row, for loops over many: function(i) -> value.
---@param field string
---@return fun(i: integer): any
function M.reader(rows, field)
  if not is_rows(rows) then
    if field == "token_count" then return function(i) return #rows[i].ids end end
    return function(i) return rows[i][field] end
  end
  local s, get = rows.store, fields[field]
  return function(i) return get(s, rows:place(i)) end
end

---Distinct values of a field that numbers things.
---@param field string  image_id or caption_id
function M.distinct(rows, field)
  local seen, n, of = {}, 0, M.reader(rows, field)
  local marks = is_rows(rows) and columns.numbers "uint8"
  for i = 1, M.size(rows) do
    local id = of(i)
    if marks then
      marks:extend(id, 0)
      if marks:get(id - 1) == 0 then n = n + 1 end
      marks:set(id - 1, 1)
    elseif not seen[id] then seen[id], n = true, n + 1 end
  end
  if marks then marks:free() end
  return n
end

---The rows for which keep(i) holds, as rows or as a list.
function M.select(rows, keep)
  if is_rows(rows) then return rows:select(keep) end
  local out = {}
  for i, row in ipairs(rows) do
    if keep(i) then out[#out + 1] = row end
  end
  return out
end

M.is_rows = is_rows
return M
