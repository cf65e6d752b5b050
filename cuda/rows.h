// rows.h: kernels in which a group of threads works on each row of [n, d], the rows side by side: a
// block is blockDim.x threads a row (whole warps) by blockDim.y rows. A thread keeps its part of the
// row in registers, PER packs of VEC elements, so that it is read once; with PER 0 the row is too
// long for that and is read again. All threads of a block take part in the sums, also those whose
// row lies beyond the last: they see an empty one.
#ifndef WEFT_CUDA_ROWS_H
#define WEFT_CUDA_ROWS_H

#include "cuda/block.h"
#include "cuda/each.h"

#define ROW_THREADS 512

struct row_grid {
    dim3 block;
    unsigned blocks;
    int vec, per;
};

// aligned: the addresses that are to be read 16 bytes at a time, or-ed together. most: packs that the
// kernel can keep in the registers of a thread.
template <class T> row_grid row_grid_of(int64_t n, int64_t d, uintptr_t aligned, int most) {
    constexpr int WIDE = 16 / sizeof(T);
    row_grid g;
    g.vec = d % WIDE == 0 && aligned % 16 == 0 ? WIDE : 1;
    const int64_t packs = d / g.vec;
    const int some = most < 4 ? 1 : 4;
    g.per = packs <= 32 && g.vec > 1 ? 1 : packs <= (int64_t)ROW_THREADS * some ? some
          : packs <= (int64_t)ROW_THREADS * most && g.vec > 1 ? most : 0;
    const int64_t share = g.per ? ceil_div(packs, g.per) : ROW_THREADS;
    const unsigned across = (unsigned)(share <= 32 ? 32 : ceil_div(share, 32) * 32);
    g.block = dim3(across, across >= 256 ? 1 : 256 / across);
    g.blocks = blocks_for(n, g.block.y);
    return g;
}
static inline uintptr_t address(const void *p) { return reinterpret_cast<uintptr_t>(p); }

template <int N> struct count_tag { static constexpr int value = N; };
#define COUNT_OF(tag) (decltype(tag)::value)
// f(vec, per) with the plan's numbers as constants.
template <class T, int MOST, class F> weft_status with_row_grid(const row_grid &g, F f) {
    constexpr int WIDE = 16 / sizeof(T), SOME = MOST < 4 ? 1 : 4;
    if (g.vec == 1) return g.per ? f(count_tag<1>{}, count_tag<SOME>{}) : f(count_tag<1>{}, count_tag<0>{});
    switch (g.per) {
    case 0: return f(count_tag<WIDE>{}, count_tag<0>{});
    case 1: return f(count_tag<WIDE>{}, count_tag<1>{});
    case 4: return f(count_tag<WIDE>{}, count_tag<SOME>{});
    default: return f(count_tag<WIDE>{}, count_tag<MOST>{});
    }
}

