-- view.lua: what an ablation shows while it runs: on a terminal the table as it stands, redrawn in
-- place below the lines of what has happened; elsewhere those lines alone.
local files = require "weft.files"
local results = require "weft.ablate.results"
local tables = require "weft.ablate.table"
local terminal = require "weft.terminal"

local View = {}
View.__index = View

local M = {}

---@param plan table
---@param dir string
---@param o table  quiet, expected (seconds that all of it was thought to take)
function M.new(plan, dir, o)
  return setmetatable({ plan = plan, dir = dir, quiet = o.quiet, expected = o.expected, began = files.clock(), kept = {}, shown = {},
    live = not o.quiet and terminal.is_terminal() and os.getenv "TERM" ~= "dumb" }, View)
end

-- The sequence that takes away what is drawn: lines that are wider than the terminal is now fill more rows.
local function wipe(self)
  local columns, rows = terminal.size(), 0
  for _, line in ipairs(self.shown) do rows = rows + math.max(1, math.ceil(#line / columns)) end
  self.shown = {}
  return rows > 0 and ("\27[%dA\r\27[J"):format(rows) or ""
end

---A line of what has happened; it stays.
function View:line(...)
  if self.quiet then return end
  io.stdout:write(self.live and wipe(self) or "", (...):format(select(2, ...)), "\n")
  io.stdout:flush()
end

-- Part of a task's own epochs that it has come through.
local function part(row, own, from, to)
  if row.state == "done" or row.state == "pruned" or row.state == "failed" then return own end
  local p = row.progress
  if not p or not p.steps then return 0 end
  return own * math.max(0, math.min(1, (p.step / p.steps - from) / (to - from)))
end

-- Work that is done, in whole runs.
local function work(plan, found)
  local sum, cells = 0, {}
  for _, c in ipairs(found.cells) do cells[c.name] = c end
  for i, w in ipairs(plan.warmups) do sum = sum + part(found.warmups[i], w.share, 0, w.share) end
  for _, c in ipairs(plan.cells) do
    sum = sum + part(cells[c.name], plan:own_share(c), c.warmup and c.share or 0, 1)
  end
  return sum
end

local function span(s) return s < 90 and ("%.0f s"):format(s) or s < 5400 and ("%.0f min"):format(s / 60) or ("%.1f h"):format(s / 3600) end
M.span = span

-- How far all of it is, and how long it may still take: by what was done since this driver began.
function View:summary(found)
  local counts = { done = 0, failed = 0, pruned = 0 }
  for _, c in ipairs(found.cells) do counts[c.state] = (counts[c.state] or 0) + 1 end
  local text = ("%d of %d cells done"):format(counts.done, #found.cells)
  for _, state in ipairs { "failed", "pruned" } do
    if counts[state] > 0 then text = ("%s, %d %s"):format(text, counts[state], state) end
  end
  local past, done, all = files.clock() - self.began, work(self.plan, found), self.plan:cost()
  self.base = self.base or done
  local left
  if done - self.base > 0.02 * all then left = past * (all - done) / (done - self.base)
  elseif self.expected then left = self.expected * (all - done) / all end
  return ("%s; %s so far%s"):format(text, span(past), left and left > 0 and ", about " .. span(left) .. " left" or "")
end

---The block of lines that stands below: the best settings that there is room for, what is at work, how far it is.
---@return string[]
function View:block(found, columns, rows)
  local settings, at_work = tables.settings(found, columns - 1), tables.progress(found)
  local lines, room = {}, math.max(2, rows - 3 - math.min(#at_work, 8))
  for i = 1, math.min(#settings, room) do lines[i] = settings[i] end
  if #settings > room then lines[room] = ("  and %d settings more"):format(#settings - room + 1) end
  for i = 1, math.min(#at_work, 8) do lines[#lines + 1] = at_work[i] end
  lines[#lines + 1] = self:summary(found)
  for i, line in ipairs(lines) do lines[i] = line:sub(1, columns - 1) end
  return lines
end

---Draws the table anew.
function View:draw()
  if not self.live then return end
  local found = results.collect(self.dir, self.plan.metric, self.kept)
  local columns, rows = terminal.size()
  local lines = self:block(found, columns, rows)
  io.stdout:write(wipe(self), table.concat(lines, "\n"), "\n")
  io.stdout:flush()
  self.shown = lines
end

---Takes the table away.
function View:clear()
  if not self.live then return end
  io.stdout:write(wipe(self))
  io.stdout:flush()
end

return M
