-- schedule.lua: factors of the learning rate as functions of the step, which counts from 0. They hold
-- no state: what a run resumes at is its step.
local A = require "weft.args"

local M = {}

local function steps_of(o, key, where, least)
  local n = o[key]
  if type(n) ~= "number" or n % 1 ~= 0 or n < least then
    A.raise("schedule.%s: %s: a whole number from %d is expected, got %s", where, key, least, tostring(n))
  end
end

local function number_of(o, key, where)
  if type(o[key]) ~= "number" then A.raise("schedule.%s: %s: a number is expected, got %s", where, key, A.typename(o[key])) end
end

---One factor at every step.
---@param value? number  1
function M.constant(value)
  value = value or 1
  A.number(value, "schedule.constant", "value")
  return function() return value end
end

---From one factor to another in a straight line over steps, then the last.
---@param options { steps: integer, from: number?, to: number? }  from 1, to 0
function M.linear(options)
  local o = A.options(options, { steps = A.required, from = 1, to = 0 }, "schedule.linear")
  steps_of(o, "steps", "linear", 1)
  number_of(o, "from", "linear")
  number_of(o, "to", "linear")
  return function(s)
    if s >= o.steps then return o.to end
    return o.from + (o.to - o.from) * s / o.steps
  end
end

---(s + 1) / steps for s < steps, then 1 (or the schedule `next`, which sees the same step).
---@param options { steps: integer, next: function? }
function M.warmup(options)
  local o = A.options(options, { steps = A.required, next = A.none }, "schedule.warmup")
  steps_of(o, "steps", "warmup", 0)
  return function(s)
    if s < o.steps then return (s + 1) / o.steps end
    return o.next and o.next(s) or 1
  end
end

---max(floor, (1 + cos(pi s / steps)) / 2), and the floor from `steps` on. With warmup = w: first (s + 1) / w
---for s < w, then the cosine of (s - w) over (steps - w).
---@param options { steps: integer, warmup: integer?, floor: number? }  floor 0.1
---
---    optim.schedule.cosine { steps = 1000, warmup = 100 }(0)   -- 0.01
function M.cosine(options)
  local o = A.options(options, { steps = A.required, warmup = 0, floor = 0.1 }, "schedule.cosine")
  steps_of(o, "steps", "cosine", 1)
  steps_of(o, "warmup", "cosine", 0)
  number_of(o, "floor", "cosine")
  if o.warmup > o.steps then A.raise("schedule.cosine: a warm-up of %d does not fit in %d steps", o.warmup, o.steps) end
  local w, span = o.warmup, o.steps - o.warmup
  return function(s)
    if s < w then return (s + 1) / w end
    if s >= o.steps then return o.floor end
    return math.max(o.floor, 0.5 * (1 + math.cos(math.pi * (s - w) / span)))
  end
end

---Schedules one after the other, each from its own step 0: sequence{ { warmup, 100 }, { cosine } }. The
---last goes on for ever.
---@param parts { [1]: function, [2]: integer? }[]
function M.sequence(parts)
  if type(parts) ~= "table" or #parts == 0 then A.raise("schedule.sequence: a list of { schedule, steps } is expected") end
  for i, part in ipairs(parts) do
    if type(part) ~= "table" or type(part[1]) ~= "function" or (i < #parts and type(part[2]) ~= "number") then
      A.raise("schedule.sequence: entry %d: { schedule, steps } is expected", i)
    end
  end
  return function(s)
    for i = 1, #parts - 1 do
      if s < parts[i][2] then return parts[i][1](s) end
      s = s - parts[i][2]
    end
    return parts[#parts][1](s)
  end
end

---The product of several: a curve for all, times the own warm-up of a group.
function M.product(...)
  local parts = { ... }
  for i, f in ipairs(parts) do
    if type(f) ~= "function" then A.raise("schedule.product: argument %d: a schedule is expected, got %s", i, A.typename(f)) end
  end
  return function(s)
    local y = 1
    for i = 1, #parts do y = y * parts[i](s) end
    return y
  end
end

---A schedule that begins at a later step; before it the factor is 0.
---@param start integer
---@param schedule function
function M.from(start, schedule)
  A.number(start, "schedule.from", "start")
  if type(schedule) ~= "function" then A.raise("schedule.from: a schedule is expected, got %s", A.typename(schedule)) end
  return function(s)
    if s < start then return 0 end
    return schedule(s - start)
  end
end

return M
