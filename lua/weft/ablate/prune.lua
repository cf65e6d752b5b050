-- prune.lua: successive halving. At some epochs all settings that are left are scored, and the worse half
-- goes no further. Who is left follows from what the cells wrote: every driver comes to the same answer.
local A = require "weft.args"
local files = require "weft.files"
local json = require "weft.io.json"

local M = {}

---Epochs at which settings are compared: each halves what is left, at half, a quarter, ... of the epochs
---after the part that all share.
---@param settings integer  how many there are
---@param first integer  epochs that are over before they differ
---@param epochs integer
---@return integer[]
function M.rungs(settings, first, epochs)
  local out, n = {}, math.min(3, math.floor(math.log(settings) / math.log(2) + 1e-9))
  for k = n, 1, -1 do
    local epoch = first + math.floor((epochs - first) / 2 ^ k)
    if epoch > first and epoch < epochs and epoch ~= out[#out] then out[#out + 1] = epoch end
  end
  return out
end

---The file that says that a cell has come to the end of an epoch.
function M.mark(dir, epoch) return ("%s/until_%05d.json"):format(dir, epoch) end

local function figure(t, path)
  for part in path:gmatch "[^.]+" do t = type(t) == "table" and t[part] or nil end
  return type(t) == "number" and t or nil
end

local function names(t, path, out)
  for k, v in pairs(t) do
    if type(v) == "number" then out[#out + 1] = path .. k elseif type(v) == "table" and k ~= "samples" then names(v, path .. k .. ".", out) end
  end
  return out
end

local function setting_of(plan, cell)
  local parts = {}
  for _, key in ipairs(plan.keys) do
    if key ~= "seed" then parts[#parts + 1] = cell.values[key] end
  end
  return table.concat(parts, "\n")
end

-- A cell's figure at a rung; nil when it is not there yet, false when it never will be.
local function score_at(t, epoch, metric)
  local mark = M.mark(t.dir, epoch)
  if not files.exists(mark) then return not files.exists(t.failed) and nil end
  local value = json.read(mark)
  if type(value) ~= "table" then return false end
  local v = figure(value.values or {}, metric)
  if not v then
    A.raise("ablate: --prune: %s has no figure %s%s", mark, metric, A.suggest(metric, names(value.values or {}, "", {})))
  end
  return v
end

---What is known so far: a function of a task -> rung that it may train to next ("end": to the end), or nil
---while others are waited for, or false and why when it is pruned.
---@param plan table  with prune = { metric, better, rungs }
---@param tasks table[]
function M.decide(plan, tasks)
  local p = plan.prune
  local groups, order = {}, {}
  for _, t in ipairs(tasks) do
    if t.kind == "cell" then
      local id = setting_of(plan, t.cell)
      if not groups[id] then
        groups[id] = { tasks = {}, order = #order + 1 }
        order[#order + 1] = groups[id]
      end
      table.insert(groups[id].tasks, t)
    end
  end
  local left, answer, known = order, {}, 0
  for k, epoch in ipairs(p.rungs) do
    local whole = true
    for _, g in ipairs(left) do
      local sum, n = 0, 0
      for _, t in ipairs(g.tasks) do
        local v = score_at(t, epoch, p.metric)
        if v == nil then whole = false elseif v then sum, n = sum + v, n + 1 end
      end
      g.score = n > 0 and sum / n or nil
    end
    if not whole then break end
    known = k
    local sign = p.better == "lower" and 1 or -1
    table.sort(left, function(a, b)
      local x, y = a.score and sign * a.score or math.huge, b.score and sign * b.score or math.huge
      if x ~= y then return x < y end
      return a.order < b.order
    end)
    local keep, rest = math.ceil(#left / 2), {}
    for i, g in ipairs(left) do
      if i <= keep then rest[i] = g else
        local why = ("pruned after epoch %d: %s %s, the last one kept %.4g"):format(epoch, p.metric,
          g.score and ("%.4g"):format(g.score) or "is not known", left[keep].score or 0 / 0)
        for _, t in ipairs(g.tasks) do answer[t] = why end
      end
    end
    left = rest
  end
  return function(t)
    if answer[t] then return false, answer[t] end
    for k, epoch in ipairs(p.rungs) do
      if not files.exists(M.mark(t.dir, epoch)) then
        if k <= known + 1 then return epoch end
        return nil
      end
    end
    return known == #p.rungs and "end" or nil
  end
end

---Whole runs' worth of epochs that pruning leaves of the cells' own part.
function M.share(rungs, first, epochs)
  local sum, from, left = 0, first, 1
  for _, epoch in ipairs(rungs) do
    sum = sum + left * (epoch - from)
    from, left = epoch, left / 2
  end
  return (sum + left * (epochs - from)) / math.max(1, epochs - first)
end

return M
