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
    if self.live then
      local rows = math.ceil(self.live / require("weft.terminal").size()) - 1
      io.stdout:write(rows > 0 and ("\27[%dA\r\27[J"):format(rows) or "\r\27[K")
    end
    self.live = false
    io.stdout:write(text, "\n")
    io.stdout:flush()
  end
  if self.dir then check(files.append(self.dir .. "/log.txt", text .. "\n")) end
end

---Pieces { text, weight } as one line of at most width characters: the lightest are left out.
---@param pieces table[]
---@param width? integer
---@return string
function Log.fit(pieces, width)
  local left = { unpack(pieces) }
  while true do
    local texts = {}
    for i, p in ipairs(left) do texts[i] = p[1] end
    local text = table.concat(texts, "  ")
    if not width or #text <= width or #left <= 1 then return width and text:sub(1, width) or text end
    local lightest = 1
    for i, p in ipairs(left) do
      if p[2] < left[lightest][2] then lightest = i end
    end
    table.remove(left, lightest)
  end
end

---The state of training: redrawn in place on a terminal, as wide as it is now; elsewhere a line now and then.
---@param pieces table[]  of fit
---@param due boolean  whether log.txt gets it, and output that is no terminal
function Log:status(pieces, due)
  local text = due and Log.fit(pieces) or nil
  if self.terminal then
    local columns = require("weft.terminal").size()
    -- a line that has become too wide takes more rows: the terminal has broken it
    local rows = self.live and math.ceil(self.live / columns) - 1 or 0
    local line = Log.fit(pieces, columns - 1)
    io.stdout:write(rows > 0 and ("\27[%dA\r\27[J"):format(rows) or "\r\27[K", line)
    io.stdout:flush()
    self.live = #line
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
  if self.events then self.events:scalars(row.step, require("weft.train.tensorboard").tags(row)) end
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
