-- original.lua: adapters made on DINOv2 as its authors publish it, whose modules have other names and whose
-- query, key and value are one layer, qkv: read as adapters on ours, number for number.
local A = require "weft.args"
local keys = require "weft.models.dinov2_keys"
local lora = require "weft.peft.lora"
local regex = require "weft.peft.regex"

local M = {}

---Our paths of one of their modules: one, or three for qkv. nil where it is none of theirs.
---@param path string
---@return string[]?
function M.ours(path)
  if not (path:find "^blocks%.%d+%." or path == "patch_embed.proj" or path == "norm") then return nil end
  local name = path .. ".weight"
  for _, rule in ipairs(keys.split) do
    if name:find(rule[1]) then
      local list = {}
      for i, to in ipairs(rule[2]) do list[i] = name:gsub(rule[1], to):gsub("%.weight$", "") end
      return list
    end
  end
  return { (keys.ours(name):gsub("%.weight$", "")) }
end

---Their name for one of our modules, or what holds modules.
function M.name(path)
  local name = keys.original(path .. ".weight")
  return (name:gsub("%.weight$", ""))
end

---The i-th of n parts of a tensor: all of A, rows of the rest. nil where rows can't be parted.
function M.part(tail, t, i, n)
  if n == 1 or tail == "lora_A.weight" then return t end
  local rows = t:size(1) / n
  return rows % 1 == 0 and t:narrow(1, (i - 1) * rows + 1, rows):contiguous() or nil
end

---Settings by our names: whole paths, and a pattern where a module differs in rank or alpha.
---@param c table
---@param paths string[]
---@param sizes table<string, table>  rank and alpha of each
---@param saved string[]  paths of what is saved whole
function M.settle(c, paths, sizes, saved)
  local ranks, alphas = {}, {}
  for _, path in ipairs(paths) do
    local s = sizes[path]
    if s.rank ~= c.rank then ranks[#ranks + 1] = { regex.escape(path), s.rank } end
    if s.alpha ~= c.alpha then alphas[#alphas + 1] = { regex.escape(path), s.alpha } end
  end
  c.targets, c.rank_pattern, c.alpha_pattern = paths, ranks, alphas
  c.exclude, c.layers, c.layers_pattern = nil, nil, nil
  if c.modules_to_save then c.modules_to_save = saved end
  c.notes[#c.notes + 1] = "names are those of the original DINOv2"
end

---Of paths with tensors beside the adapters' own, those that are saved whole: the others are biases.
---@param c table
---@param paths string[]
---@return string[]
function M.whole(c, paths)
  local list, seen = {}, {}
  for _, path in ipairs(paths) do
    for _, entry in ipairs(c.modules_to_save or {}) do
      if M.name(path):sub(-#entry) == entry and not seen[path] then list[#list + 1], seen[path] = path, true end
    end
  end
  table.sort(list)
  return list
end

---Refuses what began with a part of qkv's weight: query, key and value have no such parts.
function M.check_begun(c, where)
  if c.init == "pissa" or c.init == "olora" then
    A.raise("peft: %s: it began by %s on layers that are three here; write it in PEFT by "
      .. "save_pretrained(..., path_initial_model_for_weight_conversion=...)", where, c.init)
  end
end

---Refuses a model that has none of these modules.
function M.check(model, c, where)
  M.check_begun(c, where)
  for path in model:named_modules() do
    if path:find "encoder%.layer%.%d" then return end
  end
  A.raise("peft.load: %s: its names are those of the original DINOv2, and this model is no DINOv2", where)
end

---Settles the settings of an adapter that goes on a model, where modules were found by their names.
function M.settle_on(model, c, found, names_of)
  local paths, sizes = {}, {}
  for i, f in ipairs(found) do paths[i], sizes[f.path] = f.path, f end
  M.settle(c, paths, sizes, lora.saved_paths(model, c, names_of))
end

return M
