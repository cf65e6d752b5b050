-- lora.lua: puts a new LoRA adapter on a model.
local A = require "weft.args"
local config = require "weft.peft.config"
local match = require "weft.peft.match"
local adapters = require "weft.peft.adapters"
local layers = require "weft.peft.layers"
local SavedModule = require "weft.peft.saved_module"
local random = require "weft.random"
local no_grad = require("weft.autograd").no_grad
local is_module = require("weft.nn.module").is_module
local decompose = require "weft.peft.decompose"

local M = {}

-- Draws an adapter's tensors anew, keyed by seed and path: what else was made changes nothing.
local function draw(found, name, seed)
  no_grad(function()
    for _, f in ipairs(found) do
      for _, e in ipairs(f.module:tensors(name)) do
        local fill, part, field = e.owner._inits[e.field], e.tail:match "^([^.]+)%.?(.*)$"
        local path = ("%s.%s.%s"):format(f.path, part, name) .. (field ~= "" and "." .. field or "")
        fill(e.tensor, { key = random.hash("init/" .. path, seed), counter = 0ULL })
      end
    end
  end)
end

---Wraps what settings mean, and adds the adapter's modules as they begin. Nothing is checked here.
---@param model table
---@param c table      complete settings
---@param found table  of match.find
---@param names_of? function  the names that a path answers to
function M.inject(model, c, found, names_of)
  local name, record = c.adapter, adapters.record(model, true)
  local first = next(record.adapters) == nil
  if first then model:freeze() end
  for _, f in ipairs(found) do
    if not f.module.is_lora then
      local wrapped = layers.class_of(f.module).new(f.module)
      wrapped:train(f.module.training)
      model:set(f.path, wrapped)
      f.module = wrapped
    end
    f.module:add(name, { rank = f.rank, alpha = f.alpha, scaling = f.scaling, dropout = c.dropout, init = c.init,
      dora = c.dora, lora_bias = c.lora_bias, rslora = c.rslora })
  end
  for _, path in ipairs(M.saved_paths(model, c, names_of)) do
    local m = model:get(path)
    if m.type ~= "SavedModule" then
      m = SavedModule(m)
      model:set(path, m)
    end
    m:add(name)
  end
  record.adapters[name] = c
  record.order[#record.order + 1] = name
  if first then adapters.activate(model, name) end
  adapters.unfreeze(model, name)
end

---Paths of the modules that an adapter saves whole: those whose path ends in an entry, be it within a name
---("norm" means "input_layernorm" too), as PEFT has it.
function M.saved_paths(model, c, names_of)
  local paths = {}
  for _, entry in ipairs(c.modules_to_save or {}) do
    local n, inside = 0, nil
    for path in model:named_modules() do
      local hit = false
      for _, name in ipairs(names_of and names_of(path) or { path }) do hit = hit or name:sub(-#entry) == entry end
      if path ~= "" and hit and not (inside and path:sub(1, #inside) == inside) then
        n, inside = n + 1, path .. "."
        paths[#paths + 1] = path
      end
    end
    if n == 0 then
      local known = {}
      local seen = {}
      for path in model:named_modules() do
        local tail = path:match "[^.]+$"
        if tail and not tonumber(tail) and not seen[tail] then known[#known + 1], seen[tail] = tail, true end
      end
      A.raise("peft.lora: modules_to_save: %s matches no module%s", entry, A.suggest(entry, known))
    end
  end
  return paths
end

---Puts a LoRA adapter on the modules that `targets` means (Linear, Conv2d, Embedding), and
---freezes everything else.
---A first adapter is active at once; a further one trains, and is used once peft.activate names it.
---
---targets: names of modules (a module is meant whose path is the name or ends in "." .. name), a regular
---expression for whole paths, or "all-linear". exclude: the same, checked first. layers: numbers of
---layers, counted from 0 as in their names. rank_pattern, alpha_pattern: { pattern = number }.
---init: "default" (A uniform, B zero), "gaussian", "orthogonal", "pissa", "pissa_niter_4" (by a random
---projection: much faster on large weights), "olora" (the last three move the base), "eva" (peft.eva fills A
---from activations), "random".
---@param model table  a module; it is changed, and returned
---@param options? table  rank (16), alpha (32), dropout (0), targets ({ "query", "value" }), exclude, layers,
--- layers_pattern, rank_pattern, alpha_pattern, init, rslora, dora, lora_bias, bias ("none"), modules_to_save,
--- adapter ("default"), seed
---@return table model
---
---    local vision = peft.lora(models.dinov2.new "tiny", { rank = 4, alpha = 8, targets = { "query", "value" } })
---    print(peft.describe(vision))
function M.lora(model, options)
  if not is_module(model) then A.raise("peft.lora: a module is expected, got %s", A.typename(model)) end
  local c = config.complete(options)
  local record = adapters.record(model)
  if record and record.adapters[c.adapter] then
    A.raise("peft.lora: there is an adapter %s already; name another, or peft.delete it", c.adapter)
  end
  local found = match.find(model, c)
  M.saved_paths(model, c)
  for _, f in ipairs(found) do
    if f.module.is_lora and f.module.merged then A.raise("peft.lora: adapters are merged; peft.unmerge first") end
  end
  M.inject(model, c, found)
  if found[1].module.base_layer.weight.device ~= "meta" then
    local seed = c.seed or random.seed()
    draw(found, c.adapter, seed)
    for _, f in ipairs(found) do
      local rng = { key = random.hash(("init/%s/%s/%s"):format(c.init, f.path, c.adapter), seed), counter = 0ULL }
      if c.init == "orthogonal" then decompose.orthogonal(f.module, c.adapter, rng)
      elseif c.init:find "^pissa" or c.init == "olora" then decompose.start(f.module, c.adapter, c.init, rng) end
      if c.dora then f.module:begin_magnitude(c.adapter) end
    end
  end
  return model
end

return M
