-- train: what turns a recipe into a run. The loop is loop.lua, phases phases.lua, files checkpoint.lua.
local A = require "weft.args"

local M = {}

---Declares a recipe: `weft train FILE.lua` runs what the file returns.
---@param spec table  config (weft.config), model (a module class, called with the config and the data),
---  data (function of the config), phases, evaluate (list), name, metric (the figure that an ablation
---  compares), after_warmup (keys of the config that change nothing before the first phase ends), schedule
---  (function of the step from 0, the number of steps and a group's name: the factor of the group's rate)
function M.recipe(spec)
  local o = A.options(spec, { config = A.required, model = A.required, data = A.required, phases = A.required,
    evaluate = {}, name = A.none, heads = {}, finish = A.none, after_warmup = {}, metric = A.none, schedule = A.none }, "recipe")
  o.is_recipe = true
  return o
end

-- Where the recipes that came with weft lie: in a checkout, or installed.
local function recipes_place()
  local installed = package.searchpath("weft.recipes.vision_language", package.path)
  local here = debug.getinfo(1, "S").source:match "^@(.*)lua/weft/train/init%.lua$"
  return (installed and installed:match "^(.*)/[^/]*$" or (here or "") .. "recipes") .. "/?.lua"
end

-- The recipes that came with weft are found from anywhere, by the path that they have in a checkout.
local function shipped(path)
  local f = io.open(path)
  if f then
    f:close()
    return path
  end
  local name = path:match "^recipes/([%w_]+)%.lua$"
  return name and package.searchpath(name, recipes_place()) or path
end

---The file of a recipe's recorded path, where there is one.
function M.find_recipe(path)
  path = type(path) == "string" and shipped(path)
  return path and require("weft.files").exists(path) and path or nil
end

---Reads a recipe file, its config changed by overrides such as "lora.rank=8".
---@param path string
---@param overrides? string[]
---@param values? table  a run's recorded values, in place of the recipe's defaults
---@return table recipe
function M.load_recipe(path, overrides, values)
  path = shipped(path)
  local exists = require("weft.files").exists
  if not exists(path) then A.raise("recipe: there is no %s%s", path, exists(path .. ".lua") and ("; did you mean %s.lua?"):format(path) or "") end
  local chunk, message = loadfile(path)
  if not chunk then A.raise("recipe: %s", message) end
  -- a recipe may require what lies beside it, and the parts that came with weft
  local beside = (path:match "^(.*)/[^/]*$" or ".") .. "/?.lua"
  if not package.path:find(beside, 1, true) then package.path = beside .. ";" .. package.path end
  local came_with = recipes_place()
  if not package.path:find(came_with, 1, true) then package.path = package.path .. ";" .. came_with end
  local config = require "weft.config"
  config.set_next(overrides or {}, values)
  local recipe = chunk()
  config.set_next(nil, nil)
  if type(recipe) ~= "table" or not recipe.is_recipe then
    A.raise("%s does not return a recipe; end it with `return train.recipe { ... }`", path)
  end
  recipe.path = path
  recipe.name = recipe.name or path:match "([^/]+)%.lua$" or "recipe"
  local f = assert(io.open(path, "rb"))
  recipe.hash = require("weft.files").hash(f:read "*a")
  f:close()
  return recipe
end

---A cache for what a frozen encoder makes of pictures: enabled, memory and disk (MiB), dir.
function M.features(options)
  local o = A.options(options, { enabled = true, memory = 1024, disk = 0, dir = A.none }, "features")
  local cache = require("weft.train.features").new(o)
  cache.enabled = o.enabled
  return cache
end

---A new run of a recipe in a folder of its own.
function M.start(recipe, options) return (require("weft.train.run").start(recipe, options)) end

---A new run that goes on from the end of another's first phase; see branch.lua.
function M.branch(recipe, from, options) return (require("weft.train.branch").start(recipe, from, options)) end

---A run that exists, as it was at its last checkpoint that verifies.
---nil and a message when the folder holds none.
function M.open(dir, options)
  local run, message = require("weft.train.run").open(dir, options)
  return run, message
end

return M
