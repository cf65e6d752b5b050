-- driver.lua: runs a plan's tasks as processes. What is done lies in the folder, and who does what in
-- locks that a task's process holds: a driver or a cell may be killed at any time and started again,
-- and several drivers may work in one folder.
local ffi = require "ffi"
local A = require "weft.args"
local C = require("weft.core").lib
local files = require "weft.files"
local prune = require "weft.ablate.prune"
local tasks_of = require "weft.ablate.tasks"

local Driver = {}
Driver.__index = Driver

local M = {}

local function json() return require "weft.io.json" end

local function must(ok, message)
  if not ok then error("ablate: " .. tostring(message), 0) end
  return ok
end

-- The folder's plan.json and this plan become one; another plan's folder is refused.
local function record(plan, dir)
  local mine, path = plan:record(), dir .. "/plan.json"
  if files.exists(path) then
    local there = must(json().read(path))
    for _, key in ipairs { "recipe", "hash", "fixed", "keys", "prune" } do
      local function text(v)
        if v == nil or type(v) == "table" and next(v) == nil then return "nothing" end
        return json().encode(v, { sort = true })
      end
      local a, b = text(there[key]), text(mine[key])
      if a ~= b then
        error(("ablate: %s holds another plan: its %s is %s, here %s; name another folder with --out"):format(dir, key, a, b), 0)
      end
    end
    for _, list in ipairs { "cells", "warmups" } do
      local id, seen = list == "cells" and "name" or "id", {}
      for _, item in ipairs(mine[list]) do seen[item[id]] = true end
      for _, item in ipairs(there[list]) do
        if not seen[item[id]] then table.insert(mine[list], item) end
      end
    end
  end
  mine.cells, mine.warmups, mine.fixed = json().array(mine.cells), json().array(mine.warmups), json().array(mine.fixed)
  must(json().write(path, mine))
end

-- --- cores
-- Cores that this process may use, whatever WEFT_THREADS says.
local function cores()
  local list, n = (files.read "/proc/self/status" or ""):match "Cpus_allowed_list:%s*(%S+)", 0
  for part in (list or ""):gmatch "[^,]+" do
    local a, b = part:match "^(%d+)%-?(%d*)$"
    n = n + (b ~= "" and b - a or 0) + 1
  end
  return n > 0 and n or math.huge
end

---Threads of the next task: what is free, shared among those that can begin now. nil: all cores are at
---work for other drivers.
---@param o table  threads (of all jobs), jobs
---@param mine integer  threads that this driver's tasks use
---@param running integer  how many they are
---@param ready integer  tasks that could begin now, with this one
---@param elsewhere integer  threads of other drivers' tasks on this machine
---@param all number  cores of the machine
function M.share(o, mine, running, ready, elsewhere, all)
  local free = o.threads - mine
  if elsewhere > 0 then
    free = math.min(free, all - elsewhere - mine)
    if free < 1 then return nil end
  end
  return math.max(1, math.floor(free / math.min(o.jobs - running, ready)))
end

