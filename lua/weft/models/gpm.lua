-- gpm.lua: the generative memory of Larimar (Das et al. 2024), after Pham et al. 2022: an episode is
-- written by least squares into K slots and read back. Nothing is kept between steps.
local A = require "weft.args"
local module = require "weft.nn.module"
local initial = require "weft.nn.initial"
local create = require("weft.tensor").create
local ops = require("weft.ops").functions

local GPM = module.class("GPM", module.base)

---Pseudo-inverse [.., n, m] of a [.., m, n] by Newton's iteration X <- 2 X - X a X (Ben-Israel and
---Cohen), started at a^T / (|a|_1 |a|_inf), which converges for every a.
---@param a weft.Tensor
---@param steps integer  after n steps a singular value s is inverted to 1 - (1 - s^2 / (|a|_1 |a|_inf))^(2^n)
function GPM.pinv(a, steps)
  local abs = ops.abs(a:detach())
  local one = ops.max(ops.sum(abs, -2, true), -1, true)
  local inf = ops.max(ops.sum(abs, -1, true), -2, true)
  local x = a:t() / ops.clamp(one * inf, 1e-30, math.huge)
  for _ = 1, steps do x = x * 2 - ops.matmul(ops.matmul(x, a), x) end
  return x
end

---@param options table  slots (K), width (C), steps (of Newton), noise (sigma of written and read codes)
function GPM:init(options)
  local o = A.options(options, { slots = 32, width = 128, steps = 15, noise = 0 }, "gpm")
  self.slots, self.width, self.steps, self.noise = o.slots, o.width, o.steps, o.noise
  self:parameter("memory_mean", { o.slots, o.width }, function(t)
    t:copy_(create.eye(math.max(o.slots, o.width)):narrow(1, 1, o.slots):narrow(2, 1, o.width))
  end)
  self:parameter("w_logvar", { o.slots }, initial.zeros)
end

---The memory [n, K, C] after writing episodes z [n, E, C]: W = z M0^+, M = W^+ z.
function GPM:write(z)
  local w = ops.matmul(z, GPM.pinv(self.memory_mean, self.steps))
  return (ops.matmul(GPM.pinv(w, self.steps), z))
end

---Codes read back from memory for queries z [n, E, C], and the weights' mean [n, E, K].
function GPM:read(z, memory)
  local mean = ops.matmul(z, GPM.pinv(memory, self.steps))
  local w = mean
  if self.training then
    local shape = mean.shape
    shape.rng, shape.dtype = self:rng "weights", mean.dtype
    w = mean + create.randn(shape) * ops.exp(self.w_logvar * 0.5)
  end
  return ops.matmul(w, memory), mean
end

---KL of the reading weights from a standard normal, summed over slots: 1/2 sum(e^lv + w^2 - 1 - lv). [n, E]
function GPM.kl(mean, logvar)
  return (ops.sum(mean * mean + ops.exp(logvar) - logvar - 1, -1) * 0.5)
end

---V [B, N, C] patches of pictures. In training consecutive samples make episodes of at most K; otherwise
---each is its own. Returns the codes read [B, C] and the mean KL.
function GPM:forward(V)
  local code = ops.mean(V, 2)
  local B = code:size(1)
  local E = self.training and math.min(self.slots, B) or 1
  local whole = B - B % E
  local outs, kls = {}, {}
  local function episode(z)
    if self.noise > 0 and self.training then
      local shape = z.shape
      shape.rng, shape.dtype = self:rng "codes", z.dtype
      z = z + create.randn(shape) * self.noise
    end
    local read, mean = self:read(z, self:write(z))
    outs[#outs + 1] = read:reshape { z:size(1) * z:size(2), self.width }
    kls[#kls + 1] = GPM.kl(mean, self.w_logvar):reshape { z:size(1) * z:size(2) }
  end
  if whole > 0 then episode(ops.narrow(code, 1, 1, whole):reshape { whole / E, E, self.width }) end
  if whole < B then episode(ops.narrow(code, 1, whole + 1, B - whole):reshape { 1, B - whole, self.width }) end
  return ops.cat(outs, 1), ops.mean(ops.cat(kls, 1))
end

function GPM:describe() return ("%d slots of %d"):format(self.slots, self.width) end

return GPM
