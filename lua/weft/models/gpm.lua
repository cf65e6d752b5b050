-- gpm.lua: a generative memory. An episode of codes is written into slots by least squares and read
-- back. Written and read inside one forward: nothing outlives it. Larimar, arXiv 2403.11901.
local A = require "weft.args"
local nn = require "weft.nn"
local ops = require("weft.ops").functions
local create = require("weft.tensor").create

local M = nn.Module "Memory"
M.wide = true  -- its matrices are inverted: float32 at the least

local function eye(t)
  local rows, columns = t:size(1), t:size(2)
  local r = create.arange(0, rows, { dtype = "int64" }):unsqueeze(2)
  local c = create.arange(0, columns, { dtype = "int64" }):unsqueeze(1)
  t:copy_(r:eq(c):to(t.dtype))
end

---@param options? table  slots (32), width (128), steps (15, of the pseudo-inverse), episode (slots: samples
---  that share a memory in training; in evaluation each has its own), deterministic (false: read
---  weights are drawn in training), noise (0: spread of what is added to codes as they are written),
---  identity (true: slots begin as unit vectors)
function M:init(options)
  local o = A.options(options, { slots = 32, width = 128, steps = 15, episode = A.none, deterministic = false,
    noise = 0, identity = true }, "gpm")
  local initial = nn.initial
  self.slots, self.width, self.steps = o.slots, o.width, o.steps
  self.deterministic, self.noise = o.deterministic, o.noise
  self.episode = o.episode or o.slots
  if self.episode < 1 or self.episode > o.slots then
    A.raise("gpm: episodes of %s samples; 1 to %d (the slots) can be held", tostring(self.episode), o.slots)
  end
  self:parameter("memory_mean", { o.slots, o.width }, o.identity and eye or initial.normal(1))
  self:parameter("logvar_w", { o.slots }, initial.zeros)
end

function M:describe() return ("%d slots of %d, episodes of %d"):format(self.slots, self.width, self.episode) end

---Pseudo-inverse of [..., n, m] -> [..., m, n] by Newton's iteration from a A^T with
---a = 1 / (|A|_1 |A|_inf), which always converges; a singular value s is recovered up to
---(1 - a s^2) ^ (2 ^ steps). Ben-Israel and Cohen 1966.
---@param matrix weft.Tensor
---@param steps? integer 15
function M.pseudo_inverse(matrix, steps)
  local size = matrix:detach():abs()
  local one = size:sum(-2, true):max(-1, true)
  local inf = size:sum(-1, true):max(-2, true)
  local x = matrix:t() * ((one * inf):clamp(1e-30, math.huge) ^ -1)
  for _ = 1, steps or 15 do
    x = x * 2 - ops.matmul(ops.matmul(x, matrix), x)
  end
  return x
end

local function normal(self, like, use)
  local spec = like.shape
  spec.dtype, spec.device, spec.rng = like.dtype, like.device, self:rng(use)
  return create.randn(spec)
end

---Writes episodes of codes Z [n, E, C]: the posterior [n, K, C] that gives them back best.
function M:write(Z)
  local weights = ops.matmul(Z, M.pseudo_inverse(self.memory_mean, self.steps))
  return (ops.matmul(M.pseudo_inverse(weights, self.steps), Z))
end

---Reads codes Z [n, E, C] from a posterior [n, K, C].
---@param drawn? boolean  weights are drawn around their mean instead of taken at it
---@return weft.Tensor z, weft.Tensor weights  [n, E, C] and the mean weights [n, E, K]
function M:read(Z, posterior, drawn)
  local mean = ops.matmul(Z, M.pseudo_inverse(posterior, self.steps))
  local weights = mean
  if drawn then
    weights = mean + normal(self, mean, "read") * (self.logvar_w * 0.5):exp()
  end
  return ops.matmul(weights, posterior), mean
end

---KL of the read weights N(mean, exp(logvar_w)) from N(0, 1), summed over slots: [..., K] -> [...].
function M:kl(mean)
  local lv = self.logvar_w
  return ((lv:exp() + mean * mean - 1 - lv):sum(-1) * 0.5)
end

local function run(self, codes, episode, drawn)
  local batch, parts, kls = codes:size(1), {}, {}
  local whole = math.floor(batch / episode)
  local function one(from, count, size)
    local Z = codes:narrow(1, from, count * size):reshape(count, size, self.width)
    if self.noise > 0 and self.training then Z = Z + normal(self, Z, "write") * self.noise end
    local z, mean = self:read(Z, self:write(Z), drawn)
    parts[#parts + 1] = z:reshape(count * size, self.width)
    kls[#kls + 1] = self:kl(mean):reshape(count * size)
  end
  if whole > 0 then one(1, whole, episode) end
  if batch > whole * episode then one(whole * episode + 1, 1, batch - whole * episode) end
  if #parts == 1 then return parts[1], kls[1] end
  return ops.cat(parts, 1), ops.cat(kls, 1)
end

---The picture's code (the mean over its patches) written and read.
---@param V weft.Tensor  [B, P, C], of the picture alone; or codes [B, C]
---@return weft.Tensor z, weft.Tensor kl  [B, C], and the mean over the batch
function M:forward(V)
  local codes = (V.ndim == 3 and V:mean(2) or V):to(self.memory_mean.dtype)
  if codes:size(2) ~= self.width then
    A.raise("gpm: codes of %d are expected, got [%s]", self.width, table.concat(V.shape, ","))
  end
  local z, kl = run(self, codes, self.training and self.episode or 1, self.training and not self.deterministic)
  return z:to(V.dtype), kl:mean()
end

return M
