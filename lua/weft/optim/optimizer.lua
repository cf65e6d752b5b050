-- optimizer.lua: what all optimizers share: parameter groups, state by parameter name, learning rates
-- of a step. A method's own file says how one bucket of tensors moves.
local ffi = require "ffi"
local A = require "weft.args"
local C = require("weft.core").lib
local no_grad = require("weft.autograd").no_grad
local create = require("weft.tensor").create
local ops = require("weft.ops").functions
local is_module = require("weft.nn.module").is_module
local named = require "weft.optim.named"
local recording = require "weft.recording"

local Optimizer = {}

---A new kind of optimizer. defaults: options that a group may have for itself; slots: names of the
---tensors kept for each parameter. mixed: those of a bfloat16 parameter, all of them float32; the last
---one, "master", is the parameter itself, which is rounded from it. Without mixed none is taken.
function Optimizer.class(name, defaults, slots, mixed)
  local class = { type = name, defaults = defaults, slots = slots, mixed = mixed }
  for key, fn in pairs(Optimizer) do class[key] = fn end
  class.class, class.__index = nil, class
  class.__tostring = class.describe
  return setmetatable(class, {
    __call = function(_, params, options)
      local known = { schedule = A.none }
      for key, value in pairs(defaults) do known[key] = value end
      local self = setmetatable({ options = A.options(options, known, name), groups = {}, steps = 0, _where = {} }, class)
      self:set_groups(params)
      return self
    end,
  })
end

-- One module, one map of names, a list of tensors, or a list of groups.
local function as_groups(params)
  local first = not is_module(params) and params[1]
  if type(first) == "table" and first.params ~= nil then return params end
  return { { params = params } }
end

---Starts anew with other groups: no state, step 0.
function Optimizer:set_groups(params)
  if type(params) ~= "table" then
    A.raise("%s: a module, a table of tensors or a list of groups { params = ... } is expected, got %s",
      self.type, A.typename(params))
  end
  self.groups, self._where, self.steps = {}, {}, 0
  for _, group in ipairs(as_groups(params)) do self:add_group(group) end
  if #self.groups == 0 then A.raise("%s: there is nothing to train: no group was given", self.type) end
  return self
end

---Frees what is kept for each parameter; the optimizer is of no use then.
function Optimizer:release()
  for _, e in ipairs(self:entries()) do
    for _, slot in ipairs(self:slots_of(e)) do
      if e[slot] then e[slot]:free() end
      e[slot] = nil
    end
  end
end

---Drops all state and starts anew, with the same groups or with others.
function Optimizer:rebuild(params)
  if params == nil then
    params = {}
    for i, group in ipairs(self.groups) do
      params[i] = { params = group.entries, name = group.name, schedule = group.schedule }
      for key in pairs(self.defaults) do params[i][key] = group[key] end
    end
  end
  return self:set_groups(params)
end

---Other groups, with the state of every parameter that stays; new ones begin at their step 0. The
---count of steps goes on.
function Optimizer:extend(params)
  local before, steps = {}, self.steps
  for _, e in ipairs(self:entries()) do before[named.id(e.t)] = e end
  self:set_groups(params)
  for _, e in ipairs(self:entries()) do
    local old = before[named.id(e.t)]
    if old then
      e.steps, e.version = old.steps, old.version
      for _, slot in ipairs(self:slots_of(e)) do e[slot] = old[slot] end
    end
  end
  self.steps = steps
  return self
end

