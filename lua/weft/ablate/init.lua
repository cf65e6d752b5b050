-- ablate: many runs of one recipe, their values on a grid, compared in a table. What varies is grid.lua's,
-- cells plan.lua's, processes driver.lua's, figures results.lua's.
local A = require "weft.args"

local M = {}

local pending  -- what the command line adds to the plan of a file

local function more_of(list, more)
  local out = { unpack(list) }
  for _, item in ipairs(more or {}) do out[#out + 1] = item end
  return out
end

---A plan of cells. `weft ablate FILE.lua` runs what the file returns; from a script, plan:run { jobs = 2 },
---which prints the plan first and hands back what was found.
---@param o table  recipe (a path), grid ({ ["lora.rank"] = { 4, 8 }, seed = "1..3", ["lora.alpha"] = function(c) return 2 * c.lora.rank end }),
---  zip (list of tables whose lists go side by side), random ({ n, seed, draw }), fixed ("key=value" texts),
---  where (function of a cell's values: keep it?), set (function of them -> { key = value }), metric, better,
---  shared_until (false: every cell whole; a name: of the phase that is shared), prune (a figure: successive halving by it)
---@return table plan
---
---    local plan = weft.ablate { recipe = "recipes/quickstart.lua", metric = "retrieval.r_mean",
---      grid = { ["lora.rank"] = { 4, 16 }, seed = { 1, 2 } } }
---    print(#plan.cells)
function M.ablate(o)
  o = A.options(o, { recipe = A.required, grid = {}, zip = {}, random = A.none, fixed = {}, where = A.none, set = A.none, metric = A.none,
    better = A.none, shared_until = A.none, prune = A.none }, "ablate")
  local more = pending or {}
  pending = nil
  local grid = require "weft.ablate.grid"
  local axes, computed = grid.of_tables(o.grid, o.zip)
  if o.random then table.insert(axes, grid.random_axis(o.random)) end
  local share = o.shared_until
  if more.share ~= nil then share = more.share end
  local plan = require("weft.ablate.plan").new { recipe = o.recipe, axes = more_of(axes, more.axes), computed = more_of(computed, more.computed),
    fixed = more_of(o.fixed, more.fixed), where = more.where or o.where, set = o.set, metric = more.metric or o.metric,
    better = more.better or o.better, share = share, prune = more.prune or o.prune }
  for _, w in ipairs(plan.warmups) do
    if o.shared_until and w.phase ~= o.shared_until then
      A.raise("ablate: shared_until: what can be shared ends with %s, not with %s", w.phase, tostring(o.shared_until))
    end
  end
  return (M.runnable(plan))
end

-- For the next weft.ablate call, that of a plan's file: axes, computed, fixed, where, metric, better, share, prune.
function M.set_next(more) pending = more end

---Gives a plan its run method.
function M.runnable(plan)
  function plan:run(options) return (require("weft.ablate.command").run(self, options)) end
  plan.is_ablation = true
  return plan
end

return M