#define FOR_ROWS(row, n) \
    for (int64_t row##_first = (int64_t)blockIdx.x * blockDim.y, row = row##_first + threadIdx.y; row##_first < (n); \
         row##_first += (int64_t)gridDim.x * blockDim.y, row = row##_first + threadIdx.y)

// What a thread sees of its row.
template <class T, int VEC, int PER> struct row_part {
    const T *x;
    int64_t packs;
    pack<T, VEC> kept[PER > 0 ? PER : 1];
    DEVICE row_part(const T *x_, int64_t packs_) : x(x_), packs(packs_), kept() {
        if constexpr (PER > 0) {
#pragma unroll
            for (int j = 0; j < PER; j++) {
                const int k = (int)(threadIdx.x + j * blockDim.x);
                if (k < (int)packs) kept[j] = read(k);
            }
        }
    }
    template <class I> DEVICE pack<T, VEC> read(I k) const { return reinterpret_cast<const pack<T, VEC> *>(x)[k]; }
    template <class I> DEVICE pack<T, VEC> at(int j, I k) const {
        if constexpr (PER > 0) return kept[j];
        else return read(k);
    }
};
// f(j, k) for each pack of a thread's part: the j-th of its own, the k-th of the row (an int where
// registers hold it).
template <int PER, class F> DEVICE void each_pack(int64_t packs, F f) {
    if constexpr (PER > 0) {
#pragma unroll
        for (int j = 0; j < PER; j++) {
            const int k = (int)(threadIdx.x + j * blockDim.x);
            if (k < (int)packs) f(j, k);
        }
    } else {
        for (int64_t k = threadIdx.x; k < packs; k += blockDim.x) f(0, k);
    }
}
template <class T, int VEC, class I> DEVICE pack<T, VEC> read_pack(const T *x, I k) {
    return reinterpret_cast<const pack<T, VEC> *>(x)[k];
}
template <class T, int VEC, class I> DEVICE void write_pack(T *y, I k, const pack<T, VEC> &p) {
    reinterpret_cast<pack<T, VEC> *>(y)[k] = p;
}
// What a thread sums in: a long row's sums grow in double.
template <class T, int PER> using row_sum_t = std::conditional_t<PER == 0, double, wide_t<T>>;

// Over the threads of a row; each gets the result.
template <class T, class Op> DEVICE T row_reduce(T v, Op op) {
    SHARED(T, part, [ROW_THREADS / 32]);
    v = warp_reduce(v, op);
    const int warps = (int)blockDim.x >> 5;
    if (warps == 1) return v;
    T *const mine = part + threadIdx.y * warps;
    __syncthreads();              // an earlier call's results are read
    if ((threadIdx.x & 31) == 0) mine[threadIdx.x >> 5] = v;
    __syncthreads();
    v = mine[0];
    for (int w = 1; w < warps; w++) v = op(v, mine[w]);
    return v;
}
template <class T> DEVICE T row_sum(T v) { return row_reduce(v, add_op()); }

// Two sums for the price of one wait.
template <class T> DEVICE void row_sum2(T &a, T &b) {
    SHARED(T, part, [2 * ROW_THREADS / 32]);
    a = warp_sum(a);
    b = warp_sum(b);
    const int warps = (int)blockDim.x >> 5;
    if (warps == 1) return;
    T *const mine = part + 2 * threadIdx.y * warps;
    __syncthreads();
    if ((threadIdx.x & 31) == 0) {
        mine[2 * (threadIdx.x >> 5)] = a;
        mine[2 * (threadIdx.x >> 5) + 1] = b;
    }
    __syncthreads();
    a = mine[0];
    b = mine[1];
    for (int w = 1; w < warps; w++) {
        a += mine[2 * w];
        b += mine[2 * w + 1];
    }
}

// --- [outer, n, inner], where the elements of a list lie `inner` apart: blocks of 32 columns by 8
// threads that share the n elements of each
#define COLUMN_WIDTH 32
#define COLUMN_DEPTH 8
struct column_shape { int64_t outer, n, inner, tiles; };
static inline column_shape columns_of(const weft_view *x, int64_t dim) {
    column_shape c = { 1, 1, 1, 1 };
    if (x->ndim) {
        if (dim < 0) dim += x->ndim;
        c.outer = weft_span(x, 0, (int)dim);
        c.n = x->shape[dim];
        c.inner = weft_span(x, (int)dim + 1, x->ndim);
    }
    c.tiles = ceil_div(c.inner, COLUMN_WIDTH);
    return c;
}
static inline unsigned column_blocks(const column_shape &c) { return blocks_for(c.outer * c.tiles, 1); }
static const dim3 column_block(COLUMN_WIDTH, COLUMN_DEPTH);

// The tiles of a block; `live`: this thread's column exists; `base`: where the column begins; `list`:
// its number.
#define FOR_TILES(c) for (int64_t tile = blockIdx.x; tile < (c).outer * (c).tiles; tile += gridDim.x)
struct column_at {
    int64_t base, list;
    bool live;
    DEVICE column_at(const column_shape &c, int64_t tile) {
        const int64_t row = tile / c.tiles, column = (tile - row * c.tiles) * COLUMN_WIDTH + threadIdx.x;
        live = column < c.inner;
        base = row * c.n * c.inner + column;
        list = row * c.inner + column;
    }
};
template <class T, class Op> DEVICE T column_reduce(T v, Op op) {
    SHARED(T, part, [COLUMN_DEPTH * COLUMN_WIDTH]);
    __syncthreads();
    part[threadIdx.y * COLUMN_WIDTH + threadIdx.x] = v;
    __syncthreads();
    v = part[threadIdx.x];
    for (int y = 1; y < COLUMN_DEPTH; y++) v = op(v, part[y * COLUMN_WIDTH + threadIdx.x]);
    return v;
}

#endif
