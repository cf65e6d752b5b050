-- load.lua: an adapter from a directory of PEFT's, of either generation. All or nothing.
local A = require "weft.args"
local adapters = require "weft.peft.adapters"
local config = require "weft.peft.config"
local dialect = require "weft.peft.dialect"
local files = require "weft.peft.files"
local match = require "weft.peft.match"
local lora = require "weft.peft.lora"
local halves = require "weft.peft.halves"
local layers = require "weft.peft.layers"
local decompose = require "weft.peft.decompose"
local original = require "weft.peft.original"
local C = require("weft.core").lib
local json = require "weft.io.json"
local safetensors = require "weft.io.safetensors"
local is_module = require("weft.nn.module").is_module
local no_grad = require("weft.autograd").no_grad

local M = {}

local tails = { "lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_magnitude_vector", "base_layer.bias",
  "lora_embedding_A", "lora_embedding_B", "base_layer.weight" }

local function shape_of(t) return "[" .. table.concat(t.shape, ",") .. "]" end

local function equal(a, b)
  return shape_of(a) == shape_of(b) and a.dtype == b.dtype and C.weft_checksum(a.p, 0) == C.weft_checksum(b.p, 0)
end

-- Tensors by our names, "path tail", from a file that holds one set of names or both; and the rank, alpha
-- and scaling of modules that the file holds in two halves.
local function ours_of(state, where, problems, c)
  local out, generations, cut, sizes = {}, { old = false, new = false, original = false }, {}, {}
  local function put(path, tail, t, name)
    local id = path .. " " .. tail
    if out[id] and not equal(out[id].tensor, t) then
      problems[#problems + 1] = ("%s: the names of the two generations hold different values"):format(name)
    end
    out[id] = { path = path, tail = tail, tensor = t, name = name }
  end
  local names = {}
  for name in pairs(state) do
    -- where all biases are written, PEFT writes those around a module saved whole too: the original's, unused,
    -- and its copy's, a second time
    if not name:find("%.original_module%.bias$") then names[#names + 1] = name end
  end
  table.sort(names)
  for _, name in ipairs(names) do
    local t = state[name]
    local key = name:gsub("%.modules_to_save%.bias$", ".bias")
    if key:sub(1, #files.prefix) == files.prefix then key = key:sub(#files.prefix + 1) end
    local path, tail
    for _, known in ipairs(tails) do
      if dialect.ends_with(key, known) then path, tail = key:sub(1, #key - #known - 1), known end
    end
    if not path then
      path, tail = key:match "^(.*)%.([^.]+)$"
      if not path then path, tail = "", key end
    end
    local ours, half = dialect.ours(path)
    local several = original.ours(path)
    if several then generations.original = true
    elseif ours ~= path then generations.new = true
    elseif dialect.newer(path) ~= path then generations.old = true end
    if several then
      for i, to in ipairs(several) do
        local part = original.part(tail, t, i, #several)
        if part then put(to, tail, part, name)
        else problems[#problems + 1] = ("%s is %s: its rows are no three parts"):format(name, shape_of(t)) end
      end
    elseif half then
      cut[ours] = cut[ours] or {}
      cut[ours][half] = cut[ours][half] or { name = path, tensors = {} }
      cut[ours][half].tensors[tail] = t
    else
      put(ours, tail, t, name)
    end
  end
  for path, list in pairs(cut) do
    local ok, tensors, size = pcall(halves.join, list, function(name) return match.sizes(c, name) end, c.rslora)
    if ok then
      for tail, t in pairs(tensors) do put(path, tail, t, (list[1] or list[2]).name .. "." .. tail) end
      sizes[path] = size
    else
      problems[#problems + 1] = tostring(tensors)
    end
  end
  if #names == 0 then A.raise("%s holds no tensor", where) end
  return out, generations, sizes
end

M.ours_of = ours_of

-- Names by which the file's settings may call a module of ours.
local function name_rule(generations)
  if generations.original then return function(path) return { original.name(path) } end end
  return function(path)
    local newer = dialect.newer_names(path)
    if newer[1] == path or not generations.new then return { path } end
    if not generations.old then return newer end
    return { path, unpack(newer) }
  end
end

local function raise(dir, problems)
  table.sort(problems)
  A.raise("peft.load: %s: %d entries do not fit; nothing was changed:\n  %s%s", dir, #problems,
    table.concat(problems, "\n  ", 1, math.min(#problems, 8)), #problems > 8 and "\n  ..." or "")
end

-- Shapes that the settings ask for, by "path tail".
local function expected_of(model, c, found, names_of)
  local out = {}
  for _, f in ipairs(found) do
    for tail, shape in pairs(layers.expected(f.module, { rank = f.rank, dora = c.dora, lora_bias = c.lora_bias })) do
      out[f.path .. " " .. tail] = shape
    end
  end
  for _, path in ipairs(lora.saved_paths(model, c, names_of)) do
    local m = model:get(path)
    for tail, t in (m.original_module or m):named_parameters() do out[path .. " " .. tail] = t.shape end
  end
  return out
end

-- The biases that the settings train, by "path tail" as the file names them.
local function bias_targets(model, c, found)
  local out, on = {}, {}
  for _, f in ipairs(found) do on[f.path] = true end
  if c.bias == "none" then return out end
  for path, m in model:named_modules() do
    local base = layers.base_of(m)
    local bias = base._parameters.bias
    if bias and (on[path] or c.bias == "all") and not path:find("lora_", 1, true) and not path:find "base_layer$" then
      out[path .. (on[path] and " base_layer.bias" or " bias")] = bias
    end
  end
  return out
end

local function median(list)
  table.sort(list)
  local n = #list
  if n == 0 then return 0 end
  return n % 2 == 1 and list[(n + 1) / 2] or (list[n / 2] + list[n / 2 + 1]) / 2
end

---What an adapter is on, how strong it is, and how much it changes.
function M.report(model, name, total)
  local rows = require("weft.peft.spectrum").spectrum(model, { adapter = name })
  local ratios, scales, changes = {}, {}, false
  for i, row in ipairs(rows) do
    ratios[i] = row.ratio
    changes = changes or row.delta > 0
  end
  for _, m in adapters.wrapped(model) do
    if m.is_lora and m.settings[name] then scales[("%.4g"):format(m:scale_of(name))] = true end
  end
  local list = {}
  for s in pairs(scales) do list[#list + 1] = s:find "[%.e]" and s or s .. ".0" end
  table.sort(list)
  local text = ("adapter %s: %d of %d modules, scale %s, "):format(name, #rows, total or #rows, table.concat(list, "/"))
  if not changes then return text .. "every B is zero: this adapter changes nothing" end
  return text .. ("median norm of dW/W %.2g %%"):format(100 * median(ratios))
end

---Puts the adapter of a directory on a model: on a plain one, or beside others. It is frozen unless
---trainable = true, and active when it is the first. A missing, extra or misshapen tensor, another rank
---or another base is an error, and nothing is changed.
---@param model table
---@param dir string
---@param options? table  adapter (name it gets: "default"), trainable (false), replace (false), force
--- (false: another base is refused, another rule for pictures or positions, and settings that are not known), preprocessing (the rule of weft.io.preprocess
--- by which pictures will be prepared)
---@return table model, string report
function M.load(model, dir, options)
  if not is_module(model) then A.raise("peft.load: a module is expected, got %s", A.typename(model)) end
  local o = A.options(options, { adapter = "default", trainable = false, force = false, replace = false,
    preprocessing = A.none }, "peft.load")
  local record, holder = adapters.record(model)
  model = holder or model
  if record and record.adapters[o.adapter] and not o.replace then
    A.raise("peft.load: there is an adapter %s already; name another, or replace = true", o.adapter)
  end
  local file, message = json.read(dir .. "/" .. files.config)
  if file == nil then A.raise("peft.load: %s", message) end
  local state, metadata = safetensors.load(dir .. "/" .. files.weights)
  if not state then A.raise("peft.load: %s", metadata) end
  local c = config.from_file(file, dir .. "/" .. files.config, o.adapter, o.force)
  config.check_begun(c, dir .. "/" .. files.config)
  if c.tying and model.untie and model:tied_to() then
    A.raise("peft.load: %s: ensure_weight_tying is set, and weft does not give a tied output layer the table's adapter", dir)
  end
  local problems = {}
  local given, generations, sizes = ours_of(state, dir .. "/" .. files.weights, problems, c)
  if #problems > 0 then raise(dir, problems) end

  if generations.original then original.check(model, c, dir) end
  local names_of = name_rule(generations)
  local function find()
    local list = match.find(model, c, names_of)
    for _, f in ipairs(list) do
      local size = sizes[f.path]
      if size then f.rank, f.alpha, f.scaling = size.rank, size.alpha, size.scaling end
    end
    return list
  end
  local found = find()
  if generations.original then
    original.settle_on(model, c, found, names_of)
    names_of = nil
  end
  local expected, biases = expected_of(model, c, found, names_of), bias_targets(model, c, found)
  local known = {}
  for id in pairs(expected) do known[#known + 1] = id end
  -- PEFT writes the table of an Embedding beside its adapter: the base has it
  for _, f in ipairs(found) do
    local g = f.module.type:find "Embedding$" and given[f.path .. " base_layer.weight"]
    if g then
      given[f.path .. " base_layer.weight"] = nil
      local base = layers.base_of(f.module)
      local mine = (f.module.kept or base).weight
      if not equal(mine:detach(), g.tensor) and not (o.force and shape_of(mine) == shape_of(g.tensor)) then
        problems[#problems + 1] = ("%s is %s and another table than this model's %s: the base is another one, or it was trained too"):format(
          g.name, shape_of(g.tensor), shape_of(mine))
      end
    end
  end
  for id, g in pairs(given) do
    local shape, bias = expected[id], biases[id]
    if shape then
      local want = "[" .. table.concat(shape, ",") .. "]"
      if shape_of(g.tensor) ~= want then
        local rank = g.tail == "lora_A.weight" and shape[1] or g.tail == "lora_B.weight" and shape[2]
        problems[#problems + 1] = ("%s is %s, expected %s%s"):format(g.name, shape_of(g.tensor), want,
          rank and "; the rank in the settings is " .. rank or "")
      end
    elseif bias then
      if shape_of(bias) ~= shape_of(g.tensor) then
        problems[#problems + 1] = ("%s is %s, expected %s"):format(g.name, shape_of(g.tensor), shape_of(bias))
      end
    else
      problems[#problems + 1] = ("extra %s"):format(g.name)
    end
  end
  for _, id in ipairs(known) do
    if not given[id] then problems[#problems + 1] = "missing " .. files.prefix .. id:gsub(" ", ".") end
  end
  if c.bias == "all" then
    for id in pairs(biases) do
      if not given[id] then problems[#problems + 1] = "missing " .. files.prefix .. id:gsub(" ", ".") end
    end
  end
  if #problems > 0 then raise(dir, problems) end

  -- the base that the adapter was trained on, where the file says it
  local sum = metadata[files.base_key]
  if sum and not o.force then
    local modules = {}
    for i, f in ipairs(found) do modules[i] = f.module end
    local mine = files.base_sum(modules)
    if mine and mine ~= sum then
      A.raise("peft.load: %s was trained on another base than this one (checksum %s, here %s); force = true loads it all the same",
        dir, sum, mine)
    end
  end

  local rule, mine = metadata[files.positions_key], files.positions(model)
  if rule and mine and rule ~= mine and not o.force then
    A.raise("peft.load: %s was trained with positions resized by the rule %s, and this model resizes them by %s; "
      .. "from_pretrained(..., { pos_interp = %q }) agrees with it, force = true takes it all the same", dir, rule, mine, rule)
  end

  local pictures = metadata[files.pictures_key]
  local hash, words = (pictures or ""):match "^(%x+) (.*)$"
  if hash and o.preprocessing and not o.force and hash ~= o.preprocessing:hash() then
    A.raise("peft.load: %s was trained on pictures prepared by another rule:\n  there  %s\n  here   %s\nforce = true takes it all the same",
      dir, words, o.preprocessing:text())
  end
  c.preprocessing = hash and pictures or nil

  local active
  if record and record.adapters[o.adapter] then
    active = adapters.active(model)
    adapters.delete(model, o.adapter)
    found = find()
  end
  lora.inject(model, c, found, names_of)
  if c.init == "pissa" or c.init == "olora" then
    -- its values are beside a base that lacks what it began with
    for _, f in ipairs(found) do decompose.start(f.module, o.adapter, c.init) end
    c.notes[#c.notes + 1] = c.init .. ": what it began with was taken out of the base"
  end
  no_grad(function()
    for _, f in ipairs(found) do
      for _, e in ipairs(f.module:tensors(o.adapter)) do
        local t = given[f.path .. " " .. e.tail].tensor
        e.tensor:copy_(t.ndim == e.tensor.ndim and t or t:reshape(e.tensor.shape))
        e.owner._given[e.field] = true
      end
    end
    for id, bias in pairs(biases) do
      if given[id] then bias:copy_(given[id].tensor) end
    end
    for path, m in adapters.wrapped(model) do
      local copy = m.type == "SavedModule" and m.modules_to_save[o.adapter]
      if copy then
        for tail, t, owner, field in copy:named_parameters() do
          t:copy_(given[path .. " " .. tail].tensor)
          owner._given[field] = true
        end
      end
    end
  end)
  adapters.record(model).base = c.base
  if active and #active > 0 then adapters.activate(model, active) end
  if not o.trainable then adapters.freeze(model, o.adapter) end
  local report = M.report(model, o.adapter, #found)
  return model, #c.notes > 0 and report .. "\n  " .. table.concat(c.notes, "; ") or report
end

return M
