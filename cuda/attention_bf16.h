// attention_bf16.h: what the kernels of attention on tensor cores share: tiles of rows in shared
// memory, their fragments, and dropout's draws by row and by column.
#ifndef WEFT_CUDA_ATTENTION_BF16_H
#define WEFT_CUDA_ATTENTION_BF16_H

#include "cuda/attention.h"
#include "cuda/block.h"
#include "cuda/each.h"
#include "cuda/mma.h"

// Four warps. D is the head size rounded up to 32, 64, 96 or 128, the rest zeros. Rows in shared
// memory lie D + 8 elements apart, an odd number of 16-byte pieces: eight rows' pieces fall on all
// 32 banks, so fragments load without conflicts.
#define BF16_THREADS 128
#define LOG2E 1.44269504088896341f
template <int D> struct row_step { enum { value = D + 8 }; };

// rows [first, first + ROWS) of one head, zeros where there are none. Complete after
// wait_for_copies and a barrier.
template <int D, int ROWS>
DEVICE void fetch_rows(bf16 *to, const attention_args &a, const head_view &v, int64_t head, int64_t first, int64_t n) {
    const bf16 *from = head_of<bf16>(a, v, head) + first * v.stride[2];
    const int there = n - first < ROWS ? (int)(n - first) : ROWS, d = (int)a.d;
    if (v.pieces) {
#pragma unroll
        for (int k = (int)threadIdx.x; k < ROWS * D / 8; k += BF16_THREADS) {
            const int row = k / (D / 8), c = k % (D / 8) * 8;
            const bool real = row < there && c < d;
            copy_16(to + row * row_step<D>::value + c, real ? from + row * v.stride[2] + c : from, real);
        }
    } else {
#pragma unroll 1
        for (int k = (int)threadIdx.x; k < ROWS * D; k += BF16_THREADS) {
            const int row = k / D, c = k % D;
            to[row * row_step<D>::value + c] =
                row < there && c < d ? from[row * v.stride[2] + c * v.stride[3]] : narrow<bf16>(0.f);
        }
    }
}

// A warp's rows [first, first + ROWS), the tile `sum` times a factor for each row, go out through
// shared memory that is the warp's own.
template <int D, int ROWS, class F>
DEVICE void store_sums(bf16 *own, const attention_args &a, const head_view &v, int64_t head, int64_t first, int64_t n,
                       const float (*sum)[D / 8][4], F factor) {
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3, d = (int)a.d;
    __syncwarp();
#pragma unroll
    for (int mt = 0; mt < ROWS / 16; mt++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float f = factor(mt, half);
#pragma unroll
            for (int e = 0; e < D / 8; e++)
                *reinterpret_cast<uint32_t *>(own + (16 * mt + 8 * half + g) * row_step<D>::value + 8 * e + 2 * t) =
                    pack_bf16(sum[mt][e][2 * half] * f, sum[mt][e][2 * half + 1] * f);
        }
    __syncwarp();
    bf16 *to = head_of<bf16>(a, v, head) + first * v.stride[2];
    const int there = n - first < ROWS ? (int)(n - first) : ROWS;
    typedef pack<uint32_t, 4> piece;
    if (v.pieces) {
        for (int k = lane; k < ROWS * D / 8; k += 32) {
            const int row = k / (D / 8), c = k % (D / 8) * 8;
            if (row < there && c < d)
                *reinterpret_cast<piece *>(to + row * v.stride[2] + c) =
                    *reinterpret_cast<const piece *>(own + row * row_step<D>::value + c);
        }
    } else {
#pragma unroll 1
        for (int k = lane; k < ROWS * D; k += 32) {
            const int row = k / D, c = k % D;
            if (row < there && c < d) to[row * v.stride[2] + c * v.stride[3]] = own[row * row_step<D>::value + c];
        }
    }
}

// --- fragments. `at` is the tile's element where this lane's part begins; it is worked out once.
// A of 16 rows from row r0, columns 16 k .. + 15: at = tile + a_part, then + r0 * step + 16 k.
template <int D> DEVICE int a_part() {
    const int lane = threadIdx.x & 31;
    return ((lane & 7) + (lane >> 3 & 1) * 8) * row_step<D>::value + (lane >> 4) * 8;
}
// B for two products: rows of the tile are columns of B (a product with the tile transposed).
template <int D> DEVICE int b_part() {
    const int lane = threadIdx.x & 31;
    return ((lane & 7) + (lane >> 4) * 8) * row_step<D>::value + (lane >> 3 & 1) * 8;
}

