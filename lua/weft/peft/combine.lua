-- combine.lua: one new adapter out of several: their sum exactly, or one of the merging rules on A and B.
-- TIES: Yadav et al. 2023, arXiv 2306.01708; DARE: Yu et al. 2023, arXiv 2311.03099.
local A = require "weft.args"
local adapters = require "weft.peft.adapters"
local config = require "weft.peft.config"
local lora = require "weft.peft.lora"
local match = require "weft.peft.match"
local regex = require "weft.peft.regex"
local random = require "weft.random"
local no_grad = require("weft.autograd").no_grad
local ops = require("weft.ops").functions
local create = require("weft.tensor").create

local M = {}

-- What each rule needs: the same rank everywhere, a density.
local rules = {
  cat = {}, svd = {}, linear = { same_rank = true },
  ties = { same_rank = true, density = true }, magnitude_prune = { same_rank = true, density = true },
  dare_linear = { same_rank = true, density = true }, dare_ties = { same_rank = true, density = true },
}

-- The largest values of a tensor, a `density` part of them; the others zero.
local function keep_largest(x, density)
  local flat = x:flatten()
  local n = flat:numel()
  local k = math.floor(density * n)
  if k >= n then return x end
  if k == 0 then return x * 0 end
  local _, at = ops.topk(flat:abs(), k, 1)
  local ones = create.ones { k, dtype = x.dtype, device = x.device }
  local mask = ops.scatter_add(create.zeros { n, dtype = x.dtype, device = x.device }, at, ones, 1)
  return (flat * mask):reshape(x.shape)
end

-- Each value kept with chance `density`, and grown so that the mean stays.
local function keep_some(x, density, rng)
  return density >= 1 and x or ops.dropout(x, 1 - density, rng)
end

local function weighted_sum(list, factors)
  local sum
  for i, x in ipairs(list) do sum = sum and sum + x * factors[i] or x * factors[i] end
  return sum
end

-- The mean of what agrees with the sign that the unweighted sum has.
local function elect(list, factors)
  local total
  for _, x in ipairs(list) do total = total and total + x or x end
  local sign = (total:ge(0)):to(total.dtype) * 2 - 1
  local sum, count
  for i, x in ipairs(list) do
    local agrees = (x:sign()):eq(sign):to(total.dtype)
    sum = sum and sum + x * agrees * factors[i] or x * agrees * factors[i]
    count = count and count + agrees or agrees
  end
  return sum / count:clamp(1)
end

-- A or B of the new adapter, of theirs.
local function merged(rule, list, factors, density, rng)
  local pruned = {}
  for i, x in ipairs(list) do
    if rule == "linear" then pruned[i] = x
    elseif rule == "ties" or rule == "magnitude_prune" then pruned[i] = keep_largest(x, density)
    else pruned[i] = keep_some(x, density, rng(i)) end
  end
  if rule == "ties" or rule == "dare_ties" then return (elect(pruned, factors)) end
  return (weighted_sum(pruned, factors))
end

-- A and B of one module's new adapter. parts: { a, b, weight, scale, name }.
local function join(rule, parts, rank, o, path)
  local as, bs, signed, plain = {}, {}, {}, {}
  for i, p in ipairs(parts) do
    as[i], bs[i] = p.a, p.b
    local c = p.weight * p.scale
    plain[i] = math.sqrt(math.abs(c))
    signed[i] = c < 0 and -plain[i] or plain[i]
  end
  if rule == "cat" then
    for i, p in ipairs(parts) do as[i] = p.a * (p.weight * p.scale) end
    return ops.cat(as, 1), ops.cat(bs, 2)
  elseif rule == "svd" then
    local delta
    for i, p in ipairs(parts) do
      -- PEFT counts the scale twice here
      local c = p.weight * p.scale * (o.peft_compat and p.scale or 1)
      local d = ops.matmul(bs[i], as[i]) * c
      delta = delta and delta + d or d
    end
    local u, s, vh = ops.svd(delta)
    local k = math.min(rank, s:size(1))
    local root = s:narrow(1, 1, k):sqrt()
    local a, b = vh:narrow(1, 1, k) * root:unsqueeze(2), u:narrow(2, 1, k) * root:unsqueeze(1)
    if k < rank then
      a = ops.cat({ a, create.zeros { rank - k, a:size(2), dtype = a.dtype, device = a.device } }, 1)
      b = ops.cat({ b, create.zeros { b:size(1), rank - k, dtype = b.dtype, device = b.device } }, 2)
    end
    return a, b
  end
  local function rng(part)
    return function(i)
      return { key = random.hash(("combine/%s/%s/%s"):format(path, part, parts[i].name), o.seed or random.seed()), counter = 0ULL }
    end
  end
  return merged(rule, as, signed, o.density, rng "A"), merged(rule, bs, plain, o.density, rng "B")
end

