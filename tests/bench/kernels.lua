-- kernels.lua: speed of products, attention and their gradients at the sizes of DINOv2-base, beside
-- one plain multi-threaded BLAS call of the same shape. Prints a table, asserts nothing.
-- Usage: luajit tests/bench/kernels.lua [repeats] [cpu]
-- With `cpu`: one thread and its own processor time, which a busy machine disturbs less.
local ffi = require "ffi"
local weft = require "weft"
local C = require("weft.core").lib

ffi.cdef [[
typedef struct { long sec, nsec; } bench_timespec;
int clock_gettime(int clock, bench_timespec *t);
void cblas_sgemm(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a, int lda,
                 const float *b, int ldb, float beta, float *c, int ldc);
void openblas_set_num_threads(int n);
]]
local blas = ffi.load "openblas"
local repeats, clock = tonumber(arg[1]) or 9, arg[2] == "cpu" and 3 or 1
if clock == 3 then assert(C.weft_set_threads(1) == 0) end

local time = ffi.new "bench_timespec"
local function now()
  ffi.C.clock_gettime(clock, time)
  return tonumber(time.sec) + 1e-9 * tonumber(time.nsec)
end

-- Best of several runs, in seconds.
local function best(fn)
  local least = math.huge
  for _ = 1, repeats do
    local start = now()
    weft.scope(fn)
    least = math.min(least, now() - start)
  end
  return least
end

local function pointer(t) return ffi.cast("float *", t.p.v.data) end

local function plain(m, n, k)
  local a, b, c = weft.randn { m, k }, weft.randn { n, k }, weft.zeros { m, n }
  local pa, pb, pc = pointer(a), pointer(b), pointer(c)
  blas.openblas_set_num_threads(C.weft_threads())
  local seconds = best(function() blas.cblas_sgemm(101, 111, 112, m, n, k, 1, pa, k, pb, k, 0, pc, n) end)
  blas.openblas_set_num_threads(1)
  return seconds
end

local function row(name, flops, seconds, reference)
  print(("%-44s %9.3f ms %8.1f GFLOP/s%s"):format(name, seconds * 1e3, flops / seconds * 1e-9,
    reference and (" %6.1f %% of plain BLAS"):format(100 * reference / seconds) or ""))
end

print(("%s kernels, %s, %d threads"):format(ffi.string(C.weft_cpu_path()), ffi.string(C.weft_blas_name()), C.weft_threads()))

for _, batch in ipairs { 1, 8 } do
  for _, s in ipairs { { 768, 768 }, { 3072, 768 }, { 768, 3072 } } do
    local out, size = s[1], s[2]
    local x, w, bias = weft.randn { batch, 257, size }, weft.randn { out, size }, weft.randn { out }
    local rows = batch * 257
    local reference, flops = plain(rows, out, size), 2 * rows * out * size
    row(("linear %dx257x%d -> %d"):format(batch, size, out), flops, best(function() weft.linear(x, w, bias) end), reference)
    local x2, dy = x:reshape { rows, size }, weft.randn { rows, out }
    local turned = dy:transpose(1, 2)
    row("  its weight gradient", flops, best(function() weft.matmul(turned, x2) end), reference)
    row("  its input gradient", flops, best(function() weft.matmul(dy, w) end), reference)
    for _, p in ipairs { 0, 0.1 } do
      local a, b = weft.randn { 16, size }, weft.randn { out, 16 }
      local rng = { key = 1ULL, counter = 1ULL }
      row(("  with LoRA of rank 16, dropout %g"):format(p), flops + 32 * rows * (size + out),
        best(function() weft.lora_linear(x, w, bias, a, b, 1, p, rng) end), reference)
    end
  end
end

for _, s in ipairs { { 1, 257 }, { 8, 257 }, { 1, 1370 } } do
  local B, N, H, D = s[1], s[2], 12, 64
  local function heads() return weft.randn { B, N, H, D }:transpose(2, 3) end
  local q, k, v, dy = heads(), heads(), heads(), heads()
  local flops = 4 * B * H * N * N * D
  row(("attention B %d, H 12, N %d, D 64"):format(B, N), flops,
    best(function() weft.scaled_dot_product_attention(q, k, v) end))
  for _, t in ipairs { q, k, v } do t:requires_grad_() end
  local forward = best(function() weft.scaled_dot_product_attention(q, k, v) end)
  local both = best(function()
    weft.scaled_dot_product_attention(q, k, v):backward { gradient = dy }
    for _, t in ipairs { q, k, v } do t:zero_grad() end
  end)
  row("  its gradient", 2.5 * flops, both - forward)
end

local x, w, bias = weft.randn { 8, 3, 224, 224 }, weft.randn { 768, 3, 14, 14 }, weft.randn { 768 }
row("patches 8x3x224x224 -> 768", 2 * 8 * 256 * 588 * 768, best(function() weft.conv2d(x, w, bias, 14, 14) end),
  plain(2048, 768, 588))
