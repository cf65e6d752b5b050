-- small.lua: a short program that starts each kernel once or twice at small sizes, for compute-sanitizer.
-- Usage: luajit tests/gpu/small.lua DEVICE rows|attention|training|small
local weft = require "weft"
local walker, C, ffi

local device, part = arg[1] or "cuda", arg[2] or "small"
local did = 0

-- Every row of the operator table with its cases, in the dtypes that a GPU has, gradients too.
local function rows(only)
  local signatures = require "weft.ops"
  for i = 0, C.weft_n_ops() - 1 do
    local function field(name)
      local p = C.weft_op_field(i, name)
      return p ~= nil and ffi.string(p) or ""
    end
    local row = { name = field "name", family = field "family", kind = field "kind", count = 0 }
    for _ in field("inputs"):gmatch "%S+" do row.count = row.count + 1 end
    row.fn = signatures.functions[row.name]
    local ok, cases = pcall(require, "tests.ops.cases." .. row.family)
    local entry = ok and row.fn and (not only or only[row.family]) and cases[row.name]
    if entry then
      local list = walker.cases(entry, "cases")
      for k = 1, math.min(#list, 3) do
        for _, dtype in ipairs { "float32", "bfloat16" } do
          -- rows that a dtype is refused by say so before any kernel starts
          pcall(weft.scope, function()
            local leaves = walker.map(list[k].inputs, function(t)
              local copy = t.dtype == "float64" and t:to(dtype) or t:clone()
              if copy.dtype == dtype and field "gradient" == "yes" and list[k].grad ~= "no_grad" then copy:requires_grad_() end
              return copy
            end)
            local total
            for _, y in ipairs(walker.call(row, leaves, list[k].attrs32 or list[k].attrs, row.count)) do
              if y.requires_grad then total = total and total + y:sum() or y:sum() end
            end
            if total then total:backward() end
            did = did + 1
          end)
        end
      end
    end
  end
end

local function attention()
  local rng = { key = 3ULL, counter = 4ULL }
  for _, dtype in ipairs { "float32", "bfloat16" } do
    for _, d in ipairs { 16, 64, 128 } do
      for _, causal in ipairs { false, true } do
        weft.scope(function()
          local t = {}
          for i = 1, 3 do t[i] = weft.randn { 1, 2, 70, d }:to { dtype = dtype, device = device }:requires_grad_() end
          weft.scaled_dot_product_attention(t[1], t[2], t[3], nil, causal, 0, 0.1, rng):sum():backward()
          did = did + 1
        end)
      end
    end
  end
end

-- Three steps of the tiny stage-1 model, clipped and moved by AdamW.
local function training()
  package.path = "tests/bench/?.lua;" .. package.path
  local stage1 = require "weft_stage1"
  for _, dtype in ipairs { "float32", "bfloat16" } do
    local c, model, params = stage1.tiny, stage1.model(stage1.tiny), {}
    model:to { device = device, dtype = dtype ~= "float32" and dtype or nil }
    for _, t in model:named_parameters() do if t.requires_grad then params[#params + 1] = t end end
    local optimizer = weft.optim.AdamW(params, { lr = 1e-3 })
    local batch = stage1.on(stage1.batch(c, c.data.batch, 1), device, dtype)
    for _ = 1, 2 do
      weft.scope(function()
        optimizer:zero_grad()
        stage1.total(model:losses(batch), c.weights):backward()
        weft.optim.clip_grad_norm(optimizer, 1)
        optimizer:step()
        did = did + 1
      end)
    end
  end
end

-- the walker puts its cases on the device under test
walker, C, ffi = require "tests.support.walker", require("weft.core").lib, require "ffi"
walker.device = device
if part == "rows" then rows() elseif part == "attention" then attention() elseif part == "training" then training()
elseif part == "small" then rows { softmax = true, norm = true } else error("no such part: " .. part) end
weft.cuda.synchronize(device)
print(("%d calls, %d launches"):format(did, weft.cuda.counters(device).launches))
assert(did > 0, "nothing ran")
