-- philox.lua: Philox4x32-10 and draws from it in plain Lua, written from the paper and from the
-- table at the head of core/tensor/random.h; what the kernels are compared with.
local M = {}

local TWO32 = 2 ^ 32

local function xor(a, b, c) return bit.bxor(a, b, c) % TWO32 end

local function product(a, b)
  local p = (0ULL + a) * b
  return tonumber(bit.rshift(p, 32)), tonumber(p % 4294967296ULL)
end

---Ten rounds over counter words c (4) with key words k (2); lowest words first.
function M.rounds(k, c)
  local c0, c1, c2, c3, k0, k1 = c[1], c[2], c[3], c[4], k[1], k[2]
  for _ = 1, 10 do
    local high0, low0 = product(c0, 0xD2511F53)
    local high1, low1 = product(c2, 0xCD9E8D57)
    c0, c1, c2, c3 = xor(high1, c1, k0), low1, xor(high0, c3, k1), low0
    k0, k1 = (k0 + 0x9E3779B9) % TWO32, (k1 + 0xBB67AE85) % TWO32
  end
  return { c0, c1, c2, c3 }
end

local function halves(x)
  x = 0ULL + x
  return tonumber(x % 4294967296ULL), tonumber(bit.rshift(x, 32))
end

---Group number `block` of four words of the stream (rng.key, rng.counter).
function M.block(rng, block)
  local b0, b1 = halves(block)
  local c0, c1 = halves(rng.counter)
  return M.rounds({ halves(rng.key) }, { b0, b1, c0, c1 })
end

---Word e, from 0.
function M.word(rng, e)
  return M.block(rng, math.floor(e / 4))[e % 4 + 1]
end

function M.uniform32(rng, e) return math.floor(M.word(rng, e) / 256) / 2 ^ 24 end

local function join53(low, high) return (high * 2 ^ 21 + math.floor(low / 2 ^ 11)) / 2 ^ 53 end

function M.uniform64(rng, e) return join53(M.word(rng, 2 * e), M.word(rng, 2 * e + 1)) end

-- Box and Muller: u in (0, 1], turn in [0, 1)
local function normal(u, turn, odd)
  local r = math.sqrt(-2 * math.log(u))
  return r * (odd and math.sin or math.cos)(2 * math.pi * turn)
end

---Attempt j (from 0) at element e: a normal with the radius of float32 draws or of float64 ones.
function M.normal32(rng, e, j)
  local w = M.block(rng, math.floor(e / 4) + 0ULL + (j or 0) * 281474976710656ULL)
  local at = e % 4 - e % 2
  return normal((math.floor(w[at + 1] / 2) + 0.5) / 2 ^ 31, w[at + 2] / TWO32, e % 2 == 1)
end

function M.normal64(rng, e, j)
  local w = M.block(rng, math.floor(e / 2) + 0ULL + (j or 0) * 281474976710656ULL)
  return normal(join53(w[1], w[2]) + 2 ^ -54, w[4] / TWO32 + w[3] / TWO32 ^ 2, e % 2 == 1)
end

---An integer in [0, n), n below 2^53.
function M.below(rng, e, n)
  local low, high = M.word(rng, 2 * e), M.word(rng, 2 * e + 1)
  local n1, n0 = math.floor(n / TWO32), n % TWO32
  -- (high 2^32 + low) (n1 2^32 + n0) / 2^64, from products of 32 bits
  local a1, a0 = product(high, n0)
  local b1, b0 = product(low, n1)
  local carry = math.floor((product(low, n0) + a0 + b0) / TWO32)
  return tonumber((0ULL + high) * n1) + a1 + b1 + carry
end

---Attempt j at element e of a normal cut to a narrow [low, high]: the point, and whether it counts.
function M.narrow(rng, e, j, low, high)
  local w = M.block(rng, (0ULL + e) + (0ULL + j) * 281474976710656ULL)
  local m = low > 0 and low or high < 0 and -high or 0
  local far = math.sqrt(m * m + 72)
  low, high = math.max(low, -far), math.min(high, far)
  local x = low + (high - low) * join53(w[1], w[2])
  return x, join53(w[3], w[4]) + 2 ^ -54 <= math.exp((m * m - x * x) / 2)
end

return M
