-- queue.lua: a ring of past samples: features, ids, and what a fused pass needs to see them again.
-- Rows are written after backward (commit), never while a loss that read them is on the tape.
local A = require "weft.args"
local module = require "weft.nn.module"
local autograd = require "weft.autograd"
local create = require("weft.tensor").create
local recording = require "weft.recording"
local ops = require("weft.ops").functions

local Queue = module.class("Queue", module.base)
-- what is compared stays in float32; the ring's place and the rows' ages are read at every step
Queue.wide, Queue.host_buffers = true, { position = true, step = true }

---@param size integer  rows
---@param fields table  name -> shape of one row, with dtype where it is not float32:
---  { image = { 256 }, ids = { dtype = "int64" } }
function Queue:init(size, fields)
  self.size, self.fields, self.names = size, fields, {}
  for name in pairs(fields) do self.names[#self.names + 1] = name end
  table.sort(self.names)
  for _, name in ipairs(self.names) do
    local spec = { size, dtype = fields[name].dtype or "float32" }
    for i, n in ipairs(fields[name]) do spec[i + 1] = n end
    self:register_buffer(name, create.zeros(spec))
  end
  self:register_buffer("position", create.zeros { 2, dtype = "int64" })  -- next row, rows filled
  self.pending, self.refused = {}, 0
end

local function place(self)
  local p = self._buffers.position:data()
  return tonumber(p[0]), tonumber(p[1])
end

---Rows filled so far.
function Queue:filled()
  local _, filled = place(self)
  return filled
end

---The filled rows of a field: a view.
function Queue:get(name)
  return (ops.narrow(self._buffers[name], 1, 1, self:filled()))
end

-- 1 for each row whose numbers are all finite, else 0; nil where no field can hold another.
local function finite_rows(self, rows)
  local good
  for _, name in ipairs(self.names) do
    local t = rows[name]
    if t and (t.dtype == "float32" or t.dtype == "float64") then
      local finite = ops.isfinite(t):to("int64"):reshape(t:size(1), -1)
      local least = ops.min(finite, 2)
      good = good and good:minimum(least) or least
    end
  end
  return good and good:numel() > 0 and good or nil
end

-- Places (from 0) of rows whose numbers are all finite, or nil when all are: a NaN must not stay here.
local function sound(self, rows)
  if rows[self.names[1]].device == "meta" then return nil end
  local good = finite_rows(self, rows)
  if not good then return nil end
  if recording.active then return recording.active:demand(good:gt(0), "a row for the queue is not finite") end
  if good:min():item() == 1 then return nil end
  local places = {}
  for i, v in ipairs(good:totable()) do
    if v == 1 then places[#places + 1] = i - 1 end
  end
  return places
end

---Remembers rows of this step; commit writes them. Nothing is remembered in evaluation; rows that
---hold a NaN or an infinity are left out and counted in `refused`.
---@param rows table  field -> tensor [B, ...]; of a field that stays on the CPU a function that makes it
function Queue:push(rows)
  if not self.training then return end
  local kept, makers = {}, {}
  for _, name in ipairs(self.names) do
    local t, spec = rows[name], self.fields[name]
    if type(t) == "function" then
      makers[name] = t
      t = not recording.active and t() or nil       -- else it is asked after each launch
    end
    if t then
      local shape = t.shape
      local fits = #shape == #spec + 1
      for i, n in ipairs(spec) do fits = fits and shape[i + 1] == n end
      if not fits then
        A.raise("Queue: push: %s is [%s]; rows of [%s] are held", name, table.concat(shape, ","), table.concat(spec, ","))
      end
      kept[name] = t:detach()
    elseif not makers[name] then A.raise("Queue: push: %s is missing", name) end
  end
  autograd.no_grad(function()
    local places = sound(self, kept)
    if not places then return end
    self.refused = self.refused + kept[self.names[1]]:size(1) - #places
    local index = create.tensor(places, { dtype = "int64" })
    for name, t in pairs(kept) do kept[name] = ops.index_select(t, index:to(t.device), 1) end
  end)
  for name, t in pairs(kept) do kept[name] = t:keep() end
  table.insert(self.pending, { rows = kept, makers = makers })
end

-- Writes n rows of some fields, and moves on.
local function write(self, rows, names, n)
  local at, filled = place(self)
  local from = math.max(0, n - self.size)   -- of a batch larger than the queue, its last rows
  local left = n - from
  while left > 0 do
    local run = math.min(left, self.size - at)
    for _, name in ipairs(names) do
      ops.narrow(self._buffers[name], 1, at + 1, run):copy_(ops.narrow(rows[name], 1, from + 1, run))
    end
    at, from, left = (at + run) % self.size, from + run, left - run
  end
  local p = self._buffers.position:data()
  p[0], p[1] = at, math.min(self.size, filled + n)
end

-- The same in a captured step, which knows the place when it is launched; what lies on the CPU follows then.
local function record(self, recorder, rows, makers)
  local n, parts, here = rows[self.names[1]]:size(1), {}, {}
  local count = math.min(n, self.size)
  for _, name in ipairs(self.names) do
    if self._buffers[name].device == "cpu" then
      if not makers[name] then A.raise("Queue: %s: a captured step wants a function that makes these rows", name) end
      here[#here + 1] = name
    else parts[#parts + 1] = { self._buffers[name], ops.narrow(rows[name], 1, n - count + 1, count) } end
  end
  recorder.queued = recorder.queued or {}
  local before = recorder.queued[self] or 0     -- by this step's earlier micro-steps
  recorder.queued[self] = before + count
  recorder:ring(parts, function() return ((place(self)) + before) % self.size end)
  recorder:done(function()
    local made = {}
    for _, name in ipairs(here) do made[name] = makers[name]() end
    write(self, made, here, n)
  end)
end

---As if its rows were filled: for plans of memory.
function Queue:assume_full() self._buffers.position:data()[1] = self.size end

---Writes what was pushed. The trainer calls it after backward.
function Queue:commit()
  local recorder = recording.active
  autograd.no_grad(function()
    for _, item in ipairs(self.pending) do
      local rows = item.rows
      if recorder then record(self, recorder, rows, item.makers)
      else write(self, rows, self.names, rows[self.names[1]]:size(1)) end
      for _, t in pairs(rows) do t:free() end
    end
  end)
  self.pending = {}
end

---Forgets what was pushed: the step does not take place.
function Queue:abandon() self.pending = {} end

---While it fills up, what it is compared with grows from step to step.
function Queue:unsettled() return self:filled() < self.size and "the queue is filling" or nil end

function Queue:describe() return ("%d rows"):format(self.size) end

return Queue
