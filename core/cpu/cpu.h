// cpu.h: what CPU kernels share. A kernel file is compiled once for each instruction set
// (WEFT_ISA = plain, avx2, avx512); the table is chosen at start. Everything in it is static but
// the kernels themselves.
#ifndef WEFT_CPU_H
#define WEFT_CPU_H

#include "../kernel.h"

#define WEFT_PASTE_(a, b, c) a##b##_##c
#define WEFT_PASTE(a, b, c) WEFT_PASTE_(a, b, c)
#ifndef WEFT_ISA
#define WEFT_ISA plain
#endif
// CPU_KERNEL(add) { ... call->in[0] ... }
#define CPU_KERNEL(op) \
    weft_status WEFT_PASTE(weft_cpu_, WEFT_ISA, op)(const weft_call *call); \
    weft_status WEFT_PASTE(weft_cpu_, WEFT_ISA, op)(const weft_call *call)

#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define RESTRICT __restrict__

// --- thread pool (pool.c). Work is cut by the caller into pieces that depend on shapes alone;
// threads take pieces in any order, so results must not depend on who ran what. Calls do not nest:
// inside a piece, weft_parallel runs on the spot. After an interrupt pieces are left out (weft_stopped):
// what decides where memory is read must not come from them unchecked.
typedef void (*weft_piece_fn)(void *context, int64_t piece);
void weft_parallel(int64_t pieces, weft_piece_fn fn, void *context);

// [begin, end) of a piece when n items are cut into pieces of `grain` items.
static inline int64_t weft_pieces(int64_t n, int64_t grain) { return (n + grain - 1) / grain; }
static inline int64_t weft_piece_end(int64_t n, int64_t grain, int64_t piece) {
    int64_t end = (piece + 1) * grain;
    return end < n ? end : n;
}

// --- products (gemm.c), row-major, on a grid of tiles that depends on shapes alone. Threads share out
// the tiles.
// C[m,n] = alpha op(A) op(B) + beta C (+ bias[n] on each row where bias is not NULL).
// op(A) is [m,k]: A is [m,k] with row stride lda, or with trans_a [k,m]; likewise B.
// row_group: groups of so many rows give the same bits alone or among others (0: no such promise);
// used so that a picture's features do not depend on its batch. BLAS makes each group's tiles apart.
// after, where not NULL, runs on each finished tile, rows [i0, i1) and columns [j0, j1) of C, on the
// thread that made it.
typedef void (*weft_tile_fn)(void *context, int64_t batch, int64_t i0, int64_t i1, int64_t j0, int64_t j1);
typedef struct weft_gemm {
    int dtype;                       // WEFT_FLOAT32 or WEFT_FLOAT64
    bool trans_a, trans_b;
    int64_t m, n, k, lda, ldb, ldc;
    double alpha, beta;
    const void *a, *b, *bias;
    void *c;
    int64_t row_group;
    int64_t gap_a;                   // elements between a group's rows of A and the next group's, beside lda
    // With trans_a, without trans_b: positions of A and B come in groups, gaps between them as above.
    int64_t k_group, k_gap_a, k_gap_b;
    int64_t batch, stride_a, stride_b, stride_c;  // batch of equal products; 0 or 1: one
    weft_tile_fn after;
    void *context;
} weft_gemm;
weft_status weft_gemm_run(const weft_gemm *g);
// The row_group of a layer over x [..., N, in]: a sequence of more than one position.
static inline int64_t weft_row_group(const weft_view *x) {
    return x->ndim >= 3 && x->shape[x->ndim - 2] > 1 ? x->shape[x->ndim - 2] : 0;
}
#define WEFT_TILE_N 256  // tiles are no wider, and begin at a multiple of 16 columns
#define WEFT_PRODUCT_DEPTH 256  // product.c: positions and rows at a time
#define WEFT_PRODUCT_ROWS 192
// columns of a right side that is packed: whole panels on any path
static inline int64_t weft_product_width(int64_t n) { return (n + 63) / 64 * 64; }
// One product on this thread, for use inside a piece.
void weft_gemm_here(const weft_gemm *g);

#endif
