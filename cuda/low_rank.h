// low_rank.h: products with a matrix of low rank, each in one pass over what is large, for lora.cu.
#ifndef WEFT_CUDA_LOW_RANK_H
#define WEFT_CUDA_LOW_RANK_H

#include "cuda/device.h"

#define LOW_RANK_MOST 64    // ranks of one launch

// h = before * drop_x(x) D, and y += drop_y(h U) where y is there; D [in, r], U [r, out].
// turned: D is kept as [r, in] and U as [out, r], as forward has them; else as [in, r] and [r, out].
// All are row-major; the sides of length r have `line` elements from row to row. drop_x and drop_y let an
// element be 0 where the draw of its place says so, and scale nothing.
struct low_rank {
    const void *x, *down, *up;
    void *h, *y;                // h [rows, r]; y [rows, out] or NULL
    int64_t rows, in, out, r, line;
    double before, after;
    bool turned, drop_x, drop_y;
    uint64_t key, counter;
    const uint64_t *clock;
    uint32_t limit;             // kept: word >> 8 at least this
    template <class V> void visit(V &v) { v(clock), v(x), v(down), v(up), v(h), v.adds_to(y); }
};
// r up to any size: more than LOW_RANK_MOST take several launches.
weft_status cuda_low_rank(const weft_call *call, int dtype, low_rank p);
// d [r, in] = h^T drop(x) for the h, rows, ranks and draws of `of`; x [rows, in].
weft_status cuda_low_rank_gradient(const weft_call *call, int dtype, const low_rank &of, const void *x, int64_t in, void *d);

#endif
