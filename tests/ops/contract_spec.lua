-- contract_spec.lua: what every row of the operator table promises beside its values, asked of each in
-- turn: the same shapes on meta, every dtype it claims and no other, gradients that arrive in strides.
local ffi = require "ffi"
local weft = require "weft"
local walker = require "tests.support.walker"
local A = require "weft.args"
local C = require("weft.core").lib
local signatures = require("weft.ops")

local rows = {}
for i = 0, C.weft_n_ops() - 1 do
  local row = { words = {}, dims = {} }
  for _, name in ipairs { "name", "family", "kind", "inputs", "attrs", "dtypes", "gradient" } do
    row[name] = ffi.string(C.weft_op_field(i, name))
  end
  for word in row.inputs:gmatch "%S+" do row.words[#row.words + 1] = word end
  local k = 0
  for word in row.attrs:gmatch "%S+" do
    k = k + 1
    if word:find ":dim$" or word:find ":dim=" then row.dims[#row.dims + 1] = k end
  end
  row.fn = signatures.functions[row.name]
  if row.fn then
    row.entry = require("tests.ops.cases." .. row.family)[row.name]
    rows[#rows + 1] = row
  end
end

local function call(row, inputs, attrs) return walker.call(row, inputs, attrs, #row.words) end

-- Class of the input that t is: "" where it has the row's dtype.
local function class_of(row, i) return row.words[math.min(i, #row.words)]:match ":(%w+)" or "" end

-- Applies fn(t) to the inputs of the row's own dtype, other(t) to the rest.
local function map_own(row, inputs, fn, other)
  local out = { n = inputs.n }
  local named = inputs.xs and #row.words - 1 or 16
  for i = 1, named do
    local t = inputs[i]
    if A.is_tensor(t) then out[i] = class_of(row, i) == "" and fn(t) or (other and other(t) or t) end
  end
  if inputs.xs then
    out.xs = {}
    for i, t in ipairs(inputs.xs) do out.xs[i] = class_of(row, #row.words) == "" and fn(t) or (other and other(t) or t) end
  end
  return out
end

local function own(row, inputs)
  local list = {}
  map_own(row, inputs, function(t) list[#list + 1] = t return t end)
  return list
end

local function shapes(list)
  local out = {}
  for i, t in ipairs(list) do out[i] = ("%s [%s]"):format(t.dtype, table.concat(t.shape, ",")) end
  return table.concat(out, " ")
end

local function refused(row, what, inputs, attrs)
  local ok, message = pcall(call, row, inputs, attrs)
  assert(not ok, ("%s takes %s"):format(row.name, what))
  assert.matches(row.name, tostring(message), 1, true)
end

describe("every row", function()
  for _, row in ipairs(rows) do
    describe(row.name, function()
      local cases = row.entry.cases(walker.g)

      it("has cases of size zero", function()
        local found = row.inputs == ""  -- what takes a shape alone is asked for one below
        for _, case in ipairs(cases) do
          for _, t in ipairs(walker.list(case.inputs)) do found = found or t:numel() == 0 end
        end
        assert(found, row.name)
      end)

      if row.name ~= "to_device" then
        it("has on meta the shapes that it has on the CPU, gradients too", function()
          for k, case in ipairs(cases) do
            local attrs = case.attrs
            local want = shapes(call(row, case.inputs, attrs))
            local there = walker.map(case.inputs, function(t) return t:to "meta" end)
            if row.inputs == "" then
              local names, at = {}, {}
              for i = 1, #(attrs or {}) do at[i] = attrs[i] end
              for word in row.attrs:gmatch "%S+" do names[#names + 1] = word:match "^[^:]+" end
              for i, n in ipairs(names) do if n == "device" then at[i], at.n = "meta", math.max(at.n or attrs.n or #attrs, i) end end
              attrs = at
            elseif row.kind ~= "inplace" then
              map_own(row, there, function(t) if t.dtype == "float64" and row.gradient == "yes" and case.grad == nil then t:requires_grad_() end return t end)
            end
            local got = call(row, there, attrs)
            assert.equal(want, shapes(got), ("%s case %d"):format(row.name, k))
            for _, y in ipairs(got) do
              assert.equal("meta", y.device)
              if y.requires_grad then
                local s = y.shape
                s.dtype, s.device = y.dtype, "meta"
                y:backward { gradient = weft.ones(s) }
                for _, t in ipairs(own(row, there)) do
                  if t.grad then assert.same(t.shape, t.grad.shape) end
                end
                break
              end
            end
          end
        end)
      end

      if row.gradient == "yes" then
        it("takes gradients as they come: rows that lie apart, one number for all", function()
          for k, case in ipairs(cases) do
            if case.grad ~= "no_grad" then
              -- gradients of the first result under weights, handed over in three ways
              local function gradients(how)
                local inputs = walker.map(case.inputs, function(t) return t:clone() end)
                local leaves = {}
                for i, t in ipairs(walker.list(inputs)) do
                  if t.dtype == "float64" and not (type(case.grad) == "table" and case.grad[i] == false) then leaves[#leaves + 1] = t:requires_grad_() end
                end
                local y = call(row, inputs, case.attrs)[1]
                if not y.requires_grad or y.ndim == 0 or y:numel() == 0 then return {} end
                local s = y.shape
                s.dtype, s.rng = "float64", weft.random.stream("contract", 3)
                local w = weft.randn(s)
                if how == "even" then w = weft.ones(y.shape):to "float64" end
                if how == "sum" then y:sum():backward()
                elseif how == "apart" then y:backward { gradient = walker.apart(w) }
                else y:backward { gradient = w } end
                local out = {}
                for i, t in ipairs(leaves) do out[i] = t.grad or false end
                return out
              end
              for _, pair in ipairs { { "whole", "apart" }, { "even", "sum" } } do
                local want, got = gradients(pair[1]), gradients(pair[2])
                for i, g in ipairs(want) do
                  if g then
                    local ok, message = walker.close(got[i], walker.plain(g), 1e-12)
                    assert(ok, ("%s case %d, %s, input %d: %s"):format(row.name, k, pair[2], i, tostring(message)))
                  end
                end
              end
            end
          end
        end)
      end

      if #own(row, cases[1].inputs) > 0 and row.kind ~= "inplace" then
        it("takes every dtype that it claims", function()
          local claims = { float = {}, num = { "int64", "int32" }, any = { "int64", "int32", "uint8", "bool" },
            all = { "int64", "int32", "uint8", "bool", "bfloat16", "float16" } }
          local taken = #claims[row.dtypes] == 0
          for _, dtype in ipairs(claims[row.dtypes]) do
            for k, case in ipairs(cases) do
              local top = dtype == "bool" and 1 or 3
              local function whole(t) return t.dtype == "float64" and weft.floor(t:abs()):clamp(dtype == "bool" and 0 or 1, top) or t end
              local plain = #own(row, case.inputs) > 0
              for _, t in ipairs(own(row, case.inputs)) do
                plain = plain and t.dtype == "float64"
                taken = taken or t.dtype == dtype
              end
              local fractions = false
              for i = 1, #(case.attrs or {}) do fractions = fractions or type(case.attrs[i]) == "number" and case.attrs[i] % 1 ~= 0 end
              if plain and not fractions then
                taken = true
                local inputs = map_own(row, case.inputs, whole)
                local want = call(row, inputs, case.attrs)
                local got = call(row, map_own(row, inputs, function(t) return t:to(dtype) end), case.attrs)
                for i, w in ipairs(want) do
                  -- integers divide towards zero, truths know no fraction
                  if row.name == "div" then w = weft.floor(w) end
                  if dtype == "bool" and w.dtype == "float64" then w = w:to "bool" end
                  local ok, message = walker.close(got[i], walker.plain(w), 0)
                  assert(ok, ("%s case %d in %s, output %d: %s"):format(row.name, k, dtype, i, tostring(message)))
                end
              end
            end
          end
          assert(taken, row.name .. ": no case is tried in other dtypes")
        end)

        it("refuses dtypes that it does not claim, two in one call, tensors of two devices, and dims that are not there", function()
          local claimed = { float = "int64", num = "bool", any = "float16" }
          local case = cases[1]
          if claimed[row.dtypes] then
            refused(row, claimed[row.dtypes], map_own(row, case.inputs, function(t) return t:to(claimed[row.dtypes]) end), case.attrs)
          end
          local mine = own(row, case.inputs)
          if #mine > 1 then
            local first = true
            refused(row, "two dtypes", map_own(row, case.inputs, function(t)
              if first then first = false return t end
              return t:to(t.dtype == "float64" and "float32" or "float64")
            end), case.attrs)
          end
          local all, seen = walker.list(case.inputs), 0
          if #all > 1 then
            refused(row, "two devices", walker.map(case.inputs, function(t)
              seen = seen + 1
              return seen == #all and t:to "meta" or t
            end), case.attrs)
          end
          for _, at in ipairs(row.dims) do
            for _, dim in ipairs { 9, -9 } do
              local attrs = { n = math.max(at, case.attrs and (case.attrs.n or #case.attrs) or 0) }
              for i = 1, attrs.n do attrs[i] = case.attrs and case.attrs[i] end
              attrs[at] = dim
              refused(row, "dim " .. dim, case.inputs, attrs)
            end
          end
        end)
      end
    end)
  end
end)

describe("what takes a shape alone", function()
  it("makes tensors of size zero and of no dims", function()
    for _, name in ipairs { "rand", "randn", "trunc_normal" } do
      for _, shape in ipairs { {}, { 0 }, { 3, 0, 2 } } do assert.same(shape, weft[name](shape).shape) end
    end
    assert.same({ 2, 0 }, weft.randint({ 2, 0, low = 0, high = 5 }).shape)
    assert.same({}, weft.randint({ low = 0, high = 5 }).shape)
    assert.same({ 0 }, weft.randperm(0).shape)
  end)
end)
