-- mutate.lua: damages bytes at random, repeatably: flips, cuts, copies, and numbers that lie at edges.
local M = {}

---A generator of whole numbers: next(n) gives 0 .. n - 1.
---@param seed integer
---@return fun(n: integer): integer
function M.random(seed)
  local state = seed % 2147483646 + 1
  return function(n)
    state = state * 48271 % 2147483647
    return state % n
  end
end

local edges = { "\0\0\0\0", "\255\255\255\255", "\127\255\255\255", "\255\255\255\127", "\128\0\0\0", "\0\0\0\128",
  "\1\0\0\0", "\0\0\0\1", "\0\0\0\0\0\0\0\128", "\255\255\255\255\255\255\255\127" }
local words = { "-1", "9223372036854775807", "18446744073709551616", "1e308", "null", "[]", "{}", "\"\"", "\\u0000", "\\ud800",
  "[[[[", "__metadata__", "data_offsets", ",", ":", "\255", "0.5", "true" }

local function splice(bytes, at, cut, insert)
  return bytes:sub(1, at) .. insert .. bytes:sub(at + cut + 1)
end

local changes = {
  function(b, next) local i = next(#b); return splice(b, i, 1, string.char(next(256))) end,
  function(b, next) local i = next(#b); return splice(b, i, 1, string.char((b:byte(i + 1) + 2 ^ next(8)) % 256)) end,
  function(b, next) return b:sub(1, next(#b)) end,
  function(b, next) local i = next(#b); return splice(b, i, next(math.min(64, #b - i)) + 1, "") end,
  function(b, next) local i, j = next(#b), next(#b); return splice(b, i, 0, b:sub(j + 1, j + 1 + next(64))) end,
  function(b, next) local e = edges[next(#edges) + 1]; return splice(b, next(#b), #e, e) end,
  function(b, next) local w = words[next(#words) + 1]; return splice(b, next(#b), next(2) * #w, w) end,
  -- most of what matters stands at the front
  function(b, next) local i = next(math.min(#b, 64)); return splice(b, i, 1, string.char(next(256))) end,
}

---bytes with one to four changes.
---@param bytes string
---@param next fun(n: integer): integer
---@return string
function M.damage(bytes, next)
  for _ = 0, next(4) do
    if #bytes == 0 then return bytes end
    bytes = changes[next(#changes) + 1](bytes, next)
  end
  return bytes
end

local bit = require "bit"
local table_of_crc = {}
for i = 0, 255 do
  local c = i
  for _ = 1, 8 do c = bit.bxor(bit.rshift(c, 1), bit.band(c, 1) == 1 and 0xedb88320 or 0) end
  table_of_crc[i] = c
end

local function be32(n) return string.char(bit.rshift(n, 24) % 256, bit.rshift(n, 16) % 256, bit.rshift(n, 8) % 256, n % 256) end

---A PNG with the checksums of its chunks put right, so that damage reaches the decoder.
---@param bytes string
---@return string
function M.repair_png(bytes)
  local out, at = { bytes:sub(1, 8) }, 9
  while at + 11 <= #bytes do
    local a, b, c, d = bytes:byte(at, at + 3)
    local length = ((a * 256 + b) * 256 + c) * 256 + d
    if at + 11 + length > #bytes then break end
    local crc = -1
    for i = at + 4, at + 7 + length do
      crc = bit.bxor(bit.rshift(crc, 8), table_of_crc[bit.band(bit.bxor(crc, bytes:byte(i)), 255)])
    end
    out[#out + 1] = bytes:sub(at, at + 7 + length) .. be32(bit.bnot(crc))
    at = at + 12 + length
  end
  return table.concat(out) .. bytes:sub(at)
end

return M
