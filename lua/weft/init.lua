-- weft: one namespace for everything. Parts load when first used.
local core = require "weft.core"
local A = require "weft.args"
local tensors = require "weft.tensor"
local autograd = require "weft.autograd"
local random = require "weft.random"

local M = { version = core.version, Tensor = A.Tensor }

local parts = {
  nn = "weft.nn", optim = "weft.optim", peft = "weft.peft", models = "weft.models", losses = "weft.losses",
  data = "weft.data", train = "weft.train", eval = "weft.eval", io = "weft.io", tokenizer = "weft.io.tokenizer",
  config = "weft.config", help = "weft.help", cuda = "weft.cuda", dist = "weft.dist", recording = "weft.recording",
}

-- every operator is a function here too; a part of weft keeps its name (weft.data is no t:data())
for name, fn in pairs(tensors.functions) do
  if not parts[name] then M[name] = fn end
end

for name, fn in pairs(tensors.create) do M[name] = fn end
M.is_tensor = A.is_tensor
M.scope = require("weft.scope").scope
M.no_grad, M.enable_grad, M.grad_enabled = autograd.no_grad, autograd.enable_grad, autograd.grad_enabled
M.backward, M.custom, M.checkpoint = autograd.backward, autograd.custom, autograd.checkpoint
M.manual_seed = random.manual_seed
M.random = random

---Live, cached and peak bytes, and system allocations, of a device.
function M.memory(device)
  local m = core.lib.weft_memory_of(A.device(device or "cpu", "memory"))
  if m == nil then A.fail() end
  return {
    live = tonumber(m.live), peak = tonumber(m.peak), cached = tonumber(m.cached),
    system_calls = tonumber(m.system_calls), limit = tonumber(m.limit),
  }
end
---Most bytes that may be live on a device (0: no limit); an allocation beyond it fails with a message.
---Without bytes, says what the limit is.
---
---    weft.memory_limit(8 * 2 ^ 30)
---@param bytes integer?
---@param device? string
---@return integer
function M.memory_limit(bytes, device)
  local m = core.lib.weft_memory_of(A.device(device or "cpu", "memory_limit"))
  if m == nil then A.fail() end
  if bytes ~= nil then
    if type(bytes) ~= "number" or bytes < 0 or bytes % 1 ~= 0 then
      A.raise("memory_limit: bytes, a whole number from 0, are expected, got %s", A.typename(bytes))
    end
    m.limit = bytes
  end
  return tonumber(m.limit)
end

function M.empty_cache(device) core.lib.weft_empty_cache(A.device(device or "cpu", "empty_cache")) end
function M.reset_peak(device) core.lib.weft_reset_peak(A.device(device or "cpu", "reset_peak")) end
---Number of CPU threads; with n, sets it.
function M.threads(n)
  if n ~= nil then
    A.number(n, "threads", "n")
    A.check(core.lib.weft_set_threads(n))
  end
  return core.lib.weft_threads()
end

local functions = { gradcheck = "weft.autograd.gradcheck", load = "weft.io", save = "weft.io", open = "weft.train",
  ablate = "weft.ablate", trace = "weft.trace", show = "weft.show", plot = "weft.plot", capture = "weft.probe.capture", flow = "weft.probe.flow",
  attention = "weft.probe.attention", compare = "weft.probe.compare", nearest = "weft.probe.nearest" }

local later = {} -- names that load when first used
for name in pairs(parts) do later[name] = true end
for name in pairs(functions) do later[name] = true end

return setmetatable(M, {
  names = later,
  __index = function(t, key)
    local part = parts[key]
    if part then
      local module = require(part)
      rawset(t, key, module)
      return module
    end
    local from = functions[key]
    if from then
      local fn = require(from)[key]
      rawset(t, key, fn)
      return fn
    end
    local known = {}
    for name in pairs(t) do known[#known + 1] = name end
    for name in pairs(later) do known[#known + 1] = name end
    local near = A.nearest(tostring(key), known)
    A.raise("weft has no %s%s", tostring(key), #near > 0 and "; did you mean " .. table.concat(near, " or ") .. "?" or "")
  end,
})
