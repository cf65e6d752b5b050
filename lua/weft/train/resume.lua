-- resume.lua: what a run records of its config, what may differ when it goes on, and where it does.
local checkpoint = require "weft.train.checkpoint"
local config_of = require "weft.config"
local files = require "weft.files"

local M = {}

-- Keys that change nothing that is trained; every other key needs to be allowed by name.
local FREE = { checkpoint_every = true, keep_checkpoints = true, log_every = true, ["data.root"] = true, ["data.threads"] = true,
  ["data.cache"] = true, ["features.enabled"] = true, ["features.memory"] = true, ["features.disk"] = true,
  graph = true }

local function text_of(v)
  if type(v) ~= "table" then return tostring(v) end
  local items = {}
  for i, x in ipairs(v) do items[i] = tostring(x) end
  return "[" .. table.concat(items, ",") .. "]"
end

local function flatten(t, path, out)
  for k, v in pairs(t) do
    if type(v) == "table" and v[1] == nil and next(v) ~= nil then flatten(v, path .. k .. ".", out)
    else out[path .. k] = text_of(v) end
  end
  return out
end

---Differences between a recorded config and the one now: { key, before, now, free, text }, by key.
---@param before table
---@param now table
function M.changes(before, now)
  local a, b, out = flatten(before, "", {}), flatten(now, "", {}), {}
  local keys = {}
  for k in pairs(a) do keys[k] = true end
  for k in pairs(b) do keys[k] = true end
  for key in pairs(keys) do
    if a[key] ~= b[key] then
      -- a key on one side alone: the recipe has changed, not the value
      local text = a[key] == nil and ("config: %s=%s is new in the recipe"):format(key, b[key])
        or b[key] == nil and ("config: %s (was %s) is gone from the recipe"):format(key, a[key])
        or ("config: %s was %s, is %s"):format(key, a[key], b[key])
      out[#out + 1] = { key = key, before = a[key], now = b[key], text = text, free = FREE[key] or a[key] == nil or b[key] == nil }
    end
  end
  table.sort(out, function(x, y) return x.key < y.key end)
  return out
end

---Why these changes need a word from the user, or nil.
---@param changes table[]
---@param allow string[]
function M.refusal(changes, allow)
  local allowed, lines, keys = {}, {}, {}
  for _, key in ipairs(allow) do allowed[key] = true end
  for _, c in ipairs(changes) do
    if not c.free and not allowed[c.key] then
      lines[#lines + 1] = c.text
      keys[#keys + 1] = c.key
    end
  end
  if #keys == 0 then return nil end
  return ("%s\nthis changes what the run trains; if that is meant, pass --allow %s, else begin a new run")
    :format(table.concat(lines, "\n"), table.concat(keys, ","))
end

-- What a run's folder says of the run itself, whatever its checkpoint.
local RECORDS = { "config.json", "overrides.txt", "env.json", "model.json", "data.json", "tokenizer.json", "log.txt", "metrics.jsonl" }

---Where a run goes on from a checkpoint: in its own folder from its newest; from an earlier one (RUN/best) in a
---folder beside, so that nothing of what came after is lost.
---@param path string  a run's folder, or that of one of its checkpoints
---@param dir? string  the new folder
---@return string|nil dir, string? message
function M.place(path, dir)
  local run_dir, chosen = checkpoint.place(path)
  local manifest = chosen and require("weft.io.json").read(chosen .. "/manifest.json")
  local step = manifest and tonumber(manifest.step)
  local name = step and ("step_%08d"):format(step)
  if not step or name == checkpoint.list(run_dir)[1] then return run_dir end
  local base = dir or ("%s-from-%d"):format(run_dir, step)
  local new, n = base, 1
  while files.exists(new) do
    if dir then return nil, dir .. " is there already; another folder is wanted to go on from an earlier checkpoint" end
    n = n + 1
    new = ("%s-%d"):format(base, n)
  end
  local to = ("%s/ckpt/%s"):format(new, name)
  local ok, message = files.make_dirs(to)
  for _, file in ipairs(ok and files.list(chosen) or {}) do
    if ok then ok, message = files.duplicate(chosen .. "/" .. file, to .. "/" .. file) end
  end
  for _, file in ipairs(RECORDS) do
    local text = files.read(run_dir .. "/" .. file)
    if ok and text then ok, message = files.write(new .. "/" .. file, text) end
  end
  if not ok then return nil, message end
  return new
end

---Writes config.json; on going on with other values also what changed them.
function M.record(run)
  local recipe = run.recipe
  local ok, message = require("weft.io.json").write(run.dir .. "/config.json",
    { recipe = recipe.name, path = recipe.path, hash = recipe.hash, config = config_of.values(recipe.config),
      defaults = require("weft.io.json").object(config_of.changed(recipe.config)) })
  if not ok then error(("can't write %s/config.json: %s"):format(run.dir, tostring(message)), 0) end
  if run.overrides and #run.overrides > 0 then
    assert(files.append(run.dir .. "/overrides.txt", table.concat(run.overrides, "\n") .. "\n"))
  end
end

return M
