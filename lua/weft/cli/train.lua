-- train.lua: `weft train`: runs a recipe, or goes on with a run.
local M = {
  summary = "run a recipe: train, evaluate, save",
  usage = "RECIPE.lua [key.sub=value ...] | --resume RUN",
  about = "key.sub=value changes the recipe's defaults; a list is [a,b]. A run lies in runs/<recipe>/<date>-<name>.",
  options = {
    { "resume", "go on with a run, from its newest good checkpoint", value = "RUN" },
    { "name", "the run's name", value = "NAME", default = "run" },
    { "runs", "folder of all runs", value = "DIR", default = "runs" },
    { "dir", "the run's own folder, in place of a dated one", value = "DIR" },
    { "until", "stop at the end of this phase, its checkpoint written", value = "PHASE" },
    { "branch", "begin where RUN stopped with --until; adapters begin anew", value = "RUN" },
    { "dry-run", "build everything, run one step, say what it takes, stop" },
    { "print-config", "print the config after overrides, and stop" },
    { "quiet", "nothing on standard output; log.txt has it all" },
  },
  examples = {
    "weft train recipes/stage1.lua data.root=/data/coco lora.rank=32 lora.targets=[query,value]",
    "weft train --resume runs/stage1/2026-11-22-a",
  },
}

local function print_config(config)
  local flat, paths = require("weft.config").flat(config)
  for _, path in ipairs(paths) do
    local v = flat[path]
    if type(v) == "table" then
      local items = {}
      for i, x in ipairs(v) do items[i] = tostring(x) end
      v = "[" .. table.concat(items, ",") .. "]"
    end
    print(("%s=%s"):format(path, tostring(v)))
  end
end

local function dry_run(run)
  local C = require("weft.core").lib
  local clock = require("weft.files").clock
  run.log.dir = nil
  run:print_start()
  run:enter_phase()
  local batch = run.data.train:reader({ epoch = 1, position = 0, batch = run.options.batch, accumulate = run.options.accumulate,
    seed = run.options.seed })()
  local start = clock()
  batch.micro = run.options.accumulate
  run.sums = {}
  run.optimizer:zero_grad()
  run:micro_step(batch, function(b) return run.model:losses(b) end)
  run.log:line("dry run: one step of %d pictures took %.2f s; peak of tensors %d MiB, of the process %d MiB; nothing was kept",
    #batch.indices, clock() - start, tonumber(C.weft_memory_of(0).peak) / 2 ^ 20, tonumber(C.weft_peak_rss()))
end

function M.run(args)
  local train = require "weft.train"
  local C = require("weft.core").lib
  local overrides, path = {}, nil
  for _, word in ipairs(args) do
    if word:find("=", 1, true) then overrides[#overrides + 1] = word
    elseif path then error({ usage = ("one recipe is expected, got %s and %s"):format(path, word) }, 0)
    else path = word end
  end
  local run
  if args.resume then
    if path then error({ usage = "--resume takes its recipe from the run; name only the run" }, 0) end
    local message
    run, message = train.open(args.resume, { quiet = args.quiet, overrides = overrides })
    if not run then error(message, 0) end
  else
    if not path then error({ usage = "a recipe is expected, such as recipes/stage1.lua" }, 0) end
    local recipe = train.load_recipe(path, overrides)
    if args["print-config"] then
      print_config(recipe.config)
      return 0
    end
    local dir, given = nil, { name = args.name, root = args.runs, dir = args.dir, quiet = args.quiet, overrides = overrides }
    if args["dry-run"] then dir = os.tmpname() .. ".dry" end
    given.dir = dir or given.dir
    if args.branch then run = train.branch(recipe, args.branch, given) else run = train.start(recipe, given) end
    if dir then
      local ok, message = pcall(dry_run, run)
      os.execute(("rm -rf '%s'"):format(dir))
      if not ok then error(message, 0) end
      return 0
    end
  end
  if args["until"] then require("weft.train.branch").stop_after(run, args["until"]) end
  C.weft_catch_stop(true)
  run.should_stop = function() return C.weft_stop_requested() end
  local ok, problem = xpcall(run.train, function(e)
    if type(e) ~= "table" and os.getenv "WEFT_TRACE" then return debug.traceback(e, 2) end
    return e
  end, run)
  C.weft_catch_stop(false)
  if ok then return 0 end
  if type(problem) == "table" and problem.stopped then
    run.log:line("stopped; a checkpoint is written: weft train --resume %s", run.dir)
    return 75
  end
  error(problem, 0)
end

return M
