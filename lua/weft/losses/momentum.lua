-- momentum.lua: a slowly moving copy of the trainable parameters, for keys and soft targets:
-- p_m = m p_m + (1 - m) p, once after each optimizer step (ALBEF, MoCo).
local A = require "weft.args"
local module = require "weft.nn.module"
local autograd = require "weft.autograd"
local create = require("weft.tensor").create
local C = require("weft.core").lib
local recording = require "weft.recording"

local Momentum = module.class("Momentum", module.base)
Momentum.host_buffers = { started = true }

---The copy begins equal to the parameters when it is first used or moved.
---@param owner table  the module whose parameters are followed (not a child of this one)
---@param options table  momentum (.995), only (function of a name: which parameters), warmup (false; true: at
---  move t, from 1, at most t / (9 + t), so that a short run's copy forgets where it began)
function Momentum:init(owner, options)
  local o = A.options(options, { momentum = 0.995, only = function() return true end, warmup = false }, "Momentum")
  if not (o.momentum > 0 and o.momentum < 1) then
    A.raise("Momentum: momentum must lie in (0, 1), got %s; for none make no Momentum", tostring(o.momentum))
  end
  self.momentum, self.warmup = o.momentum, o.warmup
  rawset(self, "owner", owner)
  rawset(self, "places", {})
  for name, t, m, key in owner:named_parameters() do
    if o.only(name) then
      local shadow = name:gsub("%.", "/")
      self:register_buffer(shadow, t:detach():clone())
      table.insert(self.places, { module = m, key = key, shadow = shadow })
    end
  end
  if #self.places == 0 then A.raise("Momentum: no parameter of %s is meant by `only`", owner.type) end
  self:register_buffer("started", create.zeros { 1, dtype = "int64" })
end

---Makes the copy equal to the parameters.
function Momentum:reset()
  autograd.no_grad(function()
    self.started:fill_(1)
    for _, p in ipairs(self.places) do self._buffers[p.shadow]:copy_(p.module._parameters[p.key]) end
  end)
  return self
end

---After a run has branched: adapters were drawn anew, so the copy of theirs begins anew.
function Momentum:branched()
  autograd.no_grad(function()
    for _, p in ipairs(self.places) do
      if p.shadow:find "/lora_" then self._buffers[p.shadow]:copy_(p.module._parameters[p.key]) end
    end
  end)
end

---Whether the copy has begun.
function Momentum:begun() return self.started:item() > 0 end

local function ready(self)
  if self.started:item() == 0 then self:reset() end
end

-- The momentum of the next move.
local function next_momentum(self)
  if not self.warmup then return self.momentum end
  local t = self.started:item()
  return math.min(self.momentum, t / (9 + t))
end

---Before its first move the copy is set.
function Momentum:unsettled() return not self:begun() and "a moving average begins" or nil end

---After an optimizer step.
function Momentum:after_step()
  ready(self)
  autograd.no_grad(function()
    local pairs_ = {}
    for _, p in ipairs(self.places) do
      pairs_[#pairs_ + 1] = self._buffers[p.shadow]
      pairs_[#pairs_ + 1] = p.module._parameters[p.key]
    end
    local list, n = A.tensors(pairs_, "Momentum", "parameters")
    local function move(m) A.check(C.weft_ema_(list, n, m)) end
    local function moved()
      if self.warmup then self.started:fill_(self.started:item() + 1) end
    end
    local recorder = recording.active
    if recorder then
      recorder:rates(function(p) p[0], p[1], p[2] = 1 - next_momentum(self), 0, 0 end, function() move(0) end)
      recorder:done(moved)
    else
      move(next_momentum(self))
      moved()
    end
  end)
end

---Runs fn with the copy in the parameters' places, without the tape.
function Momentum:with(fn, ...)
  ready(self)
  local kept = {}
  for i, p in ipairs(self.places) do
    kept[i] = p.module._parameters[p.key]
    p.module._parameters[p.key] = self._buffers[p.shadow]
  end
  local function restore(ok, ...)
    for i, p in ipairs(self.places) do p.module._parameters[p.key] = kept[i] end
    if not ok then error((...), 0) end
    return ...
  end
  return restore(pcall(autograd.no_grad, fn, ...))
end

return Momentum
