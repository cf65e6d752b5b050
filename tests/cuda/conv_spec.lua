-- conv_spec.lua: convolution by a library (cuda/dnn.h): what it takes, what it gives, and what happens when it
-- refuses. Values of conv.cu's own kernels: products_spec.lua and the walk over the operator table.
local weft = require "weft"
local command = require "tests.support.command"
local gpu = require "tests.support.gpu"
local same = require("tests.support.near").same

local device = gpu.device
local it = gpu.guard(it, pending)

describe("convolution on a GPU", function()
  it("gives the same bits twice, forward and backward, in each dtype", function()
    for _, dtype in ipairs { "float32", "bfloat16" } do
      local function once()
        weft.manual_seed(3)
        local conv = weft.nn.Conv2d(6, 8, { kernel = 3, stride = 2, padding = 1, groups = 2 }):to { device = device, dtype = dtype }
        local x = weft.randn({ 3, 6, 17, 13, device = device }):to(dtype):requires_grad_()
        local y = conv(x):to "float32"
        ;(y * y):sum():backward()
        return { y:detach():to "cpu", x.grad:to "cpu", conv.weight.grad:to "cpu", conv.bias.grad:to "cpu" }
      end
      local a, b = once(), once()
      for i, t in ipairs(a) do assert.is_true(same(t, b[i]), ("%s, result %d"):format(dtype, i)) end
    end
  end)

  local simulated = device == "cuda-sim" and it or function(name) it(name, function() pending "wants the simulated device" end) end

  -- Kernels that a convolution starts, forward and then backward, as "forward backward".
  local function launches(library, program)
    local code, out, err = command.run(("env WEFT_SIM_DNN=%s luajit -e '%s'"):format(library, ([[
      local weft = require "weft"
      local counters = require("weft.core").lib.weft_counters_of(2)
      local function count(fn) local n = counters.launches fn() return tonumber(counters.launches - n) end
      local function randn(...) return weft.randn{ device = "cuda-sim", ... } end
      local x, w = randn(2, 4, 9, 9), randn(6, 4, 3, 3)
      local b, d
      PROGRAM
      local y
      x:requires_grad_() w:requires_grad_()
      io.write(count(function() y = weft.conv2d(x, w, b, d, d) end), " ")
      local g = y:detach():clone()
      io.write(count(function() y:backward{ gradient = g } end), "\n")
    ]]):gsub("PROGRAM", program)))
    assert(code == 0, out .. err)
    return out
  end

  simulated("asks the library where windows overlap, and only there", function()
    assert.equal("1 2\n", launches("1", ""))
    assert.is_true(launches("0", "") ~= "1 2\n")
    assert.equal("2 2\n", launches("1", "b = randn(6)"))     -- the bias is spread first
    local patches = "d = 3"
    assert.equal(launches("0", patches), launches("1", patches))
  end)

  simulated("gives by the library, and where it refuses, what the operator's reference gives #slow", function()
    for _, library in ipairs { "1", "refuse" } do
      for _, spec in ipairs { "tests/ops/walker_spec.lua", "tests/ops/bfloat16_spec.lua" } do
        local code, out, err = command.run(("env WEFT_SIM_DNN=%s WEFT_TEST_DEVICE=cuda-sim WEFT_TEST_FAMILY=conv WEFT_CUDA_BLOCKING=1 "
          .. "busted --lua=luajit -o tests/support/handler.lua %s"):format(library, spec))
        assert(code == 0, out .. err)
        assert.is_true(tonumber(out:match "(%d+) passed") > 0)
      end
    end
  end)
end)
