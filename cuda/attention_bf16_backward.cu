// attention_bf16_backward.cu: the gradient of attention on tensor cores. dq has one kernel whose
// blocks own queries, dk and dv one whose blocks own keys: the weights are worked out twice, and
// every sum has one owner and one order.
#include "cuda/attention_bf16.h"

// Rows are what a block owns (64 MT, a warp 16 MT of them), columns what it walks, COLUMNS at a time
// and in two stages: while one is worked on the next comes in.
//
// Bound: 14 N M D operations a head (7 products) over about (6 N + 6 M) D 2 bytes: at 257 tokens and
// D = 64 150 operations a byte; batch 64 with 12 heads is 45 GFLOP, 57 us at 800 TFLOP/s, and 0.3 GB,
// 63 us at 4.8 TB/s. Exponentials, 2 N M a head: 28 us over 132 multiprocessors.
// Shared memory, dq and dkv alike: at D = 64 2 * 128 + 4 * 32 rows of 144 bytes, 55 KB; at 128 with 64
// rows 2 * 64 + 4 * 32 of 272, 70 KB. Registers (up to 255 a thread, none spilled) allow 2 blocks a
// multiprocessor.
template <int D_, int MT_, int COLUMNS_, int KEEPS_> struct backward_tile {
    enum { D = D_, MT = MT_, ROWS = 64 * MT_, COLUMNS = COLUMNS_, NT = COLUMNS_ / 8, STEP = row_step<D_>::value,
           KEEPS = KEEPS_ };     // how many of the two row tiles have their fragments in registers
    static size_t bytes() {      // two tiles of rows, two of columns in two stages, lse and delta
        return (size_t)(2 * ROWS + 4 * COLUMNS) * STEP * sizeof(bf16) + 4 * COLUMNS * sizeof(float);
    }
};

// Fragments of one of the row tiles: in registers, or loaded each time.
template <class S, bool KEEPS> struct row_fragments {
    uint32_t r[KEEPS ? S::MT : 1][S::D / 16][4];
    const bf16 *at;
    DEVICE void open(const bf16 *own) {
        at = own + a_part<S::D>();
        if constexpr (KEEPS)
#pragma unroll
            for (int mt = 0; mt < S::MT; mt++)
#pragma unroll
                for (int k = 0; k < S::D / 16; k++) load_matrices(r[mt][k], at + 16 * mt * S::STEP + 16 * k);
    }
    DEVICE void operator()(int mt, int k, uint32_t *f) const {
        if constexpr (KEEPS) {
#pragma unroll
            for (int e = 0; e < 4; e++) f[e] = r[mt][k][e];
        } else load_matrices(f, at + 16 * mt * S::STEP + 16 * k);
    }
};

// --- dq: rows are queries, columns keys
template <class S> struct dq_state {
    row_fragments<S, (S::KEEPS > 0)> q;
    row_fragments<S, (S::KEEPS > 1)> dy;
    float sum[S::MT][S::D / 8][4], s[S::MT][S::NT][4], dp[S::MT][S::NT][4];
    float lse[S::MT][2], delta[S::MT][2];     // rows g and g + 8; lse in units of log 2
};

