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

local function read_rows(dir, last)
  local rows, bad = {}, 0
  for line in (files.read(dir .. "/metrics.jsonl") or ""):gmatch "[^\n]+" do
    local row = json.decode(line)
    if type(row) ~= "table" or type(row.step) ~= "number" then bad = bad + 1
    elseif row.step <= (last or math.huge) then rows[#rows + 1] = row end
  end
  return rows, bad
end

-- Where a run that has not come to its end stands, by its newest checkpoint, or where a checkpoint that was named
-- does: evaluations so far, parameters trained.
local function state_of(dir, named)
  local places = { named }
  for i, name in ipairs(named and {} or checkpoint.list(dir)) do places[i] = ("%s/ckpt/%s"):format(dir, name) end
  for _, place in ipairs(places) do
    local state = json.read(place .. "/state.json")
    if type(state) == "table" and type(state.history) == "table" then return state end
  end
  return { history = {} }
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

---Reads a run, or what it was at a checkpoint of it (RUN/best, RUN/ckpt/step_00000120): { dir, place (as it was
---named), checkpoint (its name), name, recipe, config (by path), defaults (of what differs), rows, result, state
---(where there is no result), evaluations, environment, model, phases (names), switches ({ step, name }) }, or nil
---and a message.
---@param place string
function M.read(place)
  place = place:gsub("(.)/+$", "%1")
  local dir, named = checkpoint.place(place)
  local record, message = json.read(dir .. "/config.json")
  if type(record) ~= "table" or type(record.config) ~= "table" then
    return nil, ("%s is no run: %s"):format(dir, message or "its config.json holds no config")
  end
  local function maybe(name)
    local value = json.read(dir .. "/" .. name)
    return type(value) == "table" and value or nil
  end
  local run = { dir = dir, place = place, checkpoint = named and place:match "([^/]+)$", name = place:match "([^/]+)$",
    recipe = record.recipe or "?", path = record.path, hash = record.hash, config = flatten(record.config, "", {}),
    defaults = record.defaults and flatten(record.defaults, "", {}), result = not named and maybe "result.json" or nil,
    environment = maybe "env.json" or {}, model = maybe "model.json", overrides = files.read(dir .. "/overrides.txt") or "" }
  if not run.result then run.state = state_of(dir, named) end
  run.rows, run.damaged_rows = read_rows(dir, named and run.state.step)
  run.evaluations = (run.result or {}).evaluations or run.state and run.state.history or {}
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
  for _, run in ipairs(runs) do
    if run.checkpoint then depth = 2 end  -- "best" alone says little
  end
  while depth < 8 do
    local seen, twice = {}, false
    for _, run in ipairs(runs) do
      local parts = {}
      for part in run.place:gmatch "[^/]+" do parts[#parts + 1] = part end
      run.name = table.concat(parts, "/", math.max(1, #parts - depth + 1))
      twice = twice or seen[run.name]
      seen[run.name] = true
    end
    if not twice then return end
    depth = depth + 1
  end
end

return M
