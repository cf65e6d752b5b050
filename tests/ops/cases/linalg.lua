-- linalg.lua: cases of decompositions and systems. References are written from textbooks (Jacobi
-- rotations, Gram and Schmidt, elimination), for matrices of full rank, singular values distinct.
local function split_batch(x)
  local n_dims = #x.shape
  local m, n, count, list = x.shape[n_dims - 1], x.shape[n_dims], 1, {}
  for d = 1, n_dims - 2 do count = count * x.shape[d] end
  for b = 0, count - 1 do
    local a = {}
    for i = 1, m do
      a[i] = {}
      for j = 1, n do a[i][j] = x.data[b * m * n + (i - 1) * n + j] end
    end
    list[b + 1] = a
  end
  return list, m, n
end

-- Matrices (or vectors) of m by n back into one tensor with the leading dims of x.
local function join_batch(list, x, m, n)
  local shape, data = {}, {}
  for d = 1, #x.shape - 2 do shape[d] = x.shape[d] end
  shape[#shape + 1] = m
  if n then shape[#shape + 1] = n end
  for _, a in ipairs(list) do
    for i = 1, m do
      if n then
        for j = 1, n do data[#data + 1] = a[i][j] end
      else
        data[#data + 1] = a[i]
      end
    end
  end
  return { shape = shape, data = data }
end

local function transposed(a, m, n)
  local t = {}
  for j = 1, n do
    t[j] = {}
    for i = 1, m do t[j][i] = a[i][j] end
  end
  return t
end

-- One-sided Jacobi: rotates columns of a (m by n, m >= n) until they are orthogonal.
local function jacobi(a, m, n)
  local v = {}
  for i = 1, n do
    v[i] = {}
    for j = 1, n do v[i][j] = i == j and 1 or 0 end
  end
  for _ = 1, 40 do
    for p = 1, n - 1 do
      for q = p + 1, n do
        local pp, qq, pq = 0, 0, 0
        for i = 1, m do
          pp, qq, pq = pp + a[i][p] ^ 2, qq + a[i][q] ^ 2, pq + a[i][p] * a[i][q]
        end
        if math.abs(pq) > 1e-300 then
          local zeta = (qq - pp) / (2 * pq)
          local t = (zeta >= 0 and 1 or -1) / (math.abs(zeta) + math.sqrt(1 + zeta * zeta))
          local c = 1 / math.sqrt(1 + t * t)
          for _, w in ipairs { { a, m }, { v, n } } do
            for i = 1, w[2] do
              local x, y = w[1][i][p], w[1][i][q]
              w[1][i][p], w[1][i][q] = c * (x - t * y), c * (t * x + y)
            end
          end
        end
      end
    end
  end
  return v
end

local function svd_of(a, m, n)
  local wide = m < n
  if wide then a, m, n = transposed(a, m, n), n, m end
  local v = jacobi(a, m, n)
  local order, s = {}, {}
  for j = 1, n do
    local sum = 0
    for i = 1, m do sum = sum + a[i][j] ^ 2 end
    s[j], order[j] = math.sqrt(sum), j
  end
  table.sort(order, function(p, q) return s[p] > s[q] end)
  local left, values, right = {}, {}, {}
  for i = 1, m do left[i] = {} end
  for i = 1, n do right[i] = {} end
  for k, j in ipairs(order) do
    values[k] = s[j]
    for i = 1, m do left[i][k] = a[i][j] / s[j] end
    for i = 1, n do right[i][k] = v[i][j] end
  end
  if wide then left, right, m, n = right, left, n, m end
  local k = #values
  for c = 1, k do -- the largest entry of each column of u is positive
    local largest = 1
    for i = 2, m do
      if math.abs(left[i][c]) > math.abs(left[largest][c]) then largest = i end
    end
    if left[largest][c] < 0 then
      for i = 1, m do left[i][c] = -left[i][c] end
      for i = 1, n do right[i][c] = -right[i][c] end
    end
  end
  return left, values, transposed(right, n, k)
end

local function svd(ins)
  local list, m, n = split_batch(ins[1])
  local k, u, s, vh = math.min(m, n), {}, {}, {}
  for b, a in ipairs(list) do
    if k == 0 then u[b], s[b], vh[b] = {}, {}, {} for i = 1, m do u[b][i] = {} end
    else u[b], s[b], vh[b] = svd_of(a, m, n) end
  end
  return join_batch(u, ins[1], m, k), join_batch(s, ins[1], k), join_batch(vh, ins[1], k, n)
end

-- Gram and Schmidt on the first columns; the rest of r is q^T a.
local function qr_of(a, m, n)
  local k, q, r = math.min(m, n), {}, {}
  for i = 1, m do q[i] = {} end
  for i = 1, k do
    r[i] = {}
    for j = 1, n do r[i][j] = 0 end
  end
  for j = 1, n do
    local column = {}
    for i = 1, m do column[i] = a[i][j] end
    for _ = 1, 2 do -- twice is enough
      for p = 1, math.min(j - 1, k) do
        local dot = 0
        for i = 1, m do dot = dot + q[i][p] * column[i] end
        r[p][j] = r[p][j] + dot
        for i = 1, m do column[i] = column[i] - dot * q[i][p] end
      end
    end
    if j <= k then
      local sum = 0
      for i = 1, m do sum = sum + column[i] ^ 2 end
      r[j][j] = math.sqrt(sum)
      for i = 1, m do q[i][j] = column[i] / r[j][j] end
    end
  end
  return q, r
end

local function qr(ins)
  local list, m, n = split_batch(ins[1])
  local k, q, r = math.min(m, n), {}, {}
  for b, a in ipairs(list) do q[b], r[b] = qr_of(a, m, n) end
  return join_batch(q, ins[1], m, k), join_batch(r, ins[1], k, n)
end

local function cholesky(ins)
  local list, n = split_batch(ins[1])
  local out = {}
  for b, a in ipairs(list) do
    local y = {}
    for i = 1, n do
      y[i] = {}
      for j = 1, n do y[i][j] = 0 end
      for j = 1, i do
        local sum = (a[i][j] + a[j][i]) / 2
        for p = 1, j - 1 do sum = sum - y[i][p] * y[j][p] end
        y[i][j] = i == j and math.sqrt(sum) or sum / y[j][j]
      end
    end
    out[b] = y
  end
  return join_batch(out, ins[1], n, n)
end

-- Gauss and Jordan with row exchanges.
local function solve_of(a, b, n, k)
  for p = 1, n do
    local best = p
    for i = p + 1, n do if math.abs(a[i][p]) > math.abs(a[best][p]) then best = i end end
    a[p], a[best], b[p], b[best] = a[best], a[p], b[best], b[p]
    for i = 1, n do
      if i ~= p then
        local f = a[i][p] / a[p][p]
        for j = p, n do a[i][j] = a[i][j] - f * a[p][j] end
        for j = 1, k do b[i][j] = b[i][j] - f * b[p][j] end
      end
    end
  end
  for i = 1, n do
    for j = 1, k do b[i][j] = b[i][j] / a[i][i] end
  end
  return b
end

local function solve(ins)
  local as, n = split_batch(ins[1])
  local bs, _, k = split_batch(ins[2])
  local out = {}
  for i, a in ipairs(as) do out[i] = solve_of(a, bs[i], n, k) end
  return join_batch(out, ins[2], n, k)
end

-- A well-conditioned batch: random entries plus a heavy diagonal.
local function heavy(g, shape, weight)
  local x = g.randn(shape)
  local n = shape[#shape]
  local data = x:data()
  for b = 0, x:numel() / math.max(n * n, 1) - 1 do
    for i = 0, n - 1 do data[b * n * n + i * n + i] = data[b * n * n + i * n + i] + weight end
  end
  return x
end

local SHAPES = { { 1, 1 }, { 4, 4 }, { 5, 3 }, { 3, 5 }, { 2, 0 }, { 0, 3 }, { 0, 2, 2 },
  { 2, 3, 4, 2 }, { 70, 3, 2 }, { 19, 13 } }

local function decomposition(reference)
  return {
    cases = function(g)
      local cases = {}
      for i, shape in ipairs(SHAPES) do
        -- singular vectors of near values turn easily
        cases[i] = { inputs = { g.randn(shape), n = 1 }, attrs = { n = 0 }, reference = reference,
          tolerance32 = 2e-3, tolerance64 = 1e-9 }
      end
      return cases
    end,
    refuses = function(g)
      return {
        { inputs = { g.randn { 3 }, n = 1 }, attrs = { n = 0 },
          message = "at least 2 dims, got 1" },
        { inputs = { g.uniform({ 2, 2 }, math.huge, math.huge), n = 1 }, attrs = { n = 0 },
          message = "NaN or infinity in the first input, position 1" },
      }
    end,
  }
end

return {
  svd = decomposition(svd),
  qr = decomposition(qr),
  cholesky = {
    cases = function(g)
      local cases = {}
      local shapes = { { 1, 1 }, { 5, 5 }, { 3, 4, 4 }, { 0, 0 }, { 2, 0, 3, 3 }, { 66, 2, 2 } }
      for i, shape in ipairs(shapes) do
        cases[i] = { inputs = { heavy(g, shape, 9), n = 1 }, attrs = { n = 0 },
          reference = cholesky }
      end
      return cases
    end,
    refuses = function(g)
      return {
        { inputs = { g.randn { 3, 4 }, n = 1 }, attrs = { n = 0 },
          message = "must be square, got 3 by 4" },
        { inputs = { heavy(g, { 2, 2, 2 }, -9), n = 1 }, attrs = { n = 0 },
          message = "matrix 0 is not positive definite" },
      }
    end,
  },
  solve = {
    cases = function(g)
      local cases = {}
      local shapes = { { { 4, 4 }, { 4, 2 } }, { { 1, 1 }, { 1, 1 } },
        { { 3, 5, 5 }, { 3, 5, 1 } }, { { 2, 2 }, { 2, 0 } }, { { 0, 0 }, { 0, 2 } },
        { { 66, 3, 3 }, { 66, 3, 2 } } }
      for i, s in ipairs(shapes) do
        cases[i] = { inputs = { heavy(g, s[1], 5), g.randn(s[2]), n = 2 }, attrs = { n = 0 },
          reference = solve, tolerance32 = 1e-4 }
      end
      return cases
    end,
    refuses = function(g)
      return {
        { inputs = { g.randn { 3, 4 }, g.randn { 3, 1 }, n = 2 }, attrs = { n = 0 },
          message = "a must be square, got 3 by 4" },
        { inputs = { g.randn { 3, 3 }, g.randn { 2, 1 }, n = 2 }, attrs = { n = 0 },
          message = "a and b differ in dim 1 %(3 and 2%)" },
        { inputs = { g.randn { 3, 3 }, g.randn { 3 }, n = 2 }, attrs = { n = 0 },
          message = "b must have the 2 dims of a, got 1" },
        { inputs = { g.uniform({ 3, 3 }, 1, 1), g.randn { 3, 1 }, n = 2 }, attrs = { n = 0 },
          message = "matrix 0 is singular" },
      }
    end,
  },
}
