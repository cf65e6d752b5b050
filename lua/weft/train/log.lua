-- log.lua: what a run says: log.txt and metrics.jsonl in its folder, and the terminal: one live line
-- there, plain lines elsewhere.
local C = require("weft.core").lib
local files = require "weft.files"

local Log = {}
Log.__index = Log

---A log in a folder. quiet: nothing on standard output.
function Log.new(dir, options)
  local self = setmetatable({ dir = dir, quiet = options and options.quiet, live = false }, Log)
  self.terminal = not self.quiet and C.weft_is_terminal(1) and os.getenv "TERM" ~= "dumb"
  return self
end

local function check(ok, message)
  if not ok then error("log: " .. message, 0) end
end

---One line, on the terminal and in log.txt.
function Log:line(format, ...)
  local text = select("#", ...) > 0 and format:format(...) or format
  if not self.quiet then
    if self.live then io.stdout:write "\r\27[K" end
    self.live = false
    io.stdout:write(text, "\n")
    io.stdout:flush()
  end
  if self.dir then check(files.append(self.dir .. "/log.txt", text .. "\n")) end
end

---The state of training: redrawn in place on a terminal, elsewhere a line now and then.
function Log:status(text, due)
  if self.terminal then
    local width = tonumber(os.getenv "COLUMNS") or 100
    io.stdout:write("\r\27[K", text:sub(1, width - 1))
    io.stdout:flush()
    self.live = true
  elseif due and not self.quiet then
    io.stdout:write(text, "\n")
    io.stdout:flush()
  end
  if due and self.dir then check(files.append(self.dir .. "/log.txt", text .. "\n")) end
end

---One object of metrics.jsonl.
function Log:metrics(row)
  if not self.dir then return end
  local json = require "weft.io.json"
  check(files.append(self.dir .. "/metrics.jsonl", json.encode(row, { sort = true }) .. "\n"))
end

---Sizes of the files, so that a resumed run goes on where its checkpoint was.
function Log:state()
  return { log = files.size(self.dir .. "/log.txt"), metrics = files.size(self.dir .. "/metrics.jsonl") }
end

function Log:load_state(s)
  for name, key in pairs { ["log.txt"] = "log", ["metrics.jsonl"] = "metrics" } do
    local size = files.size(self.dir .. "/" .. name)
    if s[key] and s[key] >= 0 and size > s[key] then check(files.truncate(self.dir .. "/" .. name, s[key])) end
  end
end

return Log
