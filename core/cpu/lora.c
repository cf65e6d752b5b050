// lora.c: a linear layer with a low-rank branch, y = x W^T + b + scale dropout(x) A^T B^T, and its
// gradient. The base product is on the grid of gemm.c; the branch is added to each finished tile.
#include "slots.h"
#include "../tensor/random.h"
#include <string.h>

#define ROWS 96
#define COLUMNS 64

enum { NEED_DX = 1, NEED_DW = 2, NEED_DBIAS = 4, NEED_DA = 8, NEED_DB = 16 };

typedef struct lora {
    const weft_attrs *at;
    int dtype;
    int64_t rows, in, out, r;
    double scale, p;
    // forward: x, packed A^T and B^T, h, y. backward: x or dx, packed A and B, scale dy B, dy
    const void *a, *b;
    void *x, *h, *y, *da, *dbias;
    weft_slots *slots;
} lora;

#define REAL float
#define NAME(x) x##_f32
#include "panel.h"
#include "dropmask.h"
#include "lora_body.h"
#undef REAL
#undef NAME
#define REAL double
#define NAME(x) x##_f64
#include "panel.h"
#include "dropmask.h"
#include "lora_body.h"

CPU_KERNEL(lora_linear) {
    const weft_view *x = call->in[0], *weight = call->in[1], *a = call->in[3], *y = call->out[0];
    weft_slots slots;
    lora t = {.at = call->at,
              .dtype = x->dtype,
              .in = weight->shape[1],
              .out = weight->shape[0],
              .r = a->shape[0],
              .x = x->data,
              .h = call->out[1]->data,
              .y = y->data,
              .slots = &slots};
    t.scale = call->at->AT(lora_linear, scale);
    t.p = call->at->AT(lora_linear, p);
    t.rows = weft_span(x, 0, x->ndim - 1);
    if (t.rows == 0) return WEFT_OK;
    const weft_gemm base = {.dtype = x->dtype,
                            .trans_b = true,
                            .m = t.rows,
                            .n = t.out,
                            .k = t.in,
                            .lda = t.in,
                            .ldb = t.in,
                            .ldc = t.out,
                            .alpha = 1,
                            .a = x->data,
                            .b = weight->data,
                            .c = y->data,
                            .bias = call->in[2] ? call->in[2]->data : NULL,
                            .row_group = weft_row_group(x)};
    return x->dtype == WEFT_FLOAT32 ? forward_f32(&t, call, &base) : forward_f64(&t, call, &base);
}

CPU_KERNEL(lora_linear_backward) {
    const weft_view *dy = call->in[0], *x = call->in[1], *weight = call->in[2], *b = call->in[4],
                    *h = call->in[5];
    const weft_attrs *at = call->at;
    const int64_t needs = at->AT(lora_linear_backward, needs);
    weft_slots slots;
    lora t = {.at = at,
              .dtype = dy->dtype,
              .out = dy->shape[dy->ndim - 1],
              .y = dy->data,
              .slots = &slots};
    t.rows = weft_span(dy, 0, dy->ndim - 1);
    t.in = x ? x->shape[x->ndim - 1] : weight ? weight->shape[1] : 0;
    t.r = b ? b->shape[1] : h ? h->shape[h->ndim - 1] : 0;
    t.scale = at->AT(lora_linear_backward, scale);
    t.p = at->AT(lora_linear_backward, p);
    weft_status status = WEFT_OK;
    if (needs & NEED_DW)
        status = weft_gemm_run(&(weft_gemm){.dtype = t.dtype,
                                            .trans_a = true,
                                            .m = t.out,
                                            .n = t.in,
                                            .k = t.rows,
                                            .lda = t.out,
                                            .ldb = t.in,
                                            .ldc = t.in,
                                            .alpha = 1,
                                            .a = dy->data,
                                            .b = x->data,
                                            .c = call->out[1]->data});
    if (status == WEFT_OK && (needs & NEED_DB))
        status = weft_gemm_run(&(weft_gemm){.dtype = t.dtype,
                                            .trans_a = true,
                                            .m = t.out,
                                            .n = t.r,
                                            .k = t.rows,
                                            .lda = t.out,
                                            .ldb = t.r,
                                            .ldc = t.r,
                                            .alpha = t.scale,
                                            .a = dy->data,
                                            .b = h->data,
                                            .c = call->out[4]->data});
    if (status != WEFT_OK) return status;
    return dy->dtype == WEFT_FLOAT32 ? backward_f32(&t, call, needs) : backward_f64(&t, call, needs);
}
