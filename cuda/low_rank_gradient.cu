// low_rank_gradient.cu: D = t^T drop(x), the gradient of a low rank's first factor, with the mask drawn
// where x is read: bfloat16 on tensor cores, anything else in plain loops. Blocks own a piece of the rows
// and 64 columns of x; where there are several pieces, a second kernel adds up their sums in order.
// The bound is memory: x once, and at most 32 sums of D's size in float.
#include "cuda/low_rank_tile.h"

#define LEAST_PIECE 256     // rows
#define MOST_PIECES 32

struct rank_gradient {
    const void *t, *x;
    void *sums;             // [pieces, r, in], of D's type where there is one piece, else wide
    int64_t rows, in, r, line, piece;
    uint64_t key, counter;
    const uint64_t *clock;
    uint32_t limit;
    template <class V> void visit(V &v) { v(clock), v(t), v(x), v(sums); }
};

// --- tensor cores: each of 4 warps has 16 columns and every rank; 64 rows a stage, in two stages.
// Shared memory: 2 * 64 rows of 144 bytes and, for rank 16, of 48 bytes: 24 KB.
template <int R> struct gradient_tile {
    enum { T_STEP = R + 8, X = TILE_ROWS * TILE_STEP, T = TILE_ROWS * T_STEP };
    static size_t bytes() { return (size_t)(2 * X + 2 * T) * sizeof(bf16); }
};

template <int R, class O> __global__ void __launch_bounds__(LOW_THREADS) rank_gradient_bf16(const rank_gradient p) {
    typedef gradient_tile<R> S;
    DYNAMIC_SHARED(bf16, memory);
    bf16 *const tiles = memory, *const ranks = memory + 2 * S::X;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const int64_t c0 = (int64_t)blockIdx.x * TILE_COLUMNS, begin = blockIdx.y * p.piece;
    const int64_t end = begin + p.piece < p.rows ? begin + p.piece : p.rows, mine = c0 + 16 * warp;
    const auto fetch = [&](int stage, int64_t i0) {
        fetch_tile<TILE_STEP>(tiles + stage * S::X, static_cast<const bf16 *>(p.x) + i0 * p.in + c0, p.in, TILE_ROWS,
                              TILE_COLUMNS, end - i0, p.in - c0);
        fetch_tile<S::T_STEP>(ranks + stage * S::T, static_cast<const bf16 *>(p.t) + i0 * p.line, p.line, TILE_ROWS, R,
                              end - i0, p.r);
    };
    float sum[R / 16][2][4];
    for (int m = 0; m < R / 16; m++)
        for (int n = 0; n < 2; n++)
            for (int e = 0; e < 4; e++) sum[m][n][e] = 0;
    fetch(0, begin);
    int stage = 0;
    for (int64_t i0 = begin; i0 < end; i0 += TILE_ROWS, stage ^= 1) {
        wait_for_copies();
        __syncthreads();        // this stage is there; nobody reads the other any more
        if (i0 + TILE_ROWS < end) fetch(stage ^ 1, i0 + TILE_ROWS);
        bf16 *const own = tiles + stage * S::X + 16 * warp;
        for (int k = lane; k < TILE_ROWS * 4; k += 32) {
            const int row = k >> 2, c = (k & 3) * 4;
            if (i0 + row >= end || mine + c >= p.in) continue;
            const unsigned bits = kept_four(p, ((i0 + row) * p.in + mine + c) >> 2);
            for (int e = 0; e < 4; e++)
                if (!(bits >> e & 1)) own[row * TILE_STEP + c + e] = narrow<bf16>(0.f);
        }
        __syncwarp();
        const bf16 *const x = own + a_lane<TILE_STEP>(), *const left = ranks + stage * S::T + b_lane<S::T_STEP>();
#pragma unroll
        for (int k = 0; k < TILE_ROWS / 16; k++) {
            uint32_t b[4];
            load_transposed(b, x + 16 * k * TILE_STEP);
#pragma unroll
            for (int m = 0; m < R / 16; m++) {
                uint32_t a[4];
                load_transposed(a, left + 16 * k * S::T_STEP + 16 * m);
                mma_bf16(sum[m][0], a, b[0], b[1]);
                mma_bf16(sum[m][1], a, b[2], b[3]);
            }
        }
    }
    O *const to = static_cast<O *>(p.sums) + blockIdx.y * p.r * p.in;
#pragma unroll
    for (int m = 0; m < R / 16; m++)
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const int64_t row = 16 * m + 8 * (e / 2) + g, column = mine + 8 * n + 2 * t + e % 2;
                if (row < p.r && column < p.in) to[row * p.in + column] = narrow<O>(sum[m][n][e]);
            }
}

