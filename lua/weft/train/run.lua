-- run.lua: one run: its folder, data, model, optimizer and place in training; the step; saving and
-- going on. What a step costs is decided in the model; when things change, in phases.lua.
local A = require "weft.args"
local C = require("weft.core").lib
local autograd = require "weft.autograd"
local checkpoint = require "weft.train.checkpoint"
local config_of = require "weft.config"
local files = require "weft.files"
local phases = require "weft.train.phases"
local random = require "weft.random"
local scope = require("weft.scope").scope
local Log = require "weft.train.log"

local Run = {}
Run.__index = Run

local get = config_of.get

-- Settings of the loop, from the recipe's config.
local function settings(c)
  local o = {
    seed = get(c, "seed", 0), epochs = get(c, "epochs", 1), batch = get(c, "batch", 32), accumulate = get(c, "accumulate", 1),
    lr = get(c, "lr", 1e-3), weight_decay = get(c, "weight_decay", 0.05), betas = get(c, "betas", { 0.9, 0.98 }), eps = get(c, "eps", 1e-8),
    clip = get(c, "clip", 1.0), warmup_steps = get(c, "warmup_steps", 1000), lr_floor = get(c, "lr_floor", 0.1),
    lora_lr = get(c, "lora_lr", 1), lora_plus_ratio = get(c, "lora_plus_ratio", 1), head_lr = get(c, "head_lr", 1),
    checkpoint_every = get(c, "checkpoint_every", 0), keep_checkpoints = get(c, "keep_checkpoints", 2),
    log_every = get(c, "log_every", 20),
  }
  for _, key in ipairs { "epochs", "batch", "accumulate" } do
    if o[key] < 1 or o[key] % 1 ~= 0 then A.raise("config: %s: a whole number from 1 is expected, got %s", key, tostring(o[key])) end
  end
  return o
end

local function new_dir(recipe, options)
  local root = options.root or "runs"
  local base = ("%s/%s/%s-%s"):format(root, recipe.name, os.date "%Y-%m-%d", options.name or "run")
  local dir, n = base, 1
  while files.exists(dir) do
    n = n + 1
    dir = ("%s-%d"):format(base, n)
  end
  return dir
end

local function build(recipe, dir, options)
  local c = recipe.config
  local o = settings(c)
  random.manual_seed(o.seed)
  local self = setmetatable({ recipe = recipe, config = c, options = o, dir = dir, step = 0, epoch = 1, position = 0,
    skipped = 0, started = files.clock(), quiet = options.quiet }, Run)
  if options.for_use then self.data = require("weft.data").recorded(dir)
  else self.data = recipe.data(c, { seed = o.seed, batch = o.batch, dir = dir, tokenizer = options.tokenizer }) end
  self.model = recipe.model(c, self.data)
  self.model:assign_paths()
  self.model:initialize(o.seed)
  self.plan = phases.plan(recipe.phases, o.epochs)
  local per_epoch = self.data.train:count_batches(o.batch)
  o.steps_per_epoch = math.floor(per_epoch / o.accumulate)
  if o.steps_per_epoch < 1 then
    A.raise("%d training pictures make no step of batch %d x accumulate %d; make them smaller", self.data.train:size(), o.batch, o.accumulate)
  end
  return self
end

-- --- files of a run
local function write_json(path, value)
  local ok, message = require("weft.io.json").write(path, value)
  if not ok then error("can't write " .. path .. ": " .. tostring(message), 0) end
end

local function environment()
  local core = require "weft.core"
  local ffi = require "ffi"
  return { weft = core.version, luajit = jit.version, os = jit.os, arch = jit.arch, cpu_path = ffi.string(C.weft_cpu_path()),
    blas = ffi.string(C.weft_blas_name()), threads = C.weft_threads() }
end

---A new run in a new folder.
---@param recipe table
---@param options? table  root, name, dir, quiet, overrides
function Run.start(recipe, options)
  options = options or {}
  local dir = options.dir or new_dir(recipe, options)
  local ok, message = files.make_dirs(dir)
  if not ok then error("can't make the run's folder: " .. message, 0) end
  local built, self = pcall(build, recipe, dir, options)
  if not built then
    files.remove_dir(dir)  -- nothing was written there yet
    error(self, 0)
  end
  self.log = Log.new(dir, options)
  write_json(dir .. "/config.json", { recipe = recipe.name, path = recipe.path, hash = recipe.hash, config = config_of.values(recipe.config) })
  assert(files.write(dir .. "/overrides.txt", table.concat(options.overrides or {}, "\n") .. "\n"))
  write_json(dir .. "/env.json", environment())
  if self.data.save then self.data:save(dir) end
  self.hashes = { initial = checkpoint.checksum(self.model:state_dict()), data = self.data.train:order_hash(self.options.seed) }
  self.frozen_checksum = self:checksum_frozen()
  return self
end

-- The loop and what surrounds it live in loop.lua.
for name, fn in pairs(require "weft.train.loop") do Run[name] = fn end

