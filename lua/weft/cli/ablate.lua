-- ablate.lua: `weft ablate`: a recipe over a grid of values, each cell a run of its own.
local M = {
  summary = "run a recipe over a grid of values and compare",
  usage = "RECIPE.lua key=value,value ... | PLAN.lua | --status DIR",
  about = "key=a,b sweeps, key=1..3 counts, key+key=a+b,c+d goes side by side, key=value is the same for all.\n"
    .. "Cells that differ only in what the recipe's after_warmup names train their first phase once.\n"
    .. "Started again it goes on: what is done stays, what was in the middle resumes, failed cells are tried again.",
  options = {
    { "out", "the plan's folder", value = "DIR", default = "runs/<recipe>/ablate-<hash>" },
    { "jobs", "cells at a time; the threads are shared among them", value = "N", default = 1 },
    { "metric", "figure of result.json that is compared", value = "NAME", default = "the recipe's" },
    { "better", "higher or lower", value = "WHICH", default = "higher; lower for a loss" },
    { "whole", "share nothing: each cell trains from the start" },
    { "prune", "successive halving: at a few epochs the worse half by this figure goes no further", value = "NAME" },
    { "memory", "MiB for all jobs; cells that can't fit are refused", value = "MIB", default = "what is free" },
    { "dry-run", "print the plan, measure one step of each phase, and stop" },
    { "status", "how far a plan is, from its folder", value = "DIR" },
    { "quiet", "the table alone" },
  },
  examples = {
    "weft ablate recipes/stage1.lua lora.rank=4,8,16,32 lora.alpha=16,32 seed=1,2,3 --jobs 2",
    "weft ablate recipes/stage1.lua lora.rank=2,4,8,16,32,64 --prune retrieval.r_mean",
    "weft ablate --status runs/stage1/ablate-1a2b3c4d",
  },
}

local function show(dir, metric)
  local tables = require "weft.ablate.table"
  local found = tables.collect(dir, metric)
  tables.write(found)
  local ok, message = require("weft.report.ablation").write(found)
  if not ok then error(message, 0) end
  for _, line in ipairs(tables.lines(found)) do print(line) end
  print("report: " .. dir .. "/report.html")
end

-- A plan file returns weft.ablate{...}; a recipe takes its grid from the words.
local function plan_of(path, words, args)
  local ablate = require "weft.ablate"
  local text, message = require("weft.files").read(path)
  if text and text:find("ablate%s*[{(]") then
    local value = assert(loadfile(path))()
    if type(value) == "table" and value.is_ablation then
      if #words > 0 or args.whole or args.prune then
        error({ usage = path .. " is a whole plan; key=value words and --whole go with a recipe" }, 0)
      end
      value.metric, value.better = args.metric or value.metric, args.better or value.better
      return value
    end
  elseif not text and not path:find "^recipes/" then error(message, 0) end
  local axes, fixed = require("weft.ablate.grid").parse(words)
  return ablate.runnable(require("weft.ablate.plan").new { recipe = path, axes = axes, fixed = fixed, metric = args.metric,
    better = args.better, share = not args.whole, prune = args.prune })
end

function M.run(args)
  if args.status then
    show(args.status, args.metric)
    return 0
  end
  local words, path = {}, nil
  for _, word in ipairs(args) do
    if word:find("=", 1, true) then words[#words + 1] = word
    elseif path then error({ usage = ("one recipe is expected, got %s and %s"):format(path, word) }, 0)
    else path = word end
  end
  if not path then error({ usage = "a recipe or a plan is expected, such as recipes/stage1.lua lora.rank=4,8" }, 0) end
  local jobs = tonumber(args.jobs or 1)
  if not jobs or jobs < 1 or jobs % 1 ~= 0 then error({ usage = "--jobs wants a whole number from 1, got " .. args.jobs }, 0) end
  local plan = plan_of(path, words, args)
  if not args.quiet or args["dry-run"] then
    for _, line in ipairs(plan:describe()) do print(line) end
  end
  local threads = math.max(1, math.floor(require("weft").threads() / jobs))
  local memory = args.memory and tonumber(args.memory)
  if args.memory and not memory then error({ usage = "--memory wants MiB, got " .. args.memory }, 0) end
  local estimate = require "weft.ablate.estimate"
  local given = { threads = threads, jobs = jobs, dir = args.out or plan:default_dir(), memory = memory }
  local e, lines = estimate.check(plan, given)
  if e then
    if not args.quiet or args["dry-run"] then
      for _, line in ipairs(estimate.lines(e, given)) do print(line) end
    end
    local refused = estimate.refusal(e, given)
    if refused then error(refused, 0) end
  elseif args["dry-run"] then
    error("the first cell does not begin:\n  " .. table.concat(lines, "\n  "), 0)
  else
    print("  no estimate, since the first cell does not begin: " .. table.concat(lines, " | "))
  end
  if args["dry-run"] then
    print("  would run in " .. given.dir)
    return 0
  end
  local done = plan:run { dir = args.out, jobs = jobs, quiet = args.quiet or false }
  show(done.dir, args.metric)
  if done.stopped > 0 then
    io.stderr:write(("stopped with %d cells to do; the same command goes on\n"):format(done.stopped))
    return 75
  end
  return done.failed > 0 and 1 or 0
end

return M