-- --- a task's life
function Driver:begin(t, threads, fd)
  local words = tasks_of.command(self.plan, t, threads)
  local argv = ffi.new("const char *[?]", #words + 1)
  for i, w in ipairs(words) do argv[i - 1] = w end
  files.remove(t.output)
  local pid = tonumber(C.weft_process_start(argv, t.output, fd))
  if pid == 0 then
    C.weft_lock_drop(fd)
    A.fail()
  end
  -- the process holds the lock too: this one's part ends when it has written how it went
  t.pid, t.fd, t.threads, t.began = pid, fd, threads, files.clock()
  must(tasks_of.sign(t, pid, threads))
  if not t.said then self.view:line("%s %s started, %d thread%s", t.kind, t.name, threads, threads == 1 and "" or "s") end
  t.said = true
end

function Driver:failed(t, what, lines)
  t.settled = "failed"
  must(files.write(t.failed, what .. "\n" .. table.concat(lines, "\n") .. "\n"))
  self.view:line("%s %s FAILED (%s)%s", t.kind, t.name, what, #lines > 0 and ":\n    " .. table.concat(lines, "\n    ") or "")
end

function Driver:left()
  local done, all = 0, 0
  for _, t in ipairs(self.tasks) do
    if t.kind == "cell" then
      all = all + 1
      if files.exists(t.mark) then done = done + 1 end
    end
  end
  return ("%d of %d cells"):format(done, all)
end

function Driver:ended(t, code)
  local seconds, view = files.clock() - t.began, self.view
  if code == 0 and t.rung and files.exists(tasks_of.goal(t)) then
    view:line("%s %s at epoch %d after %.0f s", t.kind, t.name, t.rung, seconds)
  elseif code == 0 and files.exists(t.mark) then
    t.settled = "done"
    local score = t.kind == "cell" and require("weft.ablate.results").score(t.mark, self.plan.metric)
    view:line("%s %s done in %.0f s%s; %s", t.kind, t.name, seconds, score and ("; %s %.4g"):format(self.plan.metric, score) or "", self:left())
  elseif code == 128 + 9 and not t.killed then
    t.killed = true  -- once more, from its checkpoint; memory that runs out twice is a failure
    view:line("%s %s was killed after %.0f s; it goes on", t.kind, t.name, seconds)
  elseif code == 75 or code == 128 + 15 then
    view:line("%s %s was stopped after %.0f s; started again it goes on", t.kind, t.name, seconds)
    t.settled = "stopped"
  else
    local lines = tasks_of.tail(t.output, 8)
    if #lines == 0 then lines = tasks_of.tail(t.dir .. "/log.txt", 8) end
    self:failed(t, code == 128 + 9 and "killed twice, as happens when memory runs out" or ("exit code %d"):format(code), lines)
  end
  C.weft_lock_drop(t.fd)
  t.pid, t.fd, t.threads = nil, nil, nil
end

-- Looks at the processes that run: whether one has ended.
function Driver:poll()
  local any = false
  for _, t in ipairs(self.tasks) do
    if t.pid then
      local code = C.weft_process_poll(t.pid)
      if code >= 0 then
        self:ended(t, code)
        any = true
      end
    end
  end
  return any
end

-- How far a cell may train now: sets its rung. False while it waits for others, or is out.
function Driver:may_train(t, next_rung)
  if not next_rung or t.kind ~= "cell" then return true end
  local rung, why = next_rung(t)
  if rung == false then
    t.settled = "pruned"
    self.view:line("cell %s %s", t.name, why)
    return false
  end
  t.rung = type(rung) == "number" and rung or nil
  return rung ~= nil
end

-- Settles what can be settled; returns the tasks that could begin now, and how many wait for others' rungs.
function Driver:settle()
  local next_rung = self.plan.prune and prune.decide(self.plan, self.tasks)
  local ready, held = {}, 0
  for _, t in ipairs(self.tasks) do
    if not t.settled and not t.pid then
      if files.exists(t.mark) then t.settled = "done"
      elseif files.exists(t.failed) then t.settled = "failed"
      elseif t.needs and t.needs.settled == "failed" then self:failed(t, "its warm-up " .. t.needs.name .. " failed", {})
      elseif t.needs and t.needs.settled == "stopped" then t.settled = "stopped"
      elseif not t.needs or t.needs.settled == "done" then
        if self:may_train(t, next_rung) then ready[#ready + 1] = t elseif not t.settled then held = held + 1 end
      end
    end
  end
  return ready, held
end

-- Begins what there is room for.
function Driver:fill(ready)
  local mine, running = 0, 0
  for _, t in ipairs(self.tasks) do
    if t.pid then mine, running = mine + t.threads, running + 1 end
  end
  if running >= self.jobs or #ready == 0 then return end
  local elsewhere = tasks_of.threads_elsewhere(self.tasks, function(t) return t.pid ~= nil end)
  local free = {}
  for _, t in ipairs(ready) do
    if #free == self.jobs - running then break end
    local fd = C.weft_lock_take(t.lock)
    if fd == -2 then A.fail() end
    -- another driver may have come to its end since it was looked at
    if fd >= 0 and (files.exists(tasks_of.goal(t)) or files.exists(t.failed)) then C.weft_lock_drop(fd)
    elseif fd >= 0 then free[#free + 1] = { t, fd } end
  end
  for i, one in ipairs(free) do
    local threads = M.share(self, mine, running, #free - i + 1, elsewhere, self.cores)
    if threads then
      self:begin(one[1], threads, one[2])
      mine, running = mine + threads, running + 1
    else
      C.weft_lock_drop(one[2])
      if running == 0 and not self.said_full then
        self.view:line "all cores here are at work for another driver; waiting"
        self.said_full = true
      end
    end
  end
end

-- One look at everything; how many tasks are open.
function Driver:round()
  local ready, held = self:settle()
  if not self.stopping then self:fill(ready) end
  local open, freed = 0, 0
  for _, t in ipairs(self.tasks) do
    if not t.settled and (not self.stopping or t.pid) then open = open + 1 end
    if t.settled == "stopped" then freed = freed + 1 end
  end
  if freed > 0 and held > 0 and held == open then return 0 end  -- they wait for one that was stopped
  return open
end

function Driver:stop_all()
  for _, t in ipairs(self.tasks) do
    if t.pid then C.weft_process_stop(t.pid) end
  end
end

function Driver:loop()
  local next_look, open = 0, 1
  while open > 0 do
    local changed = self:poll()
    if C.weft_stop_requested() and not self.stopping then
      self.stopping, changed = true, true
      self.view:line "stopping: each cell writes a checkpoint first"
      self:stop_all()
    end
    if changed or files.clock() >= next_look then
      open = self:round()
      self.view:draw()
      next_look = files.clock() + 1
    end
    if open > 0 then C.weft_sleep(0.1) end
  end
end

---Runs what is left of a plan. Nothing that is done is done again.
---@param plan table
---@param o table  dir, jobs (1), threads (all that there are, shared among the jobs), quiet, expected (seconds of all)
---@return table summary  { dir, done, failed, stopped, pruned }
function M.run(plan, o)
  o = A.options(o, { dir = A.none, jobs = 1, threads = C.weft_threads(), quiet = false, expected = A.none }, "ablate: run")
  if o.jobs < 1 or o.jobs % 1 ~= 0 then A.raise("ablate: jobs: a whole number from 1 is expected, got %s", tostring(o.jobs)) end
  local dir = o.dir or plan:default_dir()
  for _, sub in ipairs { "cells", "warmups", "locks", "failed", "output" } do must(files.make_dirs(dir .. "/" .. sub)) end
  record(plan, dir)
  local self = setmetatable({ plan = plan, dir = dir, jobs = o.jobs, threads = o.threads, cores = cores(),
    tasks = tasks_of.list(plan, dir), view = require("weft.ablate.view").new(plan, dir, o) }, Driver)
  for _, t in ipairs(self.tasks) do
    if tasks_of.state(t) == "failed" then files.remove(t.failed) end  -- it gets another chance
  end
  self.view:line("%s: %s", dir, o.jobs == 1 and ("one cell at a time, %d threads"):format(o.threads)
    or ("%d cells at a time, %d threads shared among them"):format(o.jobs, o.threads))
  C.weft_catch_stop(true)
  local ok, problem = pcall(self.loop, self)
  C.weft_catch_stop(false)
  self.view:clear()
  if not ok then
    self:stop_all()
    error(problem, 0)
  end
  local summary = { dir = dir, done = 0, failed = 0, stopped = 0, pruned = 0 }
  for _, t in ipairs(self.tasks) do
    if t.kind == "cell" then
      local s = t.settled or "stopped"
      summary[s] = summary[s] + 1
    end
  end
  return summary
end

return M