---A run of the past, as its newest good checkpoint left it.
---@param dir string
---@param options? table  recipe (when the recorded file is gone), quiet, for_use (the model alone: no pictures are read)
function Run.open(dir, options)
  options = options or {}
  local json = require "weft.io.json"
  local record, message = json.read(dir .. "/config.json")
  if not record then return nil, ("%s is no run: %s"):format(dir, message) end
  local recipe = options.recipe
  if not recipe then
    local path = options.recipe_path or record.path
    recipe = require("weft.train").load_recipe(path, options.overrides, record.config)
  end
  local found, parts, state, passed = checkpoint.latest(dir)
  if not found then return nil, parts end
  options.dir = dir
  local self = build(recipe, dir, options)
  self.log = Log.new(dir, options)
  if record.hash ~= recipe.hash then
    self.warnings = { "the recipe's file has changed since this run began" }
  end
  for _, line in ipairs(passed) do io.stderr:write(line, "\n") end
  self:load_state(parts, state)
  return self
end

-- --- state
function Run:checksum_frozen()
  local frozen = {}
  for name, t in self.model:named_parameters() do
    if self:never_trains(name) then frozen[name] = t end
  end
  return checkpoint.checksum(frozen)
end

-- Frozen in every phase: a function of the recipe.
function Run:never_trains(name)
  if not self.ever then
    self.ever = {}
    for _, phase in ipairs(self.plan) do
      phases.freeze(self.model, phase)
      for n, t in self.model:named_parameters() do
        if t.requires_grad then self.ever[n] = true end
      end
    end
    if self.phase then phases.freeze(self.model, self.phase) end
  end
  return not self.ever[name]
end

---Everything that has state, as tensors by part and plain values.
function Run:state()
  local model = {}
  for name, t in pairs(self.model:state_dict()) do model[name] = t end
  local optimizer = self.optimizer and self.optimizer:state() or { tensors = {}, values = {} }
  local values = {
    step = self.step, epoch = self.epoch, position = self.position, skipped = self.skipped,
    phase = self.phase and self.phase.index or 0, optimizer = optimizer.values, random = random.state(),
    hashes = self.hashes, frozen_checksum = self.frozen_checksum, check = self.check, log = self.log:state(),
    history = self.history, seconds = self:seconds(), modules = {},
  }
  for path, m in self.model:named_modules() do
    if m.extra_state then values.modules[path] = m:extra_state() end
  end
  return { model = model, optimizer = optimizer.tensors }, values
end

function Run:load_state(parts, s)
  self.step, self.epoch, self.position, self.skipped = s.step, s.epoch, s.position, s.skipped
  self.hashes, self.frozen_checksum, self.history = s.hashes, s.frozen_checksum, s.history
  self.before = s.seconds
  self.model:load_state_dict(parts.model)
  for path, m in self.model:named_modules() do
    if m.load_extra_state and s.modules[path] then m:load_extra_state(s.modules[path]) end
  end
  if s.phase > 0 then
    self:set_phase(self.plan[s.phase])
    self.optimizer:load_state { tensors = parts.optimizer or {}, values = s.optimizer }
  end
  random.load_state(s.random)
  if self:checksum_frozen() ~= self.frozen_checksum then
    error("the frozen weights are not those that this run began with", 0)
  end
  self.check = s.check
  self.log_state = s.log
end

function Run:seconds() return (self.before or 0) + files.clock() - self.started end

---The loss of the step's last batch under the weights as they are now, without side effects.
function Run:check_loss(indices)
  random.set_step(self.step, 65535)
  self.model:eval()
  local value = scope(function()
    return autograd.no_grad(function()
      local batch = self.data.train:batch_of(indices)
      batch.token_share = 1
      return (self:total(self.model:losses(batch)):item())
    end)
  end)
  self.model:train()
  return value
end

function Run:save()
  self.check = self.last_indices and { indices = self.last_indices, loss = self:check_loss(self.last_indices) } or nil
  local parts, state = self:state()
  if self:checksum_frozen() ~= self.frozen_checksum then error("frozen weights have changed during training", 0) end
  local dir, message = checkpoint.save(self.dir, self.step, parts, state)
  if not dir then error("checkpoint: " .. message, 0) end
  checkpoint.prune(self.dir, self.options.keep_checkpoints, self.kept)
  return dir
end

---Proves that a resumed run stands where it stood: same weights, same loss on the same batch.
function Run:resume_check()
  if self.log_state then self.log:load_state(self.log_state) end
  if not self.check then return end
  local again = self:check_loss(self.check.indices)
  local same = again == self.check.loss
  self.log:line("resume check: %.5f %s %.5f", self.check.loss, same and "=" or "is not", again)
  if not same then error("resume: the loss of the checkpoint's last batch is not what it was; data or code have changed", 0) end
end

