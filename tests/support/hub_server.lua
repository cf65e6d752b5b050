-- hub_server.lua: a little HTTP server on loopback that misbehaves as it is told. `luajit hub_server.lua DIR`:
-- DIR/rules.lua returns a list of rules, read anew for each request; DIR/port gets the port, DIR/log a line a
-- request. A rule: path, method (any), times (then it is used up), status, headers, body (text) or file (path),
-- cut (bytes after which the connection ends), drop (no answer at all), range = false (no parts).
local ffi = require "ffi"
local bit = require "bit"

ffi.cdef [[
struct weft_test_address { uint16_t family, port; uint32_t host; char zero[8]; };
int socket(int domain, int type, int protocol);
int bind(int fd, const struct weft_test_address *address, unsigned length);
int listen(int fd, int backlog);
int accept(int fd, void *address, unsigned *length);
int getsockname(int fd, struct weft_test_address *address, unsigned *length);
long recv(int fd, void *buffer, size_t n, int flags);
long send(int fd, const void *buffer, size_t n, int flags);
int shutdown(int fd, int how);
int close(int fd);
unsigned alarm(unsigned seconds);
]]
local C = ffi.C

local dir = assert(arg[1], "a folder is expected")
C.alarm(120)  -- whatever happens, it does not outlive its spec for long

local function swap16(n) return bit.bor(bit.lshift(bit.band(n, 255), 8), bit.rshift(n, 8)) end

local listener = C.socket(2, 1, 0)
local address = ffi.new("struct weft_test_address", { family = 2, port = 0, host = ffi.abi "le" and 0x0100007f or 0x7f000001 })
assert(C.bind(listener, address, ffi.sizeof(address)) == 0 and C.listen(listener, 16) == 0)
local length = ffi.new("unsigned[1]", ffi.sizeof(address))
C.getsockname(listener, address, length)
local port = ffi.abi "le" and swap16(address.port) or address.port

local function write(path, mode, text)
  local f = assert(io.open(path, mode))
  f:write(text)
  f:close()
end

local function read(path)
  local f = assert(io.open(path, "rb"))
  local text = f:read "*a"
  f:close()
  return text
end

write(dir .. "/port.tmp", "w", tostring(port))
assert(os.rename(dir .. "/port.tmp", dir .. "/port"))

local function send(fd, text)
  local at = 0
  while at < #text do
    local n = tonumber(C.send(fd, ffi.cast("const char *", text) + at, #text - at, 0x4000))
    if n <= 0 then return end
    at = at + n
  end
end

local buffer = ffi.new "char[65536]"
local function request_of(fd)
  local text = ""
  while not text:find("\r\n\r\n", 1, true) do
    local n = tonumber(C.recv(fd, buffer, 65536, 0))
    if n <= 0 then return nil end
    text = text .. ffi.string(buffer, n)
  end
  local method, path = text:match "^(%u+) (%S+)"
  local headers = {}
  for name, value in text:gmatch "\n([%w%-]+): ([^\r\n]*)" do headers[name:lower()] = value end
  return { method = method, path = path, headers = headers }
end

local used = {}
local function rule_for(request)
  for i, rule in ipairs(dofile(dir .. "/rules.lua")) do
    local id = rule.id or i
    if rule.path == request.path and (not rule.method or rule.method == request.method) and (used[id] or 0) < (rule.times or 1e9) then
      used[id] = (used[id] or 0) + 1
      return rule
    end
  end
  return { status = 404, body = "no rule" }
end

local function answer(fd, request, rule)
  if rule.drop then return end
  local body = rule.body or rule.file and read(rule.file) or ""
  local status, headers = rule.status or 200, {}
  for name, value in pairs(rule.headers or {}) do headers[name] = value end
  local from = rule.range ~= false and status == 200 and tonumber((request.headers.range or ""):match "bytes=(%d+)%-")
  if from then
    if from >= #body then status, body = 416, "" else
      headers["Content-Range"] = ("bytes %d-%d/%d"):format(from, #body - 1, #body)
      status, body = 206, body:sub(from + 1)
    end
  end
  headers["Content-Length"] = headers["Content-Length"] or #body
  local lines = { ("HTTP/1.1 %d Some"):format(status), "Connection: close" }
  for name, value in pairs(headers) do lines[#lines + 1] = name .. ": " .. value end
  send(fd, table.concat(lines, "\r\n") .. "\r\n\r\n")
  if request.method ~= "HEAD" then send(fd, rule.cut and body:sub(1, rule.cut) or body) end
end

while true do
  local fd = C.accept(listener, nil, nil)
  if fd >= 0 then
    local request = request_of(fd)
    if request then
      write(dir .. "/log", "a", ("%s %s range=%s auth=%s\n"):format(request.method, request.path, request.headers.range or "",
        request.headers.authorization or ""))
      answer(fd, request, rule_for(request))
    end
    C.shutdown(fd, 2)
    C.close(fd)
  end
end