---Adds a group: { params = module or tensors, name =, lr =, schedule =, ... }. Parameters that are
---frozen now are left out; a group with none that trains is an error. Others keep their state.
function Optimizer:add_group(group)
  local number = #self.groups + 1
  local known = { params = A.required, name = "group " .. number, schedule = self.options.schedule or A.none }
  for key in pairs(self.defaults) do known[key] = self.options[key] end
  local g = A.options(group, known, self.type .. ": group " .. tostring(group.name or number))
  local where = ("%s: %s"):format(self.type, g.name)
  if g.schedule ~= nil and type(g.schedule) ~= "function" and type(g.schedule) ~= "table" then
    A.raise("%s: schedule: a function of the step is expected, got %s", where, A.typename(g.schedule))
  end
  if type(g.lr) ~= "number" or not (g.lr >= 0) then A.raise("%s: lr: a number from 0 is expected, got %s", where, tostring(g.lr)) end
  for _, other in ipairs(self.groups) do
    if other.name == g.name then A.raise("%s: there are two groups of this name", where) end
  end
  local entries, seen, frozen, names = {}, {}, 0, {}
  for _, other in ipairs(self.groups) do
    for _, e in ipairs(other.entries) do names[e.name] = other.name end
  end
  for _, entry in ipairs(named.list(g.params, where, g.name .. ".")) do
    local name, t = entry[1], entry[2]
    local id = named.id(t)
    if not t.requires_grad then
      frozen = frozen + 1
    elseif not seen[id] then
      if self._where[id] then A.raise("%s: %s is already in %s", where, name, self._where[id]) end
      if names[name] then A.raise("%s: two tensors are called %s (the other is in %s)", where, name, names[name]) end
      names[name] = g.name
      if not t.dtype:find "^float[36]" and not (t.dtype == "bfloat16" and self.mixed) then
        A.raise("%s: %s is %s; %s is expected%s", where, name, t.dtype,
          self.mixed and "float32, float64 or bfloat16" or "float32 or float64",
          t.dtype == "bfloat16" and " (AdamW keeps float32 masters of bfloat16)" or "")
      end
      seen[id] = name
      entries[#entries + 1] = { name, t, name = name, t = t, steps = 0 }
    end
  end
  if #entries == 0 then
    A.raise("%s: there is nothing to train: %s", where,
      frozen > 0 and ("all %d parameters are frozen"):format(frozen) or "no parameter was given")
  end
  for id in pairs(seen) do self._where[id] = g.name end
  g.params, g.entries, g.base_lr = nil, entries, g.lr
  g.list = ffi.new("const weft_tensor *[?]", #entries * (2 + #(self.mixed or self.slots)))
  self.groups[number] = g
  return self
end

---All entries { name =, t = } in order.
function Optimizer:entries()
  local list = {}
  for _, group in ipairs(self.groups) do
    for _, e in ipairs(group.entries) do list[#list + 1] = e end
  end
  return list
end

---The parameters, in order.
function Optimizer:parameters()
  local list = {}
  for i, e in ipairs(self:entries()) do list[i] = e.t end
  return list
end

---The learning rate of each group at a step, by default the next one.
---@param step? integer  from 0
---@return number[]
function Optimizer:lrs(step)
  local out = {}
  for i, g in ipairs(self.groups) do out[i] = g.lr * (g.schedule and g.schedule(step or self.steps) or 1) end
  return out
end

function Optimizer:zero_grad()
  for _, g in ipairs(self.groups) do
    for _, e in ipairs(g.entries) do e.t:zero_grad() end
  end
  return self
end

---Names of the tensors that are kept for one parameter.
function Optimizer:slots_of(e) return e.t.dtype == "bfloat16" and self.mixed or self.slots end

local function slot_dtype(e) return e.t.dtype == "bfloat16" and "float32" or e.t.dtype end

local function new_slots(self, e)
  for _, slot in ipairs(self:slots_of(e)) do
    local spec = e.t.shape
    spec.dtype, spec.device = slot_dtype(e), e.t.device
    e[slot] = slot == "master" and e.t:detach():to("float32"):keep() or create.zeros(spec):keep()
  end
  e.version = C.weft_version_of(e.t.p)
end

-- Where someone else wrote into a bfloat16 parameter, what it holds now takes the place of its master.
local function follow(e)
  if not e.master or e.version == C.weft_version_of(e.t.p) then return end
  local now = e.t:detach():to "float32"
  e.master:copy_(ops.where(e.master:to("bfloat16"):to("float32"):eq(now), e.master, now))
end

-- Entries that share step and dtype, from the first that waits on, and how many places of the list they take.
local function bucket_of(self, entries, list)
  local n, bucket = 0, {}
  for _, e in ipairs(entries) do
    local first = bucket[1] or e
    if e.grad and e.steps == first.steps and e.t.p.v.dtype == first.t.p.v.dtype then
      bucket[#bucket + 1] = e
      list[n], list[n + 1] = e.t.p, e.grad
      n = n + 2
      for _, slot in ipairs(self:slots_of(e)) do
        list[n] = e[slot] and e[slot].p or e.grad
        n = n + 1
      end
      e.grad = nil
    end
  end
  return bucket, n
end

-- Moves a bucket. In a captured step its rates are worked out at each launch, from lr() and the count then.
local function move_bucket(self, group, lr, bucket, n)
  local first, recorder = bucket[1], recording.active
  local function move(rate) A.check(self:move(group, group.list, n, rate, first.steps + 1, first.t.dtype)) end
  local function count()
    for _, e in ipairs(bucket) do e.steps = e.steps + 1 end
  end
  if not recorder then
    move(lr)
    return count()
  end
  if not self.rates then A.raise("%s: its step can't be captured in a graph", self.type) end
  recorder:rates(function(p) self:rates(group, lr(), first.steps + 1, p) end, function() move(0) end)
  recorder:done(count)
  recorder:check(function()
    for _, e in ipairs(bucket) do
      if e.steps ~= first.steps then return "parameters that moved together have taken different numbers of steps" end
    end
  end)
end

-- Moves the parameters of a group, bucket by bucket.
local function step_group(self, group, lr, grads)
  local entries, waiting = group.entries, 0
  for _, e in ipairs(entries) do
    e.grad = grads[e]
    follow(e)
    if e.grad then
      if self.slots[1] and not e[self.slots[1]] and self:wants_slots(group) then
        if recording.active then A.raise("%s: %s has no state yet", self.type, e.name) end
        new_slots(self, e)
      end
      waiting = waiting + 1
    end
  end
  while waiting > 0 do
    local bucket, n = bucket_of(self, entries, group.list)
    waiting = waiting - #bucket
    move_bucket(self, group, lr, bucket, n)
  end
  for _, e in ipairs(entries) do
    if e.master then e.version = C.weft_version_of(e.t.p) end
  end
end

local function take_gradients(self)
  local grads, n = {}, 0
  for _, g in ipairs(self.groups) do
    for _, e in ipairs(g.entries) do
      if e.t.requires_grad then
        local grad = C.weft_grad(A.tensor(e.t, self.type, e.name))
        if grad ~= nil then
          if not C.weft_is_contiguous(grad) then
            local copy = C.weft_contiguous(grad)
            C.weft_free(grad)
            if copy == nil then A.fail() end
            grad = copy
          end
          grads[e] = grad
          n = n + 1
        end
      end
    end
  end
  if n == 0 then A.raise("%s: no parameter has a gradient; call backward() first", self.type) end
  return grads
end

---Moves every parameter that has a gradient, and counts the step.
---@param lrs? number[]  learning rates of the groups, in place of lr times schedule; functions in a captured step
function Optimizer:step(lrs)
  lrs = lrs or self:lrs()
  if #lrs ~= #self.groups then A.raise("%s: %d learning rates for %d groups", self.type, #lrs, #self.groups) end
  no_grad(function()
    local grads = take_gradients(self)
    local ok, message = pcall(function()
      for i, group in ipairs(self.groups) do step_group(self, group, lrs[i], grads) end
    end)
    for _, grad in pairs(grads) do C.weft_free(grad) end
    if not ok then error(message, 0) end
  end)
  local function count() self.steps = self.steps + 1 end
  if recording.active then recording.active:done(count) else count() end
  return self
end

---What a checkpoint holds: tensors by "slot.name" and plain values.
---@return { tensors: table<string, weft.Tensor>, values: table }
function Optimizer:state()
  local tensors, counts = {}, {}
  for _, e in ipairs(self:entries()) do
    counts[e.name] = e.steps
    for _, slot in ipairs(self:slots_of(e)) do
      if e[slot] then tensors[slot .. "." .. e.name] = e[slot] end
    end
  end
  return { tensors = tensors, values = { type = self.type, steps = self.steps, counts = counts } }
end

---Takes state() back, by name. What does not fit is one error, and nothing is changed.
function Optimizer:load_state(state)
  A.options(state, { tensors = A.required, values = A.required }, self.type .. ": load_state")
  local values, problems, mine = state.values, {}, {}
  if values.type ~= self.type then A.raise("%s: load_state: the state is of %s", self.type, tostring(values.type)) end
  for _, e in ipairs(self:entries()) do
    mine[e.name] = e
    if not values.counts[e.name] then problems[#problems + 1] = "missing " .. e.name end
    for _, slot in ipairs(self:slots_of(e)) do
      local t = state.tensors[slot .. "." .. e.name]
      if not t and (values.counts[e.name] or 0) > 0 and self.needs_slots then
        problems[#problems + 1] = ("missing %s.%s"):format(slot, e.name)
      end
      if t and (table.concat(t.shape, ",") ~= table.concat(e.t.shape, ",") or t.dtype ~= slot_dtype(e)) then
        problems[#problems + 1] = ("%s.%s is %s [%s], expected %s [%s]"):format(slot, e.name, t.dtype, table.concat(t.shape, ","),
          slot_dtype(e), table.concat(e.t.shape, ","))
      end
    end
  end
  for name in pairs(values.counts) do
    if not mine[name] then problems[#problems + 1] = "extra " .. name end
  end
  for name in pairs(state.tensors) do
    local slot, rest = name:match "^([^.]+)%.(.*)$"
    if not mine[rest] or not self:has_slot(mine[rest], slot) then problems[#problems + 1] = "extra " .. name end
  end
  if #problems > 0 then
    table.sort(problems)
    A.raise("%s: load_state: %d entries do not fit:\n  %s%s", self.type, #problems,
      table.concat(problems, "\n  ", 1, math.min(#problems, 8)), #problems > 8 and "\n  ..." or "")
  end
  no_grad(function()
    for name, e in pairs(mine) do
      e.steps = values.counts[name]
      if state.tensors[self.slots[1] .. "." .. name] then
        if not e[self.slots[1]] then new_slots(self, e) end
        for _, slot in ipairs(self:slots_of(e)) do e[slot]:copy_(state.tensors[slot .. "." .. name]) end
      else
        for _, slot in ipairs(self:slots_of(e)) do e[slot] = nil end
      end
    end
  end)
  self.steps = values.steps
  return self
end

function Optimizer:has_slot(e, name)
  for _, slot in ipairs(self:slots_of(e)) do
    if slot == name then return true end
  end
  return false
end

---One line a group: what is in it and how it moves.
function Optimizer:describe()
  local commas = require("weft.nn.module").commas
  local lines, lrs = {}, self:lrs()
  lines[1] = ("%s at step %d"):format(self.type, self.steps)
  for i, g in ipairs(self.groups) do
    local n, masters = 0, 0
    for _, e in ipairs(g.entries) do
      n = n + e.t:numel()
      if e.t.dtype == "bfloat16" then masters = masters + 1 end
    end
    lines[#lines + 1] = ("  %s: %s parameters in %d tensors, lr %.4g (base %.4g), weight decay %g%s"):format(
      g.name, commas(n), #g.entries, lrs[i], g.lr, g.weight_decay,
      masters > 0 and (", float32 masters of %d in bfloat16"):format(masters) or "")
  end
  return table.concat(lines, "\n")
end

return Optimizer
