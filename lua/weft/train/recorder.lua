-- recorder.lua: the capture of one training step. Numbers that differ from step to step lie on the device:
-- scalars that the host knows beforehand are written there before a launch; values that it wants come
-- back after it, in one copy; and what a captured step takes for granted is checked: unless all of it
-- holds, nothing has moved.
local A = require "weft.args"
local autograd = require "weft.autograd"
local create = require("weft.tensor").create
local ops = require("weft.ops").functions
local random = require "weft.random"
local recording = require "weft.recording"
local graph = require "weft.graph"
local scope = require("weft.scope").scope

local Recorder = {}
Recorder.__index = Recorder

local SCALARS = 1024

local function made(spec) return create.zeros(spec):keep() end

---@param device string
---@param step integer  the step whose draws are captured
function Recorder.new(device, step)
  return setmetatable({ device = device, step = step, scalars = made { SCALARS, dtype = "float64", device = device },
    host = made { SCALARS, dtype = "float64" }, clock = made { 1, dtype = "int64", device = device },
    used = 0, writes = {}, flags = {}, demands = {}, parts = {}, after = {}, undos = {}, checks = {} }, Recorder)
end

-- Runs without the tape, whatever surrounds it, and takes what comes out of all scopes.
local function kept(fn, ...) return (autograd.no_grad(fn, ...):keep()) end

local function flat(t) return t:detach():reshape({ -1 }):to "float64" end

---count numbers on the device, as float64; write(p) puts them at p before each launch.
---@return weft.Tensor  [count]
function Recorder:scalar(count, write)
  if self.used + count > SCALARS then A.raise("graph: more than %d numbers change from step to step", SCALARS) end
  local at = self.used
  self.used = at + count
  self.writes[#self.writes + 1] = { at, write }
  return self.scalars:narrow(1, at + 1, count)
end

---fn(list, ...) with the elements of each tensor after each launch that stood.
function Recorder:later(tensors, fn)
  local reader = { fn = fn }
  for i, t in ipairs(tensors) do
    reader[i] = t:numel()
    if reader[i] > 0 then self.parts[#self.parts + 1] = kept(flat, t) end
  end
  self.after[#self.after + 1] = reader
end

---Truths that must all hold; `why` says in words what is the matter when they do not.
function Recorder:demand(truths, why)
  if self.ok then A.raise("graph: a demand comes too late: the optimizer has moved") end
  self.demands[#self.demands + 1] = why
  self.flags[#self.flags + 1] = kept(function() return ops.min(flat(truths), 1):reshape { 1 } end)
end

---Whether every demand holds: float64 [1], 1 or 0. No more can be made then.
function Recorder:seal()
  self.ok = self.ok or kept(function() return ops.min(ops.cat(self.flags, 1), 1):reshape { 1 } end)
  return self.ok
end

---AdamW and EMA that fn calls move by three numbers that write(p) puts at p, and only where the step stands.
function Recorder:rates(write, fn)
  local four = kept(function() return ops.cat({ self:scalar(3, write), self:seal() }, 1) end)
  self.graph:bind(self.clock, four)
  fn()
  self.graph:bind(self.clock, nil)
end

---Rows of a buffer, from row first() on and around: a write that is taken back where the step does not stand.
---@param pairs_ table  list of { buffer [size, ...], rows [n, ...] }, all of one size and n
---@param first function  where the first goes, from 0
function Recorder:ring(pairs_, first)
  autograd.no_grad(function()
    local size, n = pairs_[1][1]:size(1), pairs_[1][2]:size(1)
    local count = create.full { n, value = 1, dtype = "int64", device = self.device }
    local at = ops.cumsum(count, 1) + (self:scalar(1, function(p) p[0] = first() end):to "int64" - 1)
    local index = ops.where(at:ge(size), at - size, at):keep()
    for _, pair in ipairs(pairs_) do
      local buffer, rows = pair[1], pair[2]
      local before = ops.index_select(buffer, index, 1):keep()
      ops.index_copy_(buffer, index, rows:to(buffer.dtype):contiguous())
      self.undos[#self.undos + 1] = function()
        ops.index_copy_(buffer, ops.where(self.ok:gt(0), create.full { n, value = -1, dtype = "int64", device = self.device }, index), before)
      end
    end
  end)
end

---fn() on the host after each launch that stood, in its turn among those of later().
function Recorder:done(fn) self.after[#self.after + 1] = { fn = fn } end

---fn() before each launch: what it returns, a reason, says that the capture no longer fits.
function Recorder:check(fn) self.checks[#self.checks + 1] = fn end

---Captures fn(). An error of it is raised here, and nothing has run.
function Recorder:capture(fn)
  self.graph = graph.capture(self.device, function(g)
    self.graph = g
    g:bind(self.clock, nil)
    recording.active = self
    local ok, message = pcall(function()
      fn()
      autograd.no_grad(function()
        self:seal()
        for i = #self.undos, 1, -1 do self.undos[i]() end
        local all = { unpack(self.flags) }
        for _, part in ipairs(self.parts) do all[#all + 1] = part end
        self.results = ops.cat(all, 1):keep()
      end)
    end)
    recording.active = nil
    if not ok then error(message, 0) end
  end)
end

---Why the capture no longer fits, or nil.
function Recorder:stale()
  for _, check in ipairs(self.checks) do
    local why = check()
    if why then return why end
  end
end

---One step. True, or nil and the reason why nothing has moved.
function Recorder:launch(step)
  local p = self.host:data()
  for _, w in ipairs(self.writes) do w[2](p + w[1]) end
  self.scalars:copy_(self.host)
  self.clock:fill_((step - self.step) * random.STEP)
  self.graph:launch()
  local values = self.results:totable()
  for i, why in ipairs(self.demands) do
    if values[i] ~= 1 then return nil, why end
  end
  local at = #self.demands
  scope(function()
    for _, reader in ipairs(self.after) do
      local lists = {}
      for i, n in ipairs(reader) do
        lists[i] = {}
        for k = 1, n do lists[i][k] = values[at + k] end
        at = at + n
      end
      reader.fn(unpack(lists))
    end
  end)
  random.skip(self.unnamed or 0)
  return true
end

---Gives back all that the capture holds.
function Recorder:free()
  if self.graph then self.graph:free() end
  for _, list in ipairs { self.parts, self.flags, { self.scalars, self.host, self.clock, self.ok, self.results } } do
    for _, t in pairs(list) do t:free() end
  end
end

return Recorder
