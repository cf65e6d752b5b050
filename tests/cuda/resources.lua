-- resources.lua: reads what ptxas -v said of each file and prints a table: the kernels with most registers
-- and shared memory, all that spill. Usage: luajit tests/cuda/resources.lua LIST   (started by resources)
local function slurp(path)
  local f = assert(io.open(path, "rb"))
  local text = f:read "*a"
  f:close()
  return text
end

local names = {}
local function plain(symbols)
  if #symbols == 0 then return end
  local path = os.tmpname()
  local f = assert(io.open(path, "w"))
  f:write(table.concat(symbols, "\n"), "\n")
  f:close()
  local pipe = io.popen("c++filt <" .. path .. " 2>/dev/null")
  local i = 0
  for line in pipe:lines() do
    i = i + 1
    names[symbols[i]] = line:gsub("^void ", ""):gsub("%(anonymous namespace%)::", ""):gsub("%(.*", "")
  end
  pipe:close()
  os.remove(path)
end

-- Bytes that a kernel may spill: calls to the slow paths of divisions and logarithms keep a few.
local FEW = 32

-- A kernel whose numbers are float64 or int64 throughout; those that only sum in it are not.
local function wide(symbol)
  local name = names[symbol] or symbol
  return (name:find "double" or name:find "long") and not name:find "float" and not name:find "bfloat16"
end

local passed, failed, late, kernels = 0, 0, {}, {}
for line in io.lines(arg[1]) do
  local file, state, report = line:match "^(%S+) (%S+) ?(%S*)$"
  if state == "late" then late[#late + 1] = file
  elseif state == "failed" then
    failed = failed + 1
    print(file .. " does not compile:\n" .. slurp(report))
    os.remove(report)
  else
    local now, spilled = nil, false
    local symbols = {}
    for said in slurp(report):gmatch "[^\n]+" do
      local symbol = said:match "Compiling entry function '([^']+)'"
      if symbol then
        now = { file = file, symbol = symbol, stack = 0, stores = 0, loads = 0, registers = 0, shared = 0 }
        kernels[#kernels + 1], symbols[#symbols + 1] = now, symbol
      elseif now then
        local stack, stores, loads = said:match "(%d+) bytes stack frame, (%d+) bytes spill stores, (%d+) bytes spill loads"
        if stack and now.registers == 0 then now.stack, now.stores, now.loads = tonumber(stack), tonumber(stores), tonumber(loads) end
        local registers = said:match "Used (%d+) registers"
        if registers then
          now.registers, now.shared = tonumber(registers), tonumber(said:match "(%d+) bytes smem" or 0)
        end
      end
    end
    plain(symbols)
    for i = #kernels - #symbols + 1, #kernels do
      local k = kernels[i]
      if k.stores + k.loads > FEW and not wide(k.symbol) then spilled = true end
    end
    if spilled then failed = failed + 1 else passed = passed + 1 end
  end
end

local function row(k)
  print(("%-14s %4d %7d %6d %6d  %s"):format(k.file:match "([^/]+)%.cu$", k.registers, k.shared, k.stack, k.stores + k.loads,
    (names[k.symbol] or k.symbol):sub(1, 90)))
end

table.sort(kernels, function(a, b)
  if a.registers ~= b.registers then return a.registers > b.registers end
  return a.symbol < b.symbol
end)
print(("%d kernels; those with spills, then the 40 with most registers (all with WEFT_RESOURCES=all)"):format(#kernels))
print "file           regs  shared  stack spills  kernel"
for _, k in ipairs(kernels) do if k.stores + k.loads > 0 then row(k) end end
local most = os.getenv "WEFT_RESOURCES" == "all" and #kernels or 40
for i = 1, math.min(most, #kernels) do if kernels[i].stores + kernels[i].loads == 0 then row(kernels[i]) end end
if #late > 0 then
  print(("skipped: %d files not compiled within the time limit, they come next time: %s"):format(#late, table.concat(late, " ")))
end
print(("%d passed, %d failed"):format(passed, failed))
