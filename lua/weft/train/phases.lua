-- phases.lua: which parameters train when, at which rate. All of it is a function of the recipe and
-- the step alone: computed at start and at resume, never stored.
local A = require "weft.args"

local M = {}

local function is_adapter(name) return name:find "%.lora_" ~= nil end

local function below(name, path) return name == path or name:sub(1, #path + 1) == path .. "." end

-- "vision.base": what is below vision and no adapter; "vision.lora": its adapters; "x.y": all below x.y.
local function matches(name, pattern)
  local base = pattern:match "^(.*)%.base$"
  if base then return below(name, base) and not is_adapter(name) end
  local lora = pattern:match "^(.*)%.lora$"
  if lora then return below(name, lora) and is_adapter(name) end
  return below(name, pattern)
end

---Phases with their first and last epochs (from 1). The last phase without `epochs` takes what is left.
---@param phases table[]  { name, epochs?, frozen = { patterns } }
---@param epochs integer
function M.plan(phases, epochs)
  if #phases == 0 then A.raise("recipe: phases is empty: at least one phase is expected") end
  local out, at = {}, 1
  for i, p in ipairs(phases) do
    local n = p.epochs or epochs - at + 1
    if i < #phases and not p.epochs then A.raise("recipe: phase %d (%s) needs epochs", i, tostring(p.name)) end
    if p.on_enter and p.on_enter ~= "rebuild" and p.on_enter ~= "extend" then
      A.raise("phase_switch: rebuild or extend is expected, got %s", tostring(p.on_enter))
    end
    n = math.min(n, epochs - at + 1)
    out[i] = { name = p.name or "Phase " .. i, frozen = p.frozen or {}, on_enter = p.on_enter or "rebuild",
      first = at, last = at + n - 1, index = i }
    at = at + math.max(n, 0)
  end
  out[#out].last = epochs
  return out
end

---The phase that an epoch (from 1) belongs to.
function M.at(plan, epoch)
  for _, p in ipairs(plan) do
    if epoch >= p.first and epoch <= p.last then return p end
  end
  return plan[#plan]
end

---Sets requires_grad on every parameter from the phase's list. Each pattern must match something.
function M.freeze(model, phase)
  local hits = {}
  local names = {}
  for name, t in model:named_parameters() do
    names[#names + 1] = name
    local frozen = false
    for _, pattern in ipairs(phase.frozen) do
      if matches(name, pattern) then
        frozen = true
        hits[pattern] = true
      end
    end
    t:requires_grad_(not frozen)
  end
  for _, pattern in ipairs(phase.frozen) do
    if not hits[pattern] then
      local tops, seen = {}, {}
      for _, name in ipairs(names) do
        local top = name:match "^[^.]+"
        if not seen[top] then
          seen[top] = true
          tops[#tops + 1] = top
        end
      end
      A.raise("%s: frozen: no parameter matches %s%s", phase.name, pattern, A.suggest(pattern:match "^[^.]+", tops))
    end
  end
end

---True when every adapter parameter of the model is frozen in this phase; nil when it has none.
function M.adapters_frozen(model)
  local any, frozen = false, true
  for name, t in model:named_parameters() do
    if is_adapter(name) then
      any = true
      if t.requires_grad then frozen = false end
    end
  end
  if not any then return nil end
  return frozen
end

-- --- parameter groups
local function embedding_names(model)
  local out = {}
  for path, m in model:named_modules() do
    if m.type == "Embedding" then out[path == "" and "weight" or path .. ".weight"] = true end
  end
  return out
end

---Trainable parameters in groups: what decays, what does not, adapters A and B on their own.
---@param o table  lr, weight_decay, lora_lr (factor), lora_plus_ratio, head_lr (factor), heads (paths)
---@return table[] groups  { name, lr, weight_decay, params = { { name, tensor } } }
function M.groups(model, o)
  local embeddings = embedding_names(model)
  local groups, order = {}, {}
  local function put(key, lr, decay, name, t)
    if not groups[key] then
      groups[key] = { name = key, lr = lr, weight_decay = decay, params = {} }
      order[#order + 1] = groups[key]
    end
    table.insert(groups[key].params, { name, t })
  end
  for name, t in model:named_parameters() do
    if t.requires_grad then
      local head = false
      for _, path in ipairs(o.heads or {}) do head = head or below(name, path) end
      local rate = o.lr * (head and o.head_lr or 1)
      local prefix = head and "heads." or ""
      if name:find "%.lora_[AE]" then put("lora_A", o.lr * o.lora_lr, 0, name, t)
      elseif is_adapter(name) then put("lora_B", o.lr * o.lora_lr * o.lora_plus_ratio, 0, name, t)
      elseif t.ndim >= 2 and not embeddings[name] and not name:find "token" then put(prefix .. "decay", rate, o.weight_decay, name, t)
      else put(prefix .. "no_decay", rate, 0, name, t) end
    end
  end
  table.sort(order, function(a, b) return a.name < b.name end)
  return order
end

-- --- rates
---Factor of the base rate at step s of T (both from 0): linear warm-up over w steps, then a cosine
---down to `floor`. Spec: (s+1)/w, then max(floor, (1 + cos(pi (s-w)/(T-w))) / 2).
function M.factor(s, w, T, floor)
  if s < w then return (s + 1) / w end
  if T <= w then return 1 end
  return math.max(floor, 0.5 * (1 + math.cos(math.pi * math.min(1, (s - w) / (T - w)))))
end

---Warm-up steps of a phase of n steps: at most a tenth of it.
function M.warmup(steps, n) return math.max(1, math.min(steps, math.floor(n / 10))) end

---Rate factor of a group at a global step.
---@param plan table[]
---@param o table  steps_per_epoch, epochs, warmup_steps, lr_floor, switch ("rebuild"|"extend")
---@param step integer  global, from 0
---@param group string
function M.rate(plan, o, step, group)
  local total = o.steps_per_epoch * o.epochs
  local epoch = math.floor(step / o.steps_per_epoch) + 1
  local phase = M.at(plan, epoch)
  local start = (phase.first - 1) * o.steps_per_epoch
  local length = (phase.last - phase.first + 1) * o.steps_per_epoch
  if phase.index > 1 and phase.on_enter == "rebuild" then
    -- a new optimizer: warm up again, cosine over what is left
    return M.factor(step - start, M.warmup(o.warmup_steps, length), total - start, o.lr_floor)
  end
  -- the main curve warms up within the first phase that has any steps
  local first
  for _, p in ipairs(plan) do
    first = first or (p.last >= p.first and (p.last - p.first + 1) * o.steps_per_epoch)
  end
  local main = M.factor(step, M.warmup(o.warmup_steps, first), total, o.lr_floor)
  if phase.index > 1 and group:find "^lora" then
    return main * math.min(1, (step - start + 1) / M.warmup(o.warmup_steps, length))
  end
  return main
end

return M
