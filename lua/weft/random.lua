-- random.lua: where draws get their key and counter. A draw is named by (seed, purpose, step, index),
-- so nothing that ran before shifts it.
local ffi = require "ffi"
local A = require "weft.args"
local recording = require "weft.recording"

local C = require("weft.core").lib

local M = {}
local u64 = ffi.typeof "uint64_t"

-- FNV-1a, 64 bits, of a string, started from a seed.
local function hash(text, seed)
  local h = 1469598103934665603ULL
  for i = 0, 7 do
    h = bit.bxor(h, bit.band(bit.rshift(u64(seed), 8 * i), 255ULL)) * 1099511628211ULL
  end
  for i = 1, #text do h = bit.bxor(h, u64(text:byte(i))) * 1099511628211ULL end
  return h
end
M.hash = hash

local context = { seed = 0, step = 0, micro = 0 }
local default = { key = hash("default", 0), counter = 0ULL }
local keys, indices = {}, {}

---Seeds the default stream and all named ones.
---@param seed integer
function M.manual_seed(seed)
  if type(seed) ~= "number" or seed % 1 ~= 0 or seed < 0 then A.raise("manual_seed: a whole number from 0 is expected") end
  context.seed, context.step, context.micro = seed, 0, 0
  default.key, default.counter = hash("default", seed), 0ULL
  keys, indices = {}, {}
end

---Step and micro-step that named draws belong to from now on; their call indices start again.
function M.set_step(step, micro)
  context.step, context.micro = step, micro or 0
  indices = {}
end

function M.seed() return context.seed end

-- What a step adds to a counter.
M.STEP = 2 ^ 32

---The next draw of a purpose: an rng to pass to an operator.
---@param purpose string  such as the path of a module and what it draws
function M.named(purpose)
  local key = keys[purpose]
  if not key then
    key = hash(purpose, context.seed)
    keys[purpose] = key
  end
  local index = indices[purpose] or 0
  indices[purpose] = index + 1
  local counter = bit.bor(bit.lshift(u64(context.step), 32), bit.lshift(u64(context.micro), 16), u64(index))
  return { key = key, counter = counter, of_step = true }
end

---A stream of its own: each draw takes the next counter.
function M.stream(purpose, seed)
  return { key = hash(purpose, seed or context.seed), counter = 0ULL, advance = true }
end

local key_words, counter_words, drawn = ffi.new "uint32_t[2]", ffi.new "uint32_t[4]", ffi.new "uint32_t[4]"

---One draw of [0, 1): what rand gives first in float64, without a tensor.
---@param key integer  uint64_t
---@param counter integer  uint64_t
---@return number
function M.uniform(key, counter)
  key_words[0], key_words[1] = bit.band(key, 0xffffffffULL), bit.rshift(key, 32)
  counter_words[2], counter_words[3] = bit.band(counter, 0xffffffffULL), bit.rshift(counter, 32)
  C.weft_philox_words(key_words, counter_words, drawn)
  return (drawn[1] * 2 ^ 21 + math.floor(drawn[0] / 2 ^ 11)) * 2 ^ -53
end

---Call indices now, and back to them: recomputation draws what the first pass drew.
function M.snapshot()
  local copy = {}
  for k, v in pairs(indices) do copy[k] = v end
  return { indices = copy, counter = default.counter, step = context.step, micro = context.micro }
end

function M.restore(s)
  M.restore_indices(s)
  default.counter, context.step, context.micro = s.counter, s.step, s.micro
end

---Call indices alone: the default stream goes on where it is.
function M.restore_indices(s)
  indices = {}
  for k, v in pairs(s.indices) do indices[k] = v end
end

---State of the default stream and the seed, for checkpoints (numbers as strings: 64 bits).
function M.state()
  return { seed = context.seed, counter = (tostring(default.counter):gsub("ULL$", "")) }
end

function M.load_state(s)
  M.manual_seed(s.seed)
  local n = 0ULL
  for digit in s.counter:gmatch "%d" do n = n * 10 + tonumber(digit) end
  default.counter = n
end

-- The counter of a draw from the default stream in a captured step.
local UNNAMED = 0xffffffffffffffffULL

---n operator calls took the default stream, in a captured step.
function M.skip(n) default.counter = default.counter + n end

---Key and counter for one operator call.
function M.take(rng, op)
  local recorder = recording.active
  if recorder and rng == nil then
    -- fine as long as nothing is drawn (dropout of 0); the device refuses to
    recorder.unnamed = (recorder.unnamed or 0) + 1
    return default.key, UNNAMED
  elseif recorder and not (type(rng) == "table" and rng.of_step) then
    A.raise("%s: it draws from a stream that counts its calls, so a captured step would draw the same each time; name the draw (module:rng)", op)
  end
  if rng == nil then
    local counter = default.counter
    default.counter = counter + 1
    return default.key, counter
  end
  if type(rng) ~= "table" or rng.key == nil then
    A.raise("%s: rng: a stream of weft.random is expected, got %s", op, A.typename(rng))
  end
  local counter = rng.counter
  if rng.advance then rng.counter = counter + 1 end
  return rng.key, counter
end

return M
