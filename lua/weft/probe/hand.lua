-- hand.lua: a run in one's own hands: opened for looking, stepped a little, its recipe edited and loaded
-- again. None of it writes into the run's folder.
local A = require "weft.args"
local files = require "weft.files"

local M = {}

-- Nothing of what follows is kept: neither logs nor checkpoints.
local function unplug(run)
  run.log.dir, run.log.quiet = nil, true
  run.save = function() end
  run.options.checkpoint_every = 0
  run.started, run.rates = run.started or files.clock(), run.rates or {}
  return run
end

---A run to look at: of a run's folder as its newest checkpoint left it, or of a recipe as it begins.
---@param path string
---@param overrides? string[]
---@return table run, string? note  what is not as the run had it
function M.open(path, overrides)
  local train = require "weft.train"
  if files.is_dir(path) then
    local options = { quiet = true, overrides = overrides, allow = {} }
    for _, text in ipairs(overrides or {}) do table.insert(options.allow, (text:match "^[^=]*")) end
    local ok, run, message = pcall(train.open, path, options)
    if ok and run then return unplug(run), #run.warnings > 0 and table.concat(run.warnings, "\n") or nil end
    local why = ok and message or run
    local again
    again, message = train.open(path, { quiet = true, for_use = true })
    if not again then error(why or message, 0) end
    return unplug(again), "the pictures are not at hand: " .. tostring(why)
  end
  local run = files.temporary(function(dir)
    return train.start(train.load_recipe(path, overrides), { dir = dir .. "/look", quiet = true })
  end)
  run.warnings = {}
  return unplug(run)
end

---A few pictures with their captions, as a run's losses take them: held out, or of the training set.
function M.batch(run, n)
  local size = require("weft.data.rows").size
  local set = size(run.data.test.rows) > 0 and run.data.test or run.data.train
  if size(set.rows) == 0 then return nil end
  local indices = {}
  for i = 1, math.min(n or 8, size(set.rows)) do indices[i] = i end
  return (set:batch_of(indices))
end

---Trains n steps and says what they cost; the run goes on from there in memory alone. One that is at its end
---takes its last epoch again.
---@param run table
---@param n? integer
---@return table losses  of the last step, with grad_norm and lr
function M.step(run, n)
  if rawget(run, "recipe") == nil then A.raise("step: a run is expected, got %s", A.typename(run)) end
  local out
  run.model:train()
  run.hand_epochs = run.hand_epochs or run:epochs()
  for _ = 1, n or 1 do
    local stepped = false
    while not stepped do
      if not run.hand_batches then
        if not run.hand_epochs() then
          run.epoch, run.position, run.epoch_done = run.options.epochs, 0, false
          run.hand_epochs = run:epochs()
          run.hand_epochs()
        end
        run.hand_batches = run:batches()
      end
      local batch = run.hand_batches()
      if not batch then run.hand_batches = nil else
        run:train_step(batch, function(b) return run.model:losses(b) end)
        stepped = batch.micro == run.options.accumulate
      end
    end
    out = setmetatable({ step = run.step, phase = run.phase.name, grad_norm = run.norm, lr = math.max(0, unpack(run.rates)) }, {
      __tostring = function(self)
        local names, parts = {}, {}
        for name in pairs(self) do
          if name ~= "step" and name ~= "phase" and name ~= "total" and name ~= "grad_norm" and name ~= "lr" then names[#names + 1] = name end
        end
        table.sort(names)
        for i, name in ipairs(names) do parts[i] = ("%s %.4f"):format(name, self[name]) end
        return ("%s  step %d  loss %.4f (%s)  lr %.2e  norm %.3f"):format(self.phase, self.step, self.total or 0, table.concat(parts, " "), self.lr,
          self.grad_norm)
      end,
    })
    for name, v in pairs(run.sums) do out[name] = v end
  end
  rawset(run, "_embedded", nil)
  return out
end

-- Modules that a recipe's folder brought are read anew.
local function forget(path)
  local beside = path:match "^(.*)/[^/]*$" or "."
  for name in pairs(package.loaded) do
    local found = not name:find "^weft" and package.searchpath(name, beside .. "/?.lua")
    if found or name == "vision_language" then package.loaded[name] = nil end
  end
end

local function shape(t) return "[" .. table.concat(t.shape, ",") .. "]" end

---Reads a run's recipe again and builds its model anew with the weights that it has: those whose names and shapes
---are as before. What is new, gone or of another shape is said.
---@param run table
---@param overrides? string[]
---@return table run  a new one; the old one stays as it is
---@return string text  what was carried over
function M.reload(run, overrides)
  local train = require "weft.train"
  local path = run.recipe.path
  forget(path)
  local recipe = train.load_recipe(path, overrides, require("weft.config").values(run.config))
  local new = files.temporary(function(dir)
    return train.start(recipe, { dir = dir .. "/look", quiet = true, tokenizer = run.data.tokenizer })
  end)
  unplug(new)
  local mine, old = new.model:state_dict(), run.model:state_dict()
  local same, fresh, other, gone = 0, {}, {}, {}
  require("weft.autograd").no_grad(function()
    for key, t in pairs(mine) do
      if not old[key] then fresh[#fresh + 1] = key
      elseif shape(t) ~= shape(old[key]) then other[#other + 1] = ("%s was %s, is %s"):format(key, shape(old[key]), shape(t))
      else
        t:copy_(old[key])
        same = same + 1
      end
    end
  end)
  for key in pairs(old) do
    if not mine[key] then gone[#gone + 1] = key end
  end
  new.step, new.epoch, new.position, new.history = run.step, run.epoch, run.position, run.history
  new.dir, new.warnings = run.dir, {}
  local lines = { ("%d tensors carried over"):format(same) }
  for _, part in ipairs { { "new", fresh }, { "another shape", other }, { "gone", gone } } do
    table.sort(part[2])
    if #part[2] > 0 then
      lines[#lines + 1] = ("%s: %s%s"):format(part[1], table.concat(part[2], ", ", 1, math.min(6, #part[2])), #part[2] > 6
        and (", ... %d in all"):format(#part[2]) or "")
    end
  end
  return new, table.concat(lines, "\n")
end

return M
