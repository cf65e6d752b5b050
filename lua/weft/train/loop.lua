-- loop.lua: epochs, batches and the whole of a training run, to its result.json.
local A = require "weft.args"
local autograd = require "weft.autograd"
local config_of = require "weft.config"
local files = require "weft.files"
local phases = require "weft.train.phases"
local memory = require "weft.train.memory"

local M = {}

-- At the end of a phase: its scores, and a checkpoint that stays. Where the run is to stop in the middle
-- of one: scores, and a checkpoint to go on from.
local function end_epoch(self)
  local phase = phases.at(self.plan, self.epoch)
  local last, stop = self.epoch == phase.last, self.stop_after and self.epoch == self.stop_after.last
  local kept = self.epoch == 1 and self.model.features
  local saved = type(kept) == "table" and kept.report and kept:report()
  if saved then self.log:line("%s", saved) end
  self.epoch, self.position, self.epoch_done = self.epoch + 1, 0, false
  if not last then
    if stop then
      self:evaluate("epoch " .. self.epoch - 1)
      self:save()
    end
    return
  end
  if self.model.left_out then self.log:line("%s: %s", phase.name, self.model:left_out()) end
  if phase.index == 1 and #self.plan > 1 then self.hashes.first_phase = require("weft.train.replay").fingerprint(self) end
  self:evaluate(phase.name)
  self.kept[("step_%08d"):format(self.step)] = true
  self:save()
  self:keep_best()
end

---Iterates over epochs still to do: enters phases, and after each epoch's batches evaluates and saves
---where a phase ends.
function M:epochs()
  return function()
    if self.epoch_done then end_epoch(self) end
    if self.stop_after and self.epoch > self.stop_after.last then return nil end
    if self.epoch > self.options.epochs then return nil end
    self:enter_phase()
    return self.epoch
  end
end

---Iterates over what is left of the current epoch, batch by batch.
function M:batches()
  local o = self.options
  local reader = self.data.train:reader {
    epoch = self.epoch, position = self.position, batch = o.batch, accumulate = o.accumulate,
    limit = o.steps_per_epoch * o.accumulate, seed = o.seed,
    covered = self.model.features_cached and function(id) return (self.model:features_cached(id)) end or nil,
  }
  return function()
    local batch = reader()
    if batch then
      self.waited = (self.waited or 0) + (batch.waited or 0)
      return batch
    end
    self.epoch_done = true
  end
end

---One micro-step of a batch; counts, logs and saves at the end of a step.
function M:train_step(batch, fn)
  self:micro_step(batch, fn)
  self.position = self.position + 1
  if batch.micro == self.options.accumulate then self:report() end
end

local function eta(seconds)
  return seconds < 90 and ("%ds"):format(seconds) or seconds < 5400 and ("%dmin"):format(seconds / 60) or ("%.1fh"):format(seconds / 3600)
end

-- What the model tells of a step beside its losses: numbers by name.
local function metrics_of(model)
  local out, given = {}, model.metrics and model:metrics() or {}
  if type(given) ~= "table" or A.is_tensor(given) then A.raise("metrics: numbers by name are expected, got %s", A.typename(given)) end
  for name, v in pairs(given) do
    local one = A.is_tensor(v) and v:numel() == 1
    if not one and type(v) ~= "number" and type(v) ~= "string" then
      A.raise("metrics: %s: a number, or a tensor of one element such as :mean(), is expected, got %s", tostring(name), A.typename(v))
    end
    out[name] = one and v:item() or v
  end
  return out
end

