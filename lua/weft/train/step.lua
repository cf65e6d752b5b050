-- step.lua: one step of training: losses of micro-steps, their gradients, the optimizer.
local A = require "weft.args"
local autograd = require "weft.autograd"
local config_of = require "weft.config"
local phases = require "weft.train.phases"
local ops = require("weft.ops").functions
local random = require "weft.random"
local read = require "weft.tensor.read"
local recording = require "weft.recording"
local scope = require("weft.scope").scope

local M = {}

local function sorted(t)
  local names = {}
  for name in pairs(t) do names[#names + 1] = name end
  table.sort(names)
  return names
end

---Weighted sum of the losses of a micro-step.
function M:total(losses)
  local weights = config_of.get(self.config, "weights", nil)
  local total
  for _, name in ipairs(sorted(losses)) do
    local w = weights and config_of.get(weights, name, 1) or 1
    if w ~= 0 then
      local part = losses[name] * w
      total = total and total + part or part
    end
  end
  return total
end

-- Losses, if they are scalars by name.
local function checked(losses)
  if type(losses) ~= "table" or A.is_tensor(losses) then
    A.raise("losses: a table of losses by name is expected, such as { caption = loss }, got %s", A.typename(losses))
  end
  for name, loss in pairs(losses) do
    if not A.is_tensor(loss) then A.raise("losses: %s: a tensor is expected, got %s", tostring(name), A.typename(loss)) end
    if loss:numel() ~= 1 then
      A.raise("losses: %s: one element is expected, got [%s]; reduce it with :mean() or :sum()", tostring(name), table.concat(loss.shape, ","))
    end
  end
  return losses
end

-- Adds a micro-step's gradients; its losses go to the step's sums.
local function accumulate(self, batch, fn)
  local losses = checked(fn(batch))
  local total = self:total(losses)
  local names, list = sorted(losses), {}
  for i, name in ipairs(names) do list[i] = losses[name] end
  list[#list + 1] = total
  local bad = self:count_losses(names, read.items(list))
  if total and not bad then (total / self.options.accumulate):backward() end
  if bad then self.bad = self.bad or { what = bad, batch = batch, fn = fn } end
  self.model:apply(function(m) if m.commit then m:commit() end end)
end

---The same while a step is captured.
function M:record_micro(batch, fn)
  local losses = checked(fn(batch))
  local total = self:total(losses)
  if not total then error("no loss of it has a gradient", 0) end
  local names, list, recorder = sorted(losses), {}, recording.active
  for i, name in ipairs(names) do list[i] = losses[name] end
  list[#list + 1] = total
  for i, t in ipairs(list) do recorder:demand(ops.isfinite(t), ("the loss %sis not finite"):format(names[i] and names[i] .. " " or "")) end
  recorder:later(list, function(...)
    local values = {}
    for i, value in ipairs { ... } do values[i] = value[1] end
    self:count_losses(names, values)
  end)
  ;(total / self.options.accumulate):backward()
  self.model:apply(function(m) if m.commit then m:commit() end end)
end

---Adds a micro-step's losses, by name and then their total where there is one, to the step's sums.
---@return string? bad  the first that is not finite, in words
function M:count_losses(names, values)
  local n, bad = self.options.accumulate, nil
  for i, value in ipairs(values) do
    local name = names[i] or "total"
    self.sums[name] = (self.sums[name] or 0) + value / n
    if not bad and (value ~= value or math.abs(value) == math.huge) then
      bad = ("the loss %s(%s)"):format(names[i] and name .. " " or "", tostring(value))
    end
  end
  self.loss_names = math.max(self.loss_names, #names)
  return bad
end

local function drop_prepared(batch)
  if batch.patches then batch.patches:free() end
  batch.patches = nil
end

-- The step is over: what was prepared for it goes.
local function let_go(self)
  for _, batch in pairs(self.micro_batches) do drop_prepared(batch) end
  self.micro_batches = nil
end

-- A micro-step without a graph.
local function plain(self, batch, fn)
  if #batch.indices == 0 then return end
  random.set_step(self.step, batch.micro)
  if batch.draws then random.restore_indices(batch.draws) end
  scope(accumulate, self, batch, fn)
end

---One micro-step: fn returns the losses by name. Every `accumulate` of them the optimizer steps. A model
---may have prepare(batch): what is to be done on the host, such as looking things up.
---@param batch table  of data.train:reader; it learns its step, from 0
---@param fn function  (batch) -> losses
function M:micro_step(batch, fn)
  local last = batch.micro == self.options.accumulate
  if batch.micro == 1 then
    self.optimizer:zero_grad()
    self.sums, self.pictures, self.tokens, self.loss_names, self.micro_batches = {}, 0, 0, 0, {}
    self:watch_phase()
    self.by_graph = self:wants_graph()
  end
  -- the end of a step alone (what a dry run takes again) goes without
  if not self.micro_batches then self.micro_batches, self.by_graph = {}, false end
  self.micro_batches[batch.micro], batch.step = batch, self.step
  if #batch.indices > 0 then
    if self.model.prepare then
      random.set_step(self.step, batch.micro)
      drop_prepared(batch)
      self.model:prepare(batch)
      batch.draws = random.snapshot()
    end
    self.last_indices = batch.indices
    self.pictures, self.tokens = self.pictures + #batch.indices, self.tokens + (batch.tokens or 0)
  end
  if not self.by_graph then
    plain(self, batch, fn)
    if last then self:optimizer_step() end
  elseif last then
    self:find_rates()
    if self:graph_step(fn) then
      self.step = self.step + 1
    else
      for _, b in ipairs(self.micro_batches) do plain(self, b, fn) end
      self:optimizer_step()
    end
  end
  if last then let_go(self) end
end

local function has_gradients(self)
  for _, t in self.model:named_parameters() do
    if t.requires_grad and t.grad then return true end
  end
  return false
end

---Of a group's base rate at a step: the recipe's own schedule, or the one of phases.lua.
function M:rate_factor(step, group)
  local own = self.recipe.schedule
  if not own then return (phases.rate(self.plan, self.options, step, group)) end
  local value = own(step, self.options.steps_per_epoch * self.options.epochs, group)
  if type(value) ~= "number" or not (value >= 0) then A.raise("recipe: schedule: a factor from 0 is expected, got %s", tostring(value)) end
  return value
end

---The groups' rates at this step.
function M:find_rates()
  self.rates = {}
  for i, group in ipairs(self.optimizer.groups) do self.rates[i] = group.base_lr * self:rate_factor(self.step, group.name) end
end

---Clips and moves while a step is captured.
function M:record_optimizer()
  autograd.no_grad(function()
    local optim, recorder, lrs = require "weft.optim", recording.active, {}
    local norm = optim.grad_norm(self.model)
    recorder:demand(ops.isfinite(norm), "the norm of the gradients is not finite")
    recorder:later({ norm }, function(value) self.norm = value[1] end)
    optim.clip_grad_norm(self.model, self.options.clip, norm)
    for i in ipairs(self.optimizer.groups) do lrs[i] = function() return self.rates[i] end end
    self.optimizer:step(lrs)
  end)
  self.model:apply(function(m) if m.after_step then m:after_step() end end)
end

---Clips and moves, or skips the step when something is not finite: nothing has moved then.
function M:optimizer_step()
  local o = self.options
  local optim = require "weft.optim"
  self:find_rates()
  self.norm = scope(autograd.no_grad, function()
    local why = self.bad and self:first_nonfinite(self.bad)
    local value = 0
    if not why and not has_gradients(self) then
      why = self.pictures == 0 and "no picture of it can be read" or "no loss of it has a gradient: nothing could be compared"
    elseif not why then
      local norm = optim.grad_norm(self.model)
      value = norm:item()
      if value ~= value or value == math.huge then
        why = self:first_nonfinite()
      else
        self:watch_gradients()
        optim.clip_grad_norm(self.model, o.clip, norm)
        self.optimizer:step(self.rates)
      end
    end
    if why then
      self.skipped = self.skipped + 1
      self.log:line("step %d skipped: %s (%d skipped so far)", self.step + 1, why, self.skipped)
    end
    return value
  end)
  self.bad = nil
  self.model:apply(function(m) if m.after_step then m:after_step() end end)
  self.step, self.plain_steps = self.step + 1, (self.plain_steps or 0) + 1
end

-- The first module whose result is not finite, looked for in a second pass without side effects.
local function first_module(self, bad)
  local takes_off, found = {}, nil
  local weft = require "weft"
  local function look(path, ...)
    for i = 1, select("#", ...) do
      local y = (select(i, ...))
      if not found and A.is_tensor(y) and y.dtype:find "^float" and y:numel() > 0
        and weft.isfinite(y):to("int64"):min():item() == 0 then
        found = path
      end
    end
  end
  for path, m in self.model:named_modules() do
    if path ~= "" then
      takes_off[#takes_off + 1] = m:register_forward_hook(function(_, ...) look(path, ...) end)
    end
  end
  self.model:eval()
  pcall(scope, autograd.no_grad, bad.fn, bad.batch)
  self.model:train()
  for _, off in ipairs(takes_off) do off() end
  return found and "the output of " .. found
end

---The first tensor that is not finite, in words: a weight, what a module made, a loss, or a gradient.
---@param bad? table  { what, batch, fn } of a loss that is not finite
function M:first_nonfinite(bad)
  local weft = require "weft"
  local function broken(t) return t and t:numel() > 0 and weft.isfinite(t):to("int64"):min():item() == 0 end
  for name, t in self.model:named_parameters() do
    if broken(t) then return ("%s is not finite: the weight %s is not"):format(bad and bad.what or "the gradient", name) end
  end
  if bad then
    local module = first_module(self, bad)
    return ("%s is not finite%s"):format(bad.what, module and ": " .. module .. " is not" or "")
  end
  for name, t in self.model:named_parameters() do
    if t.requires_grad and broken(t.grad) then return ("the gradient of %s is not finite"):format(name) end
  end
  return "the norm of the gradients is not finite"
end

return M
