-- memory.lua: what a run's steps take, by shapes alone: its model is made once more on the meta device, and a step
-- of each phase runs there. Nothing is computed, so a model may be planned that no machine here could hold.
local A = require "weft.args"
local C = require("weft.core").lib
local random = require "weft.random"
local rows_of = require "weft.data.rows"

local M = {}

local META = C.WEFT_META
local AHEAD = 2  -- batches that wait decoded in the host's memory while one is trained on

local CUBLAS = 32 * 2 ^ 20  -- what cuBLASLt is given (cuda/blas.cu)

local function live() return tonumber(C.weft_memory_of(META).live) end

-- --- a batch of n pictures, like one of the run's own
local function resized(v, from, n)
  if A.is_tensor(v) then
    local shape = v.shape
    if shape[1] == from then shape[1] = n end
    shape.dtype, shape.device = v.dtype, "meta"
    return (require("weft").empty(shape))
  end
  if type(v) ~= "table" then return v end
  local out = {}
  if #v == from and type(v[1]) ~= "table" then
    for i = 1, n do out[i] = type(v[1]) == "number" and i or v[1] end
  else
    for k, x in pairs(v) do out[k] = resized(x, from, n) end
  end
  return out
end

local function sample_of(run)
  local set = run.data.train
  local placement = set.placement
  set.placement = nil
  local ok, batch = pcall(set.batch_of, set, { 1 })
  set.placement = placement
  if not ok then error(batch, 0) end
  return batch
end

local LOOKED_AT = 2 ^ 20  -- captions, about

-- The longest caption, and the share of its places that captions fill, of the fullest batches of n pictures.
local function fullest(run, n)
  local set, longest, most = run.data.train, 0, 0
  if type(set.rows) ~= "table" or not set.rows[1] or not set.rows[1].ids or not set.plan then return nil end
  local token_count = rows_of.reader(set.rows, "token_count")
  for epoch = 1, math.min(run.options.epochs, 8, math.ceil(LOOKED_AT / set:size())) do
    local plan = set:plan(run.options.seed, epoch, n)
    for k = 1, plan.n do
      local tokens = 0
      for _, i in ipairs(plan[k]) do
        tokens, longest = tokens + token_count(i) - 1, math.max(longest, token_count(i))
      end
      most = math.max(most, tokens)
    end
    plan:free()
  end
  return longest, most
end

local function batch_of(sample, run, n)
  local batch = resized(sample, 1, n)
  A.assumed = {}
  local longest, tokens = fullest(run, n)
  if longest and batch.ids then
    -- padding is left out on the CPU alone: columns that are nothing else, and what predicts nothing
    if run.options.device == "cpu" then
      A.assumed.longest, A.assumed.density = longest, math.min(1, tokens / (n * (batch.ids:size(2) - 1)))
    end
  end
  if batch.pixels then batch.pixels = batch.pixels:to(run.options.dtype) end
  batch.token_share = 1
  return batch
end

-- --- the run's shadow on meta
local function shadow(run, sample)
  local nn = require "weft.nn"
  local model = nn.on_meta(run.recipe.model, run.config, run.data)
  model:assign_paths()
  model:to { device = "meta", dtype = run.options.dtype ~= "float32" and run.options.dtype or nil }
  for _, m in model:named_modules() do
    if m.type == "Queue" then m:assume_full() end
  end
  local options = setmetatable({ accumulate = math.huge, graph = false }, { __index = run.options })
  local self = setmetatable({ recipe = run.recipe, config = run.config, options = options, data = run.data, model = model, plan = run.plan,
    log = { line = function() end }, step = 0, epoch = 1, position = 0, skipped = 0, sample = sample }, getmetatable(run))
  self.watch_phase = function() end
  return self
end

local function bytes_of(t) return t:numel() * tonumber(C.weft_dtype_size(t.p.v.dtype)) end

