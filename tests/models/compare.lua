-- compare.lua: how far apart two tensors are, and goldens from disk.
local safetensors = require "weft.io.safetensors"

local M = {}

---max |a - b| / max |b|; NaN counts as infinitely far.
function M.error(a, b)
  assert(table.concat(a.shape, ",") == table.concat(b.shape, ","),
    ("shapes differ: [%s] and [%s]"):format(table.concat(a.shape, ","), table.concat(b.shape, ",")))
  local x, y = a:detach():to("float64"):contiguous(), b:detach():to("float64"):contiguous()
  local p, q, apart, largest = x:data(), y:data(), 0, 0
  for i = 0, x:numel() - 1 do
    local d = math.abs(p[i] - q[i])
    if d ~= d then return math.huge end
    apart, largest = math.max(apart, d), math.max(largest, math.abs(q[i]))
  end
  return apart / math.max(largest, 1e-30), apart
end

---Fails unless a is within `tolerance` of b, relative to b's largest value.
function M.close(a, b, tolerance, what)
  local e = M.error(a, b)
  assert(e <= tolerance, ("%s: relative error %.3g, at most %.3g is allowed"):format(what or "tensors", e, tolerance))
end

---The same bits.
function M.same(a, b)
  local e, apart = M.error(a, b)
  return e == 0 and apart == 0
end

function M.golden(path) return (assert(safetensors.load("tests/golden/" .. path))) end

function M.finite(t)
  local x = t:detach():to("float64"):contiguous()
  local p = x:data()
  for i = 0, x:numel() - 1 do
    if p[i] ~= p[i] or math.abs(p[i]) == math.huge then return false end
  end
  return true
end

return M
