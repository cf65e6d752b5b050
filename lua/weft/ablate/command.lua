-- command.lua: a plan from its first line to its report: what it is, what it will take, the runs, the table.
local A = require "weft.args"

local M = {}

---The table of a folder on the terminal; table.csv, table.json and report.html written anew.
---@return table found
function M.show(dir, metric, quiet)
  local tables = require "weft.ablate.table"
  local found = require("weft.ablate.results").collect(dir, metric)
  tables.write(found)
  local ok, message = require("weft.report.ablation").write(found)
  if not ok then error(message, 0) end
  if quiet then return found end
  for _, line in ipairs(tables.lines(found)) do print(line) end
  print("report: " .. dir .. "/report.html")
  return found
end

-- What the plan will take, printed. An error where it can't be done.
local function measure(plan, given, o)
  local estimate = require "weft.ablate.estimate"
  local e, lines = estimate.check(plan, given)
  if not e then
    if o.dry_run then error("the first cell does not begin:\n  " .. table.concat(lines, "\n  "), 0) end
    print("  no estimate, since the first cell does not begin: " .. table.concat(lines, " | "))
    return nil
  end
  if not o.quiet then
    for _, line in ipairs(estimate.lines(e, given)) do print(line) end
  end
  local refused = estimate.refusal(e, given)
  if refused then error(refused, 0) end
  return e.seconds
end

---Prints the plan and what it will take, runs what is left of it, shows what was found.
---@param plan table
---@param options? table  dir, jobs (1), memory (MiB for all jobs), dry_run, quiet ("table": the table alone; true: nothing)
---@return table|nil summary  { dir, done, failed, stopped, pruned, found }; nil after a dry run
function M.run(plan, options)
  local o = A.options(options or {}, { dir = A.none, jobs = 1, memory = A.none, dry_run = false, quiet = false }, "ablate: run")
  if type(o.jobs) ~= "number" or o.jobs < 1 or o.jobs % 1 ~= 0 then
    A.raise("ablate: jobs: a whole number from 1 is expected, got %s", tostring(o.jobs))
  end
  local all = require("weft").threads()
  local given = { threads = math.max(1, math.floor(all / o.jobs)), jobs = o.jobs, dir = o.dir or plan:default_dir(), memory = o.memory }
  if not o.quiet then
    for _, line in ipairs(plan:describe()) do print(line) end
  end
  local expected = measure(plan, given, o)
  if o.dry_run then
    print("  would run in " .. given.dir)
    return nil
  end
  local done = require("weft.ablate.driver").run(plan, { dir = given.dir, jobs = o.jobs, threads = all, quiet = o.quiet and true,
    expected = expected })
  done.found = M.show(done.dir, plan.metric, o.quiet == true)
  return done
end

return M
