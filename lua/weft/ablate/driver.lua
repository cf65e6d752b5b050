-- driver.lua: runs a plan's cells as processes. What is done lies in the folder, and who does what in
-- locks that a cell's process holds: a driver or a cell may be killed at any time and started again,
-- and several drivers may work in one folder.
local ffi = require "ffi"
local A = require "weft.args"
local C = require("weft.core").lib
local checkpoint = require "weft.train.checkpoint"
local files = require "weft.files"
local prune = require "weft.ablate.prune"

local M = {}

local function json() return require "weft.io.json" end

local function must(ok, message)
  if not ok then error("ablate: " .. tostring(message), 0) end
  return ok
end

---Last lines of a text file.
function M.tail(path, n)
  local lines = {}
  for line in (files.read(path) or ""):gmatch "[^\n]+" do lines[#lines + 1] = line end
  return { unpack(lines, math.max(1, #lines - n + 1)) }
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

local function task(dir, kind, name, o)
  local folder = kind == "warm-up" and "warmups" or "cells"
  local t = { kind = kind, name = name, dir = ("%s/%s/%s"):format(dir, folder, name), overrides = o.overrides, cell = o }
  t.lock, t.failed = ("%s/locks/%s-%s"):format(dir, folder, name), ("%s/failed/%s-%s.txt"):format(dir, folder, name)
  t.output = ("%s/output/%s-%s.txt"):format(dir, folder, name)
  t.mark = t.dir .. (kind == "warm-up" and "/until.json" or "/result.json")
  return t
end

---The tasks of a plan or of its record: warm-ups, then cells; cell.needs is its warm-up's task.
function M.tasks(plan, dir)
  local list, warm = {}, {}
  for _, w in ipairs(plan.warmups) do
    warm[w.id] = task(dir, "warm-up", w.id, w)
    list[#list + 1] = warm[w.id]
  end
  for _, c in ipairs(plan.cells) do
    local t = task(dir, "cell", c.name, c)
    t.needs = c.warmup and warm[c.warmup] or nil
    list[#list + 1] = t
  end
  return list
end

---"done", "failed", "running", "stopped" (in the middle) or "waiting".
function M.state(t)
  if files.exists(t.mark) then return "done" end
  if files.exists(t.lock) then
    local fd = C.weft_lock_take(t.lock)
    if fd == -1 then return "running" end
    C.weft_lock_drop(fd)
  end
  if files.exists(t.failed) then return "failed" end
  return #checkpoint.list(t.dir) > 0 and "stopped" or "waiting"
end

local function command(threads, ...)
  local main = assert(package.searchpath("weft.cli.main", package.path))
  return { "env", "WEFT_THREADS=" .. threads, "luajit", main, "train", ... }
end

-- The command of a task: goes on where its folder has a checkpoint, else begins.
local function words_of(plan, t, threads)
  local words = command(threads)
  local function add(...)
    for _, w in ipairs { ... } do words[#words + 1] = w end
  end
  if #checkpoint.list(t.dir) > 0 then
    add("--resume", t.dir)
  else
    if files.exists(t.dir) then must(files.remove_tree(t.dir)) end
    add(plan.recipe, unpack(t.overrides))
    add("--dir", t.dir)
    if t.needs then add("--branch", t.needs.dir) end
  end
  if t.kind == "warm-up" then add("--until", t.cell.phase) end
  if t.rung then add("--until", tostring(t.rung)) end
  add "--quiet"
  return words
end

local function spawn(words, output, fd)
  local argv = ffi.new("const char *[?]", #words + 1)
  for i, w in ipairs(words) do argv[i - 1] = w end
  files.remove(output)
  return tonumber(C.weft_process_start(argv, output, fd))
end

local function start(plan, t, threads, fd)
  local pid = spawn(words_of(plan, t, threads), t.output, fd)
  C.weft_lock_drop(fd)  -- the process has it now
  if pid == 0 then A.fail() end
  t.pid, t.began, t.goal = pid, files.clock(), t.rung and prune.mark(t.dir, t.rung) or t.mark
  must(files.append(t.lock, pid .. "\n"))  -- for whoever wants to know who holds it
end

local function ended(plan, t, code, say, failed, left)
  t.pid = nil
  local seconds = files.clock() - t.began
  if code == 0 and t.rung and files.exists(t.goal) then
    say("%s %s at epoch %d after %.0f s", t.kind, t.name, t.rung, seconds)
  elseif code == 0 and files.exists(t.mark) then
    t.settled = "done"
    local score = t.kind == "cell" and require("weft.ablate.table").score(t.mark, plan.metric)
    say("%s %s done in %.0f s%s; %s", t.kind, t.name, seconds, score and ("; %s %.4g"):format(plan.metric, score) or "", left())
  elseif code == 128 + 9 and not t.killed then
    t.killed = true  -- once more, from its checkpoint; memory that runs out twice is a failure
    say("%s %s was killed after %.0f s; it goes on", t.kind, t.name, seconds)
  elseif code == 75 or code == 128 + 15 then
    say("%s %s was stopped after %.0f s; started again it goes on", t.kind, t.name, seconds)
    t.settled = "stopped"
  else
    local lines = M.tail(t.output, 8)
    if #lines == 0 then lines = M.tail(t.dir .. "/log.txt", 8) end
    failed(t, ("exit code %d"):format(code), lines)
  end
end

---Runs what is left of a plan. Nothing that is done is done again.
---@param plan table
---@param o table  dir, jobs (1), threads (all that there are, shared among the jobs), quiet
---@return table summary  { dir, done, failed, stopped }
function M.run(plan, o)
  o = A.options(o, { dir = A.none, jobs = 1, threads = C.weft_threads(), quiet = false }, "ablate: run")
  if o.jobs < 1 or o.jobs % 1 ~= 0 then A.raise("ablate: jobs: a whole number from 1 is expected, got %s", tostring(o.jobs)) end
  local dir = o.dir or plan:default_dir()
  for _, sub in ipairs { "cells", "warmups", "locks", "failed", "output" } do must(files.make_dirs(dir .. "/" .. sub)) end
  record(plan, dir)
  local function say(...)
    if o.quiet then return end
    io.stdout:write((...):format(select(2, ...)), "\n")
    io.stdout:flush()
  end
  local tasks, threads = M.tasks(plan, dir), math.max(1, math.floor(o.threads / o.jobs))
  local function failed(t, what, lines)
    t.settled = "failed"
    must(files.write(t.failed, what .. "\n" .. table.concat(lines, "\n") .. "\n"))
    say("%s %s FAILED (%s)%s", t.kind, t.name, what, #lines > 0 and ":\n    " .. table.concat(lines, "\n    ") or "")
  end
  local function left()
    local done, all = 0, 0
    for _, t in ipairs(tasks) do
      if t.kind == "cell" then
        all = all + 1
        if files.exists(t.mark) then done = done + 1 end
      end
    end
    return ("%d of %d cells"):format(done, all)
  end
  for _, t in ipairs(tasks) do
    if M.state(t) == "failed" then files.remove(t.failed) end  -- it gets another chance
  end
  say("%s: %d at a time, %d thread%s each", dir, o.jobs, threads, threads == 1 and "" or "s")
  local stopping = false
  -- How far a cell may train now: sets its rung. False while it waits for others, or is out.
  local function may_train(t, next_rung)
    if not next_rung or t.kind ~= "cell" then return true end
    local rung, why = next_rung(t)
    if rung == false then
      t.settled = "pruned"
      say("cell %s %s", t.name, why)
      return false
    end
    t.rung = type(rung) == "number" and rung or nil
    return rung ~= nil
  end
  C.weft_catch_stop(true)
  local function round()
    local open, running, held, freed = 0, 0, 0, 0
    for _, t in ipairs(tasks) do
      if t.pid then
        local code = C.weft_process_poll(t.pid)
        if code >= 0 then ended(plan, t, code, say, failed, left) else running = running + 1 end
      end
    end
    local next_rung = plan.prune and prune.decide(plan, tasks)
    for _, t in ipairs(tasks) do
      if not t.settled and not t.pid then
        if files.exists(t.mark) then t.settled = "done"
        elseif files.exists(t.failed) then t.settled = "failed"
        elseif t.needs and t.needs.settled == "failed" then failed(t, "its warm-up " .. t.needs.name .. " failed", {})
        elseif t.needs and t.needs.settled == "stopped" then t.settled = "stopped"
        elseif (not t.needs or t.needs.settled == "done") and not may_train(t, next_rung) then
          held = held + 1
        elseif not stopping and running < o.jobs and (not t.needs or t.needs.settled == "done") then
          local fd = C.weft_lock_take(t.lock)
          if fd == -2 then A.fail() end
          if fd >= 0 then
            if files.exists(t.rung and prune.mark(t.dir, t.rung) or t.mark) or files.exists(t.failed) then C.weft_lock_drop(fd) else
              start(plan, t, threads, fd)
              running = running + 1
              if not t.said then say("%s %s started", t.kind, t.name) end
              t.said = true
            end
          end
        end
      end
      if not t.settled and (not stopping or t.pid) then open = open + 1 end
      if t.settled == "stopped" then freed = freed + 1 end
    end
    if freed > 0 and held > 0 and held == open then return 0 end  -- they wait for one that was stopped
    return open
  end
  local ok, problem = pcall(function()
    while round() > 0 do
      if C.weft_stop_requested() and not stopping then
        stopping = true
        say "stopping: each cell writes a checkpoint first"
        for _, t in ipairs(tasks) do
          if t.pid then C.weft_process_stop(t.pid) end
        end
      end
      C.weft_sleep(0.1)
    end
  end)
  C.weft_catch_stop(false)
  if not ok then
    for _, t in ipairs(tasks) do
      if t.pid then C.weft_process_stop(t.pid) end
    end
    error(problem, 0)
  end
  local summary = { dir = dir, done = 0, failed = 0, stopped = 0, pruned = 0 }
  for _, t in ipairs(tasks) do
    if t.kind == "cell" then
      local s = t.settled or "stopped"
      summary[s] = summary[s] + 1
    end
  end
  return summary
end

return M
