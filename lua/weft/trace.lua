-- trace.lua: one pass through a model, seen from inside: what each module made, how long it took.
local A = require "weft.args"
local C = require("weft.core").lib
local autograd = require "weft.autograd"
local scope = require("weft.scope").scope

local M = {}

-- mean, spread and count of what is not finite, of a floating tensor.
local function statistics(t)
  if not t.dtype:find "^b?float" or t:numel() == 0 then return {} end
  local weft = require "weft"
  local x = t:detach():to "float32"
  local finite = weft.isfinite(x):to "float32"
  local bad = x:numel() - finite:sum():item()
  if bad > 0 then return { bad = bad } end
  local mean = x:mean():item()
  return { bad = 0, mean = mean, spread = math.sqrt(((x - mean) ^ 2):mean():item()) }
end

-- Tensors of a result: itself, or those of a table by name.
local function tensors(value)
  if A.is_tensor(value) then return { { "", value } } end
  local out = {}
  if type(value) == "table" then
    for k, v in pairs(value) do
      if A.is_tensor(v) then out[#out + 1] = { tostring(k), v } end
    end
    table.sort(out, function(a, b) return a[1] < b[1] end)
  end
  return out
end

local Trace = {}
Trace.__index = Trace

function Trace:__tostring()
  local head = { "module", "type", "output", "dtype", "ms", "MiB", "not finite", "mean", "spread" }
  local rows = {}
  for i, r in ipairs(self) do
    rows[i] = { r.path .. (r.calls > 1 and (" (%d x)"):format(r.calls) or ""), r.type, r.shape or "-", r.dtype or "-",
      ("%.2f"):format(r.ms), ("%.2f"):format(r.mib), r.bad and ("%d"):format(r.bad) or "-", r.mean and ("%.3g"):format(r.mean) or "-",
      r.spread and ("%.3g"):format(r.spread) or "-" }
  end
  local spare, bad = { "type", "dtype" }, false
  for _, r in ipairs(self) do bad = bad or (r.bad or 0) > 0 end
  if not bad then spare[3] = "not finite" end
  return require("weft.probe.common").text(head, rows, 4, spare)
end

-- What to run: a function, the model's losses of a batch, or the model itself.
local function pass(model, ...)
  local first = (...)
  if type(first) == "function" then return first() end
  if model.losses and type(first) == "table" and not A.is_tensor(first) then
    first.token_share = first.token_share or 1
    return model:losses(first)
  end
  return model(...)
end

---Runs a model once, in evaluation and without the tape, and tells what each module made: a list of
---{ path, type, calls, shape, dtype, ms, mib, bad, mean, spread }, in the order of their ends, which
---prints as a table. ms holds what runs inside; mib is what the call left behind.
---@param model table  a module, or a run
---@param ... any  its inputs; a recipe's batch, for its losses; or a function that runs what is to be seen
---@return table trace
---
---    local nn = weft.nn
---    local t = weft.trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), weft.randn { 2, 3 })
---    print(t[1].path, t[1].shape)
function M.trace(model, ...)
  model = require("weft.probe.common").model(model, "trace")
  local trace, seen, wrapped = setmetatable({}, Trace), {}, {}
  local clock = require("weft.files").clock
  local function live() return tonumber(C.weft_memory_of(0).live) end
  local function note(path, m, ms, bytes, value)
    local row = seen[path]
    if not row then
      row = { path = path == "" and "(all)" or path, type = m.type, calls = 0, ms = 0, mib = 0 }
      seen[path] = row
      trace[#trace + 1] = row
    end
    row.calls, row.ms, row.mib = row.calls + 1, row.ms + ms, row.mib + bytes / 2 ^ 20
    for i, t in ipairs(tensors(value)) do
      if i == 1 then
        row.shape, row.dtype = "[" .. table.concat(t[2].shape, ",") .. "]" .. (t[1] ~= "" and " " .. t[1] or ""), t[2].dtype
        local s = statistics(t[2])
        row.bad, row.mean, row.spread = (row.bad or 0) + (s.bad or 0), s.mean, s.spread
      end
    end
  end
  for path, m in model:named_modules() do
    wrapped[#wrapped + 1] = m
    rawset(m, "call", function(self, ...)
      local from, began = live(), clock()
      local function after(...)
        note(path, self, (clock() - began) * 1000, live() - from, (...))
        return ...
      end
      return after(getmetatable(self).call(self, ...))
    end)
  end
  local training = model.training
  model:eval()
  local ok, problem = pcall(scope, autograd.no_grad, function(...) pass(model, ...) end, ...)
  model:train(training)
  for _, m in ipairs(wrapped) do rawset(m, "call", nil) end
  if not ok then error(problem, 0) end
  return trace
end

return M
