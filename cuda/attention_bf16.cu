// attention_bf16.cu: attention forward on tensor cores, bfloat16 with heads up to 128. Weights are
// rounded to bfloat16 before they meet the values, statistics and sums are float32. The gradient is
// in attention_bf16_backward.cu.
#include "cuda/attention_bf16.h"

// A block has 64 MT queries, a warp 16 MT of them, and walks the keys, KEYS at a time. While scores
// are computed the values come in, while weights meet the values the next keys do. Of a last tile only
// groups of 16 keys and warps that have a query take part.
//
// Bound: 4 N M D operations a head over (2 N + 2 M) D 2 bytes: at 257 tokens and D = 64 about 128
// operations a byte, under an H200's 200, so the memory decides: batch 64 with 12 heads moves 101 MB,
// 21 us at 4.8 TB/s, beside 13 GFLOP, 16 us at 800 TFLOP/s, and 51 million exponentials, 14 us at 16
// a clock on each of 132 multiprocessors.
// Shared memory: at D = 64 128 + 64 + 64 rows of 144 bytes, 36 KB; at 128 128 + 32 + 32 of 272, 51 KB.
// Registers (250 a thread, none spilled) allow 2 blocks a multiprocessor, 8 warps of 32 queries. Two
// row tiles a warp halve what it reads of shared memory: 4 products for each fragment of B.
template <int D_, int MT_, int KEYS_> struct forward_tile {
    enum { D = D_, MT = MT_, ROWS = 64 * MT_, KEYS = KEYS_, NT = KEYS_ / 8, STEP = row_step<D_>::value,
           KEEPS = MT_ * D_ <= 128 };     // the queries in registers
    static size_t bytes() { return (size_t)(ROWS + 2 * KEYS) * STEP * sizeof(bf16); }
};

template <class S> struct forward_state {
    uint32_t q[S::KEEPS ? S::MT : 1][S::D / 16][4];
    float sum[S::MT][S::D / 8][4], s[S::MT][S::NT][4];
    float top[S::MT][2], total[S::MT][2];     // rows g and g + 8; top in units of log 2
};

// Scores become weights relative to the largest so far; what was summed before fades accordingly.
// EDGE: mask, causal limit, dropout, missing keys, a scale that is not positive.
template <class S, bool EDGE>
DEVICE void weigh(const attention_args &a, forward_state<S> &w, int64_t head, int64_t i0, int64_t j0) {
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const float unit = EDGE ? 1.f : (float)a.scale * LOG2E;
#pragma unroll
    for (int mt = 0; mt < S::MT; mt++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int64_t i = i0 + 16 * mt + 8 * half + g;
            if (EDGE) {
                const int64_t seen = visible_keys(a, i) - j0 - 2 * t;
                const mask_row mask = mask_at(a, head, i, j0 + 2 * t);
#pragma unroll
                for (int nt = 0; nt < S::NT; nt++)
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        float &s = w.s[mt][nt][2 * half + e];
                        s = 8 * nt + e < seen ? masked_by(a, mask, 8 * nt + e, s * (float)a.scale) : -INFINITY;
                    }
            }
            float best = -INFINITY;
#pragma unroll
            for (int nt = 0; nt < S::NT; nt++)
                best = fmaxf(best, fmaxf(w.s[mt][nt][2 * half], w.s[mt][nt][2 * half + 1]));
            best = fmaxf(best, __shfl_xor_sync(FULL_WARP, best, 1));
            best = fmaxf(best, __shfl_xor_sync(FULL_WARP, best, 2));
            const float top = fmaxf(w.top[mt][half], best * unit);
            // while nothing is seen, 2^(-inf - 0) is 0
            const float base = top == -INFINITY ? 0.f : top, fade = exp2_fast(w.top[mt][half] - base);
            float total = w.total[mt][half] * fade;
#pragma unroll
            for (int nt = 0; nt < S::NT; nt++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float &s = w.s[mt][nt][2 * half + e];
                    s = exp2_fast(s * unit - base);
                    total += s;
                }
            w.top[mt][half] = top;
            w.total[mt][half] = total;
#pragma unroll
            for (int c = 0; c < S::D / 8; c++) {
                w.sum[mt][c][2 * half] *= fade;
                w.sum[mt][c][2 * half + 1] *= fade;
            }
            if (EDGE && a.drop) {
                const uint64_t kept = kept_row<S::KEYS>(a, (uint64_t)((head * a.n + i) * a.m + j0)) >> (2 * t);
#pragma unroll
                for (int nt = 0; nt < S::NT; nt++)
#pragma unroll
                    for (int e = 0; e < 2; e++)
                        if (!(kept >> (8 * nt + e) & 1)) w.s[mt][nt][2 * half + e] = 0;
            }
        }
}

