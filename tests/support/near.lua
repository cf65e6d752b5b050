-- near.lua: comparing tensors and numbers in specs.
local M = {}

-- All numbers of a tensor, row-major.
local function numbers(t)
  local near, out = t:detach():to("cpu"):to("float64"):contiguous(), {}
  local flat = near:data()
  for i = 1, t:numel() do out[i] = flat[i - 1] end
  return out
end
M.numbers = numbers

---Largest difference of two tensors of one shape, and the largest value of the second.
function M.difference(a, b)
  assert(table.concat(a.shape, ",") == table.concat(b.shape, ","),
    ("shapes differ: [%s] and [%s]"):format(table.concat(a.shape, ","), table.concat(b.shape, ",")))
  local x, y, worst, scale = numbers(a), numbers(b), 0, 0
  for i = 1, #x do
    local d = math.abs(x[i] - y[i])
    if not (d <= worst) then worst = d end
    scale = math.max(scale, math.abs(y[i]))
  end
  return worst, scale
end

---Fails unless a and b agree within tolerance times (1 + the largest value).
function M.near(a, b, tolerance, what)
  local worst, scale = M.difference(a, b)
  if not (worst <= (tolerance or 1e-6) * (1 + scale)) then
    error(("%s: differs by %g (largest value %g, tolerance %g)"):format(what or "tensor", worst, scale, tolerance or 1e-6), 2)
  end
end

---Whether two tensors hold the same bits.
function M.same(a, b)
  if a.dtype ~= b.dtype or table.concat(a.shape, ",") ~= table.concat(b.shape, ",") then return false end
  local x, y = numbers(a), numbers(b)
  for i = 1, #x do
    if x[i] ~= y[i] and (x[i] == x[i] or y[i] == y[i]) then return false end
  end
  return true
end

return M
