-- fetch.lua: models from a hub into Hugging Face's cache, as its own tools would leave them there: what each
-- file holds in blobs, names for it in snapshots, and which commit a revision is in refs. curl does the talking.
local ffi = require "ffi"
local A = require "weft.args"
local disk = require "weft.files"
local hub = require "weft.io.hub"
local json = require "weft.io.json"

ffi.cdef [[
int symlink(const char *target, const char *path);
int open(const char *path, int flags, ...);
int flock(int fd, int operation);
int close(int fd);
int getpid(void);
]]

local M = {}

---How often a file that was cut off is taken up again without a byte of progress, and the pause in seconds.
M.tries, M.pause = 4, tonumber(os.getenv "WEFT_FETCH_PAUSE") or 0.5

local function fail(...) error({ fetch = (...):format(select(2, ...)) }, 0) end

local function check(ok, message)
  if not ok then fail("%s", message) end
  return ok
end

-- --- curl
local function quoted(text) return '"' .. text:gsub('[\\"]', "\\%0"):gsub("\n", "\\n") .. '"' end

local words = { [6] = "the server's name is not known here", [7] = "the server cannot be reached", [18] = "the connection was cut",
  [28] = "nothing came for a minute", [47] = "more than 5 redirects", [52] = "the server closed the connection without an answer",
  [56] = "the connection was cut", [60] = "the server's certificate is not accepted" }

-- Runs curl on a config file: nobody sees a token among the words of a command. Returns curl's exit code, what
-- `write-out` gave and what it complained of.
local function curl(lines, shown)
  local out, complaint = disk.temporary(function(dir)
    check(disk.write(dir .. "/config", table.concat(lines, "\n") .. "\n"))
    local place = "'" .. dir:gsub("'", "'\\''") .. "'"
    -- at a terminal a long download shows how far it is
    local p = assert(io.popen(("curl -q --config %s/config %s; echo \" $?\""):format(place, shown and "" or "2>" .. place .. "/complaint")))
    local text = p:read "*a"
    p:close()
    return text, disk.read(dir .. "/complaint") or ""
  end)
  local text, code = out:match "^(.*) (%d+)\n$"
  code = tonumber(code)
  if code == 127 then fail "curl is not installed: apt-get install curl" end
  return code, text, words[code] or (complaint:gsub("^curl: %(%d+%) ", ""):gsub("%s+$", ""))
end

