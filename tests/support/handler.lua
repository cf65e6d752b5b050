-- handler.lua: busted's output for bin/test. One line a test, written before and after it runs, so
-- that a crash shows where it happened; exact counts last, since busted's exit status wraps at 256
-- and is 0 when nothing ran.
local pretty = require "pl.pretty"
require "tests.support.temporary"

return function()
  local busted = require "busted"
  local handler = require "busted.outputHandlers.base"()
  local passed, failed, skipped = 0, 0, 0

  local function say(...)
    io.write(...)
    io.flush()
  end

  local function explain(entry)
    local message = entry.message
    if message == nil then message = "no message" end
    if type(message) ~= "string" then message = pretty.write(message) end
    local trace = entry.element.trace or {}
    say("  at ", trace.short_src or "?", ":", tostring(trace.currentline or "?"), "\n  ",
      (message:gsub("\n", "\n  ")), "\n")
    local where = entry.trace and entry.trace.traceback
    if where then say("  ", (where:gsub("^\n", ""):gsub("\n", "\n  ")), "\n") end
  end

  local function test_start(element)
    say(handler.getFullName(element), " ... ")
    return nil, true
  end

  local function test_end(_, _, status)
    if status == "success" then
      passed = passed + 1
      say("ok\n")
    elseif status == "pending" then
      skipped = skipped + 1
      local entry = handler.pendings[#handler.pendings]
      say("skipped", type(entry.message) == "string" and ": " .. entry.message or "", "\n")
    else
      failed = failed + 1
      say("FAILED\n")
      local list = status == "failure" and handler.failures or handler.errors
      explain(list[#list])
    end
    return nil, true
  end

  -- errors outside of a test: a file that does not load, a failing setup
  local function outside(element)
    if element.descriptor ~= "it" then
      failed = failed + 1
      say("FAILED outside of a test\n")
      local list = #handler.errors > 0 and handler.errors or handler.failures
      explain(list[#list])
    end
    return nil, true
  end

  busted.subscribe({ "test", "start" }, test_start)
  busted.subscribe({ "test", "end" }, test_end)
  busted.subscribe({ "error" }, outside)
  busted.subscribe({ "failure" }, outside)
  busted.subscribe({ "exit" }, function()
    if skipped > 0 then say(("%d skipped\n"):format(skipped)) end
    say(("%d passed, %d failed\n"):format(passed, failed))
    return nil, true
  end, { priority = 1000 })
  return handler
end
