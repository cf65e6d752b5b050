-- save.lua: an adapter as a directory that PEFT loads: adapter_config.json, adapter_model.safetensors.
local A = require "weft.args"
local adapters = require "weft.peft.adapters"
local config = require "weft.peft.config"
local dialect = require "weft.peft.dialect"
local files = require "weft.peft.files"
local halves = require "weft.peft.halves"
local match = require "weft.peft.match"
local regex = require "weft.peft.regex"
local json = require "weft.io.json"
local disk = require "weft.files"
local safetensors = require "weft.io.safetensors"
local no_grad = require("weft.autograd").no_grad
local ops = require("weft.ops").functions

local M = {}

local function sorted(set)
  local list = {}
  for k in pairs(set) do list[#list + 1] = k end
  table.sort(list)
  return list
end

-- A path's names in a dialect: one; the older and the newer; or two for the halves of what is cut there.
local function names_in(which, path)
  local newer = dialect.newer_names(path)
  if which == "transformers4" or newer[1] == path then return { path } end
  if which == "transformers5" then return newer end
  return { path, unpack(newer) }
end

-- Puts a tensor of a module into a state under its names in a dialect.
function M.put(state, which, path, tail, tensor)
  for _, name in ipairs(names_in(which, path)) do
    local _, half = dialect.ours(name)
    state[files.prefix .. name .. (name == "" and "" or ".") .. tail] = halves.of(tail, tensor, half)
  end
end

-- Every name of these modules in a dialect.
local function all_names(which, paths)
  local set = {}
  for _, path in ipairs(paths) do
    for _, name in ipairs(names_in(which, path)) do set[name] = true end
  end
  return sorted(set)
end

-- What a regular expression of either generation must also name, to mean these modules in a dialect.
local function pattern_in(which, pattern, paths)
  local older, left = false, {}
  for _, path in ipairs(paths) do older = older or regex.full(pattern, path) end
  for _, name in ipairs(all_names(which, paths)) do
    if not regex.full(pattern, name) then left[#left + 1] = regex.escape(name) end
  end
  if #left == 0 and (which ~= "transformers5" or not older) then return pattern end
  if which == "both" then return table.concat({ "(?:" .. pattern .. ")", unpack(left) }, "|") end
  local parts = all_names(which, paths)
  for i, name in ipairs(parts) do parts[i] = regex.escape(name) end
  return table.concat(parts, "|")
end

-- target_modules in a dialect, for the modules that the adapter sits on. Entries are of either generation.
local function targets_in(which, c, paths)
  -- exclude_modules is not translated: full names need none
  if c.targets == "all-linear" or c.exclude and which ~= "transformers4" then return all_names(which, paths) end
  if type(c.targets) == "string" then return pattern_in(which, c.targets, paths) end
  local set, covered = {}, {}
  for _, entry in ipairs(c.targets) do
    for _, path in ipairs(paths) do
      local meant = dialect.ends_with(path, entry)
      for _, name in ipairs(dialect.newer_names(path)) do meant = meant or dialect.ends_with(name, entry) end
      if meant then
        covered[path] = true
        for _, name in ipairs(names_in(which, path)) do
          if dialect.ends_with(name, entry) then set[entry] = true
          else
            local short, older = name, dialect.older_words[entry] or entry
            for _, word in ipairs { older, unpack(dialect.words[older] or {}) } do
              if dialect.ends_with(name, word) then short = word end
            end
            set[short] = true
          end
        end
      end
    end
  end
  for _, path in ipairs(paths) do
    if not covered[path] then return all_names(which, paths) end
  end
  return sorted(set)
end

-- One pattern for names of both generations: PEFT warns of a pattern that means no module.
local function either(names)
  return #names == 1 and names[1] or "(?:" .. table.concat(names, "|") .. ")"
end

-- Patterns whose keys are words, with the words of a dialect.
local function words_in(which, patterns)
  local out = {}
  for i, p in ipairs(patterns) do
    local ours = dialect.older_words[p[1]] or dialect.words[p[1]] and p[1]
    local names = {}
    if ours and which ~= "transformers5" then names[1] = ours end
    if ours and which ~= "transformers4" then
      for _, name in ipairs(dialect.words[ours]) do names[#names + 1] = name end
    end
    out[i] = { ours and either(names) or p[1], p[2] }
  end
  return out
end

-- rank_pattern and alpha_pattern for all names of a dialect: as they are, or by that dialect's words, where
-- that gives each module its own; else one entry a module.
local function patterns_in(which, c, paths, sizes)
  local function fits(settings)
    for _, path in ipairs(paths) do
      for _, name in ipairs(names_in(which, path)) do
        local rank, alpha = match.sizes(settings, name)
        if rank ~= sizes[path].rank or alpha ~= sizes[path].alpha then return false end
      end
    end
    return true
  end
  local function try(ranks, alphas)
    return fits { rank = c.rank, alpha = c.alpha, rslora = c.rslora, rank_pattern = ranks, alpha_pattern = alphas }
  end
  local ranks, alphas = words_in(which, c.rank_pattern), words_in(which, c.alpha_pattern)
  if try(ranks, alphas) then return ranks, alphas end
  if try(c.rank_pattern, c.alpha_pattern) then return c.rank_pattern, c.alpha_pattern end
  ranks, alphas = {}, {}
  for _, path in ipairs(paths) do
    local names = {}
    for i, name in ipairs(names_in(which, path)) do names[i] = regex.escape(name) end
    if sizes[path].rank ~= c.rank then ranks[#ranks + 1] = { either(names), sizes[path].rank } end
    if sizes[path].alpha ~= c.alpha then alphas[#alphas + 1] = { either(names), sizes[path].alpha } end
  end
  return ranks, alphas
end

-- An adapter that took a part out of the base, as one of twice the rank for the base as it was:
-- s (B A - B0 A0) = s [B, -B0] [A; A0].
local function for_unchanged_base(c, sizes, tensors)
  local function doubled(list, factor)
    local out = {}
    for i, p in ipairs(list) do out[i] = { p[1], p[2] * factor } end
    return out
  end
  local grow = c.rslora and math.sqrt(2) or 2
  local new = setmetatable({ rank = 2 * c.rank, alpha = grow * c.alpha, rank_pattern = doubled(c.rank_pattern, 2),
    alpha_pattern = doubled(c.alpha_pattern, grow), init = "default" }, { __index = c })
  for _, s in pairs(sizes) do s.rank, s.alpha = 2 * s.rank, grow * s.alpha end
  no_grad(function()
    for _, entry in ipairs(tensors) do
      local start = entry.start
      local t = start and entry[3]:detach()
      -- both are kept as matrices, and may be convolutions or tables
      if start and entry[2]:find "_A" then
        local shape = t.shape
        shape[1] = start.a:size(1)
        entry[3] = ops.cat({ t, start.a:reshape(shape) }, 1)
      elseif start and entry[2]:find "_B" and t.ndim > 1 then
        local shape = t.shape
        shape[2] = start.b:size(2)
        entry[3] = ops.cat({ t, (-start.b):reshape(shape) }, 2)
      end
    end
  end)
  return new
end

local readme = [[
---
base_model: %s
library_name: peft
tags: [lora]
---
# Adapter %s

A LoRA adapter: rank %d, alpha %g (branch times %.4g), on %d modules (%s). It is one of the trained parts
of its run and holds nothing else. Base model: %s.

`adapter_config.json` and `adapter_model.safetensors` load with PEFT (module names: %s) and with weft's
`peft.load(model, directory)`.
]]

-- Settings for a dialect: targets, patterns, exclusions and modules saved whole by its names. paths: modules
-- that the adapter sits on, by our names; sizes: their rank and alpha; saved: paths of what it saves whole.
function M.translated(which, c, paths, sizes, saved)
  local new = {}
  for key, v in pairs(getmetatable(c) and getmetatable(c).__index or c) do new[key] = v end
  for key, v in pairs(c) do new[key] = v end
  new.targets = targets_in(which, c, paths)
  new.rank_pattern, new.alpha_pattern = patterns_in(which, c, paths, sizes)
  if which ~= "transformers4" then new.exclude = nil end
  if c.modules_to_save then
    local set = {}
    for _, entry in ipairs(c.modules_to_save) do
      local renamed = false
      for _, path in ipairs(saved) do
        for _, name in ipairs(names_in("both", path)) do renamed = renamed or #names_in("both", path) > 1 and dialect.ends_with(name, entry) end
      end
      if renamed then
        local ours = dialect.older_words[entry] or dialect.ours(entry)
        if which ~= "transformers5" then set[ours] = true end
        if which ~= "transformers4" then
          for _, name in ipairs(dialect.words[ours] or dialect.newer_names(ours)) do set[name] = true end
        end
      else
        set[entry] = true
      end
    end
    new.modules_to_save = sorted(set)
  end
  return new
end

---Writes an adapter as a directory. The default dialect, "both", loads in either generation of
---transformers; "transformers4" and "transformers5" write for one. PiSSA and OLoRA adapters are written
---for the base as it was, at twice their rank.
---@param model table
---@param dir string
---@param options? table  base (name of the base model), adapter (the first), dialect ("both"), revision,
--- preprocessing (a rule of weft.io.preprocess: kept beside the weights, and compared where they are used)
---@return string dir
function M.save(model, dir, options)
  local record, holder = adapters.need(model, options and options.adapter, "save")
  local o = A.options(options, { base = A.none, adapter = record.order[1], dialect = "both", revision = A.none,
    preprocessing = A.none }, "peft.save")
  if o.dialect ~= "both" and o.dialect ~= "transformers4" and o.dialect ~= "transformers5" then
    A.raise("peft.save: dialect: unknown choice %s%s", tostring(o.dialect),
      A.suggest(tostring(o.dialect), { "both", "transformers4", "transformers5" }))
  end
  if type(dir) ~= "string" then A.raise("peft.save: a directory is expected, got %s", A.typename(dir)) end
  local c = record.adapters[o.adapter]
  local paths, modules, sizes, starts, tails = {}, {}, {}, false, {}
  for path, m in adapters.wrapped(holder) do
    local s = m.settings and m.settings[o.adapter]
    if s then
      if s.factor ~= 1 then
        A.raise("peft.save: the adapter is scaled by %g, which its files can't hold; peft.scale(model, 1) first", s.factor)
      end
      paths[#paths + 1], modules[#modules + 1] = path, m
      sizes[path] = { rank = s.rank, alpha = s.alpha, start = s.start }
      tails[path:match "[^.]+$"] = true
      starts = starts or s.start ~= nil
    end
  end
  local tensors = files.tensors(holder, o.adapter, c)
  for _, entry in ipairs(tensors) do entry.start = sizes[entry[1]] and sizes[entry[1]].start end
  if starts then c = for_unchanged_base(c, sizes, tensors) end

  local state = {}
  for _, entry in ipairs(tensors) do
    M.put(state, o.dialect, entry[1], entry[2], entry[3])
  end
  local saved = {}
  for path, m in adapters.wrapped(holder) do
    if m.type == "SavedModule" and m.modules_to_save[o.adapter] then saved[#saved + 1] = path end
  end
  local written = M.translated(o.dialect, c, paths, sizes, saved)
  local file = config.to_file(written, { base = o.base or record.base, revision = o.revision, dialect = o.dialect })

  local metadata = { format = "pt" }
  metadata[files.base_key] = files.base_sum(modules)
  metadata[files.pictures_key] = o.preprocessing and o.preprocessing:hash() .. " " .. o.preprocessing:text() or c.preprocessing
  metadata[files.positions_key] = files.positions(holder)
  local function check(ok, message)
    if not ok then A.raise("peft.save: %s", message) end
  end
  check(disk.make_dirs(dir))
  check(safetensors.save(dir .. "/" .. files.weights, state, metadata))
  check(json.write(dir .. "/" .. files.config, file))
  local base = file.base_model_name_or_path == json.null and "not named" or file.base_model_name_or_path
  local generation = o.dialect == "both" and "of transformers 4 and 5" or "of " .. o.dialect
  check(disk.write(dir .. "/README.md", readme:format(base, o.adapter, c.rank, c.alpha,
    config.scaling(c.alpha, c.rank, c.rslora), #paths, table.concat(sorted(tails), ", "), base, generation)))
  return dir
end

return M
