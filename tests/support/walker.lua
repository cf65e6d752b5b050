-- walker.lua: what the walk over the operator table shares: making inputs, plain copies, comparing.
local weft = require "weft"
local A = require "weft.args"

-- Where the rows run: "cpu", or what WEFT_TEST_DEVICE names.
local M = { device = os.getenv "WEFT_TEST_DEVICE" or "cpu" }

-- --- inputs, in float64 unless they are indices or masks
local stream = weft.random.stream("walker", 7)
local g = { no_grad = "no_grad" }
local function spec(shape, extra)
  local s = { rng = stream, dtype = "float64" }
  for i, n in ipairs(shape) do s[i] = n end
  for k, v in pairs(extra or {}) do s[k] = v end
  return s
end
function g.randn(shape) return weft.randn(spec(shape)) end
function g.uniform(shape, low, high) return weft.rand(spec(shape)) * (high - low) + low end
function g.index(shape, n) return weft.randint(spec(shape, { dtype = "int64", low = 0, high = n })) end
function g.int(shape, low, high) return weft.randint(spec(shape, { dtype = "int64", low = low, high = high })) end
function g.bool(shape) return weft.rand(spec(shape)):lt(0.5) end
function g.distinct(shape)
  local n = 1
  for _, s in ipairs(shape) do n = n * s end
  -- far enough apart that a central difference changes no order
  local order = weft.randperm(n, "cpu", stream)
  return ((order:to "float64") * 0.5 - n * 0.25 + 0.125):reshape(shape)
end
function g.tensor(value, options)
  options = options or { dtype = "float64" }
  return weft.tensor(value, options)
end
M.g = g

-- --- plain Lua form: { shape, data, dtype }
function M.plain(t)
  if t == nil or t == false then return nil end
  if not A.is_tensor(t) then
    local list = {}
    for i, x in ipairs(t) do list[i] = M.plain(x) end
    return list
  end
  local n = t:numel()
  local near = t:detach():to("cpu"):to("float64"):contiguous()
  local flat = near:data()
  local data = {}
  for i = 1, n do data[i] = flat[i - 1] end
  return { shape = t.shape, data = data, dtype = t.dtype }
end

---Compares a tensor with its plain expectation. Tolerance is relative to the largest value.
function M.close(got, want, tolerance)
  local p = M.plain(got)
  local a, b = table.concat(p.shape, ","), table.concat(want.shape, ",")
  if a ~= b then return false, ("shape [%s], expected [%s]"):format(a, b) end
  local scale = 1e-30
  for _, v in ipairs(want.data) do
    if v == v and math.abs(v) < math.huge then scale = math.max(scale, math.abs(v)) end
  end
  scale = math.max(scale, 1e-3)
  for i, w in ipairs(want.data) do
    local v = p.data[i]
    local same = (v ~= v and w ~= w) or v == w or math.abs(v - w) <= tolerance * scale
    if not same then return false, ("element %d of [%s]: %.10g, expected %.10g"):format(i, a, v, w) end
  end
  return true
end

---|got - want| over |want|, both taken as lists of all elements; nil and a message where the two
---can't be compared. What is not finite must be the same on both sides.
function M.relative_error(got, want)
  local p = M.plain(got)
  local a, b = table.concat(p.shape, ","), table.concat(want.shape, ",")
  if a ~= b then return nil, ("shape [%s], expected [%s]"):format(a, b) end
  local apart, size = 0, 0
  for i, w in ipairs(want.data) do
    local v = p.data[i]
    local finite = math.abs(w) < math.huge
    if finite ~= (math.abs(v) < math.huge) or not (finite or v == w or v ~= v and w ~= w) then
      return nil, ("element %d is %g, expected %g"):format(i, v, w)
    end
    if finite then apart, size = apart + (v - w) ^ 2, size + w * w end
  end
  return apart == 0 and 0 or math.sqrt(apart) / math.max(math.sqrt(size), 1e-6)
end

