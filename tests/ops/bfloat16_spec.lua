-- bfloat16_spec.lua: every row that takes floats, in bfloat16 on the GPU under test, against the same
-- row in float64 on the CPU from the same rounded inputs. The CPU refuses to compute in bfloat16.
local ffi = require "ffi"
local weft = require "weft"
local walker = require "tests.support.walker"
local C = require("weft.core").lib
local signatures = require("weft.ops")

local device = walker.device

-- How far results may be off, all elements of a tensor taken together. One that is computed in
-- float32 from exact inputs and rounded once is off by 2^-8 at most; one that stays float32 by little;
-- one that is only moved or chosen not at all. Gradients go through rounded intermediate results.
local ROUNDED, WIDE, GRADIENT = 2 ^ -8, 1e-6, 1e-2
local moving = { layout = true, sort = true, cast = true }
local looser = {
  div = 2e-2,       -- -dy * y / b: three roundings
  tanh = 2e-2,      -- 1 - y^2 of a rounded y near 1
  scaled_dot_product_attention = 2.5e-2,  -- sum(dy * y) of a rounded y, from which dy * v is taken
}

local function rows()
  local list = {}
  for i = 0, C.weft_n_ops() - 1 do
    local function field(name)
      local p = C.weft_op_field(i, name)
      return p ~= nil and ffi.string(p) or ""
    end
    local row = { name = field "name", family = field "family", kind = field "kind", words = {},
      gradient = field "gradient", dtypes = field "dtypes" }
    for word in field("inputs"):gmatch "%S+" do row.words[#row.words + 1] = word end
    row.fn = signatures.functions[row.name]
    list[#list + 1] = row
  end
  return list
end

-- A case's inputs on the device, and the same numbers in float64 on the CPU.
local function on_device(row, case)
  return walker.map_by_class(row.words, case.inputs, function(t, wide) return walker.to_bfloat16(t, wide):to(device) end)
end
local function rounded(row, case)
  return walker.map_by_class(row.words, case.inputs, function(t, wide)
    return t.dtype == "float64" and walker.to_bfloat16(t, wide):to "float64" or t
  end)
end

local function has_floats(inputs)
  for _, t in ipairs(walker.list(inputs)) do
    if t.dtype == "float64" then return true end
  end
  return false
end

-- Gradients of the float inputs, each output multiplied with the same weights on both sides.
local function gradients(row, case, inputs, weights)
  inputs = walker.map(inputs, function(t) return t:clone() end)
  local leaves, total = walker.list(inputs), nil
  for i, t in ipairs(leaves) do
    local skipped = type(case.grad) == "table" and case.grad[i] == false
    if t.dtype:find "float" and not skipped then t:requires_grad_() end
  end
  for i, y in ipairs(walker.call(row, inputs, case.attrs, #row.words)) do
    if y.requires_grad then
      if not weights[i] then
        local spec = y.shape
        spec.dtype, spec.rng = "float64", weft.random.stream("bfloat16 weights " .. i, 3)
        weights[i] = weft.randn(spec):to "bfloat16"
      end
      y = y:to(leaves[1].device)
      local part = y * weights[i]:to(y.dtype):to(y.device)
      part = part:to(y.dtype == "float64" and "float64" or "float32"):sum()
      total = total and total + part or part
    end
  end
  if not total then return {} end
  total:backward()
  local out = {}
  for i, t in ipairs(leaves) do out[i] = t.requires_grad and t.grad or nil end
  return out
end

local function check(what, got, want, most)
  local off, message = walker.relative_error(got, walker.plain(want))
  assert(off, ("%s: %s"):format(what, tostring(message)))
  assert(off <= most, ("%s is off by %g, at most %g is expected"):format(what, off, most))
end

local function allowed(row, t)
  -- three roundings of half a step each: the frozen product's, the low rank's, and that of their sum
  if row.name == "lora_linear" and t.dtype == "bfloat16" then return 1.5 * ROUNDED end
  if t.dtype == "bfloat16" then return moving[row.family] and 0 or ROUNDED end
  return t.dtype == "float32" and WIDE or 0
end

local family = os.getenv "WEFT_TEST_FAMILY"

describe("bfloat16", function()
  if device == "cpu" then
    it("is refused by the CPU's arithmetic", function()
      local x = weft.zeros { 3, dtype = "bfloat16" }
      local ok, message = pcall(weft.add, x, x)
      assert.is_false(ok)
      assert.matches("a is bfloat16", message)
    end)
    return
  end

  for _, row in ipairs(rows()) do
    local list = {}
    if row.fn and row.dtypes ~= "any" and (not family or family == row.family) then
      for k, case in ipairs(require("tests.ops.cases." .. row.family)[row.name].cases(walker.g)) do
        case.number = k
        if has_floats(case.inputs) then list[#list + 1] = case end
      end
    end
    if #list > 0 and row.family == "linalg" then
      it("is refused in words by " .. row.name, function()
        local ok, message = pcall(walker.call, row, on_device(row, list[1]), list[1].attrs, #row.words)
        assert.is_false(ok)
        assert.matches("decompositions need float32 or float64", message)
      end)
    elseif #list > 0 then
      it("is what float64 gives, rounded, in " .. row.name, function()
        for _, case in ipairs(list) do
          local want = walker.call(row, rounded(row, case), case.attrs, #row.words)
          local got = walker.call(row, on_device(row, case), case.attrs, #row.words)
          for i, w in ipairs(want) do
            check(("%s case %d, output %d"):format(row.name, case.number, i), got[i], w, allowed(row, got[i]))
          end
        end
      end)
      if row.gradient == "yes" then
        it("has the gradients of float64 in " .. row.name, function()
          for _, case in ipairs(list) do
            if case.bfloat16 ~= "forward" then
              local weights = {}
              local want = gradients(row, case, rounded(row, case), weights)
              local got = gradients(row, case, on_device(row, case), weights)
              for i, w in pairs(want) do
                assert(got[i] ~= nil, ("%s case %d, input %d has no gradient"):format(row.name, case.number, i))
                check(("%s case %d, gradient %d"):format(row.name, case.number, i), got[i], w, looser[row.name] or GRADIENT)
              end
            end
          end
        end)
      end
    end
  end
end)
