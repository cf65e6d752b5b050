-- runs.lua: what lies in a run's folder, as a page wants it. Reads data alone; the recipe is not run.
require "weft"
local checkpoint = require "weft.train.checkpoint"
local files = require "weft.files"
local json = require "weft.io.json"
local markup = require "weft.report.markup"

local M = {}

local function flatten(t, path, out)
  for k, v in pairs(t) do
    if type(v) == "table" and not json.is_array(v) and next(v) ~= nil then flatten(v, path .. k .. ".", out)
    elseif type(v) == "table" then
      local items = {}
      for i, x in ipairs(v) do items[i] = tostring(x) end
      out[path .. k] = "[" .. table.concat(items, ",") .. "]"
    else out[path .. k] = v end
  end
  return out
end

local function read_rows(dir)
  local rows, bad = {}, 0
  for line in (files.read(dir .. "/metrics.jsonl") or ""):gmatch "[^\n]+" do
    local row = json.decode(line)
    if type(row) == "table" and type(row.step) == "number" then rows[#rows + 1] = row else bad = bad + 1 end
  end
  return rows, bad
end

-- The evaluations so far of a run that has not come to its end: its newest checkpoint has them.
local function history(dir)
  for _, name in ipairs(checkpoint.list(dir)) do
    local state = json.read(("%s/ckpt/%s/state.json"):format(dir, name))
    if type(state) == "table" and type(state.history) == "table" then return state.history end
  end
  return {}
end

---A picture of a run as a data URI: its own small one, or the picture itself made small; nil when both are gone.
function M.picture(run, index, sample)
  local own = ("%s/samples/%d.png"):format(run.dir, index)
  local bytes = files.read(own)
  if not bytes and type(sample.path) == "string" then
    local image = require "weft.io.image"
    local picture = image.load(sample.path)
    if not picture then return nil end
    bytes = image.png(image.within(picture, 160))
  end
  return bytes and "data:image/png;base64," .. markup.base64(bytes) or nil
end

---Reads a run: { dir, name, recipe, config (by path), defaults (of what differs), rows, result, evaluations,
---environment, model, phases (names), switches ({ step, name }) }, or nil and a message.
---@param dir string
function M.read(dir)
  dir = dir:gsub("(.)/+$", "%1")
  local record, message = json.read(dir .. "/config.json")
  if type(record) ~= "table" or type(record.config) ~= "table" then
    return nil, ("%s is no run: %s"):format(dir, message or "its config.json holds no config")
  end
  local function maybe(name)
    local value = json.read(dir .. "/" .. name)
    return type(value) == "table" and value or nil
  end
  local run = { dir = dir, name = dir:match "([^/]+)$", recipe = record.recipe or "?", path = record.path, hash = record.hash,
    config = flatten(record.config, "", {}), defaults = record.defaults and flatten(record.defaults, "", {}), result = maybe "result.json",
    environment = maybe "env.json" or {}, model = maybe "model.json", overrides = files.read(dir .. "/overrides.txt") or "" }
  run.rows, run.damaged_rows = read_rows(dir)
  run.evaluations = run.result and run.result.evaluations or history(dir)
  run.phases = run.model and run.model.phases or {}
  run.switches = {}
  for i, row in ipairs(run.rows) do
    local name = run.phases[row.phase] or "Phase " .. tostring(row.phase)
    if i > 1 and row.phase ~= run.rows[i - 1].phase then table.insert(run.switches, { row.step, name }) end
    run.phase = name
  end
  return run
end

---Values of a key over the steps of a run: x, y.
function M.series(run, key, fn)
  local xs, ys = {}, {}
  for _, row in ipairs(run.rows) do
    local v = row[key]
    if fn then v = fn(row) end
    if type(v) == "number" then xs[#xs + 1], ys[#ys + 1] = row.step, v end
  end
  return xs, ys
end

---Keys of the rows that match a pattern, sorted: over all runs.
function M.keys(runs, pattern)
  local seen, out = {}, {}
  for _, run in ipairs(runs) do
    for _, row in ipairs(run.rows) do
      for key in pairs(row) do
        if not seen[key] and key:find(pattern) then
          seen[key] = true
          out[#out + 1] = key
        end
      end
    end
  end
  table.sort(out)
  return out
end

---Names that tell runs apart: their folders' last parts, longer where those are equal.
function M.name_apart(runs)
  local depth = 1
  while depth < 8 do
    local seen, twice = {}, false
    for _, run in ipairs(runs) do
      local parts = {}
      for part in run.dir:gmatch "[^/]+" do parts[#parts + 1] = part end
      run.name = table.concat(parts, "/", math.max(1, #parts - depth + 1))
      twice = twice or seen[run.name]
      seen[run.name] = true
    end
    if not twice then return end
    depth = depth + 1
  end
end

return M
