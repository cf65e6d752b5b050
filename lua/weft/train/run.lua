-- run.lua: one run: its folder, data, model, optimizer and place in training; the step; saving and
-- going on. What a step costs is decided in the model; when things change, in phases.lua.
local A = require "weft.args"
local C = require("weft.core").lib
local ffi = require "ffi"
local autograd = require "weft.autograd"
local checkpoint = require "weft.train.checkpoint"
local config_of = require "weft.config"
local files = require "weft.files"
local phases = require "weft.train.phases"
local random = require "weft.random"
local resume = require "weft.train.resume"
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
    log_every = get(c, "log_every", 20), device = get(c, "device", "cpu"), dtype = get(c, "dtype", "float32"),
    graph = get(c, "graph", false),
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

-- The model, and what the data hands over, on the device and in the dtype of the config.
local function place(self, o)
  if o.device == "cpu" and o.dtype == "float32" then return end
  local device = A.device(o.device, "config: device")
  if not ({ float32 = true, float64 = true, bfloat16 = true })[o.dtype] then
    A.raise("config: dtype: float32, bfloat16 (on a GPU) or float64 is expected, got %s", tostring(o.dtype))
  end
  if o.dtype == "bfloat16" and device == C.WEFT_CPU then
    A.raise "config: dtype=bfloat16 wants a GPU (device=cuda); the CPU computes in float32"
  end
  if C.weft_memory_of(device) == nil then A.raise("config: device: %s", ffi.string(C.weft_error())) end
  self.model:to { device = o.device, dtype = o.dtype ~= "float32" and o.dtype or nil }
  for _, set in pairs { self.data.train, self.data.test } do set.placement = { device = o.device, dtype = o.dtype } end
end

local function build(recipe, dir, options)
  local c = recipe.config
  local o = settings(c)
  random.manual_seed(o.seed)
  local self = setmetatable({ recipe = recipe, config = c, options = o, dir = dir, step = 0, epoch = 1, position = 0,
    skipped = 0, started = files.clock(), quiet = options.quiet, kept = {}, trainable = {}, damaged = {}, peaks = {} }, Run)
  if options.data then self.data = options.data
  elseif options.for_use then self.data = require("weft.data").recorded(dir)
  else self.data = recipe.data(c, { seed = o.seed, batch = o.batch, dir = dir, tokenizer = options.tokenizer }) end
  self.data.dir = dir
  self.model = recipe.model(c, self.data)
  self.model:assign_paths()
  self.model:initialize(o.seed)
  if not options.absent then place(self, o) end  -- planned for a device that is not here
  self.plan = phases.plan(recipe.phases, o.epochs)
  for _, set in pairs { self.data.train, self.data.test } do
    set.on_damage = function(name, message) self:damage(name, message) end
  end
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

local function environment(o)
  local core = require "weft.core"
  local gpu = o.device ~= "cpu" and C.weft_cuda_describe(C.weft_device_of(o.device)) or nil
  return { device = o.device, dtype = o.dtype, gpu = gpu ~= nil and ffi.string(gpu) or nil,
    weft = core.version, luajit = jit.version, os = jit.os, arch = jit.arch, cpu_path = ffi.string(C.weft_cpu_path()),
    blas = ffi.string(C.weft_blas_name()), threads = C.weft_threads(), began = os.date "!%Y-%m-%dT%H:%M:%SZ" }
end