template <class S, bool EDGE>
DEVICE void dq_step(const attention_args &a, dq_state<S> &w, int64_t head, int64_t i0, int64_t j0, const bf16 *keys,
                    const bf16 *values, int used) {
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const float unit = EDGE ? 1.f : (float)a.scale * LOG2E;
    dot_tile<S::D, S::MT, S::NT / 2, EDGE>(w.s, keys, used, w.q);
    dot_tile<S::D, S::MT, S::NT / 2, EDGE>(w.dp, values, used, w.dy);
#pragma unroll
    for (int mt = 0; mt < S::MT; mt++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int64_t i = i0 + 16 * mt + 8 * half + g, seen = EDGE ? visible_keys(a, i) - j0 - 2 * t : 0;
            const mask_row mask = EDGE ? mask_at(a, head, i, j0 + 2 * t) : mask_row{};
            uint64_t kept = ~(uint64_t)0;
            if (EDGE && a.drop) kept = kept_row<S::COLUMNS>(a, (uint64_t)((head * a.n + i) * a.m + j0)) >> (2 * t);
#pragma unroll
            for (int nt = 0; nt < S::NT; nt++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float &s = w.s[mt][nt][2 * half + e], dp = w.dp[mt][nt][2 * half + e];
                    if (EDGE) {
                        s = 8 * nt + e < seen ? masked_by(a, mask, 8 * nt + e, s * (float)a.scale) : -INFINITY;
                        if (a.drop) dp = kept >> (8 * nt + e) & 1 ? dp * (float)a.keep : 0.f;
                    }
                    s = exp2_fast(s * unit - w.lse[mt][half]) * (dp - w.delta[mt][half]);
                }
        }
    add_tile<S::D, S::MT, S::NT / 2, EDGE>(w.sum, w.s, keys, used);
}

// The lane's part of y: of rows g and g + 8 of each row tile, every fourth piece of 8 columns.
template <class S> struct y_part {
    pack<bf16, 8> v[S::MT][2][S::D / 32];
    DEVICE void read(const attention_args &a, int64_t head, int64_t first) {
        const int g = (threadIdx.x & 31) >> 2, t = threadIdx.x & 3, d = (int)a.d;
#pragma unroll
        for (int mt = 0; mt < S::MT; mt++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int64_t i = first + 16 * mt + 8 * half + g;
                const bf16 *const row = head_of<bf16>(a, a.y, head) + (i < a.n ? i : 0) * a.y.stride[2];
#pragma unroll
                for (int k = 0; k < S::D / 32; k++) {
                    const int c = 8 * t + 32 * k;
                    if (i < a.n && c < d && a.y.pieces) v[mt][half][k] = *reinterpret_cast<const pack<bf16, 8> *>(row + c);
                    else
#pragma unroll
                        for (int e = 0; e < 8; e++)
                            v[mt][half][k].v[e] = i < a.n && c + e < d ? row[(c + e) * a.y.stride[3]] : narrow<bf16>(0.f);
                }
            }
    }
    // delta of the rows, whose dy lies at `own`
    DEVICE void times(const bf16 *own, float (*delta)[2]) const {
        const int g = (threadIdx.x & 31) >> 2, t = threadIdx.x & 3;
#pragma unroll
        for (int mt = 0; mt < S::MT; mt++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const bf16 *const row = own + (16 * mt + 8 * half + g) * S::STEP + 8 * t;
                float sum = 0;
#pragma unroll
                for (int k = 0; k < S::D / 32; k++) {
                    const pack<bf16, 8> dy = *reinterpret_cast<const pack<bf16, 8> *>(row + 32 * k);
#pragma unroll
                    for (int e = 0; e < 8; e++) sum += widen<bf16>(v[mt][half][k].v[e]) * widen<bf16>(dy.v[e]);
                }
                sum += __shfl_xor_sync(FULL_WARP, sum, 1);
                sum += __shfl_xor_sync(FULL_WARP, sum, 2);
                delta[mt][half] = sum;
            }
    }
};

