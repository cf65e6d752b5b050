-- results.lua: what an ablation found: a row for each cell and for each setting, with mean and spread
-- over its seeds, and a sentence on whether the best can be told from the rest.
local A = require "weft.args"
local files = require "weft.files"
local tasks_of = require "weft.ablate.tasks"

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

---A figure of a result.json, or nil.
function M.score(path, metric)
  local result = json().read(path)
  return result and at(result, metric)
end

-- The factors of a cell's adapters, as its model has them: "2", "1.414/2"; nil before there is a model.
local function scale_of(t)
  local model = json().read(t.dir .. "/model.json")
  local seen, list = {}, {}
  for _, scales in pairs(type(model) == "table" and type(model.scales) == "table" and model.scales or {}) do
    for _, s in ipairs(scales) do
      if not seen[s] then
        seen[s] = true
        list[#list + 1] = s
      end
    end
  end
  table.sort(list)
  for i, s in ipairs(list) do list[i] = ("%.4g"):format(s) end
  return #list > 0 and table.concat(list, "/") or nil
end

-- A cell's figures from its folder.
local function cell_row(t, plan)
  local row = { name = t.name, values = t.cell.values, group = t.cell.group, state = tasks_of.state(t), dir = t.dir,
    scale = scale_of(t) }
  if row.state == "done" then
    local result = assert(json().read(t.mark))
    row.score, row.seconds = at(result, plan.metric), result.seconds
    row.hashes = result.hashes or {}
    for _, n in pairs(result.trainable or {}) do row.trainable = math.max(row.trainable or 0, n) end
    if not row.score then
      A.raise("ablate: %s has no figure %s%s", t.mark, plan.metric, A.suggest(plan.metric, figures(result, "", {})))
    end
  elseif row.state == "failed" then row.message = tasks_of.tail(t.failed, 3)
  else row.progress = tasks_of.progress(t) end
  return row
end

-- --- the verdict
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

-- 97.5 % quantiles of Student's t for 1 to 30 degrees of freedom.
local T = { 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110,
  2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042 }

---Whether the best setting can be told from another, in one line: their difference beside the spread
---over seeds. It can when 0 lies outside of the difference's 95 % interval by Welch's t test; one that is
---best of many still wins by luck more often than that.
function M.compare(plan, a, b)
  local difference = a.mean - b.mean
  local text = ("%s = %.4g"):format(contrast(plan, a, b), difference)
  if not (a.spread and b.spread) then return text .. ", one seed: not separable; run more seeds", false end
  local va, vb = a.spread ^ 2 / a.n, b.spread ^ 2 / b.n
  local freedom = math.floor((va + vb) ^ 2 / math.max(va ^ 2 / (a.n - 1) + vb ^ 2 / (b.n - 1), 1e-300))
  local apart = math.abs(difference) > (T[math.max(1, freedom)] or 1.96) * math.sqrt(va + vb)
  return ("%s, spread over seeds %.4g: %s"):format(text, math.sqrt((a.spread ^ 2 + b.spread ^ 2) / 2),
    apart and "separable" or "not separable"), apart
end

-- --- hashes that should agree
-- Cells that should have trained on the same pictures in the same order, or come out of the same first
-- phase, and did not.
local function flags(plan, cells)
  local out, sweeps_data = {}, false
  for _, key in ipairs(plan.keys) do
    if key:find "^data" or key == "batch" then sweeps_data = true end
  end
  local function check(row, hash, id, what)
    if not hash or not id then return end
    local seen = out[what] or {}
    out[what] = seen
    if seen[id] and seen[id].hash ~= hash then
      out[#out + 1] = what:format(seen[id].name, row.name)
    end
    seen[id] = seen[id] or { hash = hash, name = row.name }
  end
  for _, row in ipairs(cells) do
    if row.state == "done" then
      if not sweeps_data then check(row, row.hashes.data, row.values.seed or "", "%s and %s saw other data, though nothing of theirs says so") end
      check(row, row.hashes.first_phase, row.group,
        "%s and %s left their first phase with other weights, though by the recipe's after_warmup it is the same for both")
    end
  end
  return { unpack(out) }
end

-- --- all of it
-- Cells by setting: what differs in more than the seed.
local function settings_of(plan, cells)
  local settings, by = {}, {}
  for _, row in ipairs(cells) do
    local parts = {}
    for _, key in ipairs(plan.keys) do
      if key ~= "seed" then parts[#parts + 1] = row.values[key] end
    end
    local id = table.concat(parts, "\n")
    if not by[id] then
      by[id] = { values = row.values, scores = {}, times = {}, cells = 0, n = 0, place = #settings }
      table.insert(settings, by[id])
    end
    local s = by[id]
    s.cells = s.cells + 1
    s[row.state] = (s[row.state] or 0) + 1
    s.pruned_why, s.scale = s.pruned_why or row.pruned_why, s.scale or row.scale
    if row.score then
      s.n = s.n + 1
      s.scores[s.n], s.times[s.n] = row.score, row.seconds
      s.trainable = row.trainable
    end
  end
  for _, s in ipairs(settings) do
    s.mean, s.spread = mean_spread(s.scores)
    s.seconds = mean_spread(s.times)
  end
  local sign = plan.better == "lower" and 1 or -1
  table.sort(settings, function(a, b)
    local x, y = a.mean and sign * a.mean or math.huge, b.mean and sign * b.mean or math.huge
    if x ~= y then return x < y end
    return a.place < b.place
  end)
  return settings
end

---Collects a folder's figures: { plan, cells, settings (best first), verdict lines, flags, warmups }.
---@param dir string
---@param metric? string  in place of the plan's
---@param kept? table  rows of cells that were done, from one call to the next
function M.collect(dir, metric, kept)
  local plan, message = json().read(dir .. "/plan.json")
  if not plan then error(("ablate: %s is no ablation: %s"):format(dir, message), 0) end
  plan.metric = metric or plan.metric
  local out = { plan = plan, dir = dir, cells = {}, verdict = {}, warmups = {} }
  local tasks = tasks_of.list(plan, dir)
  local next_rung = plan.prune and require("weft.ablate.prune").decide(plan, tasks)
  for _, t in ipairs(tasks) do
    if t.kind == "warm-up" then
      local ended = files.exists(t.mark) and json().read(t.mark)
      local state = tasks_of.state(t)
      table.insert(out.warmups, { name = t.name, state = state, seconds = ended and ended.seconds,
        progress = state ~= "done" and tasks_of.progress(t) or nil })
    else
      local row = kept and kept[t.name] or cell_row(t, plan)
      if kept and row.state == "done" then kept[t.name] = row end
      if next_rung and row.state == "stopped" then
        local rung, why = next_rung(t)
        if rung == false then row.state, row.pruned_why = "pruned", why end
      end
      table.insert(out.cells, row)
    end
  end
  out.settings, out.flags = settings_of(plan, out.cells), flags(plan, out.cells)
  local best = out.settings[1]
  if best and best.mean then
    best.best = true
    for i = 2, #out.settings do
      if out.settings[i].mean then table.insert(out.verdict, (M.compare(plan, best, out.settings[i]))) end
    end
  end
  return out
end

return M
