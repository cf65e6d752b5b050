// low_rank.cu: h = drop(x) D and y += h U for a small rank, x and y read once: bfloat16 on tensor
// cores, anything else in plain loops. The bound is memory: x and h once, y twice.
#include "cuda/low_rank_tile.h"

// --- tensor cores: 4 warps over 64 rows, a warp 16 of them. x comes 64 columns at a time in two stages;
// h stays in registers and is the left side of the second product; y goes through shared memory that is
// the warp's own, so that it is read and written 16 bytes at a time.
// Shared memory: 2 * 64 rows of 144 bytes and, for rank 16, 2 * 64 rows of 48 bytes or 2 * 16 of 144: 25 KB.
#define STAGE_STEP (TILE_COLUMNS + 4)   // floats of y's stage from row to row

template <int R, bool TURNED> struct low_tile {
    // a tile of D or of U, whichever way it lies, is the larger of these
    enum { BY_RANK = R + 8, DOWN = TILE_COLUMNS * BY_RANK > R * TILE_STEP ? TILE_COLUMNS * BY_RANK : R * TILE_STEP,
           X = TILE_ROWS * TILE_STEP };
    static size_t bytes() { return (size_t)(2 * X + 2 * DOWN) * sizeof(bf16); }
};

template <int R, bool TURNED> __global__ void __launch_bounds__(LOW_THREADS) low_rank_bf16(const low_rank p) {
    typedef low_tile<R, TURNED> S;
    DYNAMIC_SHARED(bf16, memory);
    bf16 *const tiles = memory, *const downs = memory + 2 * S::X;
    const bf16 *const x = static_cast<const bf16 *>(p.x), *const down = static_cast<const bf16 *>(p.down);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const int64_t i0 = (int64_t)blockIdx.x * TILE_ROWS, mine = i0 + 16 * warp;
    const auto fetch = [&](int stage, int64_t j0) {
        fetch_tile<TILE_STEP>(tiles + stage * S::X, x + i0 * p.in + j0, p.in, TILE_ROWS, TILE_COLUMNS, p.rows - i0, p.in - j0);
        if (TURNED) fetch_tile<TILE_STEP>(downs + stage * S::DOWN, down + j0, p.in, R, TILE_COLUMNS, p.r, p.in - j0);
        else fetch_tile<S::BY_RANK>(downs + stage * S::DOWN, down + j0 * p.line, p.line, TILE_COLUMNS, R, p.in - j0, p.r);
    };
    float sum[R / 8][4];
    for (int n = 0; n < R / 8; n++)
        for (int e = 0; e < 4; e++) sum[n][e] = 0;
    fetch(0, 0);
    int stage = 0;
    for (int64_t j0 = 0; j0 < p.in; j0 += TILE_COLUMNS, stage ^= 1) {
        wait_for_copies();
        __syncthreads();        // this stage is there; nobody reads the other any more
        if (j0 + TILE_COLUMNS < p.in) fetch(stage ^ 1, j0 + TILE_COLUMNS);
        bf16 *const own = tiles + stage * S::X + 16 * warp * TILE_STEP;
        const bf16 *const d = downs + stage * S::DOWN;
        if (p.drop_x) {
            for (int k = lane; k < 16 * TILE_COLUMNS / 4; k += 32) {
                const int row = k / (TILE_COLUMNS / 4), c = k % (TILE_COLUMNS / 4) * 4;
                if (mine + row >= p.rows || j0 + c >= p.in) continue;
                const unsigned bits = kept_four(p, ((mine + row) * p.in + j0 + c) >> 2);
                for (int e = 0; e < 4; e++)
                    if (!(bits >> e & 1)) own[row * TILE_STEP + c + e] = narrow<bf16>(0.f);
            }
            __syncwarp();
        }
#pragma unroll
        for (int k = 0; k < TILE_COLUMNS / 16; k++) {
            uint32_t a[4], b[4];
            load_matrices(a, own + a_lane<TILE_STEP>() + 16 * k);
#pragma unroll
            for (int n = 0; n < R / 16; n++) {
                if (TURNED) load_matrices(b, d + 16 * n * TILE_STEP + b_lane<TILE_STEP>() + 16 * k);
                else load_transposed(b, d + 16 * k * S::BY_RANK + a_lane<S::BY_RANK>() + 16 * n);
                mma_bf16(sum[2 * n], a, b[0], b[1]);
                mma_bf16(sum[2 * n + 1], a, b[2], b[3]);
            }
        }
    }
    uint32_t h[R / 16][4];
    const float before = (float)p.before;
#pragma unroll
    for (int n = 0; n < R / 16; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const float *s = sum[2 * n + e / 2] + e % 2 * 2;
            h[n][e] = pack_bf16(s[0] * before, s[1] * before);
            const int64_t row = mine + 8 * (e % 2) + g;
            const int column = 16 * n + 8 * (e / 2) + 2 * t;
            if (row < p.rows && column < p.r)
                *reinterpret_cast<uint32_t *>(static_cast<bf16 *>(p.h) + row * p.line + column) = h[n][e];
        }
    if (!p.y) return;
    float *const own = reinterpret_cast<float *>(tiles) + 16 * warp * STAGE_STEP;
    const bf16 *const up = static_cast<const bf16 *>(p.up);
    const float after = (float)p.after;
    for (int64_t c0 = 0; c0 < p.out; c0 += TILE_COLUMNS) {
        __syncthreads();        // nobody reads the tiles any more
        if (TURNED) fetch_tile<S::BY_RANK>(downs, up + c0 * p.line, p.line, TILE_COLUMNS, R, p.out - c0, p.r);
        else fetch_tile<TILE_STEP>(downs, up + c0, p.out, R, TILE_COLUMNS, p.r, p.out - c0);
        wait_for_copies();
        __syncthreads();
#pragma unroll
        for (int c = 0; c < TILE_COLUMNS / 16; c++) {
            float s[2][4] = {};
#pragma unroll
            for (int n = 0; n < R / 16; n++) {
                uint32_t b[4];
                if (TURNED) load_matrices(b, downs + 16 * c * S::BY_RANK + b_lane<S::BY_RANK>() + 16 * n);
                else load_transposed(b, downs + 16 * n * TILE_STEP + a_lane<TILE_STEP>() + 16 * c);
                mma_bf16(s[0], h[n], b[0], b[1]);
                mma_bf16(s[1], h[n], b[2], b[3]);
            }
#pragma unroll
            for (int k = 0; k < 2; k++)
#pragma unroll
                for (int e = 0; e < 4; e++) own[(g + e / 2 * 8) * STAGE_STEP + 16 * c + 8 * k + 2 * t + e % 2] = s[k][e];
        }
        __syncwarp();
#pragma unroll
        for (int k = lane; k < 16 * TILE_COLUMNS / 8; k += 32) {
            const int row = k / (TILE_COLUMNS / 8), c = k % (TILE_COLUMNS / 8) * 8;
            if (mine + row >= p.rows || c0 + c >= p.out) continue;
            const int64_t at = (mine + row) * p.out + c0 + c;
            pack<bf16, 8> *const y = reinterpret_cast<pack<bf16, 8> *>(static_cast<bf16 *>(p.y) + at);
            pack<bf16, 8> v = *y;
            unsigned bits = 255;
            if (p.drop_y) bits = kept_four(p, at >> 2) | kept_four(p, (at >> 2) + 1) << 4;
            for (int e = 0; e < 8; e++)
                if (bits >> e & 1) v.v[e] = narrow<bf16>(widen<bf16>(v.v[e]) + after * own[row * STAGE_STEP + c + e]);
            *y = v;
        }
        __syncwarp();
    }
}