---Applies fn(t, wide) to every tensor of a case's inputs; wide: what stays float32 beside bfloat16, statistics and
---losses. words: the row's inputs as the table declares them.
function M.map_by_class(words, inputs, fn)
  local function wide(i)
    local word = words[math.min(i, #words)]
    return word:find(":any", 1, true) ~= nil and not word:find "^mask"
  end
  local out, named = { n = inputs.n }, inputs.xs and #words - 1 or math.max(#words, inputs.n or 0)
  for i = 1, named do
    if A.is_tensor(inputs[i]) then out[i] = fn(inputs[i], wide(i)) end
  end
  if inputs.xs then
    out.xs = {}
    for i, t in ipairs(inputs.xs) do out.xs[i] = fn(t, wide(named + 1)) end
  end
  return out
end

---A float64 input in bfloat16, or float32 where it is wide; others as they are.
function M.to_bfloat16(t, wide)
  return t.dtype == "float64" and t:to(wide and "float32" or "bfloat16") or t
end

---The same numbers behind strides: every other element of a larger tensor, last two dims exchanged.
function M.strided(t)
  local n = t.ndim
  if n == 0 or t:numel() == 0 then return t end
  local big_shape = {}
  local source = n >= 2 and weft.transpose(t, -2, -1) or t
  local shape = source.shape
  for i, s in ipairs(shape) do big_shape[i] = s end
  big_shape[n] = shape[n] * 2
  big_shape.dtype = t.dtype
  big_shape.device = t.device
  local big = weft.full((function() big_shape.value = 1 return big_shape end)())
  local part = big:unfold(n, 1, 2):select(n + 1, 1)
  part:copy_(source:detach())
  return n >= 2 and weft.transpose(part, -2, -1) or part
end

---The same numbers in rows that lie apart, as parts of a larger tensor do: the last dim is whole, the one
---before it ends early.
function M.apart(t)
  local n = t.ndim
  if n == 0 or t:numel() == 0 then return t end
  local big = t.shape
  big[n] = big[n] + 3
  if n > 1 then big[n - 1] = big[n - 1] + 1 end
  big.dtype, big.device, big.value = t.dtype, t.device, 1
  local part = weft.full(big):narrow(n, 2, t:size(n))
  if n > 1 then part = part:narrow(n - 1, 1, t:size(n - 1)) end
  part:copy_(t:detach())
  return part
end

---Calls the operator of a row with a case's inputs and returns a list of what comes back: outputs,
---or for an in-place row all its inputs afterwards (copies, so that a case can be used again).
function M.call(op, inputs, attrs, count)
  local args, n = {}
  if op.kind == "inplace" then inputs = M.map(inputs, function(t) return t:clone() end) end
  if inputs.xs then
    n = (inputs.n or 0) + 1
    for i = 1, n - 1 do args[i] = inputs[i] or nil end
    args[n] = inputs.xs
  else
    local k = inputs.n or count
    for i = 1, k do args[i] = inputs[i] or nil end
    n = k
  end
  attrs = attrs or {}
  local m = attrs.n or #attrs
  for i = 1, m do args[n + i] = attrs[i] end
  local outputs = { op.fn(unpack(args, 1, n + m)) }
  return op.kind == "inplace" and M.list(inputs) or outputs
end

---Cases with their inputs on the device under test.
function M.cases(e, which)
  local list = e[which](g)
  if M.device == "cpu" then return list end
  for _, case in ipairs(list) do
    case.inputs = M.map(case.inputs, function(t) return t.device == "meta" and t or t:to(M.device) end)
  end
  return list
end

---Applies fn to every tensor of a case's inputs.
function M.map(inputs, fn)
  local out = { n = inputs.n }
  for k, v in pairs(inputs) do
    if A.is_tensor(v) then out[k] = fn(v, k)
    elseif type(v) == "table" then
      out[k] = {}
      for i, t in ipairs(v) do out[k][i] = fn(t, i) end
    end
  end
  return out
end

---All tensors of a case's inputs, in order.
function M.list(inputs)
  local out = {}
  for i = 1, inputs.n or 16 do
    if A.is_tensor(inputs[i]) then out[#out + 1] = inputs[i] end
  end
  for _, t in ipairs(inputs.xs or {}) do out[#out + 1] = t end
  return out
end

return M