// It has all rows of dy, so it leaves their delta for dk and dv.
template <class S> __global__ void __launch_bounds__(BF16_THREADS, 2) bf16_dq(const attention_args a) {
    DYNAMIC_SHARED(bf16, memory);
    enum { TILE = S::COLUMNS * S::STEP };
    bf16 *const queries = memory, *const grads = queries + S::ROWS * S::STEP, *const stages = grads + S::ROWS * S::STEP;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2;
    const int64_t tiles = (a.n + S::ROWS - 1) / S::ROWS, head = blockIdx.x / tiles, i0 = blockIdx.x % tiles * S::ROWS;
    const int64_t mine = i0 + 16 * S::MT * warp;
    const int64_t end = visible_end(a, i0 + S::ROWS), my_end = mine < a.n ? visible_end(a, mine + 16 * S::MT) : 0;
    const int64_t all_see = visible_keys(a, mine);
    const bool simple = !a.mask && !a.drop;
    bf16 *const own = queries + 16 * S::MT * warp * S::STEP;
    dq_state<S> w;
    y_part<S> y;
    fetch_rows<S::D, S::ROWS>(grads, a, a.dy, head, i0, a.n);
    y.read(a, head, mine);
    if (end > 0) {
        fetch_rows<S::D, S::ROWS>(queries, a, a.q, head, i0, a.n);
        fetch_rows<S::D, S::COLUMNS>(stages, a, a.k, head, 0, a.m);
        fetch_rows<S::D, S::COLUMNS>(stages + TILE, a, a.v, head, 0, a.m);
    }
    wait_for_copies();
    __syncthreads();                   // dy is there
    y.times(own + S::ROWS * S::STEP, w.delta);
#pragma unroll
    for (int mt = 0; mt < S::MT; mt++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int64_t i = mine + 16 * mt + 8 * half + g;
            w.lse[mt][half] = i < a.n ? head_of<float>(a, a.lse, head)[i * a.lse.stride[2]] * LOG2E : INFINITY;
            if (i < a.n && lane % 4 == 0) static_cast<float *>(a.delta)[head * a.n + i] = w.delta[mt][half];
        }
#pragma unroll
        for (int c = 0; c < S::D / 8; c++)
#pragma unroll
            for (int e = 0; e < 4; e++) w.sum[mt][c][e] = 0;
    }
    bf16 *now = stages, *next = stages + 2 * TILE;
    for (int64_t j0 = 0; j0 < end; j0 += S::COLUMNS) {
        wait_for_copies();
        __syncthreads();               // this stage is there; nobody reads the other any more
        if (j0 + S::COLUMNS < end) {
            fetch_rows<S::D, S::COLUMNS>(next, a, a.k, head, j0 + S::COLUMNS, a.m);
            fetch_rows<S::D, S::COLUMNS>(next + TILE, a, a.v, head, j0 + S::COLUMNS, a.m);
        }
        if (j0 == 0) {
            w.q.open(own);
            w.dy.open(own + S::ROWS * S::STEP);
        }
        if (j0 < my_end) {
            const int used = my_end - j0 < S::COLUMNS ? (int)(my_end - j0) : (int)S::COLUMNS;
            if (simple && j0 + S::COLUMNS <= all_see) dq_step<S, false>(a, w, head, mine, j0, now, now + TILE, used);
            else dq_step<S, true>(a, w, head, mine, j0, now, now + TILE, used);
        }
        bf16 *const other = now;
        now = next;
        next = other;
    }
    if (mine >= a.n) return;
    store_sums<S::D, 16 * S::MT>(own, a, a.dq, head, mine, a.n, w.sum, [&](int, int) { return (float)a.scale; });
}

// --- dk and dv: rows are keys, columns queries
template <class S> struct dkv_state {
    row_fragments<S, (S::KEEPS > 0)> k;
    row_fragments<S, (S::KEEPS > 1)> v;
    float dk[S::MT][S::D / 8][4], dv[S::MT][S::D / 8][4], s[S::MT][S::NT][4], dp[S::MT][S::NT][4];
};

