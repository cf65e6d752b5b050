-- train.lua: `weft train`: runs a recipe, or goes on with a run.
local M = {
  summary = "run a recipe: train, evaluate, save",
  usage = "RECIPE.lua [key.sub=value ...] | --resume RUN",
  about = "key.sub=value changes the recipe's defaults; a list is [a,b]. A run lies in runs/<recipe>/<date>-<name>.",
  options = {
    { "resume", "go on with a run, from its newest good checkpoint; RUN/best: from that one, in a new folder", value = "RUN" },
    { "allow", "with --resume: keys that may differ from the run's, by commas", value = "KEYS" },
    { "name", "the run's name", value = "NAME", default = "run" },
    { "runs", "folder of all runs", value = "DIR", default = "runs" },
    { "dir", "the run's own folder, in place of a dated one", value = "DIR" },
    { "until", "stop at the end of this phase or epoch, its checkpoint written", value = "WHEN" },
    { "branch", "begin where RUN stopped with --until; adapters begin anew", value = "RUN" },
    { "no-tensorboard", "write no event file for TensorBoard into the run's folder" },
    { "memory", "most that tensors may take: MiB, or 24GiB; beyond it the run fails", value = "SIZE" },
    { "dry-run", "say what memory each phase takes and which batch fits in --memory (or device.memory=24GiB), "
      .. "on a device that is not here too; run one step of each phase; stop" },
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

-- Bytes of a checkpoint: all that the model holds, and the optimizer's two of what trains.
local function checkpoint_bytes(run, trained)
  local bytes = 8 * trained
  for _, t in pairs(run.model:state_dict()) do
    bytes = bytes + t:numel() * (tonumber(t.dtype:match "%d+$" or 8) / 8)
  end
  return bytes
end

-- Memory by shapes alone, and the largest batch that fits: in what was named, or in what is free here.
local function plan_memory(run, room)
  local memory = require "weft.train.memory"
  local ok, estimate = pcall(memory.estimate, run)
  if not ok then
    if tostring(estimate):find "interrupted!$" then error(estimate, 0) end  -- Ctrl-C
    run.log:line("dry run: no estimate by shapes alone: %s", tostring(estimate))
    return
  end
  for line in tostring(estimate):gmatch "[^\n]+" do run.log:line("dry run: %s", line) end
  local bytes = room or run.options.device == "cpu" and require("weft.ablate.estimate").free_memory() or nil
  if not bytes or bytes == math.huge then return end
  local batch, takes = memory.largest(run, bytes)
  local where = room and memory.size(bytes) or ("the %s that are free here"):format(memory.size(bytes))
  if batch == 0 then run.log:line("dry run: not even one picture fits in %s", where) else
    run.log:line("dry run: the largest batch that fits in %s: %d%s, which takes %s", where, batch,
      batch == run.data.train:size() and " (all pictures)" or "", memory.size(takes))
  end
end

local SHORT = 5  -- seconds of a step that may be taken twice

-- One step of the phase that the run is in: pictures, seconds. What comes first of all (memory, threads, features
-- of a frozen encoder) is not what most steps take: the last batch is taken again where that costs little.
local function one_step(run)
  local clock = require("weft.files").clock
  local start, pictures, last = clock(), 0, nil
  local function take(batch) run:micro_step(batch, function(b) return run.model:losses(b) end) end
  for batch in run:batches() do
    take(batch)
    pictures, last = pictures + #batch.indices, batch
    if batch.micro == run.options.accumulate then break end
  end
  local seconds = clock() - start
  if last and seconds < SHORT then
    start = clock()
    take(last)
    seconds = math.min(seconds, (clock() - start) * last.micro)
  end
  return pictures, seconds
end

local function dry_run(run, room, absent)
  local C = require("weft.core").lib
  run.log.dir = nil
  run:print_start()
  plan_memory(run, room)
  if absent then
    run.log:line("dry run: nothing was computed: %s", absent)
    return
  end
  local trained, per_epoch = 0, run.options.steps_per_epoch
  for _, phase in ipairs(run.plan) do
    if phase.last >= phase.first then
      run.epoch, run.position = phase.first, 0
      run:enter_phase()
      trained = math.max(trained, run.model:count(true))
      run.log:line("dry run: %s: %d steps, one of %d pictures took %.3f s", phase.name, (phase.last - phase.first + 1) * per_epoch,
        one_step(run))
    end
  end
  run.log:line("dry run: peak of tensors %d MiB, of the process %d MiB; a checkpoint takes %.1f MiB; nothing was kept",
    tonumber(C.weft_memory_of(0).peak) / 2 ^ 20, tonumber(C.weft_peak_rss()), checkpoint_bytes(run, trained) / 2 ^ 20)
end

function M.run(args)
  local train = require "weft.train"
  local C = require("weft.core").lib
  local overrides, path = {}, nil
  for _, word in ipairs(args) do
    if word:find "^device%.memory=" then args.memory = args.memory or word:match "=(.*)$"
    elseif word:find("=", 1, true) then overrides[#overrides + 1] = word
    elseif path then error({ usage = ("one recipe is expected, got %s and %s"):format(path, word) }, 0)
    else path = word end
  end
  local room, absent
  if args.memory then
    room = require("weft.train.memory").bytes_of(args.memory)
    if not room then error({ usage = "--memory wants MiB, or a size such as 24GiB, got " .. args.memory }, 0) end
  end
  local run
  if args.resume then
    if path then error({ usage = "--resume takes its recipe from the run; name only the run" }, 0) end
    local message
    local allow = {}
    for key in (args.allow or ""):gmatch "[^,%s]+" do allow[#allow + 1] = key end
    local resume = require "weft.train.resume"
    local dir
    dir, message = resume.place(args.resume, args.dir)
    if not dir then error(message, 0) end
    if dir ~= require("weft.train.checkpoint").place(args.resume) and not args.quiet then
      print(("%s has later checkpoints: this run goes on from %s in %s"):format(args.resume:match "^(.*)/" or ".", args.resume, dir))
    end
    run, message = train.open(dir, { quiet = args.quiet, overrides = overrides, allow = allow })
    if not run then error(message, 0) end
    if room then require("weft").memory_limit(math.floor(room), run.options.device) end
  else
    if not path then error({ usage = "a recipe is expected, such as recipes/stage1.lua" }, 0) end
    local recipe = train.load_recipe(path, overrides)
    if args["print-config"] then
      print_config(recipe.config)
      return 0
    end
    local device = require("weft.config").get(recipe.config, "device", "cpu")
    if args["dry-run"] and C.weft_memory_of(C.weft_device_of(device)) == nil then absent = require("ffi").string(C.weft_error()) end
    if room and not absent then require("weft").memory_limit(math.floor(room), device) end
    local function start(dir)
      local given = { name = args.name, root = args.runs, dir = dir, quiet = args.quiet, overrides = overrides, absent = absent }
      if args.branch then return (train.branch(recipe, args.branch, given)) end
      return (train.start(recipe, given))
    end
    if args["dry-run"] then
      require("weft.files").temporary(function(dir) dry_run(start(dir .. "/dry"), room, absent) end)
      return 0
    end
    run = start(args.dir)
  end
  if args["until"] then require("weft.train.branch").stop_after(run, args["until"]) end
  run.tensorboard = not args["no-tensorboard"]
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
