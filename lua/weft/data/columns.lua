-- columns.lua: numbers and texts by row, in memory that Lua's collector neither sees nor moves and that is
-- counted as tensors are. What rows mean is rows.lua's.
local bit = require "bit"
local ffi = require "ffi"
local A = require "weft.args"
local create = require("weft.tensor").create

local M = {}
local band, rshift = bit.band, bit.rshift

-- Memory comes in chunks, so that growing copies nothing; the first begins small.
local SHIFT = 14
local CHUNK, MASK = 2 ^ SHIFT, 2 ^ SHIFT - 1

local function memory(n, dtype) return create.empty({ n, dtype = dtype }):keep() end

-- Puts a larger chunk in the first one's place, with what that held.
local function enlarge(self, n, dtype, used_bytes)
  local old, new = self.kept[0], memory(n, dtype)
  if old then
    ffi.copy(new:data(), old:data(), used_bytes)
    old:free()
  end
  self.kept[0], self.chunks[0] = new, new:data()
end

---A column of numbers, by place from 0.
local Numbers = {}
Numbers.__index = Numbers

local BYTES = { uint8 = 1, int32 = 4, int64 = 8, float64 = 8 }

---@param dtype string  uint8, int32, int64 or float64
function M.numbers(dtype)
  return setmetatable({ dtype = dtype, chunks = {}, kept = {}, n = 0, room = 0 }, Numbers)
end

local function grow(self)
  if self.room < CHUNK then
    local room = math.max(256, 2 * self.room)
    enlarge(self, room, self.dtype, self.n * BYTES[self.dtype])
    self.room = room
  else
    local k = self.room / CHUNK
    self.kept[k] = memory(CHUNK, self.dtype)
    self.chunks[k], self.room = self.kept[k]:data(), self.room + CHUNK
  end
end

function Numbers:push(value)
  local i = self.n
  if i >= self.room then grow(self) end
  self.chunks[rshift(i, SHIFT)][band(i, MASK)] = value
  self.n = i + 1
end

---Makes it n long, new places holding a value.
function Numbers:extend(n, value)
  for _ = self.n + 1, n do self:push(value) end
  return self
end

function Numbers:get(i) return self.chunks[rshift(i, SHIFT)][band(i, MASK)] end
function Numbers:set(i, value) self.chunks[rshift(i, SHIFT)][band(i, MASK)] = value end

function Numbers:free()
  for _, t in pairs(self.kept) do t:free() end
  self.kept, self.chunks, self.n, self.room = {}, {}, 0, 0
end

---A column of names with captions: a record is the lengths of both, then both, at a multiple of four bytes.
local Texts = {}
Texts.__index = Texts

local UNITS = 18                       -- a chunk has 2^18 units of four bytes
local BLOB, HEADER = 4 * 2 ^ UNITS, 6
local UNIT_MASK = 2 ^ UNITS - 1
local lengths_t, bytes_t = ffi.typeof "uint16_t *", ffi.typeof "char *"

function M.texts() return setmetatable({ chunks = {}, kept = {}, last = -1, used = 0, room = 0, at = M.numbers "int32" }, Texts) end

-- Room for n bytes in the last chunk, or a chunk more; a record lies in one.
local function reserve(self, n)
  if self.used + n <= self.room then return end
  if self.last <= 0 and self.used + n <= BLOB then
    local room = math.max(4096, 2 * self.room)
    while room < self.used + n do room = 2 * room end
    enlarge(self, room, "uint8", self.used)
    self.last, self.room = 0, room
    return
  end
  local k = self.last + 1
  if k >= 2 ^ (31 - UNITS) then A.raise("data: names and captions of more than %d GiB", 2 ^ (31 - UNITS) * BLOB / 2 ^ 30) end
  self.kept[k] = memory(math.max(BLOB, n), "uint8")
  self.chunks[k], self.last, self.used, self.room = self.kept[k]:data(), k, 0, math.max(BLOB, n)
end

function Texts:push(name, caption)
  local n, m = #name, #caption
  if n > 65535 then A.raise("data: a picture's name of %d bytes", n) end
  local size = band(HEADER + n + m + 3, -4)
  reserve(self, size)
  local base = ffi.cast(bytes_t, self.chunks[self.last]) + self.used
  local lengths = ffi.cast(lengths_t, base)
  lengths[0], lengths[1], lengths[2] = n, band(m, 65535), rshift(m, 16)
  ffi.copy(base + HEADER, name, n)
  ffi.copy(base + HEADER + n, caption, m)
  self.at:push(self.last * 2 ^ UNITS + self.used / 4)
  self.used = self.used + size
end

local function record(self, i)
  local at = self.at:get(i)
  local base = ffi.cast(bytes_t, self.chunks[rshift(at, UNITS)]) + 4 * band(at, UNIT_MASK)
  return base, ffi.cast(lengths_t, base)
end

---Where a row's name lies, and its bytes.
function Texts:name(i)
  local base, lengths = record(self, i)
  return base + HEADER, lengths[0]
end

---Where a row's caption lies, and its bytes.
function Texts:caption(i)
  local base, lengths = record(self, i)
  return base + HEADER + lengths[0], lengths[1] + 65536 * lengths[2]
end

---Finds rows that are equal: of each row the first that was like it.
local Index = {}
Index.__index = Index

---@param hash fun(r: integer): integer  32 bits of what a row, from 0, is known by
---@param same fun(a: integer, b: integer): boolean
function M.index(hash, same) return setmetatable({ hash = hash, same = same, n = 0, room = 0, most = 0 }, Index) end

-- A table of rows, from 1, by their hashes, twice as large as the one before; of each eight bits of its hash, so
-- that rows that differ are seldom looked at.
local function rehash(self)
  local old, old_tags, room = self.table, self.tag_table, math.max(1024, 2 * self.room)
  local from, before = self.slots, self.room
  self.table, self.tag_table = memory(room, "int32"), memory(room, "uint8")
  self.slots, self.tags, self.room, self.most = self.table:data(), self.tag_table:data(), room, math.floor(0.7 * room)
  local slots, tags, mask, hash = self.slots, self.tags, room - 1, self.hash
  ffi.fill(slots, 4 * room)
  for k = 0, before - 1 do
    if from[k] ~= 0 then
      local h = hash(from[k] - 1)
      local at = band(h, mask)
      while slots[at] ~= 0 do at = band(at + 1, mask) end
      slots[at], tags[at] = from[k], rshift(h, 24)
    end
  end
  if old then
    old:free()
    old_tags:free()
  end
end

---The first row that was equal to r; r itself where none was.
---@param r integer
---@return integer
function Index:find(r)
  if self.n >= self.most then rehash(self) end
  local slots, tags, mask, same = self.slots, self.tags, self.room - 1, self.same
  local h = self.hash(r)
  local at, tag = band(h, mask), rshift(h, 24)
  while slots[at] ~= 0 do
    if tags[at] == tag and same(slots[at] - 1, r) then return slots[at] - 1 end
    at = band(at + 1, mask)
  end
  slots[at], tags[at] = r + 1, tag
  self.n = self.n + 1
  return r
end

function Index:free()
  if not self.table then return end
  self.table:free()
  self.tag_table:free()
end

return M