template <class S, bool EDGE>
DEVICE void dkv_step(const attention_args &a, dkv_state<S> &w, int64_t head, int64_t i0, int64_t j0, const bf16 *queries,
                     const bf16 *grads, const float *lse, const float *delta, int used, int needs) {
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const float unit = EDGE ? 1.f : (float)a.scale * LOG2E;
    static_assert(S::COLUMNS == 32, "a lane draws for one query");
    uint32_t drawn = 0;
    dot_tile<S::D, S::MT, S::NT / 2, EDGE>(w.s, queries, used, w.k);
    dot_tile<S::D, S::MT, S::NT / 2, EDGE>(w.dp, grads, used, w.v);
    if (EDGE && a.drop) drawn = kept_span<16 * S::MT>(a, (uint64_t)((head * a.n + i0 + lane) * a.m + j0));
#pragma unroll
    for (int nt = 0; nt < S::NT; nt++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const int column = 8 * nt + 2 * t + e;
            const int64_t i = i0 + column, seen = EDGE ? visible_keys(a, i) - j0 - g : 0;
            const mask_row mask = EDGE ? mask_at(a, head, i, j0 + g) : mask_row{};
            const float top = lse[column] * LOG2E, mean = delta[column];
            uint32_t kept = 0;
            if (EDGE && a.drop) kept = __shfl_sync(FULL_WARP, drawn, column) >> g;
#pragma unroll
            for (int mt = 0; mt < S::MT; mt++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    float &s = w.s[mt][nt][2 * half + e], &dp = w.dp[mt][nt][2 * half + e];
                    bool stays = true;
                    if (EDGE) {
                        const int k = 16 * mt + 8 * half;
                        s = k < seen ? masked_by(a, mask, k, s * (float)a.scale) : -INFINITY;
                        if (a.drop) {
                            stays = kept >> (16 * mt + 8 * half) & 1;
                            dp = stays ? dp * (float)a.keep : 0.f;
                        }
                    }
                    s = exp2_fast(s * unit - top);
                    dp = s * (dp - mean);
                    if (!stays) s = 0;
                }
        }
    if (needs & 4) add_tile<S::D, S::MT, S::NT / 2, EDGE>(w.dv, w.s, grads, used);
    if (needs & 2) add_tile<S::D, S::MT, S::NT / 2, EDGE>(w.dk, w.dp, queries, used);
}

// Queries from i0 with what belongs to them. Those that are not there are zeros, lse and delta too:
// they add nothing.
template <class S>
DEVICE void fetch_queries(bf16 *stage, float *numbers, const attention_args &a, int64_t head, int64_t i0) {
    fetch_rows<S::D, S::COLUMNS>(stage, a, a.q, head, i0, a.n);
    fetch_rows<S::D, S::COLUMNS>(stage + S::COLUMNS * S::STEP, a, a.dy, head, i0, a.n);
    if (threadIdx.x < 2 * S::COLUMNS) {
        const int c = (int)threadIdx.x % S::COLUMNS;
        const bool there = i0 + c < a.n;
        const float *lse = head_of<float>(a, a.lse, head), *delta = static_cast<const float *>(a.delta) + head * a.n;
        copy_4(numbers + threadIdx.x, threadIdx.x < S::COLUMNS ? lse + (there ? (i0 + c) * a.lse.stride[2] : 0)
                                                               : delta + (there ? i0 + c : 0), there);
    }
}

