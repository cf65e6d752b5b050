-- keys.lua: what is typed, character by character, for line.lua. A bracketed paste is told from typing: its
-- tabs complete nothing, and what follows on its further lines waits for Enter.
local ffi = require "ffi"
local bit = require "bit"

ffi.cdef [[
typedef struct weft_pollfd { int fd; short events, revents; } weft_pollfd;
int poll(weft_pollfd *fds, unsigned long n, int timeout);
long read(int fd, void *into, size_t n);
]]

local M = {}

-- xterm's mode 2004: the terminal sends these around what is pasted
local BEGIN, FINISH = "\27[200~", "\27[201~"
local ESCAPE_WAIT = 50 -- ms in which the rest of a key's sequence comes
local QUOTE = 22       -- Ctrl-V: the next character is meant as it is

M.ON, M.OFF = "\27[?2004h", "\27[?2004l"

---@param options table  fd, interrupted (function: true stops the waiting)
function M.new(options)
  local self = { queue = {}, first = 1, last = 0, rest = nil }
  local watched = ffi.new("weft_pollfd[1]", { { fd = options.fd, events = 1 } })
  local byte = ffi.new "unsigned char[1]"

  local function ready(wait)
    return ffi.C.poll(watched, 1, wait) > 0 and bit.band(watched[0].revents, 1) ~= 0
  end

  -- The next byte; nil at the end, or once interrupted.
  local function next_byte()
    while true do
      local n = ffi.C.read(options.fd, byte, 1)
      if n == 1 then return byte[0] end
      if n == 0 or ffi.errno() ~= 4 or options.interrupted() then return nil end -- 4: EINTR
    end
  end

  local function put(code)
    self.last = self.last + 1
    self.queue[self.last] = code
  end

  -- The character that begins with a byte.
  local function character(b)
    local more = b >= 240 and 3 or b >= 224 and 2 or b >= 192 and 1 or 0
    local code = more == 0 and b or b % 2 ^ (6 - more)
    for _ = 1, more do
      local c = next_byte()
      if not c then return code end
      code = code * 64 + c % 64
    end
    return code
  end

  -- A line of a paste, as if it were typed.
  local function put_line(text)
    local i = 1
    while i <= #text do
      local b = text:byte(i)
      local length = b >= 240 and 4 or b >= 224 and 3 or b >= 192 and 2 or 1
      if length == 1 then
        if b == 9 then put(QUOTE) end
        if b == 9 or b >= 32 then put(b) end
      else
        local code = b % 2 ^ (7 - length)
        for k = i + 1, i + length - 1 do code = code * 64 + (text:byte(k) or 0) % 64 end
        put(code)
      end
      i = i + length
    end
  end

  local function feed()
    local line, rest = self.rest:match "^([^\n]*)\n(.*)$"
    put_line(line or self.rest)
    if line then put(13) end
    self.rest = rest
  end

  local function paste()
    local bytes = {}
    while true do
      local b = next_byte()
      if not b then break end
      bytes[#bytes + 1] = string.char(b)
      if b == 126 and #bytes >= #FINISH and table.concat(bytes, "", #bytes - #FINISH + 1) == FINISH then
        for _ = 1, #FINISH do bytes[#bytes] = nil end
        break
      end
    end
    self.rest = table.concat(bytes):gsub("\r\n?", "\n")
    feed()
  end

  -- After an escape: the beginning of a paste, or the bytes as they came.
  local function escape()
    local text = "\27"
    while text == BEGIN:sub(1, #text) and text ~= BEGIN do
      if not ready(ESCAPE_WAIT) then break end
      local b = next_byte()
      if not b then break end
      text = text .. string.char(b)
    end
    if text == BEGIN then return paste() end
    for i = 1, #text do put(text:byte(i)) end
  end

  ---The next character's code; -1 at the end.
  function self.get()
    while true do
      if self.first <= self.last then
        local code = self.queue[self.first]
        self.queue[self.first] = nil
        self.first = self.first + 1
        return code
      end
      local b = next_byte()
      if not b then return -1 end
      if b == 27 then escape() else return character(b) end
    end
  end

  ---Whether something waits that needs no reading.
  function self.waiting() return self.first <= self.last end

  ---After a line: whether it was one of a paste that has more. The next of them is fed then.
  function self.more()
    if self.waiting() or not self.rest then return false end
    feed()
    return true
  end

  ---Forgets what waits.
  function self.clear() self.queue, self.first, self.last, self.rest = {}, 1, 0, nil end

  return self
end

return M
