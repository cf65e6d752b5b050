-- replay.lua: the proof that runs may share a first phase. The run that trains it leaves fingerprints of
-- its first and its last step; a run that begins at its end makes both steps again under its own config,
-- in a model of its own, and must come to the same bits. branch.lua does the sharing.
local autograd = require "weft.autograd"
local checkpoint = require "weft.train.checkpoint"
local config_of = require "weft.config"
local C = require("weft.core").lib
local ffi = require "ffi"
local files = require "weft.files"

local M = {}

local function json() return require "weft.io.json" end

---A name as it is without adapters: a wrapped layer and a plain one are the same weight.
function M.plain_name(name)
  return ((name .. "."):gsub("%.base_layer%.", "."):gsub("/base_layer/", "/"):sub(1, -2))
end

function M.of_adapter(name) return name:find "[./]lora_" ~= nil end

---Hash of all that a step leaves but the adapters: weights, buffers, the optimizer's state.
---@return string
function M.fingerprint(run)
  local tensors = {}
  for name, t in pairs(run.model:state_dict()) do
    if not M.of_adapter(name) then tensors[M.plain_name(name)] = t end
  end
  for key, t in pairs(run.optimizer:state().tensors) do
    local slot, name = key:match "^([^.]+)%.(.*)$"
    tensors["optimizer." .. slot .. "." .. M.plain_name(name)] = t
  end
  return checkpoint.checksum(tensors)
end

-- Hash of every rate of every step of the first phase, which the optimizer is in.
local function rates(run)
  local hash, lines = "", {}
  local last = run.plan[1].last * run.options.steps_per_epoch
  for step = 0, last - 1 do
    for _, group in ipairs(run.optimizer.groups) do
      lines[#lines + 1] = ("%s %.17g"):format(group.name, group.base_lr * run:rate_factor(step, group.name))
    end
    if step % 1000 == 999 or step == last - 1 then hash, lines = files.hash(hash .. table.concat(lines, "\n")), {} end
  end
  return hash
end

local function path_of(dir) return dir .. "/replay.json" end

-- What bits depend on beside the config.
local function machine() return ("%s, %s"):format(ffi.string(C.weft_cpu_path()), ffi.string(C.weft_blas_name())) end

---After each step of a run that stops after its first phase: keeps what others need to make its first
---and its last step again.
function M.note(run)
  local n, step = run.plan[1].last * run.options.steps_per_epoch, run.step
  if run.stop_after.epoch or run.stop_after.index ~= 1 then return end
  local function add(values)
    local known = files.exists(path_of(run.dir)) and json().read(path_of(run.dir)) or {}
    for k, v in pairs(values) do known[k] = v end
    local ok, message = json().write(path_of(run.dir), known)
    if not ok then error(message, 0) end
  end
  if step == 1 then add { machine = machine(), rates = rates(run), first = M.fingerprint(run) } end
  if step == n then add { last = M.fingerprint(run) } end
  if step == n - 1 then
    local name, every = ("step_%08d"):format(step), run.options.checkpoint_every
    run.kept[name] = true
    if every <= 0 or step % every > 0 then run:save() end
    add { before = name }
  end
end

local function train(run, until_step)
  local losses = function(batch) return run.model:losses(batch) end
  for _ in run:epochs() do
    for batch in run:batches() do
      run:micro_step(batch, losses)
      run.position = run.position + 1
      if run.step == until_step then return end
    end
  end
end

-- Declared keys in which a run differs from the one that it would share with, with both values.
local function changed(run, record, differences)
  local out = {}
  local flat = config_of.flat(run.config)
  local text = require("weft.ablate.grid").text
  for i, path in ipairs(differences) do
    local there = record
    for part in path:gmatch "[^.]+" do there = type(there) == "table" and there[part] or nil end
    out[i] = ("%s is %s there and %s here"):format(path, text(there), text(flat[path]))
  end
  return table.concat(out, ", ")
end

---Makes the first and the last step of `from` again under a run's own config. An error when a declared
---key turns out to touch them. The run itself stays as it is.
---@param run table  a new run
---@param from string  the folder of the run that trained the phase
---@param record table  the config recorded there
---@param differences string[]  paths at which the configs differ
---@param take fun(scratch, parts, state)  puts a checkpoint's state into a run
function M.check(run, from, record, differences, take)
  local known = json().read(path_of(from))
  if not known or not known.first or not known.last then
    error(("--branch: %s holds no fingerprints of its first phase: train it again with --until"):format(from), 0)
  end
  if known.machine ~= machine() then
    error(("--branch: %s was trained with %s, this machine has %s: their bits differ. Let each kind of machine train phases of its own "
      .. "(another folder, or weft ablate --whole)"):format(from, known.machine, machine()), 0)
  end
  local name = run.plan[1].name
  local function fail(what)
    error(("--branch: the recipe's after_warmup says that %s does not depend on %s, but %s.\n%s\n"
      .. "Take what touches it out of after_warmup, or train each run whole (weft ablate --whole)")
      :format(name, table.concat(differences, ", "), what, changed(run, record, differences)), 0)
  end
  local scratch = run:scratch()
  scratch.model:train()
  train(scratch, 1)
  if rates(scratch) ~= known.rates then fail "the learning rates of its steps differ" end
  if M.fingerprint(scratch) ~= known.first then fail "its first step, made again with this run's values, comes to other weights" end
  if not known.before then return end  -- the first step is the last
  local parts, s = checkpoint.read(from .. "/ckpt/" .. known.before)
  if not parts then error("--branch: " .. tostring(s), 0) end
  autograd.no_grad(take, scratch, parts, s)
  scratch.epoch_done = false
  train(scratch, s.step + 1)
  if M.fingerprint(scratch) ~= known.last then fail "its last step, made again with this run's values, comes to other weights" end
end

return M
