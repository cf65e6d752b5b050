-- weights.lua: tensors of a model directory as Hugging Face lays it out, and their way into a module
-- without a copy. What the tensors are called is the models' own affair.
local A = require "weft.args"
local disk = require "weft.files"
local json = require "weft.io.json"
local safetensors = require "weft.io.safetensors"

local M = {}

local convert = [[python3 -c "import sys, torch; from safetensors.torch import save_file; ]]
  .. [[t = torch.load(sys.argv[1], map_location='cpu', weights_only=True); ]]
  .. [[save_file({k: v.clone().contiguous() for k, v in t.items()}, sys.argv[2], {'format': 'pt'})" %s %s]]

local function pickled(path) return path:find "%.bin$" or path:find "%.pth$" or path:find "%.pt$" end

local function refuse_pickle(path)
  local to = (path:match "^(.*/)[^/]*$" or "") .. "model.safetensors"
  A.raise("%s is a pickle, which can run any program when read; weft reads safetensors. Convert it once:\n  %s", path,
    convert:format(path, to))
end

---Refuses the path of a file that is no safetensors file, with the line that converts it.
function M.check_path(path)
  if type(path) ~= "string" then A.raise("from_pretrained: a directory or a name is expected, got %s", A.typename(path)) end
  if pickled(path) then refuse_pickle(path) end
end

-- The tensors of shards, by the index beside them.
local function sharded(dir, index_path)
  local index, message = json.read(index_path)
  if index == nil then A.raise("%s", message) end
  local map = type(index) == "table" and index.weight_map
  if type(map) ~= "table" then A.raise("%s: weight_map, a table of names and files, is expected", index_path) end
  local by_file, shards = {}, {}
  for name, file in pairs(map) do
    if type(file) ~= "string" or file:find "/" or file:find "%z" then
      A.raise("%s: %s: the name of a file beside the index is expected, got %s", index_path, tostring(name), tostring(file))
    end
    if pickled(file) then refuse_pickle(dir .. "/" .. file) end
    if not by_file[file] then
      by_file[file] = {}
      shards[#shards + 1] = file
    end
    table.insert(by_file[file], name)
  end
  table.sort(shards)
  local state = {}
  for _, file in ipairs(shards) do
    if not disk.exists(dir .. "/" .. file) then A.raise("%s: the shard %s is missing", index_path, file) end
  end
  for _, file in ipairs(shards) do
    local path = dir .. "/" .. file
    local tensors, problem = safetensors.load(path)
    if not tensors then A.raise("%s", problem) end
    for _, name in ipairs(by_file[file]) do
      if not tensors[name] then A.raise("%s: %s should be in %s, and is not", index_path, name, path) end
      state[name], tensors[name] = tensors[name], nil
    end
    local left = next(tensors)
    if left then A.raise("%s: %s is in %s, and the index does not name it", index_path, left, path) end
  end
  return state
end

---Every tensor of a model directory by name: of model.safetensors, or of shards and their index. They
---share the pages of their files.
---@param dir string
---@return table<string, weft.Tensor>
function M.read(dir)
  local whole, index = dir .. "/model.safetensors", dir .. "/model.safetensors.index.json"
  if disk.exists(whole) then
    local state, message = safetensors.load(whole)
    if not state then A.raise("%s", message) end
    return state
  end
  if disk.exists(index) then return (sharded(dir, index)) end
  for _, name in ipairs(disk.list(dir) or {}) do
    if pickled(name) then refuse_pickle(dir .. "/" .. name) end
  end
  A.raise("%s: neither model.safetensors nor model.safetensors.index.json is there", dir)
end

local function shape_of(t) return "[" .. table.concat(t.shape, ",") .. "]" end

local function near(name, list) return (A.suggest(name, list):gsub("; known.*", "")) end

-- What is missing, extra or misshapen, in a fixed order.
local function problems_of(mine, state)
  local missing, extra, wrong = {}, {}, {}
  for name, t in pairs(state) do
    if not mine[name] then extra[#extra + 1] = name
    elseif shape_of(mine[name]) ~= shape_of(t) then
      wrong[#wrong + 1] = ("%s is %s, expected %s"):format(name, shape_of(t), shape_of(mine[name]))
    end
  end
  for name in pairs(mine) do
    if not state[name] then missing[#missing + 1] = name end
  end
  for _, list in ipairs { missing, extra, wrong } do table.sort(list) end
  local lines, n = {}, #missing + #extra + #wrong
  local function put(line)
    if #lines < 8 then lines[#lines + 1] = line end
  end
  for _, line in ipairs(wrong) do put(line) end
  for i, name in ipairs(missing) do
    if i <= 8 then put("missing " .. name .. near(name, extra)) end
  end
  for i, name in ipairs(extra) do
    if i <= 8 then put("extra " .. name .. near(name, missing)) end
  end
  if n > #lines then lines[#lines + 1] = ("... and %d more"):format(n - #lines) end
  return n, lines
end

---Makes tensors the parameters of a module (made on the meta device), as they are where their dtype is
---`dtype`, else converted and freed. Missing, extra or misshapen ones are one error with the nearest names.
---@param module table
---@param state table<string, weft.Tensor>  under the module's names
---@param where string  what an error names: the directory
---@param dtype? string  "float32"
function M.adopt(module, state, where, dtype)
  dtype = dtype or "float32"
  local mine, owners = {}, {}
  for name, t, owner, field in module:named_parameters() do
    mine[name] = t
    owners[#owners + 1] = { name, owner, field }
  end
  local n, lines = problems_of(mine, state)
  if n > 0 then A.raise("%s: %d tensors do not fit:\n  %s", where, n, table.concat(lines, "\n  ")) end
  for _, o in ipairs(owners) do
    local name, owner, field = o[1], o[2], o[3]
    local t = state[name]
    local wants = mine[name].requires_grad
    if t.dtype ~= dtype then
      local read = t
      t = t:to(dtype)
      read:free()  -- with the last one the file's pages go, which else stay until a collection
    end
    owner[field] = t:contiguous():detach():requires_grad_(wants)
    owner._given[field] = true
  end
  return module
end

return M