---Writes the step to metrics.jsonl and the status line.
function M:report()
  local o = self.options
  local now = files.clock()
  local since = now - (self.last_report or self.started)
  self.last_report = now
  local rate = 0
  for _, r in ipairs(self.rates) do rate = math.max(rate, r) end
  local row = { phase = self.phase.index, epoch = self.epoch, step = self.step, lr = rate, grad_norm = self.norm,
    seconds = self:seconds(), step_seconds = since, waited = self.waited or 0, images = self.pictures, tokens = self.tokens,
    skipped = self.skipped }
  for i, group in ipairs(self.optimizer.groups) do row["lr_" .. group.name] = self.rates[i] end
  for name, v in pairs(self.model.priors and self.model:priors() or {}) do row["prior_" .. name] = v end
  for name, v in pairs(self.sums) do row["loss_" .. name] = v end
  for k, v in pairs(metrics_of(self.model)) do row[k] = v end
  for k, v in pairs(row) do
    if type(v) == "number" and (v ~= v or math.abs(v) == math.huge) then row[k] = tostring(v) end
  end
  memory.stepped(self)
  self.log:metrics(row)
  local parts = {}
  for name, v in pairs(self.sums) do
    if name ~= "total" then parts[#parts + 1] = ("%s %.3f"):format(name, v) end
  end
  table.sort(parts)
  local total_steps = o.steps_per_epoch * o.epochs
  self.pace = self.pace and 0.95 * self.pace + 0.05 * since or since
  local second = math.max(since, 1e-9)
  self.log:status({
    { self.phase.name, 7 }, { ("epoch %d/%d"):format(self.epoch, o.epochs), 6 }, { ("step %d/%d"):format(self.step, total_steps), 9 },
    { ("loss %.3f"):format(self.sums.total or 0), 10 }, { ("(%s)"):format(table.concat(parts, " ")), 3 }, { ("lr %.2e"):format(rate), 4 },
    { ("norm %.2f"):format(self.norm), 5 }, { ("%.0f img/s"):format(self.pictures / second), 5.5 },
    { ("%.0f tok/s"):format(self.tokens / second), 1 }, { ("wait %.0f%%"):format(100 * (self.waited or 0) / second), 2.5 },
    { ("%d MiB"):format(memory.peak(self) / 2 ^ 20), 2 }, { "ETA " .. eta((total_steps - self.step) * self.pace), 8 },
  }, self.step % o.log_every == 0 or self.step == total_steps)
  self:watch_priors()
  self:watch_waiting(self.waited or 0, since)
  self.waited = 0
  if self.stop_after then require("weft.train.replay").note(self) end
  local every = o.checkpoint_every
  if every > 0 and self.step % every == 0 then self:save() end
  if self.should_stop and self.should_stop() then
    self:save()
    error({ stopped = true }, 0)
  end
end

local function sorted(t)
  local keys = {}
  for k in pairs(t) do keys[#keys + 1] = k end
  table.sort(keys)
  return keys
end

-- What an evaluation returned, if it is figures under names.
local function figures(value, i)
  local got = type(value) ~= "table" and A.typename(value)
  for name, list in pairs(not got and value or {}) do
    if type(list) ~= "table" then got = ("%s = %s"):format(tostring(name), A.typename(list)) end
  end
  if got then
    A.raise("recipe: evaluate[%d] is to return figures under a name, such as { exact = { share = 0.5 } }; it returned %s", i, got)
  end
  return value
end

---Evaluates everything that the recipe names, under a label such as "before" or "Phase 1".
function M:evaluate(label)
  local values = {}
  if not self.test_checked then
    self.test_checked = true
    self.data.test:drop_damaged()
  end
  memory.unwatch(self)
  self.model:eval()
  autograd.no_grad(function()
    for i, fn in ipairs(self.data.test:size() > 0 and self.recipe.evaluate or {}) do
      for k, v in pairs(figures(fn(self), i)) do values[k] = v end
    end
  end)
  self.model:train()
  self.history = self.history or {}
  local protocols = require "weft.eval.protocol"
  local protocol = next(values) and protocols.of(self, self.data.test, nil, values) or nil
  if protocol and #self.history == 0 then self.log:line("scores: %s", protocols.line(protocol)) end
  table.insert(self.history, { label = label, step = self.step, values = values, protocol = protocol })
  if self.events then require("weft.train.tensorboard").evaluated(self, self.history[#self.history]) end
  for _, name in ipairs(sorted(values)) do
    local parts = {}
    for _, k in ipairs(sorted(values[name])) do
      local v = values[name][k]
      if type(v) == "number" then parts[#parts + 1] = ((v % 1 == 0 and v > 1) and "%s %d" or "%s %.3f"):format(k, v) end
    end
    if #parts > 0 then self.log:line("%s  %s: %s", label, name, table.concat(parts, "  ")) end
  end
  return values
end

-- Pictures of a step that is done: the collector would come for them much later.
local function release(batch)
  for _, part in ipairs { batch, batch.text } do
    for _, name in ipairs { "pixels", "ids", "mask" } do
      if part[name] then
        part[name]:free()
        part[name] = nil
      end
    end
  end
end

---Scores as they are now, without a word in the run's log or story: of one evaluation, or all of the recipe's.
---@param name? string  "retrieval", "itm", "captions"
---@return table figures
function M:scores(name)
  local values = {}
  local own = name and rawget(require "weft.eval", name)
  require("weft.probe.common").aside(self.model, function()
    autograd.no_grad(function()
      for _, fn in ipairs(own and { own } or self.recipe.evaluate) do
        for k, v in pairs(fn(self)) do values[k] = v end
      end
    end)
  end)
  if name and values[name] == nil then require("weft.args").raise("scores: this recipe has no figures called %s", tostring(name)) end
  return name and values[name] or values
end

---A few pictures with their captions, held out where there are such: for looking at.
---@param n? integer  how many (8)
function M:batch(n) return (require("weft.probe.hand").batch(self, n)) end

---The whole run: what `weft train` does.
function M:train()
  self.started = files.clock()
  self.model:train()
  if self.step > 0 then self:resume_check() end
  if self.tensorboard ~= false and config_of.get(self.config, "tensorboard", true) then require("weft.train.tensorboard").attach(self) end
  self:print_start()
  local planned, estimate = pcall(memory.estimate, self)
  self.estimate = planned and estimate or nil
  if self.data.test:size() == 0 then self.log:line "nothing is held out (data.held_out): there will be no scores" end
  if not self.history then self:evaluate "before" end
  local losses = function(batch) return self.model:losses(batch) end
  for _ in self:epochs() do
    local taken = {}
    for batch in self:batches() do
      self:train_step(batch, losses)
      taken[#taken + 1] = batch
      -- a graph makes all of a step at its end
      if not self.by_graph or batch.micro == self.options.accumulate then
        for _, b in ipairs(taken) do release(b) end
        taken = {}
      end
    end
  end
  self:drop_graph()
  if self.epoch <= self.options.epochs then return (require("weft.train.branch").mark(self)) end
  return self:finish()
end

---The phase whose end had the best mean recall, and its checkpoint, which is kept; nil without recall.
function M:best()
  local best
  for _, e in ipairs(self.history or {}) do
    local r = e.values.retrieval
    if r and r.r_mean and e.label ~= "before" and (not best or r.r_mean >= best.r_mean) then
      best = { label = e.label, step = e.step, r_mean = r.r_mean, checkpoint = ("step_%08d"):format(e.step) }
    end
  end
  if best and not files.is_dir(self.dir .. "/ckpt/" .. best.checkpoint) then best.checkpoint = nil end  -- branched off later
  return best
end

---Makes the folder best/ that checkpoint: it stays, whatever comes after.
function M:keep_best()
  local best = self:best()
  if not (best and best.checkpoint) then return end
  local ok, message = require("weft.train.checkpoint").keep_best(self.dir, best.checkpoint)
  if not ok then self.log:line("note: no best/: %s", tostring(message)) end
end

---result.json, and the recipe's own last words (sheets, adapters).
function M:finish()
  local checkpoint = require "weft.train.checkpoint"
  self:keep_best()
  local result = { phase = self.phase.index, epoch = self.epoch - 1, step = self.step, trainable = self.trainable, skipped = self.skipped,
    seconds = self:seconds(), peak_rss_mib = tonumber(require("weft.core").lib.weft_peak_rss()),
    frozen_unchanged = self:checksum_frozen() == self.frozen_checksum,
    damaged = #self.damaged, best = self:best(),
    hashes = { initial = self.hashes.initial, data = self.hashes.data, first_phase = self.hashes.first_phase,
      final = checkpoint.checksum(self.model:state_dict()) },
    evaluations = self.history, protocol = self.history[#self.history].protocol, losses = self.sums }
  for k, v in pairs(self.history[#self.history].values) do result[k] = v end
  result.itm_acc = result.itm and result.itm.itm_acc
  local taken, text = memory.compared(self)
  result.memory = require("weft.io.json").array(taken)
  if self.recipe.finish then
    self.model:eval()
    autograd.no_grad(function() self.recipe.finish(self, result) end)
  end
  local b, last = result.best, self.history[#self.history]
  if b and b.label ~= last.label then
    self.log:line("%s ended below %s: mean recall %.3f after %.3f%s", last.label, b.label, last.values.retrieval.r_mean, b.r_mean,
      b.checkpoint and ("; %s/best is the checkpoint after %s"):format(self.dir, b.label) or "")
  end
  local ok, message = require("weft.io.json").write(self.dir .. "/result.json", result)
  if not ok then error(message, 0) end
  -- a page that can't be made costs nobody a run
  local made, wrote, why = pcall(require("weft.report.html").write, { self.dir }, self.dir .. "/report.html")
  if not made or not wrote then self.log:line("note: no report.html: %s", tostring(made and why or wrote)) end
  if self.events then self.events:finish(true) end
  if text then self.log:line("%s", text) end
  self.log:line("done in %s: %s/result.json", eta(result.seconds), self.dir)
  if made and wrote then self.log:line("to read: %s/report.html   to look inside: weft repl %s", self.dir, self.dir) end
  return result
end

return M
