-- config.lua: settings of a LoRA adapter: ours, and adapter_config.json as PEFT keeps it.
local A = require "weft.args"
local json = require "weft.io.json"
local base = require("weft.nn.module").base

local M = {}

M.defaults = {
  rank = 16, alpha = 32, dropout = 0, targets = { "query", "value" }, exclude = A.none, layers = A.none,
  layers_pattern = A.none, rank_pattern = {}, alpha_pattern = {}, init = "default", rslora = false, dora = false,
  lora_bias = false, bias = "none", modules_to_save = A.none, adapter = "default", seed = A.none,
}

M.inits = { "default", "gaussian", "orthogonal", "pissa", "olora", "eva", "random" }

local function one_of(value, list, what)
  for _, v in ipairs(list) do
    if v == value then return end
  end
  A.raise("peft.lora: %s: unknown choice %s%s", what, tostring(value), A.suggest(tostring(value), { unpack(list) }))
end

-- What every module has beside its methods.
local taken = { new = true, type = true, base = true, training = true }

local function whole(n) return type(n) == "number" and n % 1 == 0 and math.abs(n) <= 2 ^ 24 end

-- A pattern table as an ordered list: PEFT takes the first that matches, and files hold them sorted.
local function ordered(patterns, what, check)
  if type(patterns) ~= "table" then A.raise("peft.lora: %s: a table { pattern = number } is expected", what) end
  local list = {}
  for i, entry in ipairs(patterns) do list[i] = type(entry) == "table" and { entry[1], entry[2] } or { entry } end
  local keys = {}
  for k in pairs(patterns) do
    if type(k) == "string" then keys[#keys + 1] = k end
  end
  table.sort(keys)
  for _, k in ipairs(keys) do list[#list + 1] = { k, patterns[k] } end
  for _, entry in ipairs(list) do
    if type(entry[1]) ~= "string" or type(entry[2]) ~= "number" or not check(entry[2]) then
      A.raise("peft.lora: %s: { pattern = number } is expected, got %s = %s", what, tostring(entry[1]), tostring(entry[2]))
    end
  end
  return list
end

local function names(v, what)
  if v == nil then return nil end
  if type(v) == "string" then v = { v } end
  if type(v) ~= "table" then A.raise("peft.lora: %s: a list of names is expected, got %s", what, A.typename(v)) end
  for i, name in ipairs(v) do
    if type(name) ~= "string" then A.raise("peft.lora: %s[%d]: a name is expected, got %s", what, i, A.typename(name)) end
  end
  return v
end

---Checked settings, with defaults.
---@param options table
function M.complete(options)
  local c = A.options(options, M.defaults, "peft.lora")
  if not whole(c.rank) or c.rank < 1 then
    A.raise("peft.lora: rank: a whole number from 1 is expected, got %s", A.typename(c.rank))
  end
  for _, key in ipairs { "rslora", "dora", "lora_bias" } do
    if type(c[key]) ~= "boolean" then A.raise("peft.lora: %s: true or false is expected, got %s", key, A.typename(c[key])) end
  end
  if type(c.alpha) ~= "number" or not (c.alpha > 0 and c.alpha < math.huge) then
    A.raise("peft.lora: alpha: a number above 0 is expected, got %s", A.typename(c.alpha))
  end
  if type(c.dropout) ~= "number" or not (c.dropout >= 0 and c.dropout < 1) then
    A.raise("peft.lora: dropout must lie in [0, 1), got %s", type(c.dropout) == "number" and tostring(c.dropout) or A.typename(c.dropout))
  end
  if type(c.init) ~= "string" or not c.init:find "^pissa_niter_%d+$" then one_of(c.init, M.inits, "init") end
  if c.init == "orthogonal" and whole(c.rank) and c.rank % 2 == 1 then
    A.raise("peft.lora: init orthogonal: an even rank is expected, got %d", c.rank)
  end
  if c.lora_bias and c.dora then A.raise "peft.lora: lora_bias does not go with dora, in PEFT neither" end
  one_of(c.bias, { "none", "all", "lora_only" }, "bias")
  if type(c.adapter) ~= "string" or not c.adapter:find "^[%w_-]+$" then
    A.raise("peft.lora: adapter: a name of letters, digits, _ and - is expected, got %s", tostring(c.adapter))
  end
  if base[c.adapter] ~= nil or taken[c.adapter] or c.adapter:sub(1, 1) == "_" then
    A.raise("peft.lora: adapter: %s is the name of a method or field of modules; choose another", c.adapter)
  end
  if type(c.targets) ~= "string" then
    c.targets = names(c.targets, "targets")
    if #c.targets == 0 then A.raise("peft.lora: targets is empty: at least one name is expected") end
  end
  if type(c.exclude) ~= "string" then c.exclude = names(c.exclude, "exclude") end
  c.modules_to_save, c.layers_pattern = names(c.modules_to_save, "modules_to_save"), names(c.layers_pattern, "layers_pattern")
  if c.layers ~= nil and type(c.layers) ~= "number" and type(c.layers) ~= "table" then
    A.raise("peft.lora: layers: numbers of layers are expected, got %s", A.typename(c.layers))
  end
  if type(c.layers) == "number" then c.layers = { c.layers } end
  for i, n in ipairs(c.layers or {}) do
    if not whole(n) or n < 0 then
      A.raise("peft.lora: layers[%d]: a layer's number (from 0, as in its name) is expected, got %s", i, tostring(n))
    end
  end
  if c.layers and type(c.targets) == "string" then
    A.raise("peft.lora: layers goes with a list of targets, not with %q", c.targets)
  end
  c.rank_pattern = ordered(c.rank_pattern, "rank_pattern", function(n) return whole(n) and n >= 1 end)
  c.alpha_pattern = ordered(c.alpha_pattern, "alpha_pattern", function(n) return n > 0 end)
  return c
end

---The factor of the branch.
function M.scaling(alpha, rank, rslora) return rslora and alpha / math.sqrt(rank) or alpha / rank end

-- --- adapter_config.json
-- What PEFT leaves out counts as these.
local file_defaults = {
  r = 8, lora_alpha = 8, lora_dropout = 0, bias = "none", use_rslora = false, use_dora = false, lora_bias = false,
  rank_pattern = {}, alpha_pattern = {},
}

-- Keys that say how an adapter was made, or nothing that changes what it computes.
local silent, noted = {}, {}
for word in ([[task_type revision inference_mode auto_mapping base_model_name_or_path peft_version megatron_core peft_type
  qalora_group_size runtime_config init_lora_weights ensure_weight_tying]]):gmatch "%S+" do silent[word] = true end
-- The same of keys that someone may think of. fan_in_fan_out is about Conv1D of others: PEFT switches it off
-- for a Linear, and weft knows no Conv1D. VeLoRA is another way to the gradient.
for word in ([[fan_in_fan_out megatron_config loftq_config eva_config corda_config lora_ga_config velora_config]]):gmatch "%S+" do
  noted[word] = true
end

-- Keys that change what an adapter computes, and that weft computes only at their default.
local refused = { "layer_replication", "target_parameters", "trainable_token_indices", "use_qalora", "use_bdlora",
  "alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config" }

local function given(v) return v ~= nil and v ~= json.null and v ~= false and not (type(v) == "table" and next(v) == nil) end
local function plain(v)
  if v == json.null then return nil end
  if type(v) ~= "table" then return v end
  local out = {}
  for k, x in pairs(v) do out[k] = x end
  return out
end

-- How an adapter began, by PEFT's words and ours.
local begun = { [true] = "default", [false] = "random", mica = "default" }
for _, word in ipairs { "gaussian", "orthogonal", "eva", "pissa", "olora" } do begun[word] = word end

---Refuses an adapter that sits beside a base from which a part was taken that cannot be found again. (That
---of pissa and olora can: PEFT takes it out where it loads such an adapter, and so do we.)
function M.check_begun(c, where)
  for _, word in pairs(begun) do
    if c.init == word then return end
  end
  A.raise("%s: init_lora_weights %s: it began with a part of the base that cannot be found again, and sits beside what was left; "
    .. "write it in PEFT by save_pretrained(..., path_initial_model_for_weight_conversion=...)", where, tostring(c.init))
end

---Settings from what adapter_config.json holds. `notes` tells of keys that were given and change nothing.
---@param file table
---@param where string
---@param adapter string
---@param force? boolean  unknown keys become notes
function M.from_file(file, where, adapter, force)
  if type(file) ~= "table" or file.peft_type ~= "LORA" then
    A.raise("%s: peft_type LORA is expected, got %s", where, tostring(type(file) == "table" and file.peft_type or file))
  end
  for _, key in ipairs(refused) do
    if given(file[key]) then A.raise("%s: %s is set, and weft does not compute adapters of that kind", where, key) end
  end
  local known = { target_modules = true, exclude_modules = true, layers_to_transform = true, layers_pattern = true, modules_to_save = true }
  for key in pairs(file_defaults) do known[key] = true end
  for _, key in ipairs(refused) do known[key] = true end
  local notes = {}
  for key, v in pairs(file) do
    if noted[key] and given(v) then notes[#notes + 1] = key .. " changes nothing here"
    elseif not known[key] and not silent[key] and not noted[key] and given(v) then
      if not force then A.raise("%s: the key %s is not known to weft; force = true leaves it out", where, key) end
      notes[#notes + 1] = "the unknown key " .. key .. " was left out"
    end
  end
  table.sort(notes)
  local function value(key)
    local v = plain(file[key])
    if v == nil then v = file_defaults[key] end
    return v
  end
  if value "target_modules" == nil then A.raise("%s: target_modules is missing", where) end
  local c = M.complete {
    rank = value "r", alpha = value "lora_alpha", dropout = value "lora_dropout", targets = value "target_modules",
    exclude = value "exclude_modules", layers = value "layers_to_transform", layers_pattern = value "layers_pattern",
    rank_pattern = value "rank_pattern", alpha_pattern = value "alpha_pattern", rslora = value "use_rslora",
    dora = value "use_dora", lora_bias = value "lora_bias", bias = value "bias", modules_to_save = value "modules_to_save",
    adapter = adapter,
  }
  local how = file.init_lora_weights
  if how == nil or how == json.null then how = true end
  c.init = begun[how] or tostring(how)
  c.tying = given(file.ensure_weight_tying)
  c.base, c.notes = plain(file.base_model_name_or_path), notes
  return c
end

local function as_json(v)
  if v == nil then return json.null end
  if type(v) ~= "table" then return v end
  return json.array { unpack(v) }
end

local function pattern_json(list)
  local out = {}
  for _, entry in ipairs(list) do out[entry[1]] = entry[2] end
  return json.object(out)
end

-- What PEFT writes beside, at its default: of both generations, and of the newer one alone. The older one
-- warns of keys that it does not know.
local rest = { layer_replication = json.null, target_parameters = json.null, trainable_token_indices = json.null,
  use_qalora = false, qalora_group_size = 16, megatron_config = json.null, megatron_core = "megatron.core",
  loftq_config = json.object {}, eva_config = json.null, corda_config = json.null }
local newer = { peft_version = "0.21.2", ensure_weight_tying = false }
for word in ([[alora_invocation_tokens arrow_config kasa_config lora_ga_config monteclora_config use_bdlora
  velora_config]]):gmatch "%S+" do newer[word] = json.null end

---What adapter_config.json holds for these settings: every key of PEFT's.
---@param c table
---@param options table  base, revision, dialect
function M.to_file(c, options)
  local layers_pattern = c.layers_pattern
  if layers_pattern and #layers_pattern == 1 then layers_pattern = layers_pattern[1] end
  local file = {
    peft_type = "LORA", task_type = json.null, base_model_name_or_path = options.base or json.null,
    revision = options.revision or json.null, inference_mode = true, auto_mapping = json.null,
    r = c.rank, lora_alpha = c.alpha, lora_dropout = json.float(c.dropout),
    target_modules = as_json(c.targets), exclude_modules = as_json(c.exclude),
    fan_in_fan_out = false, bias = c.bias, use_rslora = c.rslora, use_dora = c.dora, lora_bias = c.lora_bias,
    init_lora_weights = c.init == "gaussian" and "gaussian" or c.init ~= "random",
    modules_to_save = as_json(c.modules_to_save), layers_to_transform = as_json(c.layers),
    layers_pattern = as_json(layers_pattern), rank_pattern = pattern_json(c.rank_pattern),
    alpha_pattern = pattern_json(c.alpha_pattern),
  }
  for _, keys in ipairs { rest, options.dialect == "transformers5" and newer or nil } do
    for key, v in pairs(keys) do file[key] = v end
  end
  return file
end

return M