local function request(o, url, more, shown)
  local lines = { "url = " .. quoted(url), shown and "progress-bar" or "silent", "show-error", "connect-timeout = 20", "speed-limit = 1",
    "speed-time = 60", 'user-agent = "weft"', 'proto = "=http,https"' }
  -- curl sends this on to no other host that it is redirected to
  if o.token then lines[#lines + 1] = "header = " .. quoted("Authorization: Bearer " .. o.token) end
  for _, line in ipairs(more) do lines[#lines + 1] = line end
  return curl(lines, shown)
end

-- What curl's codes mean that a connection leaves in the middle.
local broken = { [18] = true, [28] = true, [35] = true, [52] = true, [55] = true, [56] = true, [92] = true }

local function pause(seconds) os.execute(("sleep %g"):format(seconds)) end

local function refused(o, status, what)
  if status == 401 or status == 403 then
    fail("%s: the server refuses (%d): %s", what, status, o.token and "HF_TOKEN has no access to it, or it wants its terms accepted"
      or "there is no such model, or it is private or gated: check the name, or set HF_TOKEN")
  elseif status == 404 then fail("%s: not found (404): check the name and the revision", what) end
  fail("%s: the server answers %d", what, status)
end

-- GET into memory, again when the connection breaks or the server is busy.
local function get(o, url, what)
  local complaint
  for try = 1, M.tries do
    local body, code, status, text
    disk.temporary(function(dir)
      local path = dir .. "/body"
      code, status, text = request(o, url, { "location", "max-redirs = 5", "output = " .. quoted(path), 'write-out = "%{http_code}"' })
      body = disk.read(path)
    end)
    status = tonumber(status) or 0
    if code == 0 and status == 200 then return body end
    if code == 0 and status ~= 429 and status < 500 then refused(o, status, what) end
    complaint = code ~= 0 and text or "the server answers " .. status
    if code == 6 or code == 7 then complaint = ("%s (%s; HF_ENDPOINT names another)"):format(text, url:match "^%a+://[^/]+") end
    if code ~= 0 and not broken[code] and code ~= 7 then break end
    if try < M.tries then pause(M.pause * try) end
  end
  fail("%s: %s", what, complaint)
end

-- The headers of a file: its size, etag and commit. Redirects within the server are followed, as a renamed
-- model has them; the one to where large files lie is not: what is said before it is what counts.
local function head(o, url, what)
  local host = url:match "^%a+://[^/]+"
  for _ = 1, 5 do
    local headers, status, complaint
    for try = 1, M.tries do
      local code, written
      disk.temporary(function(dir)
        local path = dir .. "/headers"
        code, written, complaint = request(o, url, { "head", "output = " .. quoted(path), 'header = "Accept-Encoding: identity"',
          'write-out = "%{http_code}"' })
        headers, status = disk.read(path) or "", tonumber(written) or 0
      end)
      if code == 0 and status ~= 429 and status < 500 then break end
      if code == 0 then complaint = "the server answers " .. status end
      if code ~= 0 and not broken[code] and code ~= 7 or try == M.tries then fail("%s: %s", what, complaint) end
      pause(M.pause * try)
    end
    local by_name = {}
    for name, value in headers:gmatch "([%w%-]+):[ \t]*([^\r\n]*)" do by_name[name:lower()] = value end
    local location = by_name.location
    if status >= 300 and status < 400 and location and not by_name["x-linked-etag"] then
      if location:sub(1, 1) == "/" then location = host .. location end
      if location:match "^%a+://[^/]+" ~= host then return by_name end
      url = location
    elseif status >= 400 then refused(o, status, what)
    else return by_name end
  end
  fail("%s: more than 5 redirects", what)
end

-- --- one file
local function sum_of(path)
  local p = assert(io.popen(("sha256sum <'%s'"):format(path:gsub("'", "'\\''"))))
  local sum = (p:read "*a"):match "^%x+"
  p:close()
  return sum
end

-- Continues path until it holds `size` bytes (or to the end, where the size is not known).
local function download(o, url, path, size, what)
  local idle = 0
  while true do
    local have = disk.exists(path) and disk.size(path) or 0
    if size and have > size then
      check(disk.remove(path))
      have = 0
    end
    if size and have == size and (size > 0 or disk.exists(path)) then return end
    local code, written, text = request(o, url, { "location", "max-redirs = 5", "fail", "output = " .. quoted(path),
      have > 0 and 'continue-at = "-"' or "", 'header = "Accept-Encoding: identity"', 'write-out = "%{http_code}"' },
      o.progress and size and size - have > 1e7)
    local status, now = tonumber(written) or 0, disk.exists(path) and disk.size(path) or 0
    if code == 0 then
      if size and now ~= size then
        check(disk.remove(path))
        fail("%s: the server sent %d bytes and promised %d; what came was removed", what, now, size)
      end
      return
    elseif code == 33 or status == 416 then
      -- it can't go on in the middle: from the beginning
      check(disk.remove(path))
      idle = idle + 1
    elseif code == 22 and status ~= 429 and status < 500 then refused(o, status, what)
    elseif code ~= 22 and not broken[code] and code ~= 7 then fail("%s: %s", what, text)
    elseif now > have then
      idle = 0
      o.say("  cut off after %d bytes; going on", now)
    else
      idle = idle + 1
    end
    if idle >= M.tries then
      fail("%s: %s; the part that came is kept, and the same command goes on from there", what,
        code == 22 and "the server answers " .. status or text)
    end
    if idle > 0 then pause(M.pause * idle) end
  end
end

-- Runs fn while no other process, of ours or of Hugging Face's tools, downloads the same.
local function locked(path, fn)
  check(disk.make_dirs(path:match "^(.*)/"))
  local O_RDWR, O_CREAT, O_CLOEXEC, LOCK_EX = 2, 64, 524288, 2
  local fd = ffi.C.open(path, O_RDWR + O_CREAT + O_CLOEXEC, ffi.cast("int", 420))
  if fd < 0 then fail("%s: cannot be opened", path) end
  ffi.C.flock(fd, LOCK_EX)
  local ok, e = pcall(fn)
  ffi.C.close(fd)
  if not ok then error(e, 0) end
end

-- A name for a blob, replaced in one step.
local function link(target, path)
  local beside = ("%s.%d.tmp"):format(path, ffi.C.getpid())
  os.remove(beside)
  if ffi.C.symlink(target, beside) ~= 0 or not os.rename(beside, path) then fail("%s: cannot be made", path) end
end

local function one(o, commit, file)
  local what = o.name .. "/" .. file
  local url = ("%s/%s/resolve/%s/%s"):format(o.endpoint, o.name, commit, file)
  local headers = head(o, url, what)
  local etag = (headers["x-linked-etag"] or headers.etag or ""):gsub("^W/", ""):gsub('"', "")
  local size = tonumber(headers["x-linked-size"] or headers["content-length"])
  if not etag:find "^[%w%-_]+$" then fail("%s: the server gives no etag to file it under", what) end
  local sum = #etag == 64 and etag:find "^%x+$" and etag:lower() or nil
  local blob = o.folder .. "/blobs/" .. etag
  locked(("%s/.locks/%s/%s.lock"):format(hub.cache(), o.folder:match "[^/]+$", etag), function()
    if disk.exists(blob) and (not size or disk.size(blob) == size) then
      o.say("%s: there already", file)
      return
    end
    local part = blob .. ".incomplete"
    local have = disk.exists(part) and disk.size(part) or 0
    local free = size and disk.disk_free(o.folder)
    if free and free < size - have then fail("%s: %.1f MB are needed, %.1f are free in %s", what, (size - have) / 1e6, free / 1e6, o.folder) end
    o.say("%s: %s%s", file, size and ("%.1f MB"):format(size / 1e6) or "size unknown", have > 0 and (", going on after %.1f"):format(have / 1e6) or "")
    download(o, url, part, size, what)
    if sum then
      local mine = sum_of(part)
      if mine ~= sum then
        check(disk.remove(part))
        fail("%s: its sha256 is %s, and the server promised %s; what came was removed", what, mine, sum)
      end
    end
    if not os.rename(part, blob) then fail("%s: cannot be renamed", part) end
  end)
  local path = ("%s/snapshots/%s/%s"):format(o.folder, commit, file)
  check(disk.make_dirs(path:match "^(.*)/"))
  link("../../blobs/" .. etag, path)
end

-- --- a model
local tokenizer = { ["tokenizer.model"] = true, ["vocab.txt"] = true, ["merges.txt"] = true }

-- What of a model's files is taken: weights as safetensors, settings, tokenizers.
local function wanted(siblings, what)
  local list, others, whole = {}, {}, false
  for _, s in ipairs(siblings) do
    local file = type(s) == "table" and s.rfilename
    if type(file) == "string" and file:find "^[%w_][%w%-_.]*$" and not file:find("..", 1, true) then
      if file:find "%.safetensors$" or file:find "%.json$" or tokenizer[file] then list[#list + 1] = file
      elseif file:find "%.bin$" or file:find "%.pth?$" then others[#others + 1] = file end
      whole = whole or file == "model.safetensors"
    end
  end
  local kept, weights = {}, false
  for _, file in ipairs(list) do
    local shard = file:find "^model%-%d+%-of%-%d+%.safetensors$" or file == "model.safetensors.index.json"
    local pickled = file:find "%.bin%.index%.json$"
    if not (whole and shard) and not pickled then
      kept[#kept + 1] = file
      weights = weights or file:find "%.safetensors$" ~= nil
    end
  end
  if not weights then
    fail("%s: no safetensors file%s", what, #others > 0 and (", only %s, which weft does not read"):format(table.concat(others, ", ")) or "")
  end
  table.sort(kept)
  return kept
end

---Downloads a model into Hugging Face's cache and returns the directory. Files that are there are left as they
---are; one that was cut off goes on where it was. Sizes, and sha256 where the server gives it, are checked.
---HF_ENDPOINT names another server, HF_TOKEN a token for private models; HF_HUB_OFFLINE=1 refuses.
---    local dir = assert(weft.io.fetch("facebook/dinov2-small"))
---@param name string
---@param options? table  revision ("main": a branch, a tag or a commit), say (fun(format, ...): told of each file),
--- progress (false; true: curl draws a bar on stderr for long files)
---@return string? dir, string? message
function M.fetch(name, options)
  local o = A.options(options, { revision = "main", say = function() end, progress = false }, "fetch")
  if not hub.is_name(name) then A.raise("fetch: a name such as facebook/dinov2-small is expected, got %s", tostring(name)) end
  if not hub.is_revision(o.revision) then A.raise("fetch: revision: a branch, a tag or a commit is expected, got %s", tostring(o.revision)) end
  local function environment(key)
    local v = os.getenv(key)
    return v ~= "" and v or nil
  end
  local offline = environment "HF_HUB_OFFLINE"
  if offline and offline ~= "0" and offline:lower() ~= "false" then return nil, "HF_HUB_OFFLINE is set: nothing is downloaded" end
  o.name, o.folder, o.token = name, hub.folder(name), environment "HF_TOKEN"
  o.endpoint = ((environment "HF_ENDPOINT" or "https://huggingface.co"):gsub("/+$", ""))
  if not o.endpoint:find "^https?://[^/]" then
    return nil, "HF_ENDPOINT: an address that begins with http:// or https:// is expected, got " .. o.endpoint
  end
  local function run()
    local url = ("%s/api/models/%s/revision/%s"):format(o.endpoint, name, (o.revision:gsub("/", "%%2F")))
    local info, message = json.decode(get(o, url, ("%s at %s"):format(name, o.revision)))
    if type(info) ~= "table" then fail("%s: no list of files came: %s", url, message or "something else") end
    local commit = info.sha
    if type(commit) ~= "string" or not commit:find "^%x+$" or type(info.siblings) ~= "table" then
      fail("%s: no commit and list of files came", url)
    end
    check(disk.make_dirs(o.folder .. "/blobs"))
    for _, file in ipairs(wanted(info.siblings, name)) do one(o, commit, file) end
    if o.revision ~= commit then
      local ref = o.folder .. "/refs/" .. o.revision
      check(disk.make_dirs(ref:match "^(.*)/"))
      check(disk.write(ref, commit))
    end
    return o.folder .. "/snapshots/" .. commit
  end
  local ok, result = pcall(run)
  if ok then return result end
  if type(result) == "table" and result.fetch then return nil, result.fetch end
  error(result, 0)
end

return setmetatable(M, { __call = function(_, ...)
  local dir, message = M.fetch(...)
  return dir, message
end })
