-- golden_spec.lua: operators and their gradients against what PyTorch computed in float64.
local weft = require "weft"
local near = require "tests.support.near"

local device = os.getenv "WEFT_TEST_DEVICE" or "cpu"
local file = assert(require("weft.io.safetensors").open "tests/golden/ops.safetensors")

local function bool(t) return t:ne(0) end

-- How each call is written here. Positions and dims count from 1.
local calls = {
  gelu = weft.gelu,
  gelu_tanh = weft.gelu_tanh,
  silu = weft.silu,
  softmax = function(x) return weft.softmax(x, -1) end,
  log_softmax = function(x) return weft.log_softmax(x, -1) end,
  layer_norm = function(x, w, b) return weft.layer_norm(x, w, b, 1e-6) end,
  rms_norm = function(x, w) return weft.rms_norm(x, w, 1e-6) end,
  linear = weft.linear,
  conv2d_patch = function(x, w, b) return weft.conv2d(x, w, b, 14, 14) end,
  conv2d = function(x, w, b) return weft.conv2d(x, w, b, 2, 2, 1, 1) end,
  sdpa = weft.scaled_dot_product_attention,
  sdpa_causal = function(q, k, v) return weft.scaled_dot_product_attention(q, k, v, nil, true) end,
  sdpa_mask = function(q, k, v, m) return weft.scaled_dot_product_attention(q, k, v, bool(m)) end,
  cross_entropy = weft.cross_entropy,
  cross_entropy_smooth = function(x, t) return weft.cross_entropy(x, t, -100, 0.1) end,
  cross_entropy_soft = weft.cross_entropy_soft,
  embedding = weft.embedding,
  normalize = weft.normalize,
  logsumexp = function(x) return weft.logsumexp(x, -1) end,
  mean = function(x) return weft.mean(x, { 1, 3 }) end,
  var = function(x) return weft.var(x, -1) end,
  interpolate_bicubic = function(x) return weft.interpolate(x, 5, 8) end,
  interpolate_bicubic_aa = function(x) return weft.interpolate(x, 5, 4, 0, 0, true) end,
  index_select = function(x, i) return weft.index_select(x, i, 2) end,
  cumsum = function(x) return weft.cumsum(x, 2) end,
  bce_with_logits = weft.binary_cross_entropy_with_logits,
  smooth_l1 = weft.smooth_l1,
  einsum_like = function(a, b) return weft.matmul(a:transpose(2, 3), b) end,
  broadcast = function(a, b) return a * b + b / (a * a + 1) end,
}

local names = {}
for _, name in ipairs(file.names) do
  local case = name:match "^(.*)%.out$"
  if case then names[#names + 1] = case end
end
table.sort(names)

-- Output and gradients of a case in a dtype; gradients by position of the input.
local function run(case, dtype)
  local inputs, count = {}, 0
  while file:info(("%s.in.%d"):format(case, count)) do
    local t = assert(file:tensor(("%s.in.%d"):format(case, count)))
    t = t:to(device)
    if t.dtype == "float64" then t = t:to(dtype):clone():requires_grad_() end
    count = count + 1
    inputs[count] = t
  end
  local y = calls[case](unpack(inputs, 1, count))
  local w = assert(file:tensor(case .. ".w")):to(dtype):to(device)
  ;(y * w):sum():backward()
  local grads = {}
  for i, t in ipairs(inputs) do grads[i] = t.requires_grad and t.grad or nil end
  return y, grads, count
end

-- Compares relative to the largest value of what is expected.
local function check(got, name, tolerance)
  local worst, scale = near.difference(got, assert(file:tensor(name)))
  assert(worst <= tolerance * math.max(scale, 1e-3),
    ("%s differs by %g, largest value %g"):format(name, worst, scale))
end

describe("the goldens of operators", function()
  it("are 29, each with a call here", function()
    assert.equal(29, #names)
    for _, case in ipairs(names) do assert.is_function(calls[case], case) end
    local written = 0
    for _ in pairs(calls) do written = written + 1 end
    assert.equal(29, written)
  end)

  -- float32: at most 6e-7 was met, in attention
  for _, precision in ipairs { { "float64", 1e-10 }, { "float32", 2e-6 } } do
    local dtype, tolerance = precision[1], precision[2]
    for _, case in ipairs(names) do
      it(("hold for %s and its gradients in %s"):format(case, dtype), function()
        local y, grads, count = run(case, dtype)
        check(y, case .. ".out", tolerance)
        local compared = 0
        for i = 1, count do
          local name = ("%s.grad.%d"):format(case, i - 1)
          if file:info(name) then
            assert(grads[i], name .. " is missing")
            check(grads[i], name, tolerance)
            compared = compared + 1
          else
            assert.is_nil(grads[i])
          end
        end
        assert.is_true(compared > 0)
      end)
    end
  end
end)
