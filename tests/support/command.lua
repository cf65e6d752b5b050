-- command.lua: runs a shell command for a spec and hands back its exit code, output and errors.
local M = {}

local function slurp(path)
  local f = io.open(path, "rb")
  if not f then return "" end
  local text = f:read "*a"
  f:close()
  return text
end

---@param command string   for sh
---@param input string?    its standard input
---@return integer code, string out, string err
function M.run(command, input)
  local base = os.tmpname()
  local f = assert(io.open(base .. ".in", "wb"))
  f:write(input or "")
  f:close()
  local status = os.execute(("{ %s\n} <%s.in >%s.out 2>%s.err"):format(command, base, base, base))
  local out, err = slurp(base .. ".out"), slurp(base .. ".err")
  for _, suffix in ipairs { "", ".in", ".out", ".err" } do os.remove(base .. suffix) end
  return math.floor(status / 256), out, err
end

---Runs bin/weft with these words.
function M.weft(words, input) return M.run("bin/weft " .. words, input) end

---An empty folder of its own; the second result removes it.
function M.folder()
  local path = os.tmpname()
  os.remove(path)
  assert(os.execute("mkdir " .. path) == 0)
  return path, function() os.execute("rm -rf " .. path) end
end

return M
