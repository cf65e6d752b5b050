-- convert.lua: an adapter directory of either generation of transformers, written for the other or for both.
-- Needs no base model: tensors keep their values, names are translated.
local A = require "weft.args"
local config = require "weft.peft.config"
local dialect = require "weft.peft.dialect"
local files = require "weft.peft.files"
local load = require "weft.peft.load"
local match = require "weft.peft.match"
local original = require "weft.peft.original"
local save = require "weft.peft.save"
local disk = require "weft.files"
local json = require "weft.io.json"
local safetensors = require "weft.io.safetensors"

local M = {}

-- What follows a module's path where it is no part of a module saved whole.
local is_lora = { ["lora_A.weight"] = true, ["lora_B.weight"] = true, ["lora_B.bias"] = true, lora_magnitude_vector = true,
  lora_embedding_A = true, lora_embedding_B = true, ["base_layer.bias"] = true, ["base_layer.weight"] = true }
M.is_lora = is_lora
local dialects = { both = true, transformers4 = true, transformers5 = true }

-- Rank and alpha of each module, and the modules in order.
local function sizes_of(c, given, joined, theirs)
  local paths, sizes = {}, {}
  for _, g in pairs(given) do
    if joined[g.path] and g.tail == "lora_A.weight" then
      paths[#paths + 1], sizes[g.path] = g.path, joined[g.path]
    elseif g.tail == "lora_A.weight" or g.tail == "lora_embedding_A" then
      paths[#paths + 1] = g.path
      local newer = dialect.newer(g.path) or g.path
      local rank, alpha = match.sizes(c, theirs and original.name(g.path) or g.path)
      local other_rank, other_alpha = match.sizes(c, newer)
      if rank ~= g.tensor:size(1) or alpha == c.alpha and other_alpha ~= c.alpha then rank, alpha = other_rank, other_alpha end
      if rank ~= g.tensor:size(1) then
        A.raise("peft.convert: %s is of rank %d, and the settings say %d", g.name, g.tensor:size(1), rank)
      end
      sizes[g.path] = { rank = rank, alpha = alpha }
    end
  end
  table.sort(paths)
  return paths, sizes
end

---Translates an adapter directory. dialect: "both" (loads in transformers 4 and 5), "transformers4" or
---"transformers5".
---@param dir string
---@param out string
---@param options? table  dialect ("both")
---@return integer modules
function M.convert(dir, out, options)
  local o = A.options(options, { dialect = "both" }, "peft.convert")
  if not dialects[o.dialect] then
    A.raise("peft.convert: dialect: unknown choice %s%s", tostring(o.dialect),
      A.suggest(tostring(o.dialect), { "both", "transformers4", "transformers5" }))
  end
  local file, message = json.read(dir .. "/" .. files.config)
  if file == nil then A.raise("peft.convert: %s", message) end
  local state, metadata = safetensors.load(dir .. "/" .. files.weights)
  if not state then A.raise("peft.convert: %s", metadata) end
  local c = config.from_file(file, dir .. "/" .. files.config, "default")
  local problems = {}
  local given, generations, joined = load.ours_of(state, dir .. "/" .. files.weights, problems, c)
  if #problems > 0 then A.raise("peft.convert: %s:\n  %s", dir, table.concat(problems, "\n  ")) end
  local paths, sizes = sizes_of(c, given, joined, generations.original)
  if #paths == 0 then A.raise("peft.convert: %s holds no lora_A", dir) end

  local written, saved = {}, {}
  for _, g in pairs(given) do
    save.put(written, o.dialect, g.path, g.tail, g.tensor)
    if not is_lora[g.tail] then saved[#saved + 1] = g.path end
  end
  if generations.original then
    original.check_begun(c, dir)
    original.settle(c, paths, sizes, original.whole(c, saved))
    file.layers_to_transform, file.layers_pattern = nil, nil
  end
  local made = config.to_file(save.translated(o.dialect, c, paths, sizes, saved), { base = c.base, dialect = o.dialect })
  -- what is not translated stays as it was
  local kept = {}
  for key, v in pairs(file) do kept[key] = v end
  for _, key in ipairs { "target_modules", "exclude_modules", "modules_to_save", "rank_pattern", "alpha_pattern" } do kept[key] = made[key] end
  for key, v in pairs(made) do
    if kept[key] == nil then kept[key] = v end
  end
  if o.dialect ~= "transformers5" then kept.peft_version = nil end
  -- the older stack refuses keys that it does not know
  if o.dialect ~= "transformers5" then
    for key in pairs(file) do
      if made[key] == nil then kept[key] = nil end
    end
  end
  local function check(ok, why)
    if not ok then A.raise("peft.convert: %s", why) end
  end
  check(disk.make_dirs(out))
  check(safetensors.save(out .. "/" .. files.weights, written, metadata))
  check(json.write(out .. "/" .. files.config, kept))
  return #paths
end

return M