---Parameters by part of the model, and how many of each train in which phase: model.json.
function Run:inventory()
  local parts, names, total = {}, {}, self.model:count()
  for i, phase in ipairs(self.plan) do
    names[i] = phase.name
    phases.freeze(self.model, phase)
    for _, c in ipairs(self.model:children()) do
      local n = c[2]:count()
      if n > 0 then
        parts[c[1]] = parts[c[1]] or { name = tostring(c[1]), parameters = n, trainable = {} }
        if i == 1 then parts[#parts + 1] = parts[c[1]] end
        parts[c[1]].trainable[i] = c[2]:count(true)
      end
    end
  end
  local json = require "weft.io.json"
  local adapters, scales, list = {}, {}, {}
  for i, part in ipairs(parts) do
    list[i] = part
    local lines = require("weft.train.start").adapter_lines(self.model:get(part.name))
    if #lines > 0 then
      adapters[part.name] = table.concat(lines, "\n")
      scales[part.name] = json.array(require("weft.peft").scales(self.model:get(part.name)))
    end
  end
  return { phases = json.array(names), parts = json.array(list), total = total, adapters = json.object(adapters), scales = json.object(scales),
    steps_per_epoch = self.options.steps_per_epoch, epochs = self.options.epochs, batch = self.options.batch,
    pictures = self.data.train:size(), held_out = self.data.test:size() }
end

---A new run in a new folder.
---@param recipe table
---@param options? table  root, name, dir, quiet, overrides
function Run.start(recipe, options)
  options = options or {}
  local dir = options.dir or new_dir(recipe, options)
  local there = files.exists(dir)
  local ok, message = files.make_dirs(dir)
  if not ok then error("can't make the run's folder: " .. message, 0) end
  local began, self = pcall(function()
    local run = build(recipe, dir, options)
    run.log = Log.new(dir, options)
    resume.record(run)
    local wrote, why = files.write(dir .. "/overrides.txt", table.concat(options.overrides or {}, "\n") .. "\n")
    if not wrote then error("can't write the run's folder: " .. why, 0) end
    write_json(dir .. "/env.json", environment(run.options))
    write_json(dir .. "/model.json", run:inventory())
    if run.data.save then run.data:save(dir) end
    return run
  end)
  if not began then
    if not there then files.remove_tree(dir) end  -- a run that never was leaves nothing
    error(self, 0)
  end
  self.hashes = { initial = checkpoint.checksum(self.model:state_dict()), data = self.data.train:order_hash(self.options.seed) }
  self.frozen_checksum = self:checksum_frozen()
  return self
end

---A run of the past, as its newest good checkpoint left it, or the one that the path names (RUN/best).
---@param path string  a run's folder, or that of one of its checkpoints
---@param options? table  recipe (when the recorded file is gone), overrides, allow (keys that may
---  differ), quiet, for_use (to ask the model, not to train it: the data may be gone)
function Run.open(path, options)
  options = options or {}
  local dir, chosen = checkpoint.place(path)
  local json = require "weft.io.json"
  local record, message = json.read(dir .. "/config.json")
  if not record then return nil, ("%s is no run: %s"):format(dir, message) end
  if type(record) ~= "table" or type(record.config) ~= "table" then
    return nil, ("%s is no run: its config.json is not one of a run, which names a recipe and its values"):format(dir)
  end
  local recipe = options.recipe
  if not recipe then
    local file = options.recipe_path or record.path
    if not require("weft.train").find_recipe(file) then
      return nil, ("%s: its recipe %s is not here; start from the folder where it was trained%s"):format(dir, tostring(file),
        options.recipe_path and "" or ", or name the recipe with --recipe where the verb has it")
    end
    recipe = require("weft.train").load_recipe(file, options.overrides, record.config)
  end
  local changes = resume.changes(record.config, config_of.values(recipe.config))
  if not options.for_use then
    local refused = resume.refusal(changes, options.allow or {})
    if refused then return nil, refused end
  end
  local found, parts, state, passed
  if chosen then
    parts, state = checkpoint.read(chosen)
    if not parts then return nil, tostring(state) end
    passed = {}
  else
    found, parts, state, passed = checkpoint.latest(dir)
    if not found then return nil, parts end
  end
  options.dir = dir
  local self = build(recipe, dir, options)
  self.log = Log.new(dir, options)
  self.warnings = {}
  if record.hash ~= recipe.hash then
    self.warnings[1] = "the recipe's file has changed since this run began"
  end
  for _, change in ipairs(changes) do table.insert(self.warnings, change.text) end
  for _, line in ipairs(passed) do table.insert(self.warnings, line) end
  self.changed, self.overrides = #changes > 0, options.overrides
  self:load_state(parts, state, options.for_use)
  return self
end

---A run of the same config on the same pictures, with a model of its own, that writes nothing: to try steps.
function Run:scratch()
  local other = build(self.recipe, self.dir, { data = self.data })
  other.log = { line = function() end }
  for _, set in pairs { self.data.train, self.data.test } do
    set.on_damage = function(name, message) self:damage(name, message) end
  end
  return other
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
    history = self.history, seconds = self:seconds(), kept = self.kept, trainable = self.trainable, damaged = self.damaged,
    losses = self.sums, modules = {},
  }
  for path, m in self.model:named_modules() do
    if m.extra_state then values.modules[path] = m:extra_state() end
  end
  return { model = model, optimizer = optimizer.tensors }, values