local function check(record, holder, o)
  if type(o.adapters) ~= "table" or #o.adapters < 1 then A.raise("peft.add_weighted_adapter: adapters: a list of names is expected") end
  for _, name in ipairs(o.adapters) do adapters.need(holder, name, "add_weighted_adapter") end
  o.weights = o.weights or {}
  for i = 1, #o.adapters do
    local w = o.weights[i] == nil and 1 or o.weights[i]
    if type(w) ~= "number" or w ~= w or math.abs(w) == math.huge then
      A.raise("peft.add_weighted_adapter: weights[%d]: a number is expected, got %s", i, tostring(w))
    end
    o.weights[i] = w
  end
  if #o.weights ~= #o.adapters then
    A.raise("peft.add_weighted_adapter: %d weights for %d adapters", #o.weights, #o.adapters)
  end
  local rule = rules[o.combination]
  if not rule then
    local known = {}
    for name in pairs(rules) do known[#known + 1] = name end
    table.sort(known)
    A.raise("peft.add_weighted_adapter: combination: unknown choice %s%s", tostring(o.combination),
      A.suggest(tostring(o.combination), known))
  end
  if rule.density and not (type(o.density) == "number" and o.density > 0 and o.density <= 1) then
    A.raise("peft.add_weighted_adapter: %s: density in (0, 1] is expected, got %s", o.combination, tostring(o.density))
  end
  if record.adapters[o.adapter] then
    A.raise("peft.add_weighted_adapter: there is an adapter %s already; name another, or peft.delete it", o.adapter)
  end
  for _, name in ipairs(o.adapters) do
    local c = record.adapters[name]
    local kind = c.dora and "DoRA" or c.lora_bias and "lora_bias" or c.modules_to_save and "modules_to_save" or nil
    if kind then A.raise("peft.add_weighted_adapter: %s has %s, which has no weighted sum", name, kind) end
  end
  return rule
end

---Adds an adapter that is a combination of others. The new one is frozen, has alpha = rank, and is used
---once peft.activate names it.
---
---cat: the exact weighted sum, at the sum of the ranks. svd: the best sum of a given rank. linear: weighted
---sums of A and of B (not the sum of the branches). ties, magnitude_prune, dare_linear, dare_ties: the same
---after dropping all but a `density` part of each tensor; ties also drops what disagrees in sign.
---@param model table
---@param options table  adapters, weights (1 each), combination ("cat"), adapter (name of the new one),
--- density (for the pruning rules), rank (svd: the largest rank among them), peft_compat (false: svd scales
--- once; PEFT scales twice), seed (dare)
---@return table model
---
---    peft.add_weighted_adapter(model, { adapters = { "cats", "dogs" }, weights = { 0.7, 0.4 }, adapter = "pets" })
function M.add_weighted_adapter(model, options)
  local o = A.options(options, { adapters = A.required, weights = A.none, combination = "cat", adapter = A.required,
    density = A.none, rank = A.none, peft_compat = false, seed = A.none }, "peft.add_weighted_adapter")
  local record, holder = adapters.need(model, nil, "add_weighted_adapter")
  local rule = check(record, holder, o)

  local found, parts_of, ranks = {}, {}, {}
  for path, m in adapters.wrapped(holder) do
    local parts, rank = {}, 0
    for i, name in ipairs(o.adapters) do
      local s = m.settings and m.settings[name]
      if s then
        if m.merged then A.raise("peft.add_weighted_adapter: %s is merged; peft.unmerge first", path) end
        if s.start then
          A.raise("peft.add_weighted_adapter: %s took a part out of the base (%s); save it and load it first", name, s.start.kind)
        end
        if rule.same_rank and rank > 0 and rank ~= s.rank then
          A.raise("peft.add_weighted_adapter: %s: ranks %d and %d; %s needs equal ones, cat and svd do not", path, rank,
            s.rank, o.combination)
        end
        rank = o.combination == "cat" and rank + s.rank or math.max(rank, s.rank)
        local a, b = m:matrices(name)
        parts[#parts + 1] = { a = a:detach(), b = b:detach(), weight = o.weights[i], scale = m:scale_of(name), name = name }
      end
    end
    if #parts > 0 then
      if o.combination == "svd" and o.rank then rank = o.rank end
      found[#found + 1] = { path = path, module = m, rank = rank, alpha = rank, scaling = 1 }
      parts_of[#found], ranks[rank] = parts, (ranks[rank] or 0) + 1
    end
  end

  -- settings that mean these modules: one list of targets, and a pattern where ranks differ
  local common
  for rank, n in pairs(ranks) do
    if not common or n > ranks[common] or n == ranks[common] and rank > common then common = rank end
  end
  local paths, patterns = {}, {}
  for i, f in ipairs(found) do
    paths[i] = f.path
    if f.rank ~= common then patterns[#patterns + 1] = { regex.escape(f.path), f.rank } end
  end
  local first = record.adapters[o.adapters[1]]
  local function settings(targets)
    return config.complete { rank = common, alpha = common, targets = targets, rank_pattern = patterns,
      alpha_pattern = patterns, bias = first.bias, adapter = o.adapter }
  end
  local c, seen, words = settings(paths), {}, {}
  for _, name in ipairs(o.adapters) do
    local targets = record.adapters[name].targets
    for _, entry in ipairs(type(targets) == "table" and targets or paths) do
      if not seen[entry] then words[#words + 1], seen[entry] = entry, true end
    end
  end
  local short = settings(words)
  local ok, same = pcall(match.find, holder, short)
  if ok and #same == #found then c = short end

  -- compute all before the model changes
  no_grad(function()
    for i, f in ipairs(found) do
      local a, b = join(o.combination, parts_of[i], f.rank, o, f.path)
      f.a, f.b = a:keep(), b:keep()
    end
  end)
  lora.inject(holder, c, found)
  for _, f in ipairs(found) do f.module:set_matrices(o.adapter, f.a, f.b) end
  adapters.freeze(holder, o.adapter)
  return model
end

return M
