-- files.lua: folders and text files, as Lua wants them. Failures of the world return nil, message.
local ffi = require "ffi"
local C = require("weft.core").lib

pcall(ffi.cdef, "int link(const char *from, const char *to);")
pcall(ffi.cdef, "char *mkdtemp(char *template);")

local M = {}

local function result(status)
  if status == 0 then return true end
  return nil, ffi.string(C.weft_error())
end

function M.make_dirs(path) return result(C.weft_make_dirs(path)) end
function M.exists(path) return C.weft_path_kind(path) ~= 0 end
function M.is_dir(path) return C.weft_path_kind(path) == 2 end
function M.size(path) return tonumber(C.weft_file_size(path)) end
function M.remove_dir(path) return result(C.weft_remove_dir(path)) end
function M.remove(path) return result(C.weft_remove_file(path)) end
function M.rename_dir(from, to) return result(C.weft_rename_dir(from, to)) end
function M.append(path, text) return result(C.weft_append_text(path, text)) end
function M.write(path, text) return result(C.weft_file_write(path, text, #text)) end
function M.truncate(path, n) return result(C.weft_truncate_file(path, n)) end
function M.disk_free(path) return tonumber(C.weft_disk_free(path)) end
function M.clock() return tonumber(C.weft_clock()) end

---Names in a folder, sorted; nil, message when it can't be read.
function M.list(path)
  local text = C.weft_list_dir(path)
  if text == nil then return nil, ffi.string(C.weft_error()) end
  local out = {}
  for name in ffi.string(text):gmatch "[^\n]+" do out[#out + 1] = name end
  C.weft_free_text(text)
  return out
end

---Calls fn with every plain file below a folder, as paths relative to it, sorted.
---@return true?, string? message
function M.each(root, fn)
  local function visit(prefix)
    local names, message = M.list(root .. "/" .. prefix)
    if not names then return nil, message end
    for _, name in ipairs(names) do
      local path = prefix .. name
      local kind = C.weft_path_kind(root .. "/" .. path)
      if kind == 2 then
        local ok, why = visit(path .. "/")
        if not ok then return nil, why end
      elseif kind == 1 then fn(path) end
    end
    return true
  end
  return visit ""
end

---Every plain file below a folder, as paths relative to it, sorted.
function M.walk(root)
  local out = {}
  local ok, message = M.each(root, function(path) out[#out + 1] = path end)
  if not ok then return nil, message end
  return out
end

---Removes a folder and all below it.
function M.remove_tree(path)
  for _, name in ipairs(M.list(path) or {}) do
    local below = path .. "/" .. name
    if M.is_dir(below) then
      local ok, message = M.remove_tree(below)
      if not ok then return nil, message end
    end
  end
  return M.remove_dir(path)
end

local function gone(dir, ok, ...)
  M.remove_tree(dir)
  if not ok then error((...), 0) end
  return ...
end

---Calls fn with an empty folder below TMPDIR (or /tmp) that this user alone can enter, and that is gone when fn
---has ended, by an error too. Hands on what fn returns.
---@param fn fun(dir: string): ...
function M.temporary(fn)
  local place = os.getenv "TMPDIR"
  if not place or place == "" then place = "/tmp" end
  local name = place:gsub("(.)/+$", "%1") .. "/weft-XXXXXX"
  local dir = ffi.new("char[?]", #name + 1, name)
  if ffi.C.mkdtemp(dir) == nil then error(place .. ": no temporary folder can be made there; set TMPDIR to a place where files can be written", 0) end
  dir = ffi.string(dir)
  return gone(dir, pcall(fn, dir))
end

---The same bytes under another name: a second link where the file system has them, else a copy.
function M.duplicate(from, to)
  if ffi.C.link(from, to) == 0 then return true end
  local source, message = io.open(from, "rb")
  if not source then return nil, message end
  local copy, why = io.open(to, "wb")
  while copy do
    local bytes = source:read(2 ^ 20)
    if not bytes then break end
    local ok, problem = copy:write(bytes)
    if not ok then
      why = to .. ": " .. problem
      break
    end
  end
  source:close()
  if copy and not copy:close() then why = why or to .. " can't be written" end
  return not why or nil, why
end

---A file's text; nil, message when it can't be read.
function M.read(path)
  local f, message = io.open(path, "rb")
  if not f then return nil, message end
  local text, why = f:read "*a"
  f:close()
  if not text then return nil, path .. ": " .. tostring(why) end
  return text
end

---64 bits as 16 hexadecimal digits.
function M.hex(h)
  return bit.tohex(tonumber(bit.rshift(h, 32)), 8) .. bit.tohex(tonumber(bit.band(h, 0xffffffffULL)), 8)
end

---16 hexadecimal digits over a string.
function M.hash(text) return (M.hex(C.weft_hash_bytes(text, #text, 0))) end

---A file's lines, without their ends, a piece of the file at a time: for line in lines do ... end; nil, message when
---it can't be opened. What can't be read further on is raised.
---@param path string
---@return (fun(): string?)?, string? message
function M.lines(path)
  local f, message = io.open(path, "rb")
  if not f then return nil, message end
  local rest, at, done = "", 1, false
  return function()
    while true do
      local stop = rest:find("\n", at, true)
      if stop then
        local line = rest:sub(at, rest:byte(stop - 1) == 13 and stop > at and stop - 2 or stop - 1)
        at = stop + 1
        return line
      end
      if done then return nil end
      local piece, why = f:read(math.max(2 ^ 18, #rest - at + 1))
      if why then error(path .. ": " .. why, 0) end
      if not piece then
        done = true
        f:close()
        if at <= #rest then
          local line = rest:sub(at):gsub("\r$", "")
          at = #rest + 1
          return line
        end
        return nil
      end
      rest, at = rest:sub(at) .. piece, 1
    end
  end
end

return M