// s[i][nt] = rows of A, whose fragments load(i, k, f) gives, times 16 GROUPS rows of the tile. Groups
// of 16 from `used` on are left at 0 where RAGGED.
template <int D, int MT, int GROUPS, bool RAGGED, class L>
DEVICE void dot_tile(float (*s)[2 * GROUPS][4], const bf16 *tile, int used, L load) {
    const bf16 *at = tile + b_part<D>();
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
        for (int nt = 0; nt < 2 * GROUPS; nt++)
#pragma unroll
            for (int e = 0; e < 4; e++) s[i][nt][e] = 0;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        uint32_t f[MT][4];
#pragma unroll
        for (int i = 0; i < MT; i++) load(i, k, f[i]);
#pragma unroll
        for (int j = 0; j < GROUPS; j++) {
            if (RAGGED && 16 * j >= used) continue;
            uint32_t b[4];
            load_matrices(b, at + 16 * j * row_step<D>::value + 16 * k);
#pragma unroll
            for (int i = 0; i < MT; i++) {
                mma_bf16(s[i][2 * j], f[i], b[0], b[1]);
                mma_bf16(s[i][2 * j + 1], f[i], b[2], b[3]);
            }
        }
    }
}

// sum += s, rounded, times 16 GROUPS rows of the tile.
template <int D, int MT, int GROUPS, bool RAGGED>
DEVICE void add_tile(float (*sum)[D / 8][4], const float (*s)[2 * GROUPS][4], const bf16 *tile, int used) {
    const bf16 *at = tile + a_part<D>();
#pragma unroll
    for (int j = 0; j < GROUPS; j++) {
        if (RAGGED && 16 * j >= used) continue;
        uint32_t f[MT][4];
#pragma unroll
        for (int i = 0; i < MT; i++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                f[i][e] = pack_bf16(s[i][2 * j + e / 2][e % 2 * 2], s[i][2 * j + e / 2][e % 2 * 2 + 1]);
#pragma unroll
        for (int c = 0; c < D / 16; c++) {
            uint32_t b[4];
            load_transposed(b, at + 16 * j * row_step<D>::value + 16 * c);
#pragma unroll
            for (int i = 0; i < MT; i++) {
                mma_bf16(sum[i][2 * c], f[i], b[0], b[1]);
                mma_bf16(sum[i][2 * c + 1], f[i], b[2], b[3]);
            }
        }
    }
}

// --- masks
// The mask of query i from key j on: `step` bytes a key.
struct mask_row { const void *at; int64_t step; };
DEVICE mask_row mask_at(const attention_args &a, int64_t head, int64_t i, int64_t j) {
    const int64_t at = head / a.heads * a.mask_stride[0] + head % a.heads * a.mask_stride[1] +
                       i * a.mask_stride[2] + j * a.mask_stride[3];
    return mask_row{ static_cast<const char *>(a.mask) + (a.mask_bytes ? at : 2 * at),
                     a.mask_bytes ? a.mask_stride[3] : 2 * a.mask_stride[3] };
}
// The score s, which has the scale, with element k, in units of log 2.
DEVICE float masked_by(const attention_args &a, const mask_row &row, int k, float s) {
    if (!a.mask) return s * LOG2E;
    const char *at = static_cast<const char *>(row.at) + k * row.step;
    if (a.mask_bytes) return *at ? s * LOG2E : -INFINITY;
    return (s + widen<bf16>(*reinterpret_cast<const bf16 *>(at))) * LOG2E;
}

// --- dropout: each group of four draws is made once, by one lane
// Which of the N (32 or 64) elements from `first` on are kept, worked out by four neighbouring lanes
// together.
template <int N> DEVICE uint64_t kept_row(const attention_args &a, uint64_t first) {
    const int t = threadIdx.x & 3, skip = (int)(first & 3);
    uint32_t low = 0, high = 0, rest = 0;
#pragma unroll 1
    for (int b = t; b < 8; b += 4) {
        low |= kept_bits(a, (first >> 2) + (uint64_t)b) << (4 * b);
        if (N > 32) high |= kept_bits(a, (first >> 2) + (uint64_t)b + 8) << (4 * b);
    }
    if (t == 0 && skip) rest = kept_bits(a, (first >> 2) + N / 4);
    if (N == 32) high = rest;
    for (int step = 1; step < 4; step <<= 1) {
        low |= __shfl_xor_sync(FULL_WARP, low, step);
        high |= __shfl_xor_sync(FULL_WARP, high, step);
        if (N > 32) rest |= __shfl_xor_sync(FULL_WARP, rest, step);
    }
    const uint64_t all = ((uint64_t)high << 32 | low) >> skip;
    return N > 32 && skip ? all | (uint64_t)rest << (64 - skip) : all;
}
// Which of the N (16 or 32) elements from `first` on are kept, by one lane.
template <int N> DEVICE uint32_t kept_span(const attention_args &a, uint64_t first) {
    const int skip = (int)(first & 3), blocks = N / 4 + (skip > 0);
    uint64_t bits = 0;
#pragma unroll 1
    for (int b = 0; b < blocks; b++) bits |= (uint64_t)kept_bits(a, (first >> 2) + (uint64_t)b) << (4 * b);
    return (uint32_t)(bits >> skip);
}

#endif