-- What each part's calls left behind when they were done: activations that backward wants, and results. Of calls
-- within calls the outermost counts.
local function watched(model, fn)
  local by, inside, off = {}, false, {}
  for path, m in model:named_modules() do
    if path ~= "" then
      local part = path:match "^[^.]+"
      off[#off + 1] = m
      rawset(m, "call", function(self, ...)
        local call = getmetatable(self).call
        if inside then return call(self, ...) end
        inside = true
        local before = live()
        local function after(ok, ...)
          inside = false
          if not ok then error((...), 0) end
          by[part] = (by[part] or 0) + live() - before
          return ...
        end
        return after(pcall(call, self, ...))
      end)
    end
  end
  local ok, problem = pcall(fn)
  for _, m in ipairs(off) do rawset(m, "call", nil) end
  if not ok then error(problem, 0) end
  return by
end

-- One step as the trainer takes it, without its values.
local function step(self, batch, losses)
  self.options.accumulate = math.huge  -- the optimizer is called from here
  for micro = 1, math.min(2, self.recipe_accumulate) do
    batch.micro = micro
    self:micro_step(batch, losses)
  end
  local rates = {}
  for i in ipairs(self.optimizer.groups) do rates[i] = 0 end
  require("weft.autograd").no_grad(function() self.optimizer:step(rates) end)
  self.model:apply(function(m) if m.after_step then m:after_step() end end)
end

-- Bytes of what stays between steps, by part of the model.
local function standing(self)
  local parts, by = {}, {}
  local function row(name)
    local part = name:match "^[^.]+"
    if not by[part] then
      by[part] = { name = part, frozen = 0, lora = 0, trained = 0, gradients = 0, adam = 0, buffers = 0 }
      parts[#parts + 1] = by[part]
    end
    return by[part]
  end
  local where = {}
  for name, t in self.model:named_parameters() do
    local r = row(name)
    where[tostring(t.p)] = r
    local kind = name:find "lora_" and "lora" or t.requires_grad and "trained" or "frozen"
    r[kind] = r[kind] + bytes_of(t)
    if t.requires_grad and t.grad then r.gradients = r.gradients + bytes_of(t.grad) end
  end
  for name, t in self.model:named_buffers() do
    local r = row(name)
    r.buffers = r.buffers + bytes_of(t)
  end
  for _, e in ipairs(self.optimizer:entries()) do
    local r = where[tostring(e.t.p)] or row "other"
    for _, slot in ipairs(self.optimizer:slots_of(e)) do
      if e[slot] then r.adam = r.adam + bytes_of(e[slot]) end
    end
  end
  return parts
end

local COLUMNS = { "frozen", "lora", "trained", "gradients", "adam", "buffers", "activations" }

local function measured(self, phase, n)
  self:set_phase(phase)
  self.model:train()
  local features, held = self.model.features, 0
  local losses = function(batch) return self.model:losses(batch) end
  local batch = batch_of(self.sample, self, n)
  step(self, batch, losses)  -- afterwards the optimizer has its state
  if features and features.clear then features:clear() end
  self.optimizer:zero_grad()
  collectgarbage()  -- the optimizer of the phase before
  collectgarbage()
  C.weft_reset_peak(META)
  local before, forward = live(), nil
  local by = watched(self.model, function()
    step(self, batch, function(b)
      local out = losses(b)
      forward = forward or live() - before
      return out
    end)
  end)
  local peak = tonumber(C.weft_memory_of(META).peak) - self.base
  local parts = standing(self)
  if features and features.bytes and features.bytes > 0 then
    held = features.bytes
    local all = features.bytes / n * self.data.train:size()
    features:clear()
    peak = peak - held + math.min(features.budget, all)
    held = math.min(features.budget, all)
  end
  local out = { name = phase.name, parts = parts, features = held, activations = math.max(0, (forward or 0)), batch = n }
  local stays = held
  for _, r in ipairs(parts) do
    r.activations = by[r.name] or 0
    for _, column in ipairs(COLUMNS) do
      out[column .. "_all"] = (out[column .. "_all"] or 0) + r[column]
      if column ~= "activations" then stays = stays + r[column] end
    end
  end
  -- pictures wait on the host; what trains is on the device
  local products = self.options.device == "cpu" and 0 or CUBLAS
  local waiting = self.options.device == "cpu" and AHEAD * (batch.pixels and bytes_of(batch.pixels) or 0) or 0
  out.waiting = waiting
  out.workspace = math.max(0, peak - stays - out.activations) + products
  out.total = peak + waiting + products
  return out
end

local function one_phase(self, phase, n) return (require("weft.scope").scope(measured, self, phase, n)) end

-- Runs fn with a shadow of the run, and leaves nothing of it behind.
local function with_shadow(run, fn)
  local draws, base = random.state(), live()
  local ok, result = pcall(require("weft.scope").scope, function()
    local self = shadow(run, sample_of(run))
    self.base, self.recipe_accumulate = base, run.options.accumulate
    return { fn(self) }
  end)
  A.assumed = nil
  random.load_state(draws)
  collectgarbage()
  collectgarbage()
  if not ok then error(result, 0) end
  return result[1]
end

-- --- what a run measures, to be held beside that
local function of_device(run) return C.weft_memory_of(C.weft_device_of(run.options.device)) end

---Steps begin: what took more before them, such as scores, is not theirs. The device's own peak comes back with
---the steps' end.
function M.watch(run)
  local m = of_device(run)
  run.peak_elsewhere = math.max(run.peak_elsewhere or 0, tonumber(m.peak))
  C.weft_reset_peak(C.weft_device_of(run.options.device))
  run.watching = true
end

---After a step: the most that a step of this phase has taken.
function M.stepped(run)
  if not run.watching then M.watch(run) end
  local name = run.phase.name
  run.peaks[name] = math.max(run.peaks[name] or 0, tonumber(of_device(run).peak))
end

---The peak of everything so far, and what follows is no step.
function M.unwatch(run)
  local m = of_device(run)
  m.peak = math.max(tonumber(m.peak), run.peak_elsewhere or 0)
  run.watching = false
end

---Most bytes that were live on a run's device.
function M.peak(run) return math.max(tonumber(of_device(run).peak), run.peak_elsewhere or 0) end

---Estimate beside measurement, phase by phase: { { name, estimated, measured } } in bytes, and a line of it.
function M.compared(run)
  local list, parts, by = {}, {}, {}
  for _, p in ipairs(run.estimate and run.estimate.phases or {}) do by[p.name] = p.total end
  for _, phase in ipairs(run.plan) do
    local taken = run.peaks[phase.name]
    if taken then
      list[#list + 1] = { name = phase.name, estimated = by[phase.name], measured = taken }
      parts[#parts + 1] = ("%s %s%s"):format(phase.name, M.size(taken), by[phase.name] and (" (estimated %s)"):format(M.size(by[phase.name])) or "")
    end
  end
  return list, #parts > 0 and "memory of steps: " .. table.concat(parts, ", ") or nil
end

local Estimate = {}
Estimate.__index = Estimate

---Memory of a run's steps in each phase, by shapes alone: { batch, phases = { { name, total, parts, activations,
---workspace, features, waiting } } }, all in bytes; parts = { { name, frozen, lora, trained, gradients, adam, buffers,
---activations } }. Prints as a table. An error where the model's losses need values.
---@param run table
---@param batch? integer  pictures a micro-step (the run's)
function M.estimate(run, batch)
  return (with_shadow(run, function(self)
    local out = setmetatable({ batch = batch or run.options.batch, phases = {} }, Estimate)
    for _, phase in ipairs(run.plan) do
      if phase.last >= phase.first then table.insert(out.phases, one_phase(self, phase, out.batch)) end
    end
    return out
  end))
end

---The largest batch whose steps fit in some bytes in every phase (0: not even one picture), and what it takes.
---@param run table
---@param bytes number
---@param most? integer  no batch above this is tried (the training pictures there are)
---@return integer batch, number bytes
function M.largest(run, bytes, most)
  most = most or run.data.train:size()
  local found = with_shadow(run, function(self)
    local function takes(n)
      local worst = 0
      for _, phase in ipairs(run.plan) do
        if phase.last >= phase.first then worst = math.max(worst, one_phase(self, phase, n).total) end
      end
      return worst
    end
    local good, at, bad = 0, 0, nil
    local n = math.min(run.options.batch, most)
    while true do
      local t = takes(n)
      if t <= bytes then
        good, at = n, t
        if n == most or bad then break end
        n = math.min(2 * n, most)
      else
        bad = n
        if n == 1 then break end
        n = math.max(1, math.floor(n / 2))
      end
    end
    while bad and bad - good > math.max(1, math.floor(good / 32)) do
      local middle = math.floor((good + bad) / 2)
      local t = takes(middle)
      if t <= bytes then good, at = middle, t else bad = middle end
    end
    return { good, at }
  end)
  return found[1], found[2]
end

local function mib(n) return n == 0 and "" or n < 2 ^ 20 * 9.95 and ("%.2f"):format(n / 2 ^ 20) or ("%.0f"):format(n / 2 ^ 20) end

---Bytes of a size in words: "24GiB", "512 MiB", "8192" (MiB).
---@param text string
---@return number?
function M.bytes_of(text)
  local n, unit = text:match "^%s*([%d.]+)%s*(%a*)$"
  local factor = ({ [""] = 20, mib = 20, m = 20, mb = 20, gib = 30, g = 30, gb = 30, kib = 10 })[(unit or "?"):lower()]
  n = tonumber(n)
  return n and factor and n > 0 and n * 2 ^ factor or nil
end

---A size in words.
function M.size(bytes)
  return bytes < 1000 * 2 ^ 20 and ("%.1f MiB"):format(bytes / 2 ^ 20) or ("%.2f GiB"):format(bytes / 2 ^ 30)
end

function Estimate:lines()
  local head = { "MiB", "frozen", "LoRA", "trained", "gradients", "Adam", "buffers", "activations" }
  local lines = {}
  for _, phase in ipairs(self.phases) do
    local rows, all = {}, { "all" }
    for _, r in ipairs(phase.parts) do
      local row = { r.name }
      for i, column in ipairs(COLUMNS) do row[i + 1] = mib(r[column]) end
      rows[#rows + 1] = row
    end
    for i, column in ipairs(COLUMNS) do all[i + 1] = mib(column == "activations" and phase.activations or phase[column .. "_all"]) end
    rows[#rows + 1] = all
    lines[#lines + 1] = ("%s: batch %d takes %s, by shapes alone"):format(phase.name, phase.batch, M.size(phase.total))
    for line in require("weft.probe.common").text(head, rows, 1):gmatch "[^\n]+" do lines[#lines + 1] = "  " .. line end
    lines[#lines + 1] = ("  and %s of workspace%s%s"):format(M.size(phase.workspace),
      phase.features > 0 and (", %s of kept features"):format(M.size(phase.features)) or "",
      phase.waiting > 0 and (", %s of pictures that wait"):format(M.size(phase.waiting)) or "")
  end
  return lines
end

Estimate.__tostring = function(self) return table.concat(self:lines(), "\n") end

return M
