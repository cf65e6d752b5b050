-- tasks.lua: what an ablation's folder holds: warm-ups and cells as tasks, where each stands, and the
-- command that begins it or goes on with it.
local C = require("weft.core").lib
local checkpoint = require "weft.train.checkpoint"
local files = require "weft.files"
local prune = require "weft.ablate.prune"

local M = {}

---Last lines of a text file.
function M.tail(path, n)
  local f = io.open(path, "rb")
  if not f then return {} end
  f:seek("set", math.max(0, f:seek "end" - 2048 * n))
  local lines = {}
  for line in f:read("*a"):gmatch "[^\n]+" do lines[#lines + 1] = line end
  f:close()
  return { unpack(lines, math.max(1, #lines - n + 1)) }
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
function M.list(plan, dir)
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

---Whether somebody, here or elsewhere, is at work on a task.
function M.held(t)
  if not files.exists(t.lock) then return false end
  local fd = C.weft_lock_take(t.lock)
  if fd >= 0 then C.weft_lock_drop(fd) end
  return fd == -1
end

---"done", "failed", "running", "stopped" (in the middle) or "waiting".
function M.state(t)
  if files.exists(t.mark) then return "done" end
  if M.held(t) then return "running" end
  if files.exists(t.failed) then return "failed" end
  return #checkpoint.list(t.dir) > 0 and "stopped" or "waiting"
end

---What a task's process has written last: { step, steps (of the whole run), loss }; nil before its first step.
function M.progress(t)
  local line = M.tail(t.dir .. "/metrics.jsonl", 1)[1]
  local ok, row = pcall(require("weft.io.json").decode, line or "")
  if not ok or type(row) ~= "table" or not row.step then return nil end
  if not t.steps then
    local model = require("weft.io.json").read(t.dir .. "/model.json")
    t.steps = model and model.steps_per_epoch * model.epochs
  end
  return { step = row.step, steps = t.steps, loss = tonumber(row.loss_total) }
end

-- --- who holds a task
local function host()
  local name = (files.read "/proc/sys/kernel/hostname" or "here"):match "^%S+"
  return name
end

---Writes into a task's lock who holds it, for people and for other drivers.
function M.sign(t, pid, threads) return files.append(t.lock, ("%d %s %d\n"):format(pid, host(), threads)) end

---Threads that other drivers' processes use on this machine.
---@param tasks table[]
---@param mine fun(t): boolean
function M.threads_elsewhere(tasks, mine)
  local n, here = 0, host()
  for _, t in ipairs(tasks) do
    if not mine(t) and not files.exists(t.mark) and M.held(t) then
      local place, threads = (M.tail(t.lock, 1)[1] or ""):match "^%d+ (%S+) (%d+)$"
      if place == here then n = n + tonumber(threads) end
    end
  end
  return n
end

-- --- its command
---The words that begin a task, or go on where its folder has a checkpoint. What lies in a folder
---without one is removed.
function M.command(plan, t, threads)
  local main = assert(package.searchpath("weft.cli.main", package.path))
  local words = { "env", "WEFT_THREADS=" .. threads, "luajit", main, "train" }
  local function add(...)
    for _, w in ipairs { ... } do words[#words + 1] = w end
  end
  if #checkpoint.list(t.dir) > 0 then
    add("--resume", t.dir)
  else
    if files.exists(t.dir) then
      local ok, message = files.remove_tree(t.dir)
      if not ok then error("ablate: " .. message, 0) end
    end
    add(plan.recipe, unpack(t.overrides))
    add("--dir", t.dir)
    if t.needs then add("--branch", t.needs.dir) end
  end
  if t.kind == "warm-up" then add("--until", t.cell.phase) end
  if t.rung then add("--until", tostring(t.rung)) end
  add "--quiet"
  return words
end

---The file that a task's process is to leave: of the whole, or of the rung it may train to.
function M.goal(t) return t.rung and prune.mark(t.dir, t.rung) or t.mark end

return M
