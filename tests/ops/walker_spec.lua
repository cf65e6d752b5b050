-- walker_spec.lua: walks every row of the operator table through the same checks. A row without an
-- entry in tests/ops/cases/<family>.lua fails.
local ffi = require "ffi"
local weft = require "weft"
local walker = require "tests.support.walker"
local A = require "weft.args"
local C = require("weft.core").lib
local state = require("weft.core").state
local signatures = require("weft.ops")
local gradcheck = require("weft.autograd.gradcheck").gradcheck

local function field(i, name)
  local p = C.weft_op_field(i, name)
  return p ~= nil and ffi.string(p) or nil
end

local device = walker.device
local memory = C.weft_memory_of(C.weft_device_of(device))
assert(memory ~= nil, ffi.string(C.weft_error()))

local rows = {}
for i = 0, C.weft_n_ops() - 1 do
  local row = { index = i, count = 0 }
  for _, name in ipairs { "name", "family", "kind", "inputs", "outputs", "dtypes", "gradient" } do row[name] = field(i, name) end
  row.count = select(2, row.inputs:gsub("%S+", ""))
  row.fn = signatures.functions[row.name]
  rows[#rows + 1] = row
end

local cases = {}
local function entry(row)
  if not cases[row.family] then cases[row.family] = require("tests.ops.cases." .. row.family) end
  return cases[row.family][row.name]
end

local function is_float(t) return t.dtype == "float64" end
local to32 = function(t) return is_float(t) and t:to "float32" or t end

-- Gradients of sum(out * weight) for the float inputs of a case, those in mask only.
local function gradients(row, case, mask)
  local leaves = {}
  local inputs = walker.map(case.inputs, function(t)
    local copy = t:clone()
    leaves[#leaves + 1] = copy
    return copy
  end)
  leaves = walker.list(inputs)
  for i, t in ipairs(leaves) do
    if mask[i] then t:requires_grad_() end
  end
  local outs = walker.call(row, inputs, case.attrs, row.count)
  local total
  for i, y in ipairs(outs) do
    if y.requires_grad then
      local w = y.shape
      w.dtype, w.rng = "float64", weft.random.stream("walker weights " .. i, 3)
      local part = (y * weft.randn(w):to(y.device)):sum()
      total = total and total + part or part
    end
  end
  if not total then return nil end
  total:backward()
  local out = {}
  for i, t in ipairs(leaves) do out[i] = t.grad end
  return out, leaves
end

local function perturbed(case)
  local list, mask = walker.list(case.inputs), {}
  for i, t in ipairs(list) do
    mask[i] = is_float(t) and not (type(case.grad) == "table" and case.grad[i] == false)
  end
  return mask, list
end

-- WEFT_TEST_FAMILY=norm walks that family alone, while it is being written.
local family = os.getenv "WEFT_TEST_FAMILY"

describe("the operator table", function()
  for _, row in ipairs(rows) do
    if row.fn and (not family or row.family == family) then
      describe(row.name, function()
        local e = entry(row)
        local name = row.name

        it("has cases", function()
          assert.is_table(e, ("no entry for %s in tests/ops/cases/%s.lua"):format(name, row.family))
          assert.is_true(#e.cases(walker.g) > 0)
        end)
        if not e then return end

        local list = walker.cases(e, "cases")
        local differentiable = row.gradient == "yes"

        it("agrees with its float64 reference", function()
          for k, case in ipairs(list) do
            if case.reference then
              local plain = {}
              for i, v in pairs(case.inputs) do if i ~= "n" then plain[i] = walker.plain(v) end end
              local want = { case.reference(plain, case.attrs or {}) }
              local got = walker.call(row, case.inputs, case.attrs, row.count)
              for i, w in ipairs(want) do
                assert(got[i] ~= nil, ("%s case %d: output %d is missing"):format(name, k, i))
                local ok, message = walker.close(got[i], w, case.tolerance64 or 1e-11)
                assert(ok, ("%s case %d, output %d: %s"):format(name, k, i, tostring(message)))
              end
            end
            if case.property then
              local ok, message = case.property(walker.call(row, case.inputs, case.attrs, row.count), case.inputs)
              assert(ok, ("%s case %d: %s"):format(name, k, tostring(message)))
            end
          end
        end)

        it("gives in float32 what float64 gives", function()
          for k, case in ipairs(list) do
            if case.float32 ~= false then
              -- the same rounded inputs in both
              local rounded = walker.map(case.inputs, function(t) return is_float(t) and t:to("float32"):to("float64") or t end)
              local small = walker.map(rounded, to32)
              local attrs = case.attrs32 or case.attrs
              local want = walker.call(row, rounded, case.attrs, row.count)
              local got = walker.call(row, small, attrs, row.count)
              for i, w in ipairs(want) do
                local ok, message = walker.close(got[i], walker.plain(w), case.tolerance32 or 2e-5)
                assert(ok, ("%s case %d, output %d: %s"):format(name, k, i, tostring(message)))
              end
            end
          end
        end)

        if row.kind ~= "inplace" then
          it("does not mind strides", function()
            for k, case in ipairs(list) do
              if case.strided ~= false then
                local want = walker.call(row, case.inputs, case.attrs, row.count)
                for how, move in pairs { strided = walker.strided, apart = walker.apart } do
                  local got = walker.call(row, walker.map(case.inputs, move), case.attrs, row.count)
                  for i, w in ipairs(want) do
                    local ok, message = walker.close(got[i], walker.plain(w), 1e-12)
                    assert(ok, ("%s case %d, %s, output %d: %s"):format(name, k, how, i, tostring(message)))
                  end
                end
              end
            end
          end)
        end

        if differentiable then
          it("has the gradient of central differences", function()
            for k, case in ipairs(list) do
              local mask, inputs = perturbed(case)
              local size = 0
              for i, t in ipairs(inputs) do if mask[i] then size = size + t:numel() end end
              if case.grad ~= "no_grad" and size > 0 and size <= (case.gradcheck_limit or 600) then
                local copies = walker.map(case.inputs, function(t) return t:clone() end)
                local leaves = walker.list(copies)
                for i, t in ipairs(leaves) do if mask[i] then t:requires_grad_() end end
                local ok, message = gradcheck(function()
                  return unpack(walker.call(row, copies, case.attrs, row.count))
                end, leaves, { eps = case.eps or 1e-6, atol = case.atol or 1e-6, rtol = case.rtol or 1e-5 })
                assert(ok, ("%s case %d: %s"):format(name, k, tostring(message)))
              end
            end
          end)

          it("computes only the gradients that are wanted, and the same ones", function()
            for k, case in ipairs(list) do
              local mask, inputs = perturbed(case)
              if case.grad ~= "no_grad" and #inputs <= 5 then
                local all = gradients(row, case, mask)
                for i = 1, #inputs do
                  if all and mask[i] then
                    local only = {}
                    only[i] = true
                    local some = gradients(row, case, only)
                    for j = 1, #inputs do
                      if j ~= i then assert(some[j] == nil, ("%s case %d: input %d got a gradient"):format(name, k, j)) end
                    end
                    if all[i] ~= nil then
                      local ok, message = walker.close(some[i], walker.plain(all[i]), 1e-13)
                      assert(ok, ("%s case %d, input %d: %s"):format(name, k, i, tostring(message)))
                    end
                  end
                end
              end
            end
          end)
        end

        it("fails cleanly whichever allocation fails, and leaks nothing", function()
          local case = list[1]
          local inputs = walker.map(case.inputs, function(t) return t:clone() end)
          local mask = perturbed(case)
          if differentiable and case.grad ~= "no_grad" then
            for i, t in ipairs(walker.list(inputs)) do if mask[i] then t:requires_grad_() end end
          end
          local function once()
            weft.scope(function()
              local outs = walker.call(row, inputs, case.attrs, row.count)
              for _, y in ipairs(outs) do
                if y.requires_grad then
                  y:backward { gradient = weft.ones(((function() local s = y.shape s.dtype, s.device = y.dtype, y.device return s end)())) }
                  break
                end
              end
            end)
            for _, t in ipairs(walker.list(inputs)) do if t.requires_grad then t:zero_grad() end end
          end
          once()
          collectgarbage() collectgarbage()
          collectgarbage "stop"
          local make_room = A.make_room
          A.make_room = function() end
          local live, handles, nodes = memory.live, state.handles, state.nodes
          local finished = false
          for nth = 1, 400 do
            C.weft_fail_allocation(nth)
            local ok, message = pcall(once)
            C.weft_fail_allocation(0)
            for _, t in ipairs(walker.list(inputs)) do if t.requires_grad then t:zero_grad() end end
            if not ok then assert.matches("memory", tostring(message)) end
            assert.equal(tonumber(live), tonumber(memory.live), name .. ": live bytes after failing allocation " .. nth)
            assert.equal(tonumber(handles), tonumber(state.handles), name .. ": handles after failing allocation " .. nth)
            assert.equal(tonumber(nodes), tonumber(state.nodes), name .. ": tape nodes after failing allocation " .. nth)
            finished = ok
            if ok then break end
          end
          assert(finished, name .. " fails after 400 allocations")
          A.make_room = make_room
          collectgarbage "restart"
        end)

        if e.refuses then
          it("refuses what it can't do, in words", function()
            for k, case in ipairs(walker.cases(e, "refuses")) do
              local ok, message = pcall(walker.call, row, case.inputs, case.attrs, row.count)
              assert(not ok, ("%s refusal %d was accepted"):format(name, k))
              -- a GPU tells of one of the offenders, not always of the first
              local pattern = device == "cpu" and case.message or case.message:gsub("position 1", "position %%d+"):gsub("row 1", "row %%d+")
              assert.matches(pattern, tostring(message))
            end
          end)
        end
      end)
    end
  end
end)
