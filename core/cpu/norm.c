// norm.c: layer_norm and rms_norm, also of a sum that is made on the way, and normalize, with their fused gradients. Gradients of weight and
// bias are summed over pieces of rows that depend on shapes alone, then over pieces in order.
#include "math.h"
#include <string.h>

#define GRAIN 16384  // elements a piece of rows
#define PARTS 64     // pieces at most in a backward that sums over rows
#define FLUSH 32     // rows summed in REAL before they are added to the double sums
#define TILE 128

typedef struct rows {
    const void *dy, *x, *weight, *bias, *mean, *rstd;
    weft_rows dy_rows;
    void *y, *mean_out, *rstd_out, *dx;
    const void *added, *scale, *dsum;   // x + added * scale is the row, kept in sum; dsum: its gradient
    void *sum, *dm;
    int64_t n, d, grain;
    double eps;
    bool center;                // layer_norm, not rms_norm
    bool want_weight, want_bias;
    double *sums;               // [pieces][2][d]: dweight, dbias
    void *local;                // [pieces][2][d] REAL
    void *dweight, *dbias;
    int64_t pieces;
} rows;

// [outer, n, inner] for normalize
typedef struct columns {
    const void *a, *b, *norm;
    void *out, *norm_out;
    int64_t outer, n, inner, tiles, grain;
    double eps;
} columns;

#define BODY "rows_body.h"
#include "both_reals.h"
#define BODY "norm_body.h"
#include "both_reals.h"

static const void *data_of(const weft_view *v) { return v ? v->data : NULL; }

static void set_rows(rows *r, const weft_view *x) {
    r->d = x->shape[x->ndim - 1];
    r->n = weft_span(x, 0, x->ndim - 1);
    r->grain = r->d >= GRAIN || r->d == 0 ? 1 : GRAIN / r->d;
}

static weft_status forward(const weft_call *call, rows *r) {
    set_rows(r, call->in[0]);
    weft_piece_fn fn = call->out[0]->dtype == WEFT_FLOAT32 ? forward_piece_f32 : forward_piece_f64;
    weft_parallel(weft_pieces(r->n, r->grain), fn, r);
    return WEFT_OK;
}

CPU_KERNEL(layer_norm) {
    rows r = { .x = call->in[0]->data, .weight = data_of(call->in[1]), .bias = data_of(call->in[2]),
               .y = call->out[0]->data, .mean_out = call->out[1]->data, .rstd_out = call->out[2]->data,
               .eps = call->at->AT(layer_norm, eps), .center = true };
    return forward(call, &r);
}

CPU_KERNEL(rms_norm) {
    rows r = { .x = call->in[0]->data, .weight = data_of(call->in[1]), .y = call->out[0]->data,
               .rstd_out = call->out[1]->data, .eps = call->at->AT(rms_norm, eps) };
    return forward(call, &r);
}

CPU_KERNEL(add_layer_norm) {
    rows r = { .x = call->in[0]->data, .added = call->in[1]->data, .scale = data_of(call->in[2]),
               .weight = data_of(call->in[3]), .bias = data_of(call->in[4]), .sum = call->out[0]->data,
               .y = call->out[1]->data, .mean_out = call->out[2]->data, .rstd_out = call->out[3]->data,
               .eps = call->at->AT(add_layer_norm, eps), .center = true };
    return forward(call, &r);
}

CPU_KERNEL(add_rms_norm) {
    rows r = { .x = call->in[0]->data, .added = call->in[1]->data, .weight = data_of(call->in[2]),
               .sum = call->out[0]->data, .y = call->out[1]->data, .rstd_out = call->out[2]->data,
               .eps = call->at->AT(add_rms_norm, eps) };
    return forward(call, &r);
}

static weft_status backward(const weft_call *call, rows *r, const weft_view *dy, const weft_view *x) {
    set_rows(r, x);
    weft_rows_of(dy, 1, &r->dy_rows);
    bool f32 = x->dtype == WEFT_FLOAT32;
    bool sums = r->want_weight || r->want_bias;
    if (r->d == 0) return WEFT_OK;
    int64_t bytes = 0;
    char *space = NULL;
    if (sums) {
        int64_t least = weft_pieces(r->n, PARTS);
        if (least > r->grain) r->grain = least;
        r->pieces = weft_pieces(r->n, r->grain);
        int64_t each = r->pieces * 2 * r->d * (int64_t)sizeof(double);
        bytes = 2 * each + 64;
        space = weft_workspace(call->backend, bytes);
        if (!space) return WEFT_ENOMEM;
        r->sums = (double *)space;
        r->local = space + each;
    }
    weft_parallel(weft_pieces(r->n, r->grain), f32 ? backward_piece_f32 : backward_piece_f64, r);
    if (sums) {
        weft_parallel(weft_pieces(r->d, TILE), f32 ? combine_piece_f32 : combine_piece_f64, r);
        weft_workspace_free(call->backend, space, bytes);
    }
    return WEFT_OK;
}

