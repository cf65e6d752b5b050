-- branch.lua: runs that share their first phase. One run stops at the phase's end (`--until`); others
-- begin from its checkpoint (`--branch`), with everything of it but the adapters, which are their own.
local A = require "weft.args"
local autograd = require "weft.autograd"
local checkpoint = require "weft.train.checkpoint"
local config_of = require "weft.config"
local files = require "weft.files"
local phases = require "weft.train.phases"
local random = require "weft.random"
local replay = require "weft.train.replay"

local M = {}

local function read_json(path) return require("weft.io.json").read(path) end

local of_adapter, plain_name = replay.of_adapter, replay.plain_name

---The run will stop at the end of a phase, or of an epoch.
---@param name string  of a phase, or an epoch's number
function M.stop_after(run, name)
  local known, epoch = {}, tonumber(name)
  if epoch then
    if epoch < 1 or epoch % 1 ~= 0 or epoch > run.options.epochs then
      A.raise("--until: an epoch from 1 to %d is expected, got %s", run.options.epochs, tostring(name))
    end
    run.stop_after = { name = "epoch " .. epoch, first = epoch, last = epoch, epoch = epoch }
    return
  end
  for _, p in ipairs(run.plan) do
    if p.name == name then
      run.stop_after = p
      return
    end
    known[#known + 1] = p.name
  end
  A.raise("--until: no phase %s%s", name, A.suggest(name, known))
end

---Says in the run's folder that its phase has ended: until.json; of an epoch, until_NNNNN.json with its scores.
function M.mark(run)
  local phase = run.stop_after
  local last = run.history[#run.history]
  local ok, message = require("weft.io.json").write(phase.epoch and ("%s/until_%05d.json"):format(run.dir, phase.epoch) or run.dir .. "/until.json",
    { phase = phase.name, step = run.step, checkpoint = ("step_%08d"):format(run.step), seconds = run:seconds(),
      values = phase.epoch and last and last.step == run.step and last.values or nil })
  if not ok then error(message, 0) end
  if phase.epoch then
    run.log:line("epoch %d has ended; weft train --resume %s goes on", phase.epoch, run.dir)
    return
  end
  run.log:line("%s has ended; runs that share it begin with --branch %s", phase.name, run.dir)
end

---What a run left at the end of its phase: { phase, step, checkpoint, seconds }, or nil, message.
function M.ended(dir) return read_json(dir .. "/until.json") end

local function same(a, b)
  if type(a) ~= "table" or type(b) ~= "table" then return a == b end
  for k, v in pairs(a) do
    if not same(v, b[k]) then return false end
  end
  for k in pairs(b) do
    if a[k] == nil then return false end
  end
  return true
end

---Whether a path such as "lora.rank" is one of the keys, or below one.
function M.declared(path, keys)
  for _, key in ipairs(keys) do
    if path == key or path:sub(1, #key + 1) == key .. "." then return true end
  end
  return false
end

---Paths at which two tables of config values differ.
function M.differences(a, b, path, out)
  path, out = path or "", out or {}
  local keys = {}
  for k in pairs(a) do keys[k] = true end
  for k in pairs(b) do keys[k] = true end
  for k in pairs(keys) do
    local x, y, at = a[k], b[k], path .. tostring(k)
    local nested = type(x) == "table" and type(y) == "table" and type(next(x)) == "string" and type(next(y)) == "string"
    if nested then M.differences(x, y, at .. ".", out) elseif not same(x, y) then out[#out + 1] = at end
  end
  table.sort(out)
  return out
end

---Why the first phase of a recipe can't be shared, or nil when it can.
function M.unfit(recipe)
  if #recipe.after_warmup == 0 then return "the recipe declares no after_warmup keys" end
  if #recipe.phases < 2 then return "the recipe has one phase" end
  local plan = phases.plan(recipe.phases, config_of.get(recipe.config, "epochs", 1))
  if plan[1].last < plan[1].first then return ("%s has no epochs"):format(plan[1].name) end
  if plan[1].last >= plan[#plan].last then return ("%s is the whole run"):format(plan[1].name) end
  return nil, plan[1]
end

-- The tensors that the new run takes, by its own names; adapters that have moved are an error.
local function taken(own, given)
  local by_plain, out = {}, {}
  for name, t in pairs(given) do
    if not of_adapter(name) then
      by_plain[plain_name(name)] = t
    elseif name:find "%.lora_B" and t:numel() > 0 and t:abs():max():item() ~= 0 then
      error(("%s has moved in the first phase: it can't be shared; freeze the adapters in it"):format(name), 0)
    end
  end
  for name in pairs(own) do
    if not of_adapter(name) then
      out[name] = by_plain[plain_name(name)]
      if not out[name] then error(("the run that is branched from has no tensor for %s"):format(name), 0) end
    end
  end
  return out
end

-- Optimizer state by this model's names.
local function renamed(run, tensors, values)
  local mine = {}
  for name in run.model:named_parameters() do mine[plain_name(name)] = name end
  local out, counts = {}, {}
  for key, t in pairs(tensors) do
    local slot, name = key:match "^([^.]+)%.(.*)$"
    out[slot .. "." .. (mine[plain_name(name)] or name)] = t
  end
  for name, n in pairs(values.counts) do counts[mine[plain_name(name)] or name] = n end
  return { tensors = out, values = { type = values.type, steps = values.steps, counts = counts } }
end

-- What the first phase wrote is part of this run's story too.
local function copy_logs(run, from, sizes)
  for file, key in pairs { ["metrics.jsonl"] = "metrics", ["log.txt"] = "log" } do
    local text = files.read(from .. "/" .. file)
    if text and sizes and sizes[key] and sizes[key] > 0 then
      local ok, message = files.write(run.dir .. "/" .. file, text:sub(1, sizes[key]))
      if not ok then error(message, 0) end
    end
  end
end

-- Puts a checkpoint's state into a run, but for the adapters.
local function take(run, parts, s)
  local own = run.model:state_dict()
  for name, t in pairs(taken(own, parts.model)) do own[name]:copy_(t) end
  for path, m in run.model:named_modules() do
    if m.load_extra_state and s.modules[path] then m:load_extra_state(s.modules[path]) end
    if m.branched then m:branched() end
  end
  run.step, run.epoch, run.position, run.skipped = s.step, s.epoch, s.position, s.skipped
  run:set_phase(run.plan[s.phase])
  run.optimizer:load_state(renamed(run, parts.optimizer or {}, s.optimizer))
  random.load_state(s.random)
end

---A new run that begins where `from` stopped after its first phase. Their configs may differ only in
---keys that the recipe declares in after_warmup; that those leave the phase alone is tried, not believed.
---@param recipe table
---@param from string  a run's folder
---@param options? table  as of train.start
function M.start(recipe, from, options)
  local why, phase = M.unfit(recipe)
  if why then error("--branch: " .. why, 0) end
  local record = assert(read_json(from .. "/config.json"))
  local ended, message = M.ended(from)
  if not ended then error(("--branch: %s has not come to the end of its first phase: %s"):format(from, tostring(message)), 0) end
  if ended.phase ~= phase.name then error(("--branch: %s stopped after %s, not after %s"):format(from, ended.phase, phase.name), 0) end
  if record.hash ~= recipe.hash then error(("--branch: the recipe has changed since %s"):format(from), 0) end
  local differences = M.differences(record.config, config_of.values(recipe.config))
  for _, path in ipairs(differences) do
    if not M.declared(path, recipe.after_warmup) then
      error(("--branch: %s differs from %s; only keys of the recipe's after_warmup may"):format(path, from), 0)
    end
  end
  local parts, s = checkpoint.read(from .. "/ckpt/" .. ended.checkpoint)
  if not parts then error("--branch: " .. tostring(s), 0) end
  local run = require("weft.train").start(recipe, options)
  if run.hashes.data ~= s.hashes.data then error(("--branch: the training pictures are not those of %s"):format(from), 0) end
  taken(run.model:state_dict(), parts.model)
  replay.check(run, from, record.config, differences, take)
  A.collect()  -- its model
  autograd.no_grad(take, run, parts, s)
  run.history, run.check, run.hashes.first_phase = s.history, s.check, s.hashes.first_phase
  run.trainable = { [phase.name] = run.model:count(true) }
  if phases.adapters_frozen(run.model) == false then error("--branch: adapters train in " .. phase.name, 0) end
  if run:checksum_frozen() ~= run.frozen_checksum then
    error(("--branch: the frozen weights of %s are not those of this run"):format(from), 0)
  end
  copy_logs(run, from, s.log)
  run.log:line("branched from %s after %s, step %d", from, phase.name, s.step)
  return run
end

return M
