-- sizes.lua: operators and gradients at the sizes of DINOv2-base on a GPU against the CPU, float32
-- against float64 and bfloat16 against float32 of the same rounded inputs, by the normalised error.
-- Usage: luajit tests/gpu/sizes.lua DEVICE [base|small]
local weft = require "weft"

local device, size = arg[1] or "cuda", arg[2] or "base"
local small = size == "small"
local B, N, D, H, F, V = small and 2 or 8, small and 17 or 257, small and 64 or 768, small and 1 or 12, small and 96 or 3072,
  small and 101 or 32768
local stream = weft.random.stream("sizes", 5)
local rng = { key = 5ULL, counter = 9ULL }

local function randn(...) return weft.randn { rng = stream, ... } end
local function ids(n, high) return weft.randint { n, low = 0, high = high, rng = stream } end

local sdpa = weft.scaled_dot_product_attention
-- name, function of its leaves, leaves, dtypes
local work = {
  { "linear", weft.linear, { randn(B, N, D), randn(F, D) * 0.03, randn(F) } },
  { "matmul, batches", weft.matmul, { randn(B * H, N, 64), randn(B * H, 64, N) } },
  { "lora_linear", function(x, w, b, a, c) return weft.lora_linear(x, w, b, a, c, 2, 0.1, rng) end,
    { randn(B, N, D), randn(D, D) * 0.03, randn(D), randn(16, D) * 0.03, randn(D, 16) } },
  { "layer_norm", function(x, w, b) return weft.layer_norm(x, w, b, 1e-6) end, { randn(B, N, D), randn(D), randn(D) } },
  { "rms_norm", function(x, w) return weft.rms_norm(x, w, 1e-6) end, { randn(B, N, D), randn(D) } },
  { "gelu", weft.gelu, { randn(B, N, F) } },
  { "softmax", function(x) return weft.softmax(x, -1) end, { randn(B, H, N, N) } },
  { "attention", function(q, k, v) return sdpa(q, k, v) end, { randn(B, H, N, 64), randn(B, H, N, 64), randn(B, H, N, 64) } },
  { "attention, causal, dropout", function(q, k, v) return sdpa(q, k, v, nil, true, 0, 0.1, rng) end,
    { randn(B, H, N, 64), randn(B, H, N, 64), randn(B, H, N, 64) } },
  { "cross_entropy", function(x) return weft.cross_entropy(x, ids(B * 16, V):to(x.device)) end, { randn(B * 16, V) } },
  { "embedding", function(w) return weft.embedding(ids(B * N, V):to(w.device), w) end, { randn(V, small and 8 or 384) } },
  { "patches", function(x, w, b) return weft.conv2d(x, w, b, 14, 14) end,
    { randn(B, 3, small and 28 or 224, small and 28 or 224), randn(D, 3, 14, 14) * 0.05, randn(D) } },
  { "sum of many", function(x) return x:sum() end, { randn(small and 3000 or 10000019) } },
  { "mean over rows", function(x) return x:mean(1) end, { randn(small and 300 or 8000, D) } },
  { "cumsum", function(x) return weft.cumsum(x, -1) end, { randn(B, small and 200 or 4099) } },
}

local function bits_of(fn, leaves, dtype, place)
  stream = weft.random.stream("sizes within", 6)   -- the same indices each time
  local moved = {}
  for i, t in ipairs(leaves) do moved[i] = t:to { dtype = dtype, device = place }:detach():requires_grad_() end
  local y = fn(unpack(moved))
  local shape = y.shape
  shape.rng = weft.random.stream("sizes weights", 4)
  local w = #y.shape == 0 and weft.ones {} or weft.randn(shape)
  y:backward { gradient = w:to("bfloat16"):to { dtype = y.dtype, device = place } }
  local out = { y:detach():to("cpu"):to "float64" }
  for _, t in ipairs(moved) do out[#out + 1] = t.grad:to("cpu"):to "float64" end
  return out
end

local function norm(t) return math.sqrt((t * t):sum():item()) end

local passed, failed = 0, 0
local function check(name, dtype, reference, tolerance, fn, leaves)
  local ok, message = pcall(weft.scope, function()
    local rounded = {}
    for i, t in ipairs(leaves) do rounded[i] = t:to(dtype):to "float32" end
    local want = bits_of(fn, rounded, reference, "cpu")
    local got = bits_of(fn, rounded, dtype, device)
    local worst, which = 0, 0
    for i, w in ipairs(want) do
      local off = norm(got[i] - w) / math.max(norm(w), 1e-30)
      if not (off <= worst) then worst, which = off, i end
    end
    print(("%-28s %-9s worst %.1e (%s)"):format(name, dtype, worst, which == 1 and "output" or "gradient " .. which - 1))
    assert(worst <= tolerance, ("off by %.2e, %.0e is allowed"):format(worst, tolerance))
  end)
  if ok then passed = passed + 1 return end
  failed = failed + 1
  print(("FAILED: %s in %s: %s"):format(name, dtype, tostring(message)))
end

if device ~= "cuda-sim" then print(weft.cuda.describe(device)) end
for _, entry in ipairs(work) do
  local name, fn, leaves = unpack(entry)
  check(name, "float32", small and "float64" or "float32", 1e-4, fn, leaves)
  check(name, "bfloat16", "float32", 1.5e-2, fn, leaves)
end
print(("%d passed, %d failed"):format(passed, failed))
os.exit(failed == 0 and 0 or 1)
