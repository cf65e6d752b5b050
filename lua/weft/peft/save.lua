-- save.lua: an adapter as a directory that PEFT loads: adapter_config.json, adapter_model.safetensors.
local A = require "weft.args"
local adapters = require "weft.peft.adapters"
local config = require "weft.peft.config"
local dialect = require "weft.peft.dialect"
local files = require "weft.peft.files"
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

-- A path's names in a dialect.
local function names_in(which, path)
  local newer = dialect.newer(path)
  if which == "transformers4" then return { path } end
  if which == "transformers5" then
    if not newer then A.raise("peft.save: %s is cut in two in the newer generation; use dialect = \"transformers4\"", path) end
    return { newer }
  end
  return newer and newer ~= path and { path, newer } or { path }
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
      local newer = dialect.newer(path)
      if dialect.ends_with(path, entry) or newer and dialect.ends_with(newer, entry) then
        covered[path] = true
        for _, name in ipairs(names_in(which, path)) do
          if dialect.ends_with(name, entry) then set[entry] = true
          else
            local word = dialect.words[entry] or dialect.older_words[entry]
            set[word and dialect.ends_with(name, word) and word or name] = true
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

-- rank_pattern and alpha_pattern for all names of a dialect: as they are where that gives each module
-- its own, else one entry a module.
local function patterns_in(which, c, paths, sizes)
  local fits = true
  for _, path in ipairs(paths) do
    for _, name in ipairs(names_in(which, path)) do
      local rank, alpha = match.sizes(c, name)
      fits = fits and rank == sizes[path].rank and alpha == sizes[path].alpha
    end
  end
  if fits then return c.rank_pattern, c.alpha_pattern end
  local ranks, alphas = {}, {}
  for _, path in ipairs(paths) do
    for _, name in ipairs(names_in(which, path)) do
      if sizes[path].rank ~= c.rank then ranks[#ranks + 1] = { regex.escape(name), sizes[path].rank } end
      if sizes[path].alpha ~= c.alpha then alphas[#alphas + 1] = { regex.escape(name), sizes[path].alpha } end
    end
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
      if start and entry[2] == "lora_A.weight" then entry[3] = ops.cat({ entry[3]:detach(), start.a }, 1)
      elseif start and entry[2] == "lora_B.weight" then entry[3] = ops.cat({ entry[3]:detach(), -start.b }, 2) end
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

M.names_in = names_in

-- Settings for a dialect: targets, patterns, exclusions and modules saved whole by its names. paths: modules
-- that the adapter sits on, by our names; sizes: their rank and alpha.
function M.translated(which, c, paths, sizes)
  local new = {}
  for key, v in pairs(getmetatable(c) and getmetatable(c).__index or c) do new[key] = v end
  for key, v in pairs(c) do new[key] = v end
  new.targets = targets_in(which, c, paths)
  new.rank_pattern, new.alpha_pattern = patterns_in(which, c, paths, sizes)
  if which ~= "transformers4" then new.exclude = nil end
  if c.modules_to_save then
    local set = {}
    for _, entry in ipairs(c.modules_to_save) do
      local ours = dialect.older_words[entry] or dialect.ours(entry)
      local newer = dialect.words[ours] or dialect.newer(ours) or ours
      if which ~= "transformers5" then set[ours] = true end
      if which ~= "transformers4" then set[newer] = true end
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
---@param options? table  base (name of the base model), adapter (the first), dialect ("both"), revision
---@return string dir
function M.save(model, dir, options)
  local record, holder = adapters.need(model, options and options.adapter, "save")
  local o = A.options(options, { base = A.none, adapter = record.order[1], dialect = "both", revision = A.none }, "peft.save")
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
    for _, name in ipairs(names_in(o.dialect, entry[1])) do
      state[files.prefix .. name .. (name == "" and "" or ".") .. entry[2]] = entry[3]
    end
  end
  local written = M.translated(o.dialect, c, paths, sizes)
  local file = config.to_file(written, { base = o.base or record.base, revision = o.revision })
  if o.dialect == "transformers5" then file.peft_version = "0.21.2" end

  local metadata = { format = "pt" }
  metadata[files.base_key] = files.base_sum(modules)
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
