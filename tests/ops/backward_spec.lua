-- backward_spec.lua: the fused gradient rows, which stay out of the Lua namespace, against their
-- formulas in float64 and float32, through the C door.
local ffi = require "ffi"
local walker = require "tests.support.walker"
local A = require "weft.args"
local C = require("weft.core").lib

local function field(i, name) return ffi.string(C.weft_op_field(i, name)) end

-- A row's C arguments from a case: dims count from the end in these cases, enums are words.
local function arguments(row, case, convert)
  local args, n = {}, case.inputs.n
  for i = 1, n do
    local t = case.inputs[i]
    args[i] = t and convert(t).p or nil
  end
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

local function call(row, case, convert)
  local held = {}  -- converted inputs live until the call is over
  local args, n = arguments(row, case, function(t)
    held[#held + 1] = convert(t)
    return held[#held]
  end)
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

describe("fused gradients", function()
  for i = 0, C.weft_n_ops() - 1 do
    local name, family = field(i, "name"), field(i, "family")
    if families[family] and name:match "_backward$" then
      local row = { name = name, attrs = field(i, "attrs"), outputs = select(2, field(i, "outputs"):gsub("%S+", "")) }
      local entry = require("tests.ops.cases." .. family)[name]
      for _, dtype in ipairs { "float64", "float32" } do
        it(("of %s agree with their formula in %s"):format(name, dtype), function()
          local function convert(t) return t.dtype == "float64" and t:to(dtype) or t end
          for k, case in ipairs(entry.cases(walker.g)) do
            local plain = {}
            for j = 1, case.inputs.n do plain[j] = case.inputs[j] and walker.plain(case.inputs[j]) or nil end
            local got, want = call(row, case, convert), { case.reference(plain, case.attrs) }
            for j, w in ipairs(want) do
              local ok, message = walker.close(got[j], w, dtype == "float64" and 1e-12 or 2e-5)
              assert(ok, ("%s case %d, output %d: %s"):format(name, k, j, tostring(message)))
            end
          end
        end)
      end
      if entry.refuses then
        it("of " .. name .. " refuse what they can't do", function()
          for _, case in ipairs(entry.refuses(walker.g)) do
            local ok, message = pcall(call, row, case, function(t) return t end)
            assert.is_false(ok)
            assert.matches(case.message, tostring(message))
          end
        end)
      end
    end
  end
end)
