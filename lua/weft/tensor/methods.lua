-- methods.lua: what a tensor can do beyond the operator table: conversions, reading, writing in
-- place, gradients. Operators themselves come from ops.def.
local ffi = require "ffi"
local C = require("weft.core").lib
local A = require "weft.args"
local ops = require("weft.ops").functions
local wrap, tensor, raise = A.wrap, A.tensor, A.raise

local M = {}

local ctypes = {
  float32 = "float *", float64 = "double *", bfloat16 = "uint16_t *", float16 = "uint16_t *",
  int32 = "int32_t *", int64 = "int64_t *", uint8 = "uint8_t *", bool = "uint8_t *",
}

function M.size(t, dim)
  local v = tensor(t, "size", "t").v
  if type(dim) ~= "number" or dim == 0 or dim % 1 ~= 0 or dim > v.ndim or dim < -v.ndim then
    raise("size: dim %s outside 1..%d", tostring(dim), v.ndim)
  end
  return tonumber(v.shape[dim > 0 and dim - 1 or v.ndim + dim])
end

function M.numel(t) return tonumber(tensor(t, "numel", "t").v.numel) end
function M.is_contiguous(t) return C.weft_is_contiguous(tensor(t, "is_contiguous", "t")) end

local one = ffi.new "double[1]"

---The only element as a Lua number. On a GPU this waits until it has been computed.
function M.item(t)
  local p = tensor(t, "item", "t")
  if p.v.numel ~= 1 or p.v.device == C.WEFT_META then
    if A.assumed and p.v.numel == 1 then return 0 end
    C.weft_item(p)
    A.fail()
  end
  if p.v.device == C.WEFT_CPU then return C.weft_item(p) end
  if C.weft_read(p, one, 1) ~= 0 then A.fail() end
  return one[0]
end

---All elements as nested tables (a number for a 0-dim tensor).
function M.totable(t)
  local p = tensor(t, "totable", "t")
  local meta = p.v.device == C.WEFT_META
  if meta and not A.assumed then raise("totable: a tensor on %s has no values to read", t.device) end
  local n = tonumber(p.v.numel)
  local data = ffi.new("double[?]", math.max(n, 1))
  if not meta and C.weft_read(p, data, n) ~= 0 then A.fail() end
  local at = 0
  local function build(dim)
    if dim == p.v.ndim then
      at = at + 1
      return data[at - 1]
    end
    local out = {}
    for i = 1, tonumber(p.v.shape[dim]) do out[i] = build(dim + 1) end
    return out
  end
  return build(0)
end

---A pointer to the first element, typed by dtype. It lives as long as the tensor does.
function M.data(t)
  local p = tensor(t, "data", "t")
  if p.v.device ~= C.WEFT_CPU then raise("data: the tensor is on %s; t:to \"cpu\" brings it here", t.device) end
  return ffi.cast(ctypes[t.dtype], p.v.data)
end

---Another dtype or device: t:to "float64", t:to{ dtype = "bfloat16", device = "cpu" }.
function M.to(t, target)
  local options = target
  if type(target) == "string" then
    if C.weft_dtype_of(target) >= 0 then options = { dtype = target }
    elseif C.weft_device_of(target) >= 0 then options = { device = target }
    else
      raise("to: neither a dtype nor a device: %s%s", target, A.suggest(target,
        { "float32", "float64", "bfloat16", "float16", "int32", "int64", "uint8", "bool", "cpu", "meta", "cuda:0" }))
    end
  end
  local o = A.options(options, { dtype = A.none, device = A.none }, "to")
  local y = t
  if o.dtype and o.dtype ~= t.dtype then y = ops.cast(y, o.dtype) end
  if o.device then
    local device = A.device(o.device, "to")
    local p = tensor(y, "to", "t")
    if device == C.WEFT_META and device ~= p.v.device then
      y = wrap(A.make("to", C.weft_empty, p.v.shape, p.v.ndim, p.v.dtype, device))
    elseif device ~= p.v.device then y = ops.to_device(y, o.device) end
  end
  return y
end

for _, name in ipairs { "float32", "float64", "bfloat16", "float16", "int32", "int64", "uint8", "bool" } do
  M[name] = function(t) return (M.to(t, name)) end
end

---A copy with memory of its own; the gradient passes through.
function M.clone(t) return (ops.cast(t, t.dtype)) end

function M.detach(t)
  local p = C.weft_detach(tensor(t, "detach", "t"))
  if p == nil then A.fail() end
  return (wrap(p))
end

---A second handle on the same tensor.
function M.alias(t)
  local p = C.weft_alias(tensor(t, "alias", "t"))
  if p == nil then A.fail() end
  return (wrap(p))
end

-- Sizes as varargs or as a table.
local function sizes(first, ...)
  if type(first) == "table" then return first end
  return { first, ... }