// --- any float: 16 rows a block
#define PLAIN_ROWS 16
#define PLAIN_DEPTH 32
#define PLAIN_THREADS 256
template <class T> __global__ void __launch_bounds__(PLAIN_THREADS) low_rank_plain(const low_rank p) {
    typedef wide_t<T> W;
    SHARED(W, xs, [PLAIN_ROWS][PLAIN_DEPTH + 1]);
    SHARED(W, ds, [LOW_RANK_MOST][TILE_COLUMNS + 1]);       // [column][rank], then [rank][column]
    SHARED(W, hs, [PLAIN_ROWS][LOW_RANK_MOST + 1]);
    const T *const x = static_cast<const T *>(p.x), *const down = static_cast<const T *>(p.down);
    const T *const up = static_cast<const T *>(p.up);
    const int r = (int)p.r, tid = (int)threadIdx.x;
    const int64_t i0 = (int64_t)blockIdx.x * PLAIN_ROWS;
    W sum[4] = { 0, 0, 0, 0 };      // of places tid + 256 m of [rows, r]
    for (int64_t j0 = 0; j0 < p.in; j0 += PLAIN_DEPTH) {
        __syncthreads();
        for (int e = tid; e < PLAIN_ROWS * PLAIN_DEPTH; e += PLAIN_THREADS) {
            const int row = e / PLAIN_DEPTH, c = e % PLAIN_DEPTH;
            const int64_t at = (i0 + row) * p.in + j0 + c;
            const bool there = i0 + row < p.rows && j0 + c < p.in && (!p.drop_x || kept(p, at));
            xs[row][c] = there ? widen<T>(x[at]) : (W)0;
        }
        for (int e = tid; e < PLAIN_DEPTH * r; e += PLAIN_THREADS) {
            const int c = p.turned ? e % PLAIN_DEPTH : e / r, k = p.turned ? e / PLAIN_DEPTH : e % r;
            const int64_t j = j0 + c;
            ds[c][k] = j >= p.in ? (W)0 : widen<T>(p.turned ? down[k * p.in + j] : down[j * p.line + k]);
        }
        __syncthreads();
        for (int m = 0; m < 4; m++) {
            const int at = tid + PLAIN_THREADS * m, row = at / r, k = at % r;
            if (row >= PLAIN_ROWS) break;
            for (int c = 0; c < PLAIN_DEPTH; c++) sum[m] += xs[row][c] * ds[c][k];
        }
    }
    for (int m = 0; m < 4; m++) {
        const int at = tid + PLAIN_THREADS * m, row = at / r, k = at % r;
        if (row >= PLAIN_ROWS) break;
        const T h = narrow<T>(sum[m] * (W)p.before);
        hs[row][k] = widen<T>(h);
        if (i0 + row < p.rows) static_cast<T *>(p.h)[(i0 + row) * p.line + k] = h;
    }
    if (!p.y) return;
    const int c = tid % TILE_COLUMNS, first = tid / TILE_COLUMNS;
    for (int64_t c0 = 0; c0 < p.out; c0 += TILE_COLUMNS) {
        __syncthreads();
        for (int e = tid; e < TILE_COLUMNS * r; e += PLAIN_THREADS) {
            const int column = p.turned ? e / r : e % TILE_COLUMNS, k = p.turned ? e % r : e / TILE_COLUMNS;
            const int64_t j = c0 + column;
            ds[k][column] = j >= p.out ? (W)0 : widen<T>(p.turned ? up[j * p.line + k] : up[k * p.out + j]);
        }
        __syncthreads();
        for (int row = first; row < PLAIN_ROWS; row += PLAIN_THREADS / TILE_COLUMNS) {
            const int64_t at = (i0 + row) * p.out + c0 + c;
            if (i0 + row >= p.rows || c0 + c >= p.out || (p.drop_y && !kept(p, at))) continue;
            W s = 0;
            for (int k = 0; k < r; k++) s += hs[row][k] * ds[k][c];
            T *const y = static_cast<T *>(p.y) + at;
            *y = narrow<T>(widen<T>(*y) + (W)p.after * s);
        }
    }
}

