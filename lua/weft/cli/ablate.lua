-- ablate.lua: `weft ablate`: a recipe over a grid of values, each cell a run of its own.
local M = {
  summary = "run a recipe over a grid of values and compare",
  usage = "RECIPE.lua key=value,value ... | PLAN.lua [key=value ...] | --status DIR",
  about = "key=a,b sweeps, key=1..3 counts, key+key=a+b,c+d goes side by side, key=value is the same for all.\n"
    .. "key:=2*lora.rank is computed from others; key=4~64, key=log:0.1~10 and key=~a,b,c are drawn at random.\n"
    .. "Cells that differ only in what the recipe's after_warmup names train their first phase once.\n"
    .. "Started again it goes on: what is done stays, what was in the middle resumes, failed cells are tried again.",
  options = {
    { "out", "the plan's folder", value = "DIR", default = "runs/<recipe>/ablate-<hash>" },
    { "jobs", "cells at a time; the threads are shared among them", value = "N", default = 1 },
    { "metric", "figure of result.json that is compared", value = "NAME", default = "the recipe's" },
    { "better", "higher or lower", value = "WHICH", default = "higher; lower for a loss" },
    { "where", "keep the cells for which this is true, such as 'lora.rank <= lora.alpha'", value = "EXPR" },
    { "draws", "how many times the keys that are random are drawn", value = "N" },
    { "draw-seed", "seed of the draws", value = "N", default = 0 },
    { "whole", "share nothing: each cell trains from the start" },
    { "prune", "successive halving: at a few epochs the worse half by this figure goes no further", value = "NAME" },
    { "memory", "MiB for all jobs; cells that can't fit are refused", value = "MIB", default = "what is free" },
    { "dry-run", "print the plan, measure one step of each phase, and stop" },
    { "status", "how far a plan is, from its folder", value = "DIR" },
    { "quiet", "the table alone" },
  },
  examples = {
    "weft ablate recipes/stage1.lua lora.rank=4,8,16,32 lora.alpha=16,32 seed=1,2,3 --jobs 2",
    "weft ablate recipes/stage1.lua lora.rank=2,4,8,16,32,64 lora.alpha:=2*lora.rank --prune retrieval.r_mean",
    "weft ablate recipes/stage1.lua lora_lr=log:0.1~10 lora.rank=2~64 --draws 20 --jobs 4",
    "weft ablate --status runs/stage1/ablate-1a2b3c4d",
  },
}

-- A plan file returns weft.ablate{...}, to which the words add; a recipe takes its grid from the words alone.
local function plan_of(path, words, args)
  local ablate, grid = require "weft.ablate", require "weft.ablate.grid"
  local axes, fixed, computed, draw = grid.parse(words)
  local draws = tonumber(args.draws or 0)
  if next(draw) and (draws < 1 or draws % 1 ~= 0) then
    error({ usage = next(draw) .. " is drawn at random: say how many draws with --draws N" }, 0)
  elseif args.draws and not next(draw) then
    error({ usage = "--draws wants a key to draw, such as lora_lr=log:0.1~10" }, 0)
  end
  if next(draw) then table.insert(axes, grid.random_axis { n = draws, seed = tonumber(args["draw-seed"] or 0), draw = draw }) end
  local where = args.where and grid.condition(args.where)
  local share = nil
  if args.whole then share = false end
  local given = { axes = axes, fixed = fixed, computed = computed, where = where, metric = args.metric, better = args.better, share = share,
    prune = args.prune }
  local text, message = require("weft.files").read(path)
  if text and text:find("ablate%s*[{(]") then
    ablate.set_next(given)
    local value = assert(loadfile(path))()
    ablate.set_next(nil)
    if type(value) == "table" and value.is_ablation then return value end
  elseif not text and not path:find "^recipes/" then error(message, 0) end
  given.recipe = path
  return ablate.runnable(require("weft.ablate.plan").new(given))
end

local function number(args, name, what)
  local n = tonumber(args[name])
  if args[name] and not n then error({ usage = ("--%s wants %s, got %s"):format(name, what, args[name]) }, 0) end
  return n
end

function M.run(args)
  local command = require "weft.ablate.command"
  if args.status then
    command.show(args.status, args.metric)
    return 0
  end
  local words, path = {}, nil
  for _, word in ipairs(args) do
    if word:find("=", 1, true) then words[#words + 1] = word
    elseif path then error({ usage = ("one recipe is expected, got %s and %s"):format(path, word) }, 0)
    else path = word end
  end
  if not path then error({ usage = "a recipe or a plan is expected, such as recipes/stage1.lua lora.rank=4,8" }, 0) end
  local jobs = number(args, "jobs", "a whole number from 1") or 1
  if jobs < 1 or jobs % 1 ~= 0 then error({ usage = "--jobs wants a whole number from 1, got " .. args.jobs }, 0) end
  local memory = number(args, "memory", "MiB")
  for _, name in ipairs { "draws", "draw-seed" } do number(args, name, "a whole number") end
  local plan = plan_of(path, words, args)
  local done = command.run(plan, { dir = args.out, jobs = jobs, memory = memory, dry_run = args["dry-run"] or false,
    quiet = args.quiet and not args["dry-run"] and "table" or false })
  if not done then return 0 end
  if done.stopped > 0 then
    io.stderr:write(("stopped with %d cells to do; the same command goes on\n"):format(done.stopped))
    return 75
  end
  return done.failed > 0 and 1 or 0
end

return M
