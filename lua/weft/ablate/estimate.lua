-- estimate.lua: what a plan will take, from one measured step of each phase: time, memory, disk. Cells
-- that may be too large for the machine are measured one by one, under a limit.
local ffi = require "ffi"
local A = require "weft.args"
local C = require("weft.core").lib
local config_of = require "weft.config"
local files = require "weft.files"

local M = {}

local MIB = 2 ^ 20

---Memory that processes can still have here: bytes.
function M.free_memory()
  local info = files.read "/proc/meminfo" or ""
  local free = (tonumber(info:match "MemAvailable:%s*(%d+)") or math.huge) * 1024
  local limit = tonumber((files.read "/sys/fs/cgroup/memory.max" or ""):match "%d+")
  local used = tonumber((files.read "/sys/fs/cgroup/memory.current" or ""):match "%d+")
  if limit then free = math.min(free, limit - (used or 0)) end
  return free
end

local function tail(text, n)
  local lines = {}
  for line in text:gmatch "[^\n]+" do lines[#lines + 1] = line end
  return { unpack(lines, math.max(1, #lines - n + 1)) }
end

---One step of each phase of a cell, in a process of its own: { phases = { { steps, seconds } }, mib,
---checkpoint (MiB), steps }, or nil, its last lines, and whether memory ran out.
---@param plan table
---@param cell table
---@param threads integer
---@param limit? number  MiB of tensors
function M.measure(plan, cell, threads, limit)
  local main = assert(package.searchpath("weft.cli.main", package.path))
  local words = { "env", "WEFT_THREADS=" .. threads, "luajit", main, "train", plan.recipe, unpack(cell.overrides) }
  words[#words + 1] = "--dry-run"
  if limit then
    words[#words + 1] = "--memory"
    words[#words + 1] = ("%d"):format(math.max(1, limit))
  end
  local argv = ffi.new("const char *[?]", #words + 1)
  for i, w in ipairs(words) do argv[i - 1] = w end
  local text, code = files.temporary(function(dir)
    local pid, status = tonumber(C.weft_process_start(argv, dir .. "/output", -1)), -1
    if pid == 0 then A.fail() end
    while status < 0 do
      C.weft_sleep(0.05)
      status = C.weft_process_poll(pid)
    end
    return files.read(dir .. "/output") or "", status
  end)
  local out = { phases = {}, steps = 0 }
  for steps, seconds in text:gmatch "dry run: [^\n]-: (%d+) steps, one of %d+ pictures took ([%d.]+) s" do
    table.insert(out.phases, { steps = tonumber(steps), seconds = tonumber(seconds) })
    out.steps = out.steps + tonumber(steps)
  end
  local mib, checkpoint = text:match "of the process (%d+) MiB; a checkpoint takes ([%d.]+) MiB"
  out.mib, out.checkpoint = tonumber(mib), tonumber(checkpoint)
  if code ~= 0 or not out.mib or #out.phases == 0 then
    return nil, tail(text, 3), code == 128 + 9 or text:find("out of memory", 1, true) ~= nil
  end
  return out
end

local function size_of(v)
  if type(v) == "number" then return v end
  local inner = tostring(v):match "^%[(.*)%]$"
  if inner then return select(2, inner:gsub("[^,]+", "")) end
  return tonumber(v)
end

---How much more memory a cell could at most take than the first: no key is taken to do worse than
---its square. math.huge where nothing can be said.
function M.growth(plan, cell)
  local factor, first = 1, plan.cells[1]
  for _, key in ipairs(plan.keys) do
    local a, b = first.values[key], cell.values[key]
    if key ~= "seed" and a ~= b then
      local x, y = size_of(a), size_of(b)
      if not x or not y or x <= 0 then return math.huge end
      factor = factor * math.max(1, y / x) ^ 2
    end
  end
  return factor
end

-- What a cell leaves: checkpoints that stay, and a report with its pictures.
local function disk_of(plan, cell, m)
  local recipe = require("weft.train").load_recipe(plan.recipe, cell.overrides)
  local kept = config_of.get(recipe.config, "keep_checkpoints", 2) + #recipe.phases
  return kept * m.checkpoint + 2
end

---Measures and checks a plan: { seconds (in all), mib, disk (MiB), free_disk, cell (its own figures), too_large
---(list of { cell, why }) }; nil and the last lines when the first cell does not begin.
---@param plan table
---@param o table  threads, jobs, dir, memory (MiB for all jobs)
function M.check(plan, o)
  local room = (o.memory or M.free_memory() / MIB) / o.jobs
  local m, lines, starved = M.measure(plan, plan.cells[1], o.threads, o.memory and room or nil)
  local out = { room = room, too_large = {}, cell = m }
  local function large(cell, why) table.insert(out.too_large, { cell = cell, why = why }) end
  if not m then
    if not starved then return nil, lines end
    large(plan.cells[1], ("out of memory below %d MiB"):format(room))
    return out
  end
  local done = {}
  for _, cell in ipairs(plan.cells) do
    local parts = {}
    for _, key in ipairs(plan.keys) do
      if key ~= "seed" then parts[#parts + 1] = cell.values[key] end
    end
    local id = table.concat(parts, "\n")
    if done[id] == nil then
      done[id] = false
      if cell ~= plan.cells[1] and m.mib * M.growth(plan, cell) > room then
        local own, _, memory = M.measure(plan, cell, o.threads, room)
        if own and own.mib > room then done[id] = ("takes %d MiB"):format(own.mib)
        elseif not own and memory then done[id] = ("out of memory below %d MiB"):format(room) end
      elseif cell == plan.cells[1] and m.mib > room then done[id] = ("takes %d MiB"):format(m.mib) end
    end
    if done[id] then large(cell, done[id]) end
  end
  local own, shared = 0, 0
  for i, p in ipairs(m.phases) do
    own = own + p.steps * p.seconds
    if i == 1 then shared = p.steps * p.seconds end
  end
  local seconds = #plan.warmups * shared
  for _, cell in ipairs(plan.cells) do
    local after = (own - shared) * (plan.prune and plan.prune.share or 1)
    seconds = seconds + after + (cell.warmup and 0 or shared)
  end
  local each = disk_of(plan, plan.cells[1], m)
  out.seconds, out.mib, out.disk = seconds / o.jobs, m.mib, each * (#plan.cells + #plan.warmups)
  local place = o.dir
  while place and not files.exists(place) do place = place:match "^(.+)/[^/]*$" end
  out.free_disk = files.disk_free(place or ".") / MIB
  return out
end

local function span(s) return s < 90 and ("%.0f s"):format(s) or s < 5400 and ("%.1f min"):format(s / 60) or ("%.1f h"):format(s / 3600) end
local function size(mib) return mib < 1024 and ("%.0f MiB"):format(mib) or ("%.1f GiB"):format(mib / 1024) end

---What was found, in lines for the plan.
function M.lines(e, o)
  local lines = {}
  if e.seconds then
    local steps = {}
    for i, p in ipairs(e.cell.phases) do steps[i] = ("%.2f s"):format(p.seconds) end
    lines[1] = ("  from one step of each phase (%s) on %d thread%s: about %s of steps, %d at a time; then scores"):format(
      table.concat(steps, ", "), o.threads, o.threads == 1 and "" or "s", span(e.seconds), o.jobs)
    lines[2] = ("  a cell takes %s of memory (%s is free for each); all of it about %s of disk (%s is free)"):format(size(e.mib), size(e.room),
      size(e.disk), size(e.free_disk))
  end
  return lines
end

---Why the plan can't begin as it is, or nil.
function M.refusal(e, o)
  if #e.too_large > 0 then
    local lines = {}
    for i, c in ipairs(e.too_large) do lines[i] = ("  %s: %s"):format(c.cell.name, c.why) end
    return ("%d of the cells can't fit in %s, %d at a time:\n%s\nmake batch or sizes smaller, use fewer --jobs, or leave these out")
      :format(#lines, size(e.room * o.jobs), o.jobs, table.concat(lines, "\n"))
  end
  if e.disk and e.disk > e.free_disk then
    return ("the cells leave about %s and %s of disk are free; a smaller keep_checkpoints, or --out elsewhere"):format(size(e.disk), size(e.free_disk))
  end
end

return M
