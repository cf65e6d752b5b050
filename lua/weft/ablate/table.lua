-- table.lua: what an ablation found: a row for each setting, with mean and spread over its seeds, and a
-- sentence on whether the best can be told from the rest.
local A = require "weft.args"
local driver = require "weft.ablate.driver"
local files = require "weft.files"

local M = {}

local function json() return require "weft.io.json" end

local function at(t, path)
  for part in path:gmatch "[^.]+" do
    if type(t) ~= "table" then return nil end
    t = t[tonumber(part) or part]
  end
  return type(t) == "number" and t or nil
end

local function figures(t, path, out)
  for k, v in pairs(t) do
    if type(v) == "number" and type(k) == "string" then out[#out + 1] = path .. k
    elseif type(v) == "table" and type(k) == "string" then figures(v, path .. k .. ".", out) end
  end
  return out
end

local function mean_spread(list)
  if #list == 0 then return nil, nil end
  local sum, square = 0, 0
  for _, v in ipairs(list) do sum = sum + v end
  local mean = sum / #list
  for _, v in ipairs(list) do square = square + (v - mean) ^ 2 end
  return mean, #list > 1 and math.sqrt(square / (#list - 1)) or nil
end

local function last_step(dir)
  local line = driver.tail(dir .. "/metrics.jsonl", 1)[1]
  return line and tonumber(line:match '"step":%s*(%d+)')
end

---A figure of a result.json, or nil.
function M.score(path, metric)
  local result = json().read(path)
  return result and at(result, metric)
end

-- A cell's figures from its folder.
local function cell_row(t, plan)
  local row = { name = t.name, values = t.cell.values, state = driver.state(t), dir = t.dir }
  if row.state == "done" then
    local result = assert(json().read(t.mark))
    row.score, row.seconds = at(result, plan.metric), result.seconds
    row.data = result.hashes and result.hashes.data
    for _, n in pairs(result.trainable or {}) do row.trainable = math.max(row.trainable or 0, n) end
    if not row.score then
      A.raise("ablate: %s has no figure %s%s", t.mark, plan.metric, A.suggest(plan.metric, figures(result, "", {})))
    end
  elseif row.state == "failed" then row.message = driver.tail(t.failed, 3)
  else row.step = last_step(t.dir) end
  return row
end

-- How two settings differ, named by the keys that differ: r16 - r8.
local function contrast(plan, a, b)
  local left, right = {}, {}
  for _, key in ipairs(plan.keys) do
    if key ~= "seed" and a.values[key] ~= b.values[key] then
      left[#left + 1] = plan.labels[key] .. " " .. a.values[key]
      right[#right + 1] = b.values[key]
    end
  end
  return ("%s - %s"):format(table.concat(left, ", "), table.concat(right, ", "))
end

---Whether the best setting can be told from another, in one line: their difference beside the spread
---over seeds. It can when the difference is above two standard errors.
function M.compare(plan, a, b)
  local difference = a.mean - b.mean
  local text = ("%s = %.4g"):format(contrast(plan, a, b), difference)
  if not (a.spread and b.spread) then return text .. ", one seed: not separable; run more seeds", false end
  local spread = math.sqrt((a.spread ^ 2 + b.spread ^ 2) / 2)
  local apart = math.abs(difference) > 2 * math.sqrt(a.spread ^ 2 / a.n + b.spread ^ 2 / b.n)
  return ("%s, spread over seeds %.4g: %s"):format(text, spread, apart and "separable" or "not separable"), apart
end

---Collects a folder's figures: { plan, cells, settings (best first), verdict lines, flags }.
---@param dir string
function M.collect(dir, metric)
  local plan, message = json().read(dir .. "/plan.json")
  if not plan then error(("ablate: %s is no ablation: %s"):format(dir, message), 0) end
  plan.metric = metric or plan.metric
  local out = { plan = plan, dir = dir, cells = {}, settings = {}, verdict = {}, flags = {}, warmups = {} }
  local by, data = {}, {}
  local tasks = driver.tasks(plan, dir)
  local next_rung = plan.prune and require("weft.ablate.prune").decide(plan, tasks)
  for _, t in ipairs(tasks) do
    if t.kind == "warm-up" then
      local ended = files.exists(t.mark) and json().read(t.mark)
      table.insert(out.warmups, { name = t.name, state = driver.state(t), seconds = ended and ended.seconds })
    else
      local row = cell_row(t, plan)
      if next_rung and row.state == "stopped" then
        local rung, why = next_rung(t)
        if rung == false then row.state, row.pruned_why = "pruned", why end
      end
      table.insert(out.cells, row)
      local parts, sweeps_data = {}, false
      for _, key in ipairs(plan.keys) do
        if key ~= "seed" then parts[#parts + 1] = row.values[key] end
        if key:find "^data" or key == "batch" then sweeps_data = true end
      end
      local id = table.concat(parts, "\n")
      if not by[id] then
        by[id] = { values = row.values, scores = {}, times = {}, cells = 0, n = 0 }
        table.insert(out.settings, by[id])
      end
      local s = by[id]
      s.cells = s.cells + 1
      s[row.state] = (s[row.state] or 0) + 1
      s.pruned_why = s.pruned_why or row.pruned_why
      if row.score then
        s.n = s.n + 1
        s.scores[s.n], s.times[s.n] = row.score, row.seconds
        s.trainable = row.trainable
      end
      local seed = row.values.seed or ""
      if row.data and not sweeps_data then
        if data[seed] and data[seed].data ~= row.data then
          table.insert(out.flags, ("%s and %s saw other data, though nothing of theirs says so"):format(data[seed].name, row.name))
        end
        data[seed] = data[seed] or row
      end
    end
  end
  for _, s in ipairs(out.settings) do
    s.mean, s.spread = mean_spread(s.scores)
    s.seconds = mean_spread(s.times)
  end
  local sign = plan.better == "lower" and 1 or -1
  local place = {}
  for i, s in ipairs(out.settings) do place[s] = i end
  table.sort(out.settings, function(a, b)
    local x, y = a.mean and sign * a.mean or math.huge, b.mean and sign * b.mean or math.huge
    if x ~= y then return x < y end
    return place[a] < place[b]
  end)
  local best = out.settings[1]
  if best and best.mean then
    best.best = true
    for i = 2, #out.settings do
      if out.settings[i].mean then table.insert(out.verdict, (M.compare(plan, best, out.settings[i]))) end
    end
  end
  return out
end

local function number(v, format) return v and (format or "%.4g"):format(v) or "-" end

---The table as lines.
function M.lines(found)
  local plan, rows, keys = found.plan, {}, {}
  for _, key in ipairs(plan.keys) do
    if key ~= "seed" then keys[#keys + 1] = key end
  end
  local head = { "" }
  for _, key in ipairs(keys) do head[#head + 1] = plan.labels[key] end
  for _, h in ipairs { "runs", plan.metric, "spread", "trainable", "seconds", "" } do head[#head + 1] = h end
  rows[1] = head
  for _, s in ipairs(found.settings) do
    local row, notes = { s.best and "*" or "" }, {}
    for _, key in ipairs(keys) do row[#row + 1] = s.values[key] end
    for _, state in ipairs { "failed", "running", "stopped", "waiting" } do
      if s[state] then notes[#notes + 1] = ("%d %s"):format(s[state], state) end
    end
    if s.pruned_why then notes[#notes + 1] = s.pruned_why end
    local commas = s.trainable and require("weft.nn").commas(s.trainable) or "-"
    for _, v in ipairs { ("%d/%d"):format(s.n, s.cells), number(s.mean), number(s.spread), commas, number(s.seconds, "%.1f"),
      table.concat(notes, ", ") } do row[#row + 1] = v end
    rows[#rows + 1] = row
  end
  local width, lines = {}, {}
  for _, row in ipairs(rows) do
    for i, v in ipairs(row) do width[i] = math.max(width[i] or 0, #v) end
  end
  for _, row in ipairs(rows) do
    local parts = {}
    for i, v in ipairs(row) do
      parts[i] = i == #row and v or (" "):rep(width[i] - #v) .. v
    end
    lines[#lines + 1] = (table.concat(parts, "  "):gsub("%s+$", ""))
  end
  for _, c in ipairs(found.cells) do
    if c.state == "failed" then
      lines[#lines + 1] = ("failed: %s: %s"):format(c.name, table.concat(c.message, " | "))
    elseif c.step and c.state ~= "done" and c.state ~= "pruned" then
      lines[#lines + 1] = ("%s: %s at step %d"):format(c.state, c.name, c.step)
    end
  end
  for _, flag in ipairs(found.flags) do lines[#lines + 1] = "note: " .. flag end
  for _, v in ipairs(found.verdict) do lines[#lines + 1] = v end
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
  for _, h in ipairs { "state", plan.metric, "trainable", "seconds" } do head[#head + 1] = h end
  lines[1] = table.concat(head, ",")
  for _, c in ipairs(found.cells) do
    local row = { quoted(c.name) }
    for _, key in ipairs(plan.keys) do row[#row + 1] = quoted(c.values[key]) end
    for _, v in ipairs { c.state, c.score and ("%.10g"):format(c.score) or "", c.trainable or "",
      c.seconds and ("%.2f"):format(c.seconds) or "" } do row[#row + 1] = quoted(v) end
    lines[#lines + 1] = table.concat(row, ",")
  end
  assert(files.write(found.dir .. "/table.csv", table.concat(lines, "\n") .. "\n"))
  local settings = {}
  for i, s in ipairs(found.settings) do
    local values = {}
    for _, key in ipairs(plan.keys) do
      if key ~= "seed" then values[key] = s.values[key] end
    end
    settings[i] = { values = values, runs = s.n, cells = s.cells, mean = s.mean, spread = s.spread, trainable = s.trainable,
      seconds = s.seconds, best = s.best, pruned = s.pruned_why }
  end
  assert(json().write(found.dir .. "/table.json", { metric = plan.metric, better = plan.better, settings = json().array(settings),
    verdict = json().array(found.verdict), flags = json().array(found.flags), warmups = json().array(found.warmups) }))
end

return M
