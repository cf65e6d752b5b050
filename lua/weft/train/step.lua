-- step.lua: one step of training: losses of micro-steps, their gradients, the optimizer.
local A = require "weft.args"
local autograd = require "weft.autograd"
local config_of = require "weft.config"
local phases = require "weft.train.phases"
local random = require "weft.random"
local read = require "weft.tensor.read"
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
  local n = self.options.accumulate
  local losses = checked(fn(batch))
  local total = self:total(losses)
  local names, list, bad = sorted(losses), {}, nil
  for i, name in ipairs(names) do list[i] = losses[name] end
  list[#list + 1] = total
  local values = read.items(list)
  for i, name in ipairs(names) do
    local value = values[i]
    self.sums[name] = (self.sums[name] or 0) + value / n
    if not bad and (value ~= value or math.abs(value) == math.huge) then bad = ("the loss %s (%s)"):format(name, tostring(value)) end
  end
  self.loss_names = math.max(self.loss_names, #names)
  if total then
    local value = values[#values]
    self.sums.total = (self.sums.total or 0) + value / n
    if not bad and (value ~= value or math.abs(value) == math.huge) then bad = ("the loss (%s)"):format(tostring(value)) end
    if not bad then (total / n):backward() end
  end
  if bad then self.bad = self.bad or { what = bad, batch = batch, fn = fn } end
  self.model:apply(function(m) if m.commit then m:commit() end end)
end

---One micro-step: fn returns the losses by name. Every `accumulate` of them the optimizer steps.
---@param batch table  of data.train:reader; it learns its step, from 0
---@param fn function  (batch) -> losses
function M:micro_step(batch, fn)
  if batch.micro == 1 then
    self.optimizer:zero_grad()
    self.sums, self.pictures, self.tokens, self.loss_names = {}, 0, 0, 0
    self:watch_phase()
  end
  random.set_step(self.step, batch.micro)
  batch.step = self.step
  if #batch.indices > 0 then
    scope(accumulate, self, batch, fn)
    self.last_indices = batch.indices
    self.pictures, self.tokens = self.pictures + #batch.indices, self.tokens + (batch.tokens or 0)
  end
  if batch.micro == self.options.accumulate then self:optimizer_step() end
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

---Clips and moves, or skips the step when something is not finite: nothing has moved then.
function M:optimizer_step()
  local o = self.options
  local optim = require "weft.optim"
  local rates = {}
  for i, group in ipairs(self.optimizer.groups) do
    rates[i] = group.base_lr * self:rate_factor(self.step, group.name)
  end
  self.rates = rates
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
        self.optimizer:step(rates)
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
  self.step = self.step + 1
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