-- --- phases
function Run:set_phase(phase)
  phases.freeze(self.model, phase)
  local extend = self.phase and phase.index > 1 and phase.on_enter == "extend"
  local optim = require "weft.optim"
  local o = self.options
  local groups = phases.groups(self.model, {
    lr = o.lr, weight_decay = o.weight_decay, lora_lr = o.lora_lr, lora_plus_ratio = o.lora_plus_ratio, head_lr = o.head_lr,
    heads = self.recipe.heads,
  })
  if #groups == 0 then A.raise("%s: nothing to train: every parameter is frozen", phase.name) end
  if extend then self.optimizer:extend(groups)
  else self.optimizer = optim.AdamW(groups, { betas = o.betas, eps = o.eps }) end
  self.phase = phase
  self.phase_start, self.moved = nil, nil
end

---Enters the phase of the current epoch when it is new. Prints its line.
function Run:enter_phase()
  local phase = phases.at(self.plan, self.epoch)
  if self.phase and self.phase.index == phase.index then return false end
  self:set_phase(phase)
  local count = require("weft.nn").commas(self.model:count(true))
  local frozen = phases.adapters_frozen(self.model)
  if frozen == nil then self.log:line("%s | Trainable params: %s", phase.name, count)
  else self.log:line("%s: LoRA adapters %s | Trainable params: %s", phase.name, frozen and "FROZEN" or "UNFROZEN", count) end
  self.trainable = self.trainable or {}
  self.trainable[phase.name] = self.model:count(true)
  return true
end

-- --- the step
---Weighted sum of the losses of a micro-step.
function Run:total(losses)
  local weights = get(self.config, "weights", nil)
  local total
  local names = {}
  for name in pairs(losses) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do
    local w = weights and get(weights, name, 1) or 1
    if w ~= 0 then
      local part = losses[name] * w
      total = total and total + part or part
    end
  end
  if not total then A.raise("the model's losses are empty") end
  return total
end

local function first_nonfinite(model)
  for name, t in model:named_parameters() do
    if t.requires_grad then
      local g = t.grad
      if g and require("weft").isfinite(g):to("float32"):min():item() ~= 1 then return "the gradient of " .. name end
    end
  end
  return "the loss"
end

-- After three steps of a phase each trainable tensor must have moved.
function Run:watch_movement()
  local within = self.step - (self.phase.first - 1) * self.options.steps_per_epoch
  if within == 0 then
    self.moved = {}
    for name, t in self.model:named_parameters() do
      if t.requires_grad then self.moved[name] = checkpoint.hex(C.weft_checksum(t.p, 0)) end
    end
  elseif within == 3 and self.moved and self.skipped == 0 then
    for name, t in self.model:named_parameters() do
      if t.requires_grad and self.moved[name] == checkpoint.hex(C.weft_checksum(t.p, 0)) then
        error(("%s: %s has not moved in three steps: no loss reaches it; freeze it or use it"):format(self.phase.name, name), 0)
      end
    end
    self.moved = nil
  end
end

---One micro-step: fn returns the losses by name. Every `accumulate` calls the optimizer steps.
function Run:micro_step(batch, fn)
  local o = self.options
  local micro = batch.micro
  if micro == 1 then
    self:watch_movement()
    self.optimizer:zero_grad()
    self.sums = {}
  end
  random.set_step(self.step, micro)
  scope(function()
    local losses = fn(batch)
    local total = self:total(losses)
    for name, t in pairs(losses) do self.sums[name] = (self.sums[name] or 0) + t:item() / o.accumulate end
    local value = total:item()
    self.sums.total = (self.sums.total or 0) + value / o.accumulate
    if value == value and math.abs(value) < math.huge then
      (total / o.accumulate):backward()
    else
      self.bad = self.bad or ("the loss (%s)"):format(tostring(value))
    end
    self.model:apply(function(m) if m.commit then m:commit() end end)
  end)
  self.last_indices = batch.indices
  if micro == o.accumulate then self:optimizer_step() end
end

function Run:optimizer_step()
  local o = self.options
  local weft = require "weft"
  local norm = scope(function()
    return autograd.no_grad(function()
      local rates = {}
      for i, group in ipairs(self.optimizer.groups) do
        rates[i] = group.base_lr * phases.rate(self.plan, o, self.step, group.name)
      end
      self.rates = rates
      local grads = {}
      for _, t in self.model:named_parameters() do
        if t.requires_grad then
          local g = t.grad
          if g then grads[#grads + 1] = g end
        end
      end
      if #grads == 0 then return 0 end
      local n = weft.global_norm(grads)
      local value = n:item()
      if value == value and value < math.huge and not self.bad then
        weft.clip_(n, grads, o.clip)
        self.optimizer:step(rates)
      else
        self.skipped = self.skipped + 1
        self.log:line("step %d skipped: %s is not finite (%d skipped so far)", self.step, self.bad or first_nonfinite(self.model), self.skipped)
      end
      return value
    end)
  end)
  self.bad = nil
  self.model:apply(function(m) if m.after_step then m:after_step() end end)
  self.step = self.step + 1
  self.norm = norm
end

return Run
