-- tensor: the tensor type as Lua sees it: fields, methods, arithmetic and indexing.
-- Positions and dims count from 1; `*` is elementwise; `==` is identity; t[i] is always a tensor.
local ffi = require "ffi"
local C = require("weft.core").lib
local A = require "weft.args"
local ops = require("weft.ops").functions
local methods = require "weft.tensor.methods"
local create = require "weft.tensor.create"
local Tensor, istype, raise, tensor = A.Tensor, ffi.istype, A.raise, A.tensor

local functions = {}
for name, fn in pairs(ops) do functions[name] = fn end
for name, fn in pairs(methods) do functions[name] = fn end

-- --- arithmetic with numbers
local function number_or(_, with_number, both)
  return function(a, b)
    if type(b) == "number" then return (with_number(a, b, false)) end
    if type(a) == "number" then return (with_number(b, a, true)) end
    return (both(a, b))
  end
end
local affine, pow_scalar = ops.affine, ops.pow_scalar
functions.add = number_or("add", function(t, v) return affine(t, 1, v) end, ops.add)
functions.sub = number_or("sub", function(t, v, left)
  if left then return affine(t, -1, v) end
  return affine(t, 1, -v)
end, ops.sub)
functions.mul = number_or("mul", function(t, v) return affine(t, v, 0) end, ops.mul)
functions.div = number_or("div", function(t, v, left)
  if left then return affine(pow_scalar(t, -1), v, 0) end
  if t.dtype:find "int" then return (ops.div(t, A.scalar(v, t, "div"))) end
  return affine(t, 1 / v, 0)
end, ops.div)
functions.pow = number_or("pow", function(t, v, left)
  if left then return (ops.pow(A.scalar(v, t, "pow"), t)) end
  return pow_scalar(t, v)
end, ops.pow)
for _, name in ipairs { "eq", "ne", "lt", "le", "gt", "ge", "maximum", "minimum" } do
  local op = ops[name]
  functions[name] = function(a, b)
    if type(b) == "number" then b = A.scalar(b, a, name)
    elseif type(a) == "number" then a = A.scalar(a, b, name) end
    return (op(a, b))
  end
end

-- --- fields
local fields = {}
function fields.shape(t)
  local v = tensor(t, "shape", "t").v
  local out = {}
  for i = 1, v.ndim do out[i] = tonumber(v.shape[i - 1]) end
  return out
end
function fields.strides(t)
  local v = tensor(t, "strides", "t").v
  local out = {}
  for i = 1, v.ndim do out[i] = tonumber(v.stride[i - 1]) end
  return out
end
function fields.ndim(t) return tensor(t, "ndim", "t").v.ndim end
local dtype_names = {}
for i = 0, 7 do dtype_names[i] = ffi.string(C.weft_dtype_name(i)) end
function fields.dtype(t) return dtype_names[tensor(t, "dtype", "t").v.dtype] end
function fields.device(t)
  local d = tensor(t, "device", "t").v.device
  return d == 0 and "cpu" or ffi.string(C.weft_device_name(d))
end
function fields.requires_grad(t) return tensor(t, "requires_grad", "t").requires_grad end
function fields.is_leaf(t) return tensor(t, "is_leaf", "t").is_leaf end
function fields.grad(t)
  local p = C.weft_grad(tensor(t, "grad", "t"))
  if p == nil then return nil end
  return (A.wrap(p))
end
function fields.grad_op(t)
  local name = C.weft_grad_op(tensor(t, "grad_op", "t"))
  return name ~= nil and ffi.string(name) or nil
end

local mt = {}
function mt.__index(t, key)
  local method = functions[key]
  if method then return method end
  local field = fields[key]
  if field then return field(t) end
  if type(key) == "number" then return (ops.select(t, 1, key)) end
  local known = {}
  for name in pairs(functions) do known[#known + 1] = name end
  for name in pairs(fields) do known[#known + 1] = name end
  local near = A.nearest(tostring(key), known)
  raise("a tensor has no field or method %s%s", tostring(key),
    #near > 0 and "; did you mean " .. table.concat(near, " or ") .. "?" or "; see weft.help()")
end

function mt.__newindex(t, key, value)
  if key == "grad" then
    A.check(C.weft_set_grad(tensor(t, "grad", "t"), value ~= nil and tensor(value, "grad", "value") or nil))
  elseif type(key) == "number" then
    if type(value) ~= "number" and not istype(Tensor, value) then
      raise("t[%d] = value: a number or a tensor is expected, got %s", key, A.typename(value))
    end
    local part = ops.select(t, 1, key)
    if type(value) == "number" then part:fill_(value) else part:copy_(value) end
  else
    raise("a tensor's %s can't be set; grad and positions can", tostring(key))
  end
end

mt.__add, mt.__sub, mt.__mul, mt.__div, mt.__pow = functions.add, functions.sub, functions.mul, functions.div, functions.pow
local function unordered() raise("tensors have no order; a:lt(b), a:le(b), a:gt(b) and a:ge(b) compare elementwise") end
mt.__lt, mt.__le = unordered, unordered
mt.__unm = function(t) return (ops.neg(t)) end
mt.__len = function(t)
  local v = tensor(t, "#", "t").v
  if v.ndim == 0 then raise("#: a 0-dim tensor has no length") end
  return tonumber(v.shape[0])
end
-- Identity: the same handle. LuaJIT calls this for t == nil too and forces a boolean.
mt.__eq = function(a, b)
  if not (istype(Tensor, a) and istype(Tensor, b)) then return false end
  return a.p == b.p and a.gen == b.gen
end
mt.__tostring = function(t) return (require("weft.tensor.print").tensor(t)) end

local M = { functions = functions, fields = fields, create = create }

---Adds a method (and weft.<name>), for other parts of weft.
function M.method(name, fn) functions[name] = fn end

-- Pointers inside the ref keep their own meaning: p and gen are the struct's fields and are found first.
ffi.metatype(Tensor, mt)
return M
