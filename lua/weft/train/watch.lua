-- watch.lua: what a run watches over itself: tensors that no loss reaches, losses that stay where a
-- head that ignores its input would be, waiting for data.
local M = {}

local STEPS = 3

---In the first steps of a phase: nothing has been reached yet. A run that goes on there begins to watch anew.
function M:watch_phase()
  if self.watched == self.phase or self.step >= (self.phase.first - 1) * self.options.steps_per_epoch + STEPS then return end
  self.watched = self.phase
  self.unmoved = { names = {}, steps = 0, losses = 0 }
  for name, t in self.model:named_parameters() do
    if t.requires_grad then self.unmoved.names[name] = true end
  end
end

-- Losses that have a weight and were not there, by commas; nil where there is none.
local function missing_losses(self)
  local list = {}
  for name, w in pairs(require("weft.config").flat(self.config)) do
    name = name:match "^weights%.(.*)$"
    if name and w ~= 0 and not self.sums[name] then list[#list + 1] = name end
  end
  table.sort(list)
  return #list > 0 and table.concat(list, ", ") or nil
end

---Before the optimizer moves: each trainable tensor must have had a gradient other than 0 by the
---third step of its phase. (At the first, what lies behind a gate at 0 or a B at 0 has none.) Steps
---that lack a loss which others had, such as matching without a negative, don't count.
function M:watch_gradients()
  local u = self.unmoved
  if not u then return end
  local left
  for name, t in self.model:named_parameters() do
    if u.names[name] then
      local g = t.grad
      if g and g:numel() > 0 and g:abs():max():item() > 0 then u.names[name] = nil else left = left or name end
    end
  end
  if self.loss_names > u.losses then u.losses, u.steps = self.loss_names, 0 end
  if self.loss_names == u.losses then u.steps = u.steps + 1 end
  if not left then
    self.unmoved = nil
  elseif u.steps >= STEPS then
    local missing = missing_losses(self)
    error(("%s: %s has had no gradient in three steps: no loss reaches it%s; use it, or freeze it in the recipe's phases")
      :format(self.phase.name, left, missing and (" (none of these had anything to compare: %s)"):format(missing) or ""), 0)
  end
end

-- Mean size of the gates and of their gradients: what keeps one stream from seeing the other.
local function gates(model)
  local size, gradient, n = 0, 0, 0
  for name, t in model:named_parameters() do
    if name:find "%.gate$" then
      n = n + t:numel()
      size = size + t:detach():abs():sum():item()
      local g = t.grad
      if g then gradient = gradient + g:pow(2):sum():item() end
    end
  end
  if n == 0 then return "no gates" end
  return ("%d gates of mean size %.2g, gradient norm %.2g"):format(n, size / n, math.sqrt(gradient))
end

local FLAT = 200
M.FLAT_STEPS = FLAT

---After a step: model:priors() names losses with the value they have when the input is ignored. One
---that stays within 1 % of it for 200 steps is said once.
function M:watch_priors()
  local priors = self.model.priors and self.model:priors()
  if not priors then return end
  self.flat = self.flat or {}
  for name, prior in pairs(priors) do
    local value = self.sums[name]
    local state = self.flat[name] or 0
    if state ~= "said" then
      local near = value and prior > 0 and math.abs(value - prior) <= 0.01 * prior
      self.flat[name] = near and state + 1 or 0
      if self.flat[name] >= FLAT then
        self.flat[name] = "said"
        local likeness = self.model.metrics and self.model:metrics().itm_likeness
        self.log:line("note: the loss %s has stayed beside %.4f for %d steps, where it is when the input is ignored; %s%s",
          name, prior, FLAT, gates(self.model),
          likeness and (", hard negatives at a mean similarity of %.3f"):format(likeness) or "")
      end
    end
  end
end

local WAIT_STEPS = 100

---Seconds that reading one picture's file takes, and decoding it: means over pictures spread over the training set.
function M:picture_times()
  local files, image = require "weft.files", require "weft.io.image"
  local rows, read, decode, n = self.data.train.rows, 0, 0, 0
  local size = require("weft.data.rows").size(rows)
  for i = 1, size, math.max(1, math.floor(size / 8)) do
    local before = files.clock()
    local bytes = files.read(rows[i].path)
    local between = files.clock()
    if bytes and image.load(rows[i].path) then
      read, decode, n = read + between - before, decode + files.clock() - between, n + 1
    end
  end
  return read / math.max(n, 1), decode / math.max(n, 1)
end

---After a step: above a fifth of the time waiting for pictures over 100 steps is said once, with what they wait for.
function M:watch_waiting(waited, seconds)
  local w = self.wait_watch or { waited = 0, seconds = 0, steps = 0 }
  self.wait_watch = w
  w.waited, w.seconds, w.steps = w.waited + waited, w.seconds + seconds, w.steps + 1
  if w.steps < WAIT_STEPS then return end
  if not w.said and w.waited > 0.2 * w.seconds then
    w.said = true
    local read, decode = self:picture_times()
    self.log:line("note: %.0f %% of the last %d steps went into waiting for pictures: reading one takes %.1f ms, decoding it %.1f ms; %s",
      100 * w.waited / w.seconds, WAIT_STEPS, 1000 * read, 1000 * decode, read > decode
        and "the disk is what is slow: keep the pictures on a faster one, or raise data.cache (MiB of decoded pictures)"
        or "decoding is what is slow: raise data.threads, or data.cache (MiB of decoded pictures), or make the pictures smaller")
  end
  w.waited, w.seconds, w.steps = 0, 0, 0
end

return M