end

function Run:load_state(parts, s, for_use)
  if not for_use and s.hashes.data ~= self.data.train:order_hash(self.options.seed) then
    error("resume: the training pictures, their captions or their split are not those that this run began with", 0)
  end
  self.step, self.epoch, self.position, self.skipped = s.step, s.epoch, s.position, s.skipped
  self.hashes, self.frozen_checksum, self.history = s.hashes, s.frozen_checksum, s.history
  self.before, self.kept, self.trainable, self.damaged, self.sums = s.seconds, s.kept, s.trainable, s.damaged, s.losses
  self.model:load_state_dict(parts.model)
  local left = {}
  for path in pairs(s.modules) do left[path] = "it has a state of %s, which the model lacks" end
  for path, m in self.model:named_modules() do
    if m.load_extra_state then
      left[path] = not s.modules[path] and "it has no state of %s" or nil
      if s.modules[path] then m:load_extra_state(s.modules[path]) end
    end
  end
  for path, why in pairs(left) do error(("the checkpoint does not fit the model: " .. why):format(path), 0) end
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

---A picture that can't be read: named in the log once, counted in the result.
function Run:damage(name, message)
  for _, known in ipairs(self.damaged) do
    if known == name then return end
  end
  table.insert(self.damaged, name)
  self.log:line("picture %s skipped: %s (%d so far)", name, message, #self.damaged)
end

function Run:seconds() return (self.before or 0) + files.clock() - self.started end

---The loss of the step's last batch under the weights as they are now, without side effects; nil where it
---has none, or none that is finite.
function Run:check_loss(indices)
  random.set_step(self.step, 65535)
  self.model:eval()
  local value = scope(function()
    return autograd.no_grad(function()
      local batch = self.data.train:batch_of(indices)
      batch.token_share = 1
      local total = self:total(self.model:losses(batch))
      return total and total:item()
    end)
  end)
  self.model:train()
  return value and math.abs(value) < math.huge and value or nil
end

function Run:save()
  local loss = self.last_indices and self:check_loss(self.last_indices)
  self.check = loss and { indices = self.last_indices, loss = loss } or nil
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
  if self.changed then resume.record(self) end
  if not self.check then return end
  local again = self:check_loss(self.check.indices)
  local same = again == self.check.loss
  self.log:line("resume check: %.5f %s %.5f", self.check.loss, same and "=" or "is not", again or 0 / 0)
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
  else
    if self.optimizer then self.optimizer:release() end
    self.optimizer = optim.AdamW(groups, { betas = o.betas, eps = o.eps })
  end
  self.phase, self.unmoved = phase, nil
  self:drop_graph()
  -- whatever follows from what is frozen, such as features that are no longer worth keeping
  self.model:apply(function(m) if m.phase_changed then m:phase_changed() end end)
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
  self.trainable[phase.name] = self.model:count(true)
  return true
end

-- The step, the loop, and what surrounds them live in files of their own.
for _, part in ipairs { "start", "step", "graph", "watch", "loop" } do
  for name, fn in pairs(require("weft.train." .. part)) do Run[name] = fn end
end

return Run
