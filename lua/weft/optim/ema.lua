-- ema.lua: a moving average of parameters: average = d average + (1 - d) parameter. The decay warms up:
-- d = min(decay, (1 + t) / (10 + t)) at update t, which counts from 0. Of bfloat16 it is kept in float32.
local ffi = require "ffi"
local A = require "weft.args"
local C = require("weft.core").lib
local no_grad = require("weft.autograd").no_grad
local named = require "weft.optim.named"

local EMA = {}
EMA.__index = EMA

---EMA(params, options): averages what trains (every = true: all) of a module or a table of tensors.
---@param params table
---@param options? { decay: number?, warmup: boolean?, every: boolean? }  0.999, true, false
local function new(params, options)
  local o = A.options(options, { decay = 0.999, warmup = true, every = false }, "EMA")
  if type(o.decay) ~= "number" or not (o.decay >= 0 and o.decay < 1) then
    A.raise("EMA: decay must lie in [0, 1), got %s", tostring(o.decay))
  end
  local self = setmetatable({ decay = o.decay, warmup = o.warmup, every = o.every, updates = 0, entries = {},
    by_name = {} }, EMA)
  self:track(params)
  if #self.entries == 0 then
    A.raise("EMA: nothing trains, so there is nothing to average; every = true takes frozen parameters too")
  end
  return self
end

---Takes in parameters that are not averaged yet, such as those that were unfrozen since. Their
---average begins at their value now.
function EMA:track(params)
  local known = {}
  for _, e in ipairs(self.entries) do known[named.id(e.t)] = true end
  for _, entry in ipairs(named.list(params, "EMA")) do
    local name, t = entry[1], entry[2]
    if (self.every or t.requires_grad) and not known[named.id(t)] then
      if self.by_name[name] then A.raise("EMA: two tensors are called %s", name) end
      local e = { name = name, t = t, average = no_grad(function()
        return (t.dtype == "bfloat16" and t:detach():to "float32" or t:detach():clone()):keep()
      end) }
      self.entries[#self.entries + 1], self.by_name[name] = e, e
    end
  end
  -- one call for each dtype
  self.lists = {}
  for _, dtype in ipairs { "float32", "float64", "bfloat16" } do
    local list = { dtype = dtype }
    for _, e in ipairs(self.entries) do
      if e.t.dtype == dtype then list[#list + 1] = e end
    end
    if #list > 0 then
      list.p = ffi.new("const weft_tensor *[?]", 2 * #list)
      for i, e in ipairs(list) do list.p[2 * i - 2], list.p[2 * i - 1] = e.average.p, e.t.p end
      table.insert(self.lists, list)
    end
  end
  return self
end

---The decay of the next update.
function EMA:decay_now()
  local t = self.updates
  return self.warmup and math.min(self.decay, (1 + t) / (10 + t)) or self.decay
end

---Moves the averages towards the parameters: once a step, after the optimizer's.
function EMA:update()
  if self.swapped then A.raise("EMA: the averages are swapped in; swap() them out before update()") end
  local d = self:decay_now()
  no_grad(function()
    for _, list in ipairs(self.lists) do
      local wide = {}
      if list.dtype == "bfloat16" then
        for i, e in ipairs(list) do
          wide[i] = e.t:detach():to "float32"
          list.p[2 * i - 1] = wide[i].p
        end
      end
      A.check(C.weft_ema_(list.p, 2 * #list, d))
      for _, t in ipairs(wide) do t:free() end
    end
  end)
  self.updates = self.updates + 1
  return self
end

---Exchanges averages and parameters; again to exchange them back.
function EMA:swap()
  no_grad(function()
    for _, e in ipairs(self.entries) do
      if e.t.dtype == "bfloat16" then      -- which can't hold the average
        if self.swapped then
          e.t:copy_(e.kept)
          e.kept:free()
          e.kept = nil
        else
          e.kept = e.t:detach():clone():keep()
          e.t:copy_(e.average)
        end
      else
        local kept = e.t:detach():clone()
        e.t:copy_(e.average)
        e.average:copy_(kept)
        kept:free()
      end
    end
  end)
  self.swapped = not self.swapped
  return self
end

---Runs fn(...) with the averages in place of the parameters; they go back also when it fails.
function EMA:apply(fn, ...)
  self:swap()
  local function back(ok, ...)
    self:swap()
    if not ok then error((...), 0) end
    return ...
  end
  return back(pcall(fn, ...))
end

---@return { tensors: table<string, weft.Tensor>, values: table }
function EMA:state()
  if self.swapped then A.raise("EMA: the averages are swapped in; swap() them out before state()") end
  local tensors = {}
  for _, e in ipairs(self.entries) do tensors[e.name] = e.average end
  return { tensors = tensors, values = { updates = self.updates, decay = self.decay } }
end

---Takes state() back; missing, extra or misshapen entries are one error and change nothing.
function EMA:load_state(state)
  A.options(state, { tensors = A.required, values = A.required }, "EMA: load_state")
  local problems = {}
  for name, t in pairs(state.tensors) do
    local e = self.by_name[name]
    if not e then problems[#problems + 1] = "extra " .. name
    elseif table.concat(e.t.shape, ",") ~= table.concat(t.shape, ",") then
      problems[#problems + 1] = ("%s is [%s], expected [%s]"):format(name, table.concat(t.shape, ","), table.concat(e.t.shape, ","))
    end
  end
  for name in pairs(self.by_name) do
    if not state.tensors[name] then problems[#problems + 1] = "missing " .. name end
  end
  if #problems > 0 then
    table.sort(problems)
    A.raise("EMA: load_state: %d entries do not fit:\n  %s", #problems, table.concat(problems, "\n  ", 1, math.min(#problems, 8)))
  end
  no_grad(function()
    for name, t in pairs(state.tensors) do self.by_name[name].average:copy_(t) end
  end)
  self.updates = state.values.updates
  return self
end

return setmetatable(EMA, { __call = function(_, ...) return (new(...)) end })
