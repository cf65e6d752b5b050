-- ranks.lua: one rank of several, each on a device of its own: every operation against what the formula
-- gives from all ranks' numbers. Prints "ok". Usage: luajit tests/dist/ranks.lua DEVICE RANK SIZE MEETING
local weft = require "weft"
local device, rank, size, meeting = arg[1], tonumber(arg[2]), tonumber(arg[3]), arg[4]
local group = weft.dist.join { device = device, rank = rank, size = size, meeting = meeting, timeout = 20 }
assert(tostring(group) == ("rank %d of %d (nccl)"):format(rank, size))

-- Element i (from 0) of rank r is (7 i + 5 r) mod 11: exact in every dtype, the largest at another rank each
-- time. n is more than what travels at once.
local n = 3 * 20001
local function numbers(r, dtype, count)
  local i = weft.arange(count or n, { dtype = "int64" })
  local v = i * 7 + r * 5
  return (v - (v:to "float64" / 11):floor():to "int64" * 11):to(dtype)
end

local function expect(what, got, want)
  assert(got.dtype == want.dtype and got.device == device, what)
  assert((got:to "cpu":to "float64" - want:to "float64"):abs():max():item() == 0, what)
end

for _, dtype in ipairs { "float32", "float64", "bfloat16", "int32", "int64", "uint8" } do
  local count = dtype == "float32" and n or 3 * 401
  local sum, most
  for r = 0, size - 1 do
    local v = numbers(r, "float64", count)
    sum = sum and sum + v or v
    most = most and weft.maximum(most, v) or v
  end
  local mine = numbers(rank, dtype, count):to(device)
  expect("sum", group:all_reduce_(mine:clone()), sum:to(dtype))
  expect("max", group:all_reduce_(mine:clone(), "max"), most:to(dtype))
  if dtype:find "float" then
    local close = (group:all_reduce_(mine:clone(), "mean"):to "cpu":to "float64" - sum / size):abs():max():item()
    assert(close <= (dtype == "bfloat16" and 0.04 or 1e-6), dtype .. " mean")
  end
  -- strided: every other column
  local wide = weft.zeros { count / 3, 6, dtype = dtype, device = device }
  local columns = wide:unfold(2, 1, 2):select(3, 1)
  columns:copy_(mine:reshape(count / 3, 3))
  group:all_reduce_(columns)
  expect("strided sum", columns, sum:to(dtype):reshape(count / 3, 3))
  assert(wide:to "float32":sum():item() == columns:to "float32":sum():item(), "what lies between is left alone")

  local all = {}
  for r = 0, size - 1 do all[#all + 1] = numbers(r, dtype, count):reshape(count / 3, 3) end
  expect("gather", group:all_gather(mine:reshape(count / 3, 3)), weft.cat(all, 1))
  expect("broadcast", group:broadcast_(mine:clone(), size - 1), numbers(size - 1, dtype, count))

  -- rank r's part of size parts, which ranks hold at other places of their own
  local parts = numbers(rank, dtype, size * 401):to(device)
  local want
  for r = 0, size - 1 do
    local v = numbers(r, "float64", size * 401):narrow(1, rank * 401 + 1, 401)
    want = want and want + v or v
  end
  expect("scatter", group:reduce_scatter(parts), want:to(dtype))
end

local ok, message = pcall(group.reduce_scatter, group, weft.ones { size + 1, device = device })
assert(not ok and message:find("not cut evenly among " .. size .. " ranks", 1, true), message)
group:barrier()
group:leave()
print "ok"