end
function M.reshape(t, ...) return (ops.reshape(t, sizes(...))) end
function M.expand(t, ...) return (ops.expand(t, sizes(...))) end
function M.permute(t, ...) return (ops.permute(t, sizes(...))) end
function M.flatten(t, from, to)
  from, to = from or 1, to or -1
  local shape, out = t.shape, {}
  if #shape == 0 then return (ops.reshape(t, { 1 })) end
  if from < 0 then from = #shape + 1 + from end
  if to < 0 then to = #shape + 1 + to end
  if from < 1 or to > #shape or from > to then raise("flatten: dims %d..%d outside 1..%d", from, to, #shape) end
  local n = 1
  for i = 1, #shape do
    if i < from or i > to then out[#out + 1] = shape[i]
    else
      n = n * shape[i]
      if i == to then out[#out + 1] = n end
    end
  end
  return (ops.reshape(t, out))
end

---The last two dims exchanged.
function M.t(x) return (ops.transpose(x, -2, -1)) end

---Pieces of given size along dim (the last may be smaller): t:split(2, 1), t:split({ 1, 3 }, 2).
function M.split(t, pieces, dim)
  dim = dim or 1
  local total, out, at = M.size(t, dim), {}, 1
  if type(pieces) == "number" then
    if pieces < 1 then raise("split: a size of at least 1 is expected, got %s", tostring(pieces)) end
    local size = pieces
    pieces = {}
    for start = 0, total - 1, size do pieces[#pieces + 1] = math.min(size, total - start) end
  end
  local sum = 0
  for _, n in ipairs(pieces) do sum = sum + n end
  if sum ~= total then raise("split: pieces sum to %d, dim %d has %d", sum, dim, total) end
  for i, n in ipairs(pieces) do
    out[i] = ops.narrow(t, dim, at, n)
    at = at + n
  end
  return out
end

-- Without a dim these reduce everything.
local function whole(t) return (M.flatten(t)) end
for _, name in ipairs { "max", "min" } do
  local op = ops[name]
  M[name] = function(t, dim, keepdim)
    if dim == nil then
      local values = op(whole(t), 1)
      return values
    end
    return op(t, dim, keepdim)
  end
end
for _, name in ipairs { "argmax", "argmin" } do
  local op = ops[name]
  M[name] = function(t, dim, keepdim)
    if dim == nil then return (op(whole(t), 1)) end
    return (op(t, dim, keepdim))
  end
end

-- --- writing in place
---Copies src (converted, broadcast) into t.
function M.copy_(t, src)
  A.run(C.weft_copy_, tensor(t, "copy_", "t"), tensor(src, "copy_", "src"))
  return t
end
function M.fill_(t, value)
  A.number(value, "fill_", "value")
  A.run(C.weft_fill_, tensor(t, "fill_", "t"), value)
  return t
end
function M.zero_(t) return M.fill_(t, 0) end

---A number beside a tensor, as a 0-dim tensor of its dtype and device. Integers compare and combine
---with whole numbers only: cutting 1.5 to 1 would answer another question.
local function scalar(value, t, op)
  local p = tensor(t, op, "t")
  if value % 1 ~= 0 and value - value == 0 and t.dtype:find "int" then
    raise("%s: the tensor is %s, the number %s is not whole; convert the tensor with to()", op, t.dtype, tostring(value))
  end
  return wrap(A.make(op, C.weft_full, nil, 0, value, p.v.dtype, p.v.device))
end
A.scalar = scalar

for _, name in ipairs { "add", "sub", "mul", "div", "maximum", "minimum", "pow" } do
  local label = name .. "_"
  M[label] = function(t, other)
    local p = tensor(t, label, "t")
    if type(other) == "number" then
      if name == "add" then A.run(C.weft_affine_, p, 1, other)
      elseif name == "sub" then A.run(C.weft_affine_, p, 1, -other)
      elseif name == "mul" then A.run(C.weft_affine_, p, other, 0)
      else A.run(C.weft_inplace, name, p, scalar(other, t, label).p) end
    else
      A.run(C.weft_inplace, name, p, tensor(other, label, "other"))
    end
    return t
  end
end

-- --- gradients
---Marks a leaf as wanting a gradient (or, with false, as not).
function M.requires_grad_(t, flag)
  if flag == nil then flag = true end
  A.check(C.weft_requires_grad_(tensor(t, "requires_grad_", "t"), flag))
  return t
end
function M.retain_grad(t)
  A.check(C.weft_retain_grad(tensor(t, "retain_grad", "t")))
  return t
end
function M.zero_grad(t)
  A.check(C.weft_set_grad(tensor(t, "zero_grad", "t"), nil))
  return t
end

---Takes the tensor out of all scopes: it lives until Lua drops it.
function M.keep(t)
  C.weft_keep(tensor(t, "keep", "t"))
  return (A.owned(t))
end

---Frees the handle now. Using it afterwards is an error.
function M.free(t)
  if t.p ~= nil and t.gen == t.p.gen then C.weft_free(t.p) end
end

return M
