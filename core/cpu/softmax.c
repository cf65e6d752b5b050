// softmax.c: softmax and log_softmax along any dim, and their gradients. A tensor is seen as
// [outer, n, inner]; with inner 1 a row is contiguous, else columns are taken a tile at a time.
// A row whose largest element is -inf or +inf, or that holds NaN, comes out as NaN.
#include "math.h"

#define TILE 128
#define GRAIN 16384  // elements a piece

typedef struct job {
    const void *a, *b;  // x, or dy and y
    void *out;
    int64_t outer, n, inner;
    int64_t tiles;      // tiles of columns within inner
    int64_t grain;      // rows or tiles a piece
    bool log;
} job;

static job make_job(const weft_call *call, int64_t dim, bool log) {
    const weft_view *v = call->in[0];
    job j = { .a = v->data, .b = call->n_in > 1 ? call->in[1]->data : NULL,
              .out = call->out[0]->data, .outer = 1, .n = 1, .inner = 1, .log = log };
    if (v->ndim) {
        if (dim < 0) dim += v->ndim;
        j.outer = weft_span(v, 0, (int)dim);
        j.n = v->shape[dim];
        j.inner = weft_span(v, (int)dim + 1, v->ndim);
    }
    int64_t width = j.inner < TILE ? j.inner : TILE;
    j.tiles = width ? (j.inner + width - 1) / width : 0;
    int64_t one = j.n * width;
    j.grain = one >= GRAIN || one == 0 ? 1 : GRAIN / one;
    return j;
}

#define BODY "rows_body.h"
#include "both_reals.h"
#define BODY "softmax_body.h"
#include "both_reals.h"

static weft_status run(const weft_call *call, int64_t dim, bool log, weft_piece_fn f32, weft_piece_fn f64) {
    if (call->out[0]->numel == 0) return WEFT_OK;
    job j = make_job(call, dim, log);
    weft_parallel(weft_pieces(j.outer * j.tiles, j.grain), call->out[0]->dtype == WEFT_FLOAT32 ? f32 : f64, &j);
    return WEFT_OK;
}

CPU_KERNEL(softmax) {
    return run(call, call->at->AT(softmax, dim), false, forward_piece_f32, forward_piece_f64);
}
CPU_KERNEL(log_softmax) {
    return run(call, call->at->AT(log_softmax, dim), true, forward_piece_f32, forward_piece_f64);
}
CPU_KERNEL(softmax_backward) {
    return run(call, call->at->AT(softmax_backward, dim), false, backward_piece_f32, backward_piece_f64);
}
CPU_KERNEL(log_softmax_backward) {
    return run(call, call->at->AT(log_softmax_backward, dim), true, backward_piece_f32, backward_piece_f64);
}
