-- mutations.lua: ways to break the GPU's kernels for tests/cuda/mutate: file of cuda/, what is broken, a
-- text in it (its `nth` occurrence, the first else), what stands there instead, and the tests to ask:
-- families of the walker over the operator table, and spec files.
local attention = { "attention", "tests/ops/attention_cuda_spec.lua" }
local reduce = { "reduce", "tests/ops/golden_spec.lua" }
local sort = { "sort", "tests/ops/sort_spec.lua" }
local products = { "matmul", "tests/cuda/products_spec.lua" }

return {
  -- barriers
  { "reduce", "no barrier before a column's values are read", "    part[threadIdx.y][threadIdx.x] = v;\n    __syncthreads();",
    "    part[threadIdx.y][threadIdx.x] = v;", reduce },
  { "reduce", "no barrier before a column's values are written again", "    __syncthreads();\n    part[threadIdx.y]", "    part[threadIdx.y]", reduce },
  { "attention", "no barrier between loading keys and using them", "        __syncthreads();\n        dot_rows<S>(s, queries, keys, d4);",
    "        dot_rows<S>(s, queries, keys, d4);", attention },
  { "attention", "no barrier before the values replace the keys", "        __syncthreads();\n        load_rows<S, S::COLUMNS>(keys, a, a.v, head, j0, a.m);",
    "        load_rows<S, S::COLUMNS>(keys, a, a.v, head, j0, a.m);", attention },
  { "product", "no barrier before the next tile is loaded", "            __syncthreads();\n            for (int e = (int)threadIdx.x; e < TILE * DEPTH",
    "            for (int e = (int)threadIdx.x; e < TILE * DEPTH", products },
  { "cast", "no barrier in the exchange of two dims", "    __syncthreads();\n    T *out", "    T *out", { "layout", "tests/cuda/layout_spec.lua" } },
  { "extreme", "no barrier before the warps' totals are read", "        __syncthreads();\n        A before = carry;", "        A before = carry;", reduce },
  { "multinomial", "no barrier before the running sums are read", "        __syncthreads();\n        for (int i = thread; i < count; i += threads) sums[base + i]",
    "        for (int i = thread; i < count; i += threads) sums[base + i]", { "random", "tests/cuda/random_spec.lua" } },
  { "linalg", "no barrier after a column of Cholesky", "        __syncthreads();\n        if (threadIdx.x == 0) a[j * n + j] = root;",
    "        if (threadIdx.x == 0) a[j * n + j] = root;", { "linalg", "tests/ops/linalg_spec.lua" } },
  { "sort", "no barrier after the counts are set to 0", "counts[i] = 0;\n            __syncthreads();", "counts[i] = 0;", sort },
  -- lanes and warps
  { "extreme", "the wrong lane in the search of an extreme", "other.v = __shfl_xor_sync(FULL_WARP, best.v, d)", "other.v = __shfl_xor_sync(FULL_WARP, best.v, d ^ 1)", reduce },
  { "extreme", "one lane too many in a running sum", "if (lane >= d) v += other;", "if (lane > d) v += other;", reduce },
  { "attention", "half of a row's lanes in the sum", "for (int step = 8; step > 0; step >>= 1) total[r]", "for (int step = 4; step > 0; step >>= 1) total[r]", attention },
  { "sort", "a lane too early in the sums of counts", "if (lane >= d) upto += lower;", "if (lane >= d - 1) upto += lower;", sort },
  -- tails and masks
  { "attention", "keys beyond the last are seen (forward)", "s[r][c] = j < mine[r] ?", "s[r][c] = j < mine[r] + 64 ?", attention },
  { "attention", "the mask of the last keys (backward)", "                if (j < mine[r]) {", "                if (j < mine[r] + 64) {", attention },
  { "product", "the last rows' mask", "left[k][i] = i0 + i < p.m && k0 + k < p.k ?", "left[k][i] = i0 + i < p.m ?", products },
  { "random", "the last numbers of a draw", "if (b * PER + j < numel) y", "if (b * PER + j < numel - 1) y", { "random", "tests/cuda/random_spec.lua" } },
  { "optim", "the tail of a parameter", "for (int64_t i = whole + threadIdx.x; i < c.end; i += OPTIM_THREADS) optim_move",
    "for (int64_t i = whole + threadIdx.x; i < c.end - 1; i += OPTIM_THREADS) optim_move", { "optim", "tests/cuda/optim_spec.lua" } },
  { "lora", "the tail of a mask", "if (first + j < n) to[first + j] = kept[j]", "if (first + j < n) to[first + j] = kept[j & 3]", products },
  -- sums, strides, indices
  { "norm", "the variance without the mean taken off", "const W v = widen<T>(p.v[c]) - mean;", "const W v = widen<T>(p.v[c]);", { "norm" } },
  { "optim", "a partial sum of the norm is left out", "for (int64_t i = threadIdx.x; i < n; i += 1024) sum += partial[i];",
    "for (int64_t i = threadIdx.x + 1; i < n; i += 1024) sum += partial[i];", { "optim", "tests/cuda/optim_spec.lua" } },
  { "loss", "the average divides by all rows", "counted += j.target[i] != j.ignore;", "counted += 1;", { "loss", "tests/ops/loss_spec.lua" } },
  { "reduce", "the first of a column's values twice", "for (int r = 1; r < ROWS; r++) v = joined(map, v, part[r][threadIdx.x]);",
    "for (int r = 0; r < ROWS; r++) v = joined(map, v, part[r][threadIdx.x]);", reduce },
  { "softmax", "the wrong stride between a column's values", "add_pack<T, 1>(e, pack<T, 1>{ { x[i * inner] } });", "add_pack<T, 1>(e, pack<T, 1>{ { x[i] } });", { "softmax" } },
  { "index", "gather by one row too far", "v = x[at[1] + k * p.step];", "v = x[at[1] + (k > 0 ? k - 1 : k) * p.step];", { "index", "tests/cuda/index_spec.lua" } },
  { "index", "no check of an index", "if (!p.refuse(k, i)) v = x[at[1] + k * p.step];", "v = x[at[1] + k * p.step];", { "index", "tests/ops/index_spec.lua", "tests/cuda/index_spec.lua" } },
  { "index", "equal indices of the next piece are forgotten", "for (int64_t p = piece + 1; f.id(p * FOLD) == id; p++) sum += partial[2 * p * f.width + column];",
    "", { "index", "tests/cuda/index_spec.lua" } },
  { "conv", "a window's row off by one in the gradient", "(i + t.pad_h - row) / t.stride_h", "(i + t.pad_h - row + 1) / t.stride_h", { "conv" } },
  { "interpolate", "the edge is not clamped", "high = cut(base + 2, 0, s.from - 1);", "high = cut(base + 1, 0, s.from - 1);", { "conv", "tests/ops/golden_spec.lua" } },
}
