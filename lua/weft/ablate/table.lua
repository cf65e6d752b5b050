-- table.lua: what an ablation found, as lines for a terminal and as table.csv and table.json. The
-- figures are results.lua's.
local files = require "weft.files"

local M = {}

local STATES = { "failed", "running", "stopped", "waiting", "pruned" }

local function number(v, format) return v and (format or "%.4g"):format(v) or "-" end

---The keys that settings differ in: all but the seed.
function M.keys(plan)
  local keys = {}
  for _, key in ipairs(plan.keys) do
    if key ~= "seed" then keys[#keys + 1] = key end
  end
  return keys
end

-- Keys that decide by what an adapter's branch is multiplied, other than the factor itself.
local SCALED_BY = { rank = true, alpha = true, rslora = true }

---Whether the settings' effective scale (alpha / rank, with rsLoRA alpha / sqrt(rank)) is told beside them.
function M.has_scale(plan)
  for _, key in ipairs(plan.keys) do
    if SCALED_BY[key:match "[^.]+$"] then return true end
  end
  return false
end

---A setting in words: rank 8, alpha 16.
function M.name(plan, setting)
  local parts = {}
  for i, key in ipairs(M.keys(plan)) do parts[i] = plan.labels[key] .. " " .. setting.values[key] end
  return #parts > 0 and table.concat(parts, ", ") or "the only setting"
end

-- Numbers to the right, words to the left.
local function columns(rows)
  local width, lines = {}, {}
  for _, row in ipairs(rows) do
    for i, v in ipairs(row) do width[i] = math.max(width[i] or 0, #v) end
  end
  for _, row in ipairs(rows) do
    local parts = {}
    for i, v in ipairs(row) do parts[i] = i == #row and v or (" "):rep(width[i] - #v) .. v end
    lines[#lines + 1] = (table.concat(parts, "  "):gsub("%s+$", ""))
  end
  return lines
end

---A line for the head, then one for each setting, the best first and marked. Where a width is given that
---does not hold them, they go without what is known only at the end.
function M.settings(found, width)
  local plan, keys = found.plan, M.keys(found.plan)
  local head = { "" }
  for _, key in ipairs(keys) do head[#head + 1] = plan.labels[key] end
  local scaled = M.has_scale(plan)
  if scaled then head[#head + 1] = "scale" end
  for _, h in ipairs { "runs", plan.metric, "spread", "trainable", "seconds", "" } do head[#head + 1] = h end
  local rows = { head }
  for _, s in ipairs(found.settings) do
    local row, notes = { s.best and "*" or "" }, {}
    for _, key in ipairs(keys) do row[#row + 1] = s.values[key] end
    if scaled then row[#row + 1] = s.scale and "x" .. s.scale or "-" end
    for _, state in ipairs(STATES) do
      if s[state] then notes[#notes + 1] = ("%d %s"):format(s[state], state) end
    end
    local commas = s.trainable and require("weft.nn").commas(s.trainable) or "-"
    for _, v in ipairs { ("%d/%d"):format(s.n, s.cells), number(s.mean), number(s.spread), commas, number(s.seconds, "%.1f"),
      table.concat(notes, ", ") } do row[#row + 1] = v end
    rows[#rows + 1] = row
  end
  local lines = columns(rows)
  local most = 0
  for _, line in ipairs(lines) do most = math.max(most, #line) end
  if not width or most <= width then return lines end
  for _, row in ipairs(rows) do
    table.remove(row, #row - 1)  -- seconds
    table.remove(row, #row - 1)  -- trainable
  end
  return columns(rows)
end

local function where(p)
  if not p then return "" end
  return (" at step %d%s%s"):format(p.step, p.steps and " of " .. p.steps or "", p.loss and (", loss %.3f"):format(p.loss) or "")
end

---Lines for what is at work, and with `all` for what was stopped in the middle too.
function M.progress(found, all)
  local lines = {}
  local function add(kind, c)
    if c.state == "running" or all and c.state == "stopped" and c.progress then
      lines[#lines + 1] = ("%s: %s%s%s"):format(c.state, kind, c.name, where(c.progress))
    end
  end
  for _, w in ipairs(found.warmups) do add("warm-up ", w) end
  for _, c in ipairs(found.cells) do add("", c) end
  return lines
end

---The table and all that is to be said below it, as lines.
function M.lines(found)
  local lines = M.settings(found)
  local function add(text) lines[#lines + 1] = text end
  for _, s in ipairs(found.settings) do
    if s.pruned_why then add(("%s: %s"):format(M.name(found.plan, s), s.pruned_why)) end
  end
  for _, c in ipairs(found.cells) do
    if c.state == "failed" then add(("failed: %s: %s"):format(c.name, table.concat(c.message, " | "))) end
  end
  for _, line in ipairs(M.progress(found, true)) do add(line) end
  for _, flag in ipairs(found.flags) do add("note: " .. flag) end
  for _, v in ipairs(found.verdict) do add(v) end
  return lines
end

local function quoted(v)
  v = tostring(v == nil and "" or v)
  return v:find '[",\n]' and '"' .. v:gsub('"', '""') .. '"' or v
end

---Writes table.csv (a line a cell) and table.json.
function M.write(found)
  local plan, lines, head = found.plan, {}, { "cell" }
  for _, key in ipairs(plan.keys) do head[#head + 1] = key end
  for _, h in ipairs { "effective_scale", "state", plan.metric, "trainable", "seconds", "note" } do head[#head + 1] = h end
  lines[1] = table.concat(head, ",")
  for _, c in ipairs(found.cells) do
    local row = { quoted(c.name) }
    for _, key in ipairs(plan.keys) do row[#row + 1] = quoted(c.values[key]) end
    for _, v in ipairs { c.scale or "", c.state, c.score and ("%.10g"):format(c.score) or "", c.trainable or "",
      c.seconds and ("%.2f"):format(c.seconds) or "", c.pruned_why or c.message and c.message[#c.message] or "" } do row[#row + 1] = quoted(v) end
    lines[#lines + 1] = table.concat(row, ",")
  end
  assert(files.write(found.dir .. "/table.csv", table.concat(lines, "\n") .. "\n"))
  local settings = {}
  for i, s in ipairs(found.settings) do
    local values = {}
    for _, key in ipairs(M.keys(plan)) do values[key] = s.values[key] end
    settings[i] = { values = values, runs = s.n, cells = s.cells, mean = s.mean, spread = s.spread, effective_scale = tonumber(s.scale) or s.scale,
      trainable = s.trainable, seconds = s.seconds, best = s.best, pruned = s.pruned_why, failed = s.failed }
  end
  local json = require "weft.io.json"
  assert(json.write(found.dir .. "/table.json", { metric = plan.metric, better = plan.better, settings = json.array(settings),
    verdict = json.array(found.verdict), flags = json.array(found.flags), warmups = json.array(found.warmups) }))
end

return M
