-- plan.lua: an ablation's cells: each a recipe with values of its own, named by them, and what of their
-- training they share.
local A = require "weft.args"
local branch = require "weft.train.branch"
local config_of = require "weft.config"
local files = require "weft.files"
local grid = require "weft.ablate.grid"

local Plan = {}
Plan.__index = Plan

-- The keys that vary, shortest names that tell them apart.
local function labels(keys)
  local count, out = {}, {}
  for _, key in ipairs(keys) do
    local last = key:match "[^.]+$"
    count[last] = (count[last] or 0) + 1
  end
  for _, key in ipairs(keys) do
    local last = key:match "[^.]+$"
    out[key] = count[last] == 1 and last or key
  end
  return out
end

local function cell_name(keys, names, values)
  local parts = {}
  for i, key in ipairs(keys) do
    parts[i] = (names[key] .. (values[key]:gsub("^%[(.*)%]$", "%1"):gsub(",", "+"))):gsub("[^%w.+-]", "_")
  end
  return #parts > 0 and table.concat(parts, "-") or "only"
end

-- One text for all values but those that the recipe says come after the first phase.
local function shared_text(config, after)
  local parts = {}
  local function walk(t, path)
    for k, v in pairs(t) do
      local at = path .. k
      if not branch.declared(at, after) then
        if type(v) == "table" and type(next(v)) == "string" then walk(v, at .. ".")
        else parts[#parts + 1] = at .. "=" .. grid.text(v) end
      end
    end
  end
  walk(config, "")
  table.sort(parts)
  return table.concat(parts, "\n")
end

local function value_at(config, key)
  local at = config
  for part in key:gmatch "[^.]+" do at = type(at) == "table" and at[part] or nil end
  return at
end

-- A recipe with overrides, its mistakes said without the place in weft.
local function load(path, overrides) return (require("weft.train").load_recipe(path, overrides)) end

---Makes a plan. o: recipe (a path), axes, fixed, computed, where, set, metric, better, share, prune.
function Plan.new(o)
  local recipe = load(o.recipe, o.fixed)
  local metric = o.metric or recipe.metric
  if not metric then
    A.raise("ablate: %s names no metric; say which figure of result.json is compared, such as retrieval.r_mean", o.recipe)
  end
  local lower = metric:find "loss" or metric:find "perplexity"
  local self = setmetatable({ recipe = o.recipe, name = recipe.name, hash = recipe.hash, fixed = o.fixed, metric = metric,
    better = o.better or (lower and "lower" or "higher"), cells = {}, warmups = {}, keys = {} }, Plan)
  if self.better ~= "lower" and self.better ~= "higher" then A.raise("ablate: better: lower or higher is expected, got %s", self.better) end
  local seen_key, seen = {}, {}
  local function note(key)
    if not seen_key[key] then
      seen_key[key] = true
      self.keys[#self.keys + 1] = key
    end
  end
  local drafts = {}
  for _, point in ipairs(grid.points(o.axes)) do
    local words, keys = { unpack(o.fixed) }, {}
    local function add(key, text)
      words[#words + 1], keys[#keys + 1] = key .. "=" .. text, key
    end
    for _, pair in ipairs(point) do add(pair[1], pair[2]) end
    for _, c in ipairs(o.computed or {}) do
      add(c[1], grid.text(c[2](config_of.values(load(o.recipe, words).config))))
    end
    if o.set then
      for key, v in pairs(o.set(config_of.values(load(o.recipe, words).config)) or {}) do add(key, grid.text(v)) end
    end
    local config = config_of.values(load(o.recipe, words).config)
    if not o.where or o.where(config) then
      for _, key in ipairs(keys) do note(key) end
      drafts[#drafts + 1] = { overrides = words, config = config, recipe = load(o.recipe, words) }
    end
  end
  if #drafts == 0 then A.raise("ablate: no cell is left: `where` refuses all of them") end
  table.sort(self.keys, function(a, b)
    if (a == "seed") ~= (b == "seed") then return b == "seed" end
    return a < b
  end)
  local names = labels(self.keys)
  self.labels = names
  for _, d in ipairs(drafts) do
    local cell = { overrides = d.overrides, values = {} }
    for _, key in ipairs(self.keys) do cell.values[key] = grid.text(value_at(d.config, key)) end
    cell.name = cell_name(self.keys, names, cell.values)
    if not seen[cell.name] then  -- two points that come to the same values are one cell
      seen[cell.name] = true
      local why, phase = branch.unfit(d.recipe)
      self.why_whole = self.why_whole or why
      -- cells of a group come through the same first phase, whether they share it or not
      if not why then cell.group = files.hash(d.recipe.hash .. shared_text(d.config, d.recipe.after_warmup)):sub(1, 8) end
      if not why and o.share ~= false then
        cell.warmup, cell.phase = cell.group, phase.name
        cell.share = (phase.last - phase.first + 1) / config_of.get(d.recipe.config, "epochs", 1)
      end
      self.cells[#self.cells + 1] = cell
    end
  end
  self:share()
  if o.prune then self:halve(o.prune, recipe) end
  return self
end

-- Successive halving by a figure: the epochs at which settings are compared.
function Plan:halve(metric, recipe)
  for _, key in ipairs(self.keys) do
    if key == "epochs" or key == "warmup_epochs" then A.raise("ablate: --prune compares at the same epochs: %s can't be swept with it", key) end
  end
  local settings, n = {}, 0
  for _, c in ipairs(self.cells) do
    local parts = {}
    for _, key in ipairs(self.keys) do parts[#parts + 1] = key ~= "seed" and c.values[key] or "" end
    local id = table.concat(parts, "\n")
    if not settings[id] then settings[id], n = true, n + 1 end
  end
  local epochs = config_of.get(recipe.config, "epochs", 1)
  local _, phase = branch.unfit(recipe)
  local first = phase and phase.last or 0
  local prune = require "weft.ablate.prune"
  local rungs = prune.rungs(n, first, epochs)
  if #rungs == 0 then A.raise("ablate: --prune: %d settings over %d epochs leave nothing to halve", n, epochs - first) end
  local lower = metric:find "loss" or metric:find "perplexity"
  local better = metric == self.metric and self.better or (lower and "lower" or "higher")
  self.prune = { metric = metric, better = better, rungs = rungs, share = prune.share(rungs, first, epochs), first = first, epochs = epochs }
end

-- A warm-up that one cell alone would use is part of that cell.
function Plan:share()
  local users = {}
  for _, cell in ipairs(self.cells) do
    if cell.warmup then users[cell.warmup] = (users[cell.warmup] or 0) + 1 end
  end
  local made = {}
  for _, cell in ipairs(self.cells) do
    local id = cell.warmup
    if id and users[id] < 2 then cell.warmup, cell.phase, cell.share = nil, nil, nil
    elseif id and not made[id] then
      made[id] = true
      table.insert(self.warmups, { id = id, overrides = cell.overrides, phase = cell.phase, users = users[id], share = cell.share })
    end
  end
end

---Part of a whole run's epochs that a cell trains itself.
function Plan:own_share(cell)
  local p = self.prune
  if not p then return cell.warmup and 1 - cell.share or 1 end
  local first = p.first / p.epochs
  return (cell.warmup and 0 or first) + (1 - first) * p.share
end

---Cost in whole runs, by epochs.
function Plan:cost()
  local n = 0
  for _, w in ipairs(self.warmups) do n = n + w.share end
  for _, c in ipairs(self.cells) do n = n + self:own_share(c) end
  return n
end

---Where the plan's runs lie unless the user says otherwise: the same plan finds them again.
function Plan:default_dir()
  local parts = { self.hash, table.concat(self.fixed, "\n"), table.concat(self.keys, "\n"), self.prune and "prune " .. self.prune.metric }
  return ("runs/%s/ablate-%s"):format(self.name, files.hash(table.concat(parts, "\n\n")):sub(1, 8))
end

---The plan in words: lines.
function Plan:describe()
  local lines = { ("%s: %d cells over %s"):format(self.recipe, #self.cells, #self.keys > 0 and table.concat(self.keys, ", ") or "nothing") }
  if #self.fixed > 0 then lines[#lines + 1] = "  with " .. table.concat(self.fixed, " ") end
  for _, w in ipairs(self.warmups) do
    lines[#lines + 1] = ("  %s once for %d cells (warm-up %s)"):format(w.phase, w.users, w.id)
  end
  if #self.warmups == 0 then lines[#lines + 1] = "  nothing is shared" .. (self.why_whole and ": " .. self.why_whole or "") end
  for _, c in ipairs(self.cells) do
    lines[#lines + 1] = ("  %-32s %s"):format(c.name, c.warmup and "after warm-up " .. c.warmup or "whole")
  end
  if self.prune then
    lines[#lines + 1] = ("  after epoch %s the worse half of what is left by %s goes no further"):format(
      table.concat(self.prune.rungs, ", "), self.prune.metric)
  end
  lines[#lines + 1] = ("  cost by epochs: %.2f whole runs for %d cells; compared by %s, %s is better")
    :format(self:cost(), #self.cells, self.metric, self.better)
  return lines
end

---As plain values, for plan.json.
function Plan:record()
  return { format = "weft ablation 1", recipe = self.recipe, name = self.name, hash = self.hash, fixed = self.fixed, keys = self.keys,
    labels = self.labels, metric = self.metric, better = self.better, prune = self.prune, cells = self.cells, warmups = self.warmups }
end

return Plan
