-- create.lua: functions that make tensors from shapes, numbers and Lua tables.
local ffi = require "ffi"
local C = require("weft.core").lib
local A = require "weft.args"
local ops = require("weft.ops").functions

local M = {}

-- { 2, 3, dtype = "float64" } -> {2, 3}, options. Sizes and options share one table.
local function split(spec, extra, where)
  if type(spec) ~= "table" then A.raise("%s: a table such as { 2, 3, dtype = \"float32\" } is expected, got %s", where, A.typename(spec)) end
  local shape, options = {}, {}
  for k, v in pairs(spec) do
    if type(k) ~= "number" then options[k] = v end
  end
  for i = 1, #spec do shape[i] = spec[i] end
  local defaults = { dtype = "float32", device = "cpu", requires_grad = false }
  for k, v in pairs(extra or {}) do defaults[k] = v end
  return shape, A.options(options, defaults, where)
end

local function finish(t, options)
  if options.requires_grad then t:requires_grad_() end
  return t
end

local function filled(where, value)
  return function(spec)
    local shape, o = split(spec, value == nil and { value = A.required } or nil, where)
    local list, n = A.shape(shape, where, "shape")
    local v = value == nil and o.value or value
    A.number(v, where, "value")
    local p = A.make(where, C.weft_full, list, n, v, A.dtype(o.dtype, where), A.device(o.device, where))
    return finish(A.wrap(p), o)
  end
end

---Zeros: weft.zeros{ 2, 3, dtype = "float32", device = "cpu" }.
M.zeros = filled("zeros", 0)
---Ones: weft.ones{ 2, 3 }.
M.ones = filled("ones", 1)
---One value everywhere: weft.full{ 2, 3, value = 7 }.
M.full = filled("full")

---Memory as it comes: weft.empty{ 2, 3 }.
function M.empty(spec)
  local shape, o = split(spec, nil, "empty")
  local list, n = A.shape(shape, "empty", "shape")
  local p = A.make("empty", C.weft_empty, list, n, A.dtype(o.dtype, "empty"), A.device(o.device, "empty"))
  return finish(A.wrap(p), o)
end

---Standard normal draws: weft.randn{ 2, 3, dtype = "float32", rng = stream }.
function M.randn(spec)
  local shape, o = split(spec, { rng = A.none }, "randn")
  return finish(ops.randn(shape, o.dtype, o.device, o.rng), o)
end

---Uniform draws from [0, 1): weft.rand{ 2, 3 }.
function M.rand(spec)
  local shape, o = split(spec, { rng = A.none }, "rand")
  return finish(ops.rand(shape, o.dtype, o.device, o.rng), o)
end

---Normal draws of mean 0, cut to [a, b]: weft.trunc_normal{ 2, 3, std = 0.02 }.
function M.trunc_normal(spec)
  local shape, o = split(spec, { rng = A.none, std = 1, a = -2, b = 2 }, "trunc_normal")
  return finish(ops.trunc_normal(shape, o.std, o.a, o.b, o.dtype, o.device, o.rng), o)
end

---Whole numbers from low to high - 1: weft.randint{ 2, 3, low = 0, high = 10 }.
function M.randint(spec)
  local shape, o = split(spec, { rng = A.none, low = 0, high = A.required, dtype = "int64" }, "randint")
  return ops.randint(shape, o.low, o.high, o.dtype, o.device, o.rng)
end

---start, start + step, ... below stop: weft.arange(0, 10, 2, { dtype = "int64" }).
function M.arange(start, stop, step, options)
  if type(stop) == "table" then stop, options = nil, stop end
  if type(step) == "table" then step, options = nil, step end
  if stop == nil then start, stop = 0, start end
  local o = A.options(options, { dtype = "float32", device = "cpu" }, "arange")
  A.number(start, "arange", "start")
  A.number(stop, "arange", "stop")
  if step ~= nil then A.number(step, "arange", "step") end
  local p = A.make(nil, C.weft_arange, start, stop, step or 1, A.dtype(o.dtype, "arange"), A.device(o.device, "arange"))
  return A.wrap(p)
end

---The identity matrix of n rows: weft.eye(3, { dtype = "float64" }).
function M.eye(n, options)
  if type(n) ~= "number" or n % 1 ~= 0 or n < 0 then A.raise("eye: a number of rows is expected, got %s", A.typename(n)) end
  local o = A.options(options, { dtype = "float32" }, "eye")
  local a = M.arange(0, n, { dtype = "int64" })
  return a:unsqueeze(2):eq(a:unsqueeze(1)):to(o.dtype)
end

-- Shape of nested tables, and their numbers in row-major order.
local function flatten(value, shape, depth, out)
  if type(value) ~= "table" then
    if depth <= #shape then A.raise("tensor: a number stands where a table of %d is expected", shape[depth]) end
    out[#out + 1] = type(value) == "boolean" and (value and 1 or 0) or value
    if type(out[#out]) ~= "number" then A.raise("tensor: numbers or booleans are expected, got %s", A.typename(value)) end
    return
  end
  if depth > #shape then A.raise("tensor: a table stands where a number is expected") end
  if #value ~= shape[depth] then A.raise("tensor: rows of one length are expected: %d and %d at depth %d", shape[depth], #value, depth) end
  for i = 1, #value do flatten(value[i], shape, depth + 1, out) end
end

---A tensor of the numbers in a nested table: weft.tensor({ { 1, 2 }, { 3, 4 } }, { dtype = "float32" }).
---@param value number|boolean|table
---@param options? table dtype, requires_grad
function M.tensor(value, options)
  local o = A.options(options, { dtype = A.none, device = "cpu", requires_grad = false }, "tensor")
  if A.is_tensor(value) then A.raise("tensor: got a tensor; use t:clone() for a copy") end
  local shape, at = {}, value
  while type(at) == "table" do
    shape[#shape + 1] = #at
    at = at[1]
  end
  local numbers = {}
  flatten(value, shape, 1, numbers)
  local dtype = o.dtype or (type(at) == "boolean" and "bool" or "float32")
  local data = ffi.new("double[?]", math.max(#numbers, 1))
  for i = 1, #numbers do data[i - 1] = numbers[i] end
  local list, n = A.shape(shape, "tensor", "shape")
  local t = A.wrap(A.make("tensor", C.weft_from, data, list, n, C.WEFT_FLOAT64))
  if dtype ~= "float64" or o.device ~= "cpu" then t = t:to { dtype = dtype, device = o.device } end
  return finish(t, o)
end

return M
