-- inspect_about.lua: what `weft inspect` says of a directory before its tensors: of an adapter its settings,
-- dialect and what trains; of shards which file holds what.
local M = {}

local function list_of(set)
  local out = {}
  for k in pairs(set) do out[#out + 1] = k end
  table.sort(out)
  return out
end

-- Words of a module's name without its numbers, and the number of its layer.
local function stem_of(name)
  local before, number = name:match "^(.-)%.(%d+)%."
  if before then return before, tonumber(number) end
  return name:match "^[^.]+", nil
end

---Names as what they have in common: "embeddings, encoder.layer.0..5".
---@param names string[]
function M.summary(names)
  local stems, order = {}, {}
  for _, name in ipairs(names) do
    local stem, number = stem_of(name)
    if not stems[stem] then
      stems[stem] = {}
      order[#order + 1] = stem
    end
    if number then stems[stem][number] = true end
  end
  table.sort(order)
  for i, stem in ipairs(order) do
    local numbers, runs = list_of(stems[stem]), {}
    local from
    for k, n in ipairs(numbers) do
      from = from or n
      if numbers[k + 1] ~= n + 1 then
        runs[#runs + 1] = from == n and tostring(n) or from .. ".." .. n
        from = nil
      end
    end
    if #runs > 0 then order[i] = stem .. "." .. table.concat(runs, ",") end
  end
  return table.concat(order, ", ")
end

---Lines about the adapter of which this is the weights file; nil where it is none.
---@param path string
---@param commas fun(n: number): string
---@return string[]?
function M.adapter(path, commas)
  local dir = path:match "^(.*)/adapter_model%.safetensors$" or path == "adapter_model.safetensors" and "." or nil
  local disk, json = require "weft.files", require "weft.io.json"
  if not dir or not disk.exists(dir .. "/adapter_config.json") then return nil end
  require "weft"
  local file, message = json.read(dir .. "/adapter_config.json")
  if file == nil then return { message } end
  local state, problem = require("weft.io.safetensors").load(path)
  if not state then return { problem } end
  local config, load = require "weft.peft.config", require "weft.peft.load"
  local problems = {}
  local ok, c, given, generations, sizes = pcall(function()
    local settings = config.from_file(file, dir .. "/adapter_config.json", "default")
    return settings, load.ours_of(state, path, problems, settings)
  end)
  if not ok then return { (tostring(c):gsub("^[^ ]*%.lua:%d+: ", "")) } end

  local tails, scales, modules, whole, trains = {}, {}, 0, {}, 0
  local lora = require("weft.peft.convert").is_lora
  local dialect = require "weft.peft.dialect"
  for name, t in pairs(state) do
    -- under both names the same tensor counts once
    local module = name:gsub("^base_model%.model%.", ""):gsub("%.lora_.*$", ""):gsub("%.base_layer%.bias$", ""):gsub("%.weight$", "")
    if not (generations.old and generations.new) or dialect.ours(module) == module then trains = trains + t:numel() end
  end
  for _, g in pairs(given) do
    if g.tail == "lora_A.weight" or g.tail == "lora_embedding_A" then
      modules = modules + 1
      local tail = g.path:match "[^.]+$" or g.path
      tails[tail] = (tails[tail] or 0) + 1
      local size = sizes[g.path]
      scales[("x%.4g"):format(size and size.scaling or select(3, require("weft.peft.match").sizes(c, g.path)))] = true
    elseif not lora[g.tail] and g.tail ~= "bias" then whole[g.path] = true end
  end
  local on = list_of(tails)
  for i, tail in ipairs(on) do on[i] = tail .. " " .. tails[tail] end
  local names = generations.original and "of the original DINOv2"
    or generations.old and generations.new and "of transformers 4 and 5" or generations.new and "of transformers 5"
    or generations.old and "of transformers 4" or "the same in transformers 4 and 5"
  local lines = {
    ("adapter: r %d, alpha %g: %s%s%s%s; %d modules (%s)"):format(c.rank, c.alpha, table.concat(list_of(scales), " "),
      c.rslora and ", rsLoRA" or "", c.dora and ", DoRA" or "", c.bias ~= "none" and ", bias " .. c.bias or "", modules, table.concat(on, ", ")),
    "names: " .. names,
    ("trainable: %s elements%s"):format(commas(trains),
      generations.old and generations.new and ", each in the file under both names" or ""),
  }
  if next(whole) then lines[#lines + 1] = "saved whole: " .. table.concat(list_of(whole), ", ") end
  if c.init == "pissa" or c.init == "olora" then lines[#lines + 1] = "began by " .. c.init .. ": sits beside a base that lacks what it began with" end
  if c.base then lines[#lines + 1] = "base: " .. tostring(c.base) end
  for _, p in ipairs(problems) do lines[#lines + 1] = "wrong: " .. p end
  return lines
end

---The shards that an index names: { file, names, bytes } in order, infos by tensor, and what does not agree.
---@param path string  of model.safetensors.index.json
---@param numel fun(shape: integer[]): number
function M.shards(path, numel)
  local json, disk, safetensors = require "weft.io.json", require "weft.files", require "weft.io.safetensors"
  local index, message = json.read(path)
  if index == nil then error(message, 0) end
  local map = type(index) == "table" and index.weight_map
  if type(map) ~= "table" then error(path .. ": weight_map, a table of names and files, is expected", 0) end
  local dir = path:match "^(.*)/[^/]*$" or "."
  local by_file, wrong = {}, {}
  for name, file in pairs(map) do
    if type(file) ~= "string" or file:find "[/%z]" then
      error(("%s: %s: the name of a file beside the index is expected"):format(path, tostring(name)), 0)
    end
    by_file[file] = by_file[file] or {}
    by_file[file][name] = true
  end
  local shards, infos, total = {}, {}, 0
  for _, file in ipairs(list_of(by_file)) do
    local shard = { file = file, names = {}, bytes = 0 }
    shards[#shards + 1] = shard
    local where = dir .. "/" .. file
    if not disk.exists(where) then wrong[#wrong + 1] = file .. " is missing"
    else
      local open, problem = safetensors.open(where)
      if not open then wrong[#wrong + 1] = problem
      else
        for _, name in ipairs(open.names) do
          local info = open:info(name)
          info.numel, info.file = numel(info.shape), where
          shard.names[#shard.names + 1], shard.bytes, total = name, shard.bytes + info.nbytes, total + info.nbytes
          if not by_file[file][name] then wrong[#wrong + 1] = ("%s is in %s, and the index does not name it there"):format(name, file) end
          infos[name], by_file[file][name] = info, nil
        end
        open:close()
        for name in pairs(by_file[file]) do wrong[#wrong + 1] = ("%s should be in %s, and is not"):format(name, file) end
      end
    end
  end
  local said = type(index.metadata) == "table" and tonumber(index.metadata.total_size)
  if said and said ~= total then wrong[#wrong + 1] = ("the index says %.0f bytes in all, the shards hold %.0f"):format(said, total) end
  table.sort(wrong)
  return shards, infos, wrong
end

return M