// --- any float: a thread has a column and every fourth rank
#define PLAIN_THREADS 256
#define PLAIN_ROWS 16
template <class T, class O> __global__ void __launch_bounds__(PLAIN_THREADS) rank_gradient_plain(const rank_gradient p) {
    typedef wide_t<T> W;
    SHARED(W, xs, [PLAIN_ROWS][TILE_COLUMNS]);
    SHARED(W, ts, [PLAIN_ROWS][LOW_RANK_MOST]);
    const int tid = (int)threadIdx.x, c = tid % TILE_COLUMNS, first = tid / TILE_COLUMNS, r = (int)p.r;
    const int64_t c0 = (int64_t)blockIdx.x * TILE_COLUMNS, begin = blockIdx.y * p.piece;
    const int64_t end = begin + p.piece < p.rows ? begin + p.piece : p.rows;
    W sum[LOW_RANK_MOST / 4] = {};
    for (int64_t i0 = begin; i0 < end; i0 += PLAIN_ROWS) {
        __syncthreads();
        for (int e = tid; e < PLAIN_ROWS * TILE_COLUMNS; e += PLAIN_THREADS) {
            const int row = e / TILE_COLUMNS, column = e % TILE_COLUMNS;
            const int64_t at = (i0 + row) * p.in + c0 + column;
            const bool there = i0 + row < end && c0 + column < p.in && kept(p, at);
            xs[row][column] = there ? widen<T>(static_cast<const T *>(p.x)[at]) : (W)0;
        }
        for (int e = tid; e < PLAIN_ROWS * LOW_RANK_MOST; e += PLAIN_THREADS) {
            const int row = e / LOW_RANK_MOST, k = e % LOW_RANK_MOST;
            const bool there = i0 + row < end && k < r;
            ts[row][k] = there ? widen<T>(static_cast<const T *>(p.t)[(i0 + row) * p.line + k]) : (W)0;
        }
        __syncthreads();
        for (int row = 0; row < PLAIN_ROWS; row++)
#pragma unroll
            for (int m = 0; m < LOW_RANK_MOST / 4; m++) sum[m] += ts[row][first + 4 * m] * xs[row][c];
    }
    O *const to = static_cast<O *>(p.sums) + blockIdx.y * p.r * p.in;
#pragma unroll
    for (int m = 0; m < LOW_RANK_MOST / 4; m++)
        if (first + 4 * m < r && c0 + c < p.in) to[(first + 4 * m) * p.in + c0 + c] = narrow<O>(sum[m]);
}

struct rank_sums {
    const void *sums;       // [pieces, n]
    void *d;                // [n]
    int64_t n, pieces;
    template <class V> void visit(V &v) { v(sums), v(d); }
};
template <class T> __global__ void __launch_bounds__(EACH_THREADS) add_pieces(const rank_sums p) {
    typedef wide_t<T> W;
    for (int64_t i = THREAD_INDEX; i < p.n; i += THREAD_COUNT) {
        const W *const from = static_cast<const W *>(p.sums) + i;
        W sum = 0;
        for (int64_t k = 0; k < p.pieces; k++) sum += from[k * p.n];
        static_cast<T *>(p.d)[i] = narrow<T>(sum);
    }
}

// The sums of all pieces, of type O.
template <class T, class O> static weft_status pieces_of(const weft_call *call, const rank_gradient &p, const dim3 grid) {
    if constexpr (std::is_same<T, bf16>::value)
        if (((uintptr_t)p.x | (uintptr_t)p.t) % 16 == 0 && (p.in | p.r | p.line) % 8 == 0) {
            if (p.r <= 16) return LAUNCH(call, (rank_gradient_bf16<16, O>), grid, LOW_THREADS, gradient_tile<16>::bytes(), p);
            if (p.r <= 32) return LAUNCH(call, (rank_gradient_bf16<32, O>), grid, LOW_THREADS, gradient_tile<32>::bytes(), p);
            return LAUNCH(call, (rank_gradient_bf16<64, O>), grid, LOW_THREADS, gradient_tile<64>::bytes(), p);
        }
    return LAUNCH(call, (rank_gradient_plain<T, O>), grid, PLAIN_THREADS, 0, p);
}

weft_status cuda_low_rank_gradient(const weft_call *call, int dtype, const low_rank &of, const void *x, int64_t in, void *d) {
    if (of.r == 0 || in == 0) return WEFT_OK;
    const int64_t share = ceil_div(ceil_div(of.rows, MOST_PIECES), TILE_ROWS) * TILE_ROWS;
    rank_gradient p = {};
    p.x = x;
    p.rows = of.rows, p.in = in, p.line = of.line;
    p.piece = share < LEAST_PIECE ? LEAST_PIECE : share;
    p.key = of.key, p.counter = of.counter, p.clock = of.clock, p.limit = of.limit;
    const int64_t pieces = of.rows > 0 ? ceil_div(of.rows, p.piece) : 1, most = of.r < LOW_RANK_MOST ? of.r : LOW_RANK_MOST;
    const dim3 grid((unsigned)ceil_div(in, TILE_COLUMNS), (unsigned)pieces);
    return with_float(dtype, [&](auto tag) {
        using T = TYPE_OF(tag);
        using W = wide_t<T>;
        scratch sums(call, pieces > 1 ? pieces * most * in * (int64_t)sizeof(W) : 0);
        if (!sums.data) return WEFT_ENOMEM;
        for (int64_t k = 0; k < of.r; k += LOW_RANK_MOST) {
            T *const to = static_cast<T *>(d) + k * in;
            p.t = static_cast<const T *>(of.h) + k;
            p.r = of.r - k < LOW_RANK_MOST ? of.r - k : LOW_RANK_MOST;
            p.sums = pieces > 1 ? sums.data : to;
            if (pieces == 1) TRY((pieces_of<T, T>(call, p, grid)));
            else {
                const rank_sums all = { sums.data, to, p.r * in, pieces };
                TRY((pieces_of<T, W>(call, p, grid)));
                TRY(LAUNCH(call, add_pieces<T>, blocks_for(all.n, EACH_THREADS), EACH_THREADS, 0, all));
            }
        }
        return WEFT_OK;
    });
}
