-- order.lua: the order of rows in an epoch, cut into batches, and what a set's hash is made of; of millions of
-- rows too, so nothing here is a Lua table by row.
local ffi = require "ffi"
local C = require("weft.core").lib
local columns = require "weft.data.columns"
local files = require "weft.files"
local ops = require("weft.ops").functions
local random = require "weft.random"
local rows_of = require "weft.data.rows"

local M = {}

---A permutation of n places from 0, keyed by seed and epoch alone.
---@return weft.Tensor  int64 [n]
function M.permutation(n, seed, epoch)
  return (ops.randperm(n, "cpu", { key = random.hash("data order", seed), counter = 0ULL + epoch }))
end

---@class weft.Plan
---@field n integer  batches
local Plan = {}

function Plan.__index(plan, k)
  if type(k) ~= "number" then return Plan[k] end
  if k < 1 or k > plan.n then return nil end
  local list = {}
  for i = plan.stops:get(k - 1), plan.stops:get(k) - 1 do list[#list + 1] = plan.rows:get(i) end
  return list
end

function Plan:free()
  self.rows:free()
  self.stops:free()
end

---Cuts an order into n batches: each takes the first rows left whose pictures it does not have yet.
---@param order weft.Tensor  int64 places from 0; freed
---@param image_id fun(i: integer): any
---@param batch integer  rows of a batch
---@param n integer
---@return weft.Plan
function M.plan(order, image_id, batch, n)
  local places, total, at = order:data(), order:numel(), 0
  local rows, stops, left = columns.numbers "int32", columns.numbers "int32", {}
  stops:push(0)
  for _ = 1, n do
    local seen, rest, size = {}, {}, 0
    local function take(i)
      local id = image_id(i)
      if size < batch and not seen[id] then
        rows:push(i)
        seen[id], size = true, size + 1
      else rest[#rest + 1] = i end
    end
    for _, i in ipairs(left) do take(i) end
    while size < batch and at < total do
      take(tonumber(places[at]) + 1)
      at = at + 1
    end
    stops:push(rows.n)
    left = rest
  end
  order:free()
  return setmetatable({ n = n, rows = rows, stops = stops }, Plan)
end

-- The lines of a set's rows: its names, captions and hashes.
local function add_rows(h, rows)
  local name, caption, hash = rows_of.reader(rows, "name"), rows_of.reader(rows, "caption"), rows_of.reader(rows, "hash")
  local total = 0
  for i = 1, rows_of.size(rows) do
    local line = ("%s\t%s\t%s\n"):format(name(i), caption(i), hash(i) or "")
    total = total + #line
    if h then C.weft_hash_add(h, line, #line) end
  end
  return total
end

-- Bytes of the numbers 1 .. n in decimal with a comma between each two, in whatever order.
local function decimal_bytes(n)
  local total, digits, from = math.max(n - 1, 0), 1, 1
  while from <= n do
    total = total + digits * (math.min(n, 10 * from - 1) - from + 1)
    digits, from = digits + 1, 10 * from
  end
  return total
end

local ROOM = 2 ^ 16
local decimals, reversed = ffi.new("uint8_t[?]", ROOM), ffi.new "uint8_t[20]"

-- Places of an order as decimal numbers from 1, commas between them.
local function add_order(h, order)
  local places, n, used = order:data(), order:numel(), 0
  for i = 0, n - 1 do
    local value, digits = tonumber(places[i]) + 1, 0
    while value > 0 do
      local rest = math.floor(value / 10)
      reversed[digits] = 48 + value - 10 * rest
      digits, value = digits + 1, rest
    end
    for k = 0, digits - 1 do decimals[used + k] = reversed[digits - 1 - k] end
    used = used + digits
    if i < n - 1 then
      decimals[used] = 44
      used = used + 1
    end
    if used > ROOM - 24 or i == n - 1 then
      C.weft_hash_add(h, decimals, used)
      used = 0
    end
  end
  order:free()
end

---Hash of rows and of the order of their first two epochs: of a line by row, then of the rows in those orders.
---@return string  16 hexadecimal digits
function M.hash(rows, seed)
  local h, n = ffi.new "weft_hash", rows_of.size(rows)
  C.weft_hash_begin(h, add_rows(nil, rows) + 2 * decimal_bytes(n) + 1, 0)
  add_rows(h, rows)
  add_order(h, M.permutation(n, seed, 1))
  C.weft_hash_add(h, "\n", 1)
  add_order(h, M.permutation(n, seed, 2))
  return (files.hex(C.weft_hash_end(h)))
end

return M