template <class S> __global__ void __launch_bounds__(BF16_THREADS, 2) bf16_dkv(const attention_args a, int needs) {
    DYNAMIC_SHARED(bf16, memory);
    enum { TILE = S::COLUMNS * S::STEP };
    bf16 *const keys = memory, *const values = keys + S::ROWS * S::STEP, *const stages = values + S::ROWS * S::STEP;
    float *const numbers = reinterpret_cast<float *>(stages + 4 * TILE);
    const int warp = threadIdx.x >> 5;
    const int64_t tiles = (a.m + S::ROWS - 1) / S::ROWS, head = blockIdx.x / tiles, j0 = blockIdx.x % tiles * S::ROWS;
    const int64_t mine = j0 + 16 * S::MT * warp;        // this warp's first key
    const int64_t my_end = mine + 16 * S::MT < a.m ? mine + 16 * S::MT : a.m;
    const int64_t first = first_query(a, j0) / S::COLUMNS * S::COLUMNS;
    const bool simple = !a.mask && !a.drop;
    bf16 *const own = keys + 16 * S::MT * warp * S::STEP;
    dkv_state<S> w;
    if (first < a.n) {
        fetch_rows<S::D, S::ROWS>(keys, a, a.k, head, j0, a.m);
        fetch_rows<S::D, S::ROWS>(values, a, a.v, head, j0, a.m);
        fetch_queries<S>(stages, numbers, a, head, first);
    }
#pragma unroll
    for (int mt = 0; mt < S::MT; mt++)
#pragma unroll
        for (int c = 0; c < S::D / 8; c++)
#pragma unroll
            for (int e = 0; e < 4; e++) w.dk[mt][c][e] = w.dv[mt][c][e] = 0;
    int stage = 0;
    for (int64_t i0 = first; i0 < a.n; i0 += S::COLUMNS, stage ^= 1) {
        wait_for_copies();
        __syncthreads();
        if (i0 + S::COLUMNS < a.n)
            fetch_queries<S>(stages + (stage ^ 1) * 2 * TILE, numbers + (stage ^ 1) * 2 * S::COLUMNS, a, head, i0 + S::COLUMNS);
        if (i0 == first) {
            w.k.open(own);
            w.v.open(own + S::ROWS * S::STEP);
        }
        if (mine < a.m && visible_end(a, i0 + S::COLUMNS) > mine) {
            const bf16 *const now = stages + stage * 2 * TILE;
            const float *const lse = numbers + stage * 2 * S::COLUMNS, *const delta = lse + S::COLUMNS;
            const int used = a.n - i0 < S::COLUMNS ? (int)(a.n - i0) : (int)S::COLUMNS;
            if (simple && used > S::COLUMNS - 16 && visible_keys(a, i0) >= my_end)
                dkv_step<S, false>(a, w, head, i0, mine, now, now + TILE, lse, delta, used, needs);
            else dkv_step<S, true>(a, w, head, i0, mine, now, now + TILE, lse, delta, used, needs);
        }
    }
    if (mine >= a.m) return;
    if (needs & 2)
        store_sums<S::D, 16 * S::MT>(own, a, a.dk, head, mine, a.m, w.dk, [&](int, int) { return (float)a.scale; });
    if (needs & 4)
        store_sums<S::D, 16 * S::MT>(own, a, a.dv, head, mine, a.m, w.dv,
                                     [&](int, int) { return a.drop ? (float)a.keep : 1.f; });
}

template <class Q, class K>
static weft_status run(const weft_call *call, const attention_args &a, int64_t heads, int64_t needs) {
    if (needs & 1 && a.n > 0)
        TRY(LAUNCH(call, (bf16_dq<Q>), (unsigned)(ceil_div(a.n, Q::ROWS) * heads), BF16_THREADS, Q::bytes(),
                   of_queries(a, true)));
    if (needs & 6 && a.m > 0)
        TRY(LAUNCH(call, (bf16_dkv<K>), (unsigned)(ceil_div(a.m, K::ROWS) * heads), BF16_THREADS, K::bytes(), of_keys(a),
                   (int)needs));
    return WEFT_OK;
}

weft_status attention_bf16_backward(const weft_call *call, const attention_args &a, int64_t heads, int64_t needs) {
    if (a.d > 96) return run<backward_tile<128, 1, 32, 1>, backward_tile<128, 1, 32, 0>>(call, a, heads, needs);
    if (a.d > 64) return run<backward_tile<96, 1, 32, 2>, backward_tile<96, 1, 32, 0>>(call, a, heads, needs);
    if (a.d > 32) return run<backward_tile<64, 2, 32, 1>, backward_tile<64, 2, 32, 0>>(call, a, heads, needs);
    return run<backward_tile<32, 2, 32, 2>, backward_tile<32, 2, 32, 2>>(call, a, heads, needs);
}
