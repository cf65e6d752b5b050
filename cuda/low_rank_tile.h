// low_rank_tile.h: what the kernels of low rank share: the draws of dropout, tiles in shared memory and
// where their fragments lie.
#ifndef WEFT_CUDA_LOW_RANK_TILE_H
#define WEFT_CUDA_LOW_RANK_TILE_H

#include "cuda/each.h"
#include "cuda/low_rank.h"
#include "cuda/mma.h"
#define WEFT_FN static __host__ __device__ inline
#include "tensor/random.h"

// Bits 0..3: which of the elements 4 * block .. 4 * block + 3 are kept.
template <class P> DEVICE unsigned kept_four(const P &p, int64_t block) {
    const weft_philox4 w = weft_philox(p.key, counter_now(p.counter, p.clock), (uint64_t)block);
    unsigned bits = 0;
    for (int i = 0; i < 4; i++) bits |= (unsigned)(w.v[i] >> 8 >= p.limit) << i;
    return bits;
}
template <class P> DEVICE bool kept(const P &p, int64_t at) { return kept_four(p, at >> 2) >> (at & 3) & 1; }

#define TILE_ROWS 64
#define TILE_COLUMNS 64
#define TILE_STEP (TILE_COLUMNS + 8)
#define LOW_THREADS 128

// Where the lane's part of a fragment begins: of A, or of B whose tile lies as [k][n]; of B as [n][k].
template <int STEP> DEVICE int a_lane() {
    const int lane = threadIdx.x & 31;
    return ((lane & 7) + (lane >> 3 & 1) * 8) * STEP + (lane >> 4) * 8;
}
template <int STEP> DEVICE int b_lane() {
    const int lane = threadIdx.x & 31;
    return ((lane & 7) + (lane >> 4) * 8) * STEP + (lane >> 3 & 1) * 8;
}

// A tile of `rows` by `columns`, zeros where the matrix ends; complete after wait_for_copies and a barrier.
template <int STEP>
DEVICE void fetch_tile(bf16 *to, const bf16 *from, int64_t line, int rows, int columns, int64_t there_rows, int64_t there_columns) {
    const int pieces = columns / 8;
    for (int k = (int)threadIdx.x; k < rows * pieces; k += LOW_THREADS) {
        const int row = k / pieces, c = k % pieces * 8;
        const bool real = row < there_rows && c < there_columns;
        copy_16(to + row * STEP + c, real ? from + row * line + c : from, real);
    }
}

#endif
