-- blocks.lua: runs every fenced block tagged lua, sh or c in the given Markdown files, in the order of
-- the page and in a folder of its own, one folder a page: what one block writes, the next may read.
-- Blocks of one page share their Lua globals, not their locals. A block that cannot run here says why:
--   ```sh skip: downloads 161 MB
-- A block of C is compiled with weft.h and libweft, and run. `bin/weft` and `weft` in sh is this one.
require "tests.support.temporary"
local root = io.popen("pwd"):read "*l"
local build = os.getenv "WEFT_BUILD" or "build"
local passed, failed, skipped = 0, 0, 0

-- Every block of a page: { tag, note, text, line }.
local function blocks(path)
  local list, block = {}, nil
  local number = 0
  for line in io.lines(path) do
    number = number + 1
    local indent, fence, info = line:match "^(%s*)(```+)%s*(.-)%s*$"
    if fence and not block then
      local tag, note = info:match "^(%S*)%s*(.*)$"
      block = { tag = tag, note = note, line = number, indent = #indent, fence = fence, lines = {} }
    elseif fence and info == "" and #fence >= #block.fence then
      list[#list + 1] = block
      block = nil
    elseif block then
      block.lines[#block.lines + 1] = line:sub(block.indent + 1)
    end
  end
  if block then error(("%s:%d: this block is never closed"):format(path, block.line), 0) end
  return list
end

local function write(path, text)
  local f = assert(io.open(path, "w"))
  f:write(text)
  f:close()
end

-- Lua blocks of a page run one after another in one process that reads their files: globals are
-- shared, and so are names that a block declares local at its left margin.
local function lua_program(earlier, file)
  local lines = { "local function run(file, quiet)",
    "  local f = assert(io.open(file)); local text = f:read '*a'; f:close()",
    "  local chunk = assert(loadstring(text, '=' .. file))",
    "  if quiet then setfenv(chunk, setmetatable({ print = function() end }, { __index = _G, __newindex = _G })) end",
    "  chunk()", "end" }
  for _, name in ipairs(earlier) do lines[#lines + 1] = ("run(%q, true)"):format(name) end
  lines[#lines + 1] = ("run(%q)"):format(file)
  return table.concat(lines, "\n") .. "\n"
end

local function sh(command, folder, log)
  return os.execute(("cd '%s' && PATH='%s/bin':\"$PATH\" timeout 300 %s >'%s' 2>&1 </dev/null")
    :format(folder, root, command, log)) == 0
end

local runners = {}
function runners.lua(text, state)
  local n = #state.lua + 1
  local file = ("%s/block%d.lua"):format(state.folder, n)
  -- a left-margin local becomes a global, so that the page's next block knows it
  text = ("\n" .. text):gsub("\nlocal function ", "\nfunction ")
    :gsub("\nlocal ([%a_][%w_, ]*=)", "\n%1"):sub(2)
  write(file, text)
  local program = state.folder .. "/program.lua"
  write(program, lua_program(state.lua, file))
  local ok = sh("luajit program.lua", state.folder, state.log)
  if ok then state.lua[n] = file end
  return ok
end
function runners.sh(text, state)
  write(state.folder .. "/block.sh", "set -e\n" .. text)
  return sh("sh block.sh", state.folder, state.log)
end
function runners.c(text, state)
  write(state.folder .. "/block.c", text)
  return sh(("sh -c 'cc -std=c11 -Wall -Wextra -Werror block.c -o block -I%s/core -I%s/%s/generated "
    .. "-L%s/%s -lweft -lm -Wl,-rpath,%s/%s && ./block'"):format(root, root, build, root, build, root, build),
    state.folder, state.log)
end

local function run_page(path)
  local folder = os.tmpname()
  os.remove(folder)
  assert(os.execute("mkdir " .. folder) == 0)
  -- a page's commands speak of the checkout's files
  os.execute(("ln -s '%s'/* %s/ 2>/dev/null"):format(root, folder))
  local state = { folder = folder, log = folder .. "/log", lua = {} }
  for _, block in ipairs(blocks(path)) do
    local runner = runners[block.tag]
    if runner then
      local where = ("%s:%d (%s)"):format(path, block.line, block.tag)
      local reason = block.note:match "^skip:%s*(%S.*)$"
      if reason then
        skipped = skipped + 1
        print(where .. " ... skipped: " .. reason)
      elseif block.note ~= "" then
        failed = failed + 1
        print(("%s ... FAILED: %q after the tag; only `skip: reason` may stand there"):format(where, block.note))
      elseif runner(table.concat(block.lines, "\n") .. "\n", state) then
        passed = passed + 1
        print(where .. " ... ok")
      else
        failed = failed + 1
        print(where .. " ... FAILED")
        for line in io.lines(state.log) do print("  " .. line) end
      end
    end
  end
  os.execute("rm -rf " .. folder)
end

for _, path in ipairs(arg) do
  local ok, problem = pcall(run_page, path)
  if not ok then
    failed = failed + 1
    print(problem)
  end
end
if skipped > 0 then print(skipped .. " skipped") end
print(("%d passed, %d failed"):format(passed, failed))