CPU_KERNEL(layer_norm_backward) {
    int64_t needs = call->at->AT(layer_norm_backward, needs);
    rows r = { .dy = call->in[0]->data, .x = call->in[1]->data, .weight = data_of(call->in[2]),
               .mean = call->in[3]->data, .rstd = call->in[4]->data, .center = true,
               .dx = needs & 1 ? call->out[0]->data : NULL,
               .want_weight = needs & 2, .want_bias = needs & 4,
               .dweight = call->out[1]->data, .dbias = call->out[2]->data };
    return backward(call, &r, call->in[0], call->in[1]);
}

CPU_KERNEL(add_layer_norm_backward) {
    int64_t needs = call->at->AT(add_layer_norm_backward, needs);
    rows r = { .dsum = data_of(call->in[0]), .dy = call->in[1]->data, .x = call->in[2]->data,
               .scale = data_of(call->in[3]), .weight = data_of(call->in[4]), .mean = call->in[5]->data,
               .rstd = call->in[6]->data, .center = true, .dx = needs & 1 ? call->out[0]->data : NULL,
               .dm = needs & 2 ? call->out[1]->data : NULL, .want_weight = needs & 4, .want_bias = needs & 8,
               .dweight = call->out[2]->data, .dbias = call->out[3]->data };
    return backward(call, &r, call->in[1], call->in[2]);
}

CPU_KERNEL(add_rms_norm_backward) {
    int64_t needs = call->at->AT(add_rms_norm_backward, needs);
    rows r = { .dsum = data_of(call->in[0]), .dy = call->in[1]->data, .x = call->in[2]->data,
               .weight = data_of(call->in[3]), .rstd = call->in[4]->data,
               .dx = needs & 1 ? call->out[0]->data : NULL, .want_weight = needs & 2,
               .dweight = call->out[1]->data };
    return backward(call, &r, call->in[1], call->in[2]);
}

CPU_KERNEL(rms_norm_backward) {
    int64_t needs = call->at->AT(rms_norm_backward, needs);
    rows r = { .dy = call->in[0]->data, .x = call->in[1]->data, .weight = data_of(call->in[2]),
               .rstd = call->in[3]->data, .dx = needs & 1 ? call->out[0]->data : NULL,
               .want_weight = needs & 2, .dweight = call->out[1]->data };
    return backward(call, &r, call->in[0], call->in[1]);
}

static int64_t set_columns(columns *c, const weft_view *x, int64_t dim) {
    c->outer = c->n = c->inner = 1;
    if (x->ndim) {
        if (dim < 0) dim += x->ndim;
        c->outer = weft_span(x, 0, (int)dim);
        c->n = x->shape[dim];
        c->inner = weft_span(x, (int)dim + 1, x->ndim);
    }
    int64_t width = c->inner < TILE ? c->inner : TILE;
    c->tiles = weft_pieces(c->inner, TILE);
    int64_t one = c->n * width;
    c->grain = one >= GRAIN || one == 0 ? 1 : GRAIN / one;
    return weft_pieces(c->outer * c->tiles, c->grain);
}

CPU_KERNEL(normalize) {
    columns c = { .a = call->in[0]->data, .out = call->out[0]->data, .norm_out = call->out[1]->data,
                  .eps = call->at->AT(normalize, eps) };
    int64_t pieces = set_columns(&c, call->in[0], call->at->AT(normalize, dim));
    weft_parallel(pieces, call->out[0]->dtype == WEFT_FLOAT32 ? normalize_piece_f32 : normalize_piece_f64, &c);
    return WEFT_OK;
}

CPU_KERNEL(normalize_backward) {
    columns c = { .a = call->in[0]->data, .b = call->in[1]->data, .norm = call->in[2]->data,
                  .out = call->out[0]->data, .eps = call->at->AT(normalize_backward, eps) };
    int64_t pieces = set_columns(&c, call->in[0], call->at->AT(normalize_backward, dim));
    weft_parallel(pieces,
                  call->out[0]->dtype == WEFT_FLOAT32 ? normalize_grad_piece_f32 : normalize_grad_piece_f64, &c);
    return WEFT_OK;
}
