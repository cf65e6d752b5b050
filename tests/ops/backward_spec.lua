-- backward_spec.lua: the fused gradient rows, which stay out of the Lua namespace, against their
-- formulas in float64, float32 and on a GPU bfloat16, through the C door.
local ffi = require "ffi"
local walker = require "tests.support.walker"
local A = require "weft.args"
local C = require("weft.core").lib

local function field(i, name) return ffi.string(C.weft_op_field(i, name)) end

-- A row's C arguments from a case's inputs and attributes: dims count from the end in these cases,
-- enums are words.
local function arguments(row, inputs, case)
  local args, n = {}, case.inputs.n
  for i = 1, n do args[i] = inputs[i] and inputs[i].p or nil end
  local k = 0
  for word in row.attrs:gmatch "%S+" do
    k = k + 1
    local v, choices = case.attrs[k], word:match "enum(%b())"
    if choices then
      local at = 0
      for choice in choices:gmatch "%a+" do
        if choice == v then v = at end
        at = at + 1
      end
    elseif type(v) == "boolean" then v = v and 1 or 0 end
    args[n + k] = v
  end
  n = n + k
  return args, n
end

local function call(row, inputs, case)
  local args, n = arguments(row, inputs, case)
  local fn = C["weft_" .. row.name]
  if row.outputs == 1 then
    local y = fn(unpack(args, 1, n))
    if y == nil then A.fail() end
    return { A.wrap(y) }
  end
  local outs = ffi.new("weft_tensor *[?]", row.outputs)
  args[n + 1] = outs
  if fn(unpack(args, 1, n + 1)) ~= 0 then A.fail() end
  local list = {}
  for i = 1, row.outputs do list[i] = A.wrap(outs[i - 1]) end
  return list
end

local families = { softmax = true, norm = true, loss = true }

local dtypes = { "float64", "float32", walker.device ~= "cpu" and "bfloat16" or nil }

-- A case's inputs in a dtype. What is bfloat16's is rounded once: the formula sees the same numbers.
local function inputs_in(row, case, dtype)
  return walker.map_by_class(row.words, case.inputs, function(t, wide)
    if dtype == "bfloat16" then return walker.to_bfloat16(t, wide) end
    return t.dtype == "float64" and t:to(dtype) or t
  end)
end

describe("fused gradients", function()
  for i = 0, C.weft_n_ops() - 1 do
    local name, family = field(i, "name"), field(i, "family")
    if families[family] and name:match "_backward$" then
      local row = { name = name, attrs = field(i, "attrs"), outputs = select(2, field(i, "outputs"):gsub("%S+", "")), words = {} }
      for word in field(i, "inputs"):gmatch "%S+" do row.words[#row.words + 1] = word end
      local entry = require("tests.ops.cases." .. family)[name]
      for _, dtype in ipairs(dtypes) do
        it(("of %s agree with their formula in %s"):format(name, dtype), function()
          for k, case in ipairs(walker.cases(entry, "cases")) do
            local inputs, plain = inputs_in(row, case, dtype), {}
            for j = 1, case.inputs.n do
              plain[j] = inputs[j] and walker.plain(dtype == "bfloat16" and inputs[j] or case.inputs[j]) or nil
            end
            local got, want = call(row, inputs, case), { case.reference(plain, case.attrs) }
            for j, w in ipairs(want) do
              local ok, message
              if dtype == "bfloat16" then
                ok, message = walker.relative_error(got[j], w)
                if ok and ok > 2 ^ -8 then ok, message = false, ("off by %g"):format(ok) end
              else ok, message = walker.close(got[j], w, dtype == "float64" and 1e-12 or 2e-5) end
              assert(ok, ("%s case %d, output %d: %s"):format(name, k, j, tostring(message)))
            end
          end
        end)
      end
      if entry.refuses then
        it("of " .. name .. " refuse what they can't do", function()
          for _, case in ipairs(walker.cases(entry, "refuses")) do
            local ok, message = pcall(call, row, case.inputs, case)
            assert.is_false(ok)
            assert.matches(case.message, tostring(message))
          end
        end)
      end
    end
  end
end)