template <int R> static weft_status on_tensor_cores(const weft_call *call, const low_rank &p) {
    const unsigned blocks = (unsigned)ceil_div(p.rows, TILE_ROWS);
    if (p.turned) return LAUNCH(call, (low_rank_bf16<R, true>), blocks, LOW_THREADS, (low_tile<R, true>::bytes()), p);
    return LAUNCH(call, (low_rank_bf16<R, false>), blocks, LOW_THREADS, (low_tile<R, false>::bytes()), p);
}

static weft_status one(const weft_call *call, int dtype, const low_rank &p) {
    const uintptr_t all = (uintptr_t)p.x | (uintptr_t)p.down | (uintptr_t)p.up | (uintptr_t)p.h | (uintptr_t)p.y;
    if (dtype == WEFT_BFLOAT16 && all % 16 == 0 && (p.in | p.out | p.r | p.line) % 8 == 0)
        return p.r <= 16 ? on_tensor_cores<16>(call, p) : p.r <= 32 ? on_tensor_cores<32>(call, p) : on_tensor_cores<64>(call, p);
    return with_float(dtype, [&](auto tag) {
        return LAUNCH(call, low_rank_plain<TYPE_OF(tag)>, (unsigned)ceil_div(p.rows, PLAIN_ROWS), PLAIN_THREADS, 0, p);
    });
}

weft_status cuda_low_rank(const weft_call *call, int dtype, low_rank p) {
    const int64_t size = cuda_host->dtype_size(dtype), r = p.r;
    if (p.rows == 0) return WEFT_OK;
    for (int64_t k = 0; k < r; k += LOW_RANK_MOST) {
        low_rank part = p;
        part.r = r - k < LOW_RANK_MOST ? r - k : LOW_RANK_MOST;
        part.h = static_cast<char *>(p.h) + k * size;
        part.down = static_cast<const char *>(p.down) + k * (p.turned ? p.in : 1) * size;
        if (p.up) part.up = static_cast<const char *>(p.up) + k * (p.turned ? 1 : p.out) * size;
        TRY(one(call, dtype, part));
    }
    return WEFT_OK;
}