template <class S> __global__ void __launch_bounds__(BF16_THREADS, 2) bf16_forward(const attention_args a) {
    DYNAMIC_SHARED(bf16, memory);
    bf16 *const queries = memory, *const keys = queries + S::ROWS * S::STEP, *const values = keys + S::KEYS * S::STEP;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const int64_t tiles = (a.n + S::ROWS - 1) / S::ROWS, head = blockIdx.x / tiles, i0 = blockIdx.x % tiles * S::ROWS;
    const int64_t mine = i0 + 16 * S::MT * warp;       // this warp's first query
    const int64_t end = visible_end(a, i0 + S::ROWS), my_end = mine < a.n ? visible_end(a, mine + 16 * S::MT) : 0;
    const int64_t all_see = visible_keys(a, mine);     // keys before this one are seen by every query of the warp
    const bool simple = !a.mask && !a.drop && a.scale > 0;
    bf16 *const own = queries + 16 * S::MT * warp * S::STEP;
    forward_state<S> w;
    if (end > 0) {
        fetch_rows<S::D, S::ROWS>(queries, a, a.q, head, i0, a.n);
        fetch_rows<S::D, S::KEYS>(keys, a, a.k, head, 0, a.m);
    }
#pragma unroll
    for (int mt = 0; mt < S::MT; mt++) {
        w.top[mt][0] = w.top[mt][1] = -INFINITY;
        w.total[mt][0] = w.total[mt][1] = 0;
#pragma unroll
        for (int c = 0; c < S::D / 8; c++)
#pragma unroll
            for (int e = 0; e < 4; e++) w.sum[mt][c][e] = 0;
    }
    for (int64_t j0 = 0; j0 < end; j0 += S::KEYS) {
        const bool works = j0 < my_end, plain = simple && j0 + S::KEYS <= all_see;
        const int used = my_end - j0 < S::KEYS ? (int)(my_end - j0) : (int)S::KEYS;
        const auto load = [&](int mt, int k, uint32_t *f) {
            if constexpr (S::KEEPS) {
#pragma unroll
                for (int e = 0; e < 4; e++) f[e] = w.q[mt][k][e];
            } else load_matrices(f, own + a_part<S::D>() + 16 * mt * S::STEP + 16 * k);
        };
        wait_for_copies();
        __syncthreads();               // the keys are there; nobody reads the values any more
        fetch_rows<S::D, S::KEYS>(values, a, a.v, head, j0, a.m);
        if constexpr (S::KEEPS) if (j0 == 0) {
#pragma unroll
            for (int mt = 0; mt < S::MT; mt++)
#pragma unroll
                for (int k = 0; k < S::D / 16; k++)
                    load_matrices(w.q[mt][k], own + a_part<S::D>() + 16 * mt * S::STEP + 16 * k);
        }
        if (works) {
            if (plain) dot_tile<S::D, S::MT, S::NT / 2, false>(w.s, keys, used, load);
            else dot_tile<S::D, S::MT, S::NT / 2, true>(w.s, keys, used, load);
        }
        wait_for_copies();
        __syncthreads();
        if (j0 + S::KEYS < end) fetch_rows<S::D, S::KEYS>(keys, a, a.k, head, j0 + S::KEYS, a.m);
        if (works) {
            if (plain) {
                weigh<S, false>(a, w, head, mine, j0);
                add_tile<S::D, S::MT, S::NT / 2, false>(w.sum, w.s, values, used);
            } else {
                weigh<S, true>(a, w, head, mine, j0);
                add_tile<S::D, S::MT, S::NT / 2, true>(w.sum, w.s, values, used);
            }
        }
    }
    if (mine >= a.n) return;
#pragma unroll
    for (int mt = 0; mt < S::MT; mt++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float &total = w.total[mt][half];
            const int64_t i = mine + 16 * mt + 8 * half + g;
            total += __shfl_xor_sync(FULL_WARP, total, 1);
            total += __shfl_xor_sync(FULL_WARP, total, 2);
            // +inf where nothing is seen: exp(s - lse) is then 0 in the gradient too
            if (t == 0 && i < a.n)
                static_cast<float *>(a.lse.data)[head * a.n + i] =
                    total == 0 ? INFINITY : w.top[mt][half] * (1 / LOG2E) + logf(total);
            total = total == 0 ? 0.f : (a.drop ? (float)a.keep : 1.f) / total;
        }
    store_sums<S::D, 16 * S::MT>(own, a, a.y, head, mine, a.n, w.sum,
                                 [&](int mt, int half) { return w.total[mt][half]; });
}

template <class S> static weft_status run(const weft_call *call, const attention_args &a, int64_t heads) {
    return LAUNCH(call, (bf16_forward<S>), (unsigned)(ceil_div(a.n, S::ROWS) * heads), BF16_THREADS, S::bytes(), a);
}

weft_status attention_bf16_forward(const weft_call *call, const attention_args &a, int64_t heads) {
    if (a.d > 96) return run<forward_tile<128, 2, 32>>(call, a, heads);
    if (a.d > 64) return run<forward_tile<96, 2, 32>>(call, a, heads);
    if (a.d > 32) return run<forward_tile<64, 2, 64>>(call, a, heads);
    return run<forward_tile<32, 2, 64>>(call, a, heads);
}
