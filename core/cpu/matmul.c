// matmul.c: matrix products of strided, broadcast operands, and linear layers. Products themselves
// are in gemm.c.
#include "cpu.h"
#include <string.h>

#define MAX_LEAD WEFT_MAX_DIMS

// One operand as BLAS takes it, and where its matrices lie by leading dim of the result.
typedef struct operand {
    const char *data;
    bool trans;
    int64_t ld, stride[MAX_LEAD];
    void *packed;
    int64_t nbytes;
} operand;

typedef struct packing {
    const weft_view *x; // [..., rows, columns]
    char *to;
    int64_t size, grain, rows, columns;
} packing;

static void pack_piece(void *context, int64_t piece) {
    const packing *p = context;
    const weft_view *x = p->x;
    const int64_t columns = p->columns, step = x->stride[x->ndim - 1];
    const int64_t end = weft_piece_end(p->rows, p->grain, piece);
    for (int64_t row = piece * p->grain; row < end; row++) {
        int64_t from = 0, rest = row;
        for (int d = x->ndim - 2; d >= 0; d--) {
            from += rest % x->shape[d] * x->stride[d];
            rest /= x->shape[d];
        }
        if (p->size == 4) {
            const float *source = (const float *)x->data + from;
            float *to = (float *)p->to + row * columns;
            for (int64_t i = 0; i < columns; i++) to[i] = source[i * step];
        } else {
            const double *source = (const double *)x->data + from;
            double *to = (double *)p->to + row * columns;
            for (int64_t i = 0; i < columns; i++) to[i] = source[i * step];
        }
    }
}

// x [..., rows, columns] becomes an operand; lead: leading dims of the result. Strides that BLAS
// does not take are packed, without repeating what a broadcast repeats.
static weft_status set_operand(operand *o, const weft_view *x, int lead, weft_backend *backend) {
    const int n = x->ndim - 2, shift = lead - n;
    const int64_t rows = x->shape[n], columns = x->shape[n + 1], rs = x->stride[n],
                  cs = x->stride[n + 1];
    const int64_t size = weft_dtype_size(x->dtype);
    weft_view dense = *x;
    *o = (operand){.data = x->data};
    if ((cs == 1 || columns <= 1) && (rs >= columns || rows <= 1)) {
        o->ld = rows <= 1 || rs < 1 ? (columns > 1 ? columns : 1) : rs;
    } else if ((rs == 1 || rows <= 1) && (cs >= rows || columns <= 1)) {
        o->trans = true;
        o->ld = columns <= 1 || cs < 1 ? (rows > 1 ? rows : 1) : cs;
    } else {
        int64_t stride = rows * columns;
        dense.numel = stride;
        for (int d = n - 1; d >= 0; d--) {
            if (dense.stride[d] == 0) dense.shape[d] = 1;
            dense.stride[d] = stride;
            stride *= dense.shape[d];
            dense.numel *= dense.shape[d];
        }
        o->ld = columns;
        o->nbytes = dense.numel * size;
        o->data = o->packed = weft_workspace(backend, o->nbytes);
        if (!o->packed) return WEFT_ENOMEM;
        weft_view source = *x;
        memcpy(source.shape, dense.shape, sizeof source.shape);
        packing p = {.x = &source, .to = o->packed, .size = size, .columns = columns, .grain = 64};
        p.rows = dense.numel / columns;
        weft_parallel(weft_pieces(p.rows, p.grain), pack_piece, &p);
    }
    for (int d = 0; d < lead; d++)
        o->stride[d] = d < shift || dense.shape[d - shift] == 1 ? 0 : dense.stride[d - shift];
    return WEFT_OK;
}

// Leading dims that both operands walk evenly become one.
static int merge(int64_t *shape, operand *a, operand *b, int lead) {
    int n = 0;
    for (int d = 0; d < lead; d++) {
        if (shape[d] == 1) continue;
        if (n && a->stride[n - 1] == a->stride[d] * shape[d] &&
            b->stride[n - 1] == b->stride[d] * shape[d]) {
            shape[n - 1] *= shape[d];
            a->stride[n - 1] = a->stride[d];
            b->stride[n - 1] = b->stride[d];
        } else {
            shape[n] = shape[d];
            a->stride[n] = a->stride[d];
            b->stride[n] = b->stride[d];
            n++;
        }
    }
    return n;
}

static weft_status multiply(const weft_call *call, operand *a, operand *b, int64_t *shape, int lead,
                            int64_t m, int64_t n, int64_t k) {
    const weft_view *y = call->out[0];
    const int64_t size = weft_dtype_size(y->dtype);
    lead = merge(shape, a, b, lead);
    weft_gemm g = {.dtype = y->dtype,
                   .trans_a = a->trans,
                   .trans_b = b->trans,
                   .m = m,
                   .n = n,
                   .k = k,
                   .lda = a->ld,
                   .ldb = b->ld,
                   .ldc = n,
                   .alpha = 1,
                   .a = a->data,
                   .b = b->data,
                   .c = y->data};
    // one shared right side under rows that follow each other: one product
    if (lead == 1 && b->stride[0] == 0 && !a->trans) {
        const int64_t row = m == 1 ? a->stride[0] : a->ld;
        if (a->stride[0] == m * row && row >= k && row > 0) {
            g.m = m * shape[0];
            g.lda = row;
            lead = 0;
        }
    }
    if (lead == 0) return weft_gemm_run(&g);
    const int last = lead - 1;
    g.batch = shape[last];
    g.stride_a = a->stride[last];
    g.stride_b = b->stride[last];
    g.stride_c = m * n;
    int64_t outer = 1;
    for (int d = 0; d < last; d++) outer *= shape[d];
    for (int64_t i = 0; i < outer; i++) {
        int64_t at_a = 0, at_b = 0, rest = i;
        for (int d = last - 1; d >= 0; d--) {
            at_a += rest % shape[d] * a->stride[d];
            at_b += rest % shape[d] * b->stride[d];
            rest /= shape[d];
        }
        g.a = a->data + at_a * size;
        g.b = b->data + at_b * size;
        g.c = (char *)y->data + i * g.batch * g.stride_c * size;
        weft_status status = weft_gemm_run(&g);
        if (status != WEFT_OK) return status;
    }
    return WEFT_OK;
}

CPU_KERNEL(matmul) {
    const weft_view *y = call->out[0];
    if (y->numel == 0) return WEFT_OK;
    const weft_view a = weft_as_matrix(call->in[0], true), b = weft_as_matrix(call->in[1], false);
    const int64_t m = a.shape[a.ndim - 2], k = a.shape[a.ndim - 1], n = b.shape[b.ndim - 1];
    if (k == 0) {
        memset(y->data, 0, (size_t)(y->numel * weft_dtype_size(y->dtype)));
        return WEFT_OK;
    }
    const int lead = (a.ndim > b.ndim ? a.ndim : b.ndim) - 2;
    int64_t shape[MAX_LEAD];
    memcpy(shape, y->shape, sizeof(int64_t) * (size_t)lead);
    operand left, right = {0};
    weft_status status = set_operand(&left, &a, lead, call->backend);
    if (status == WEFT_OK) status = set_operand(&right, &b, lead, call->backend);
    if (status == WEFT_OK) status = multiply(call, &left, &right, shape, lead, m, n, k);
    if (right.packed) weft_workspace_free(call->backend, right.packed, right.nbytes);
    if (left.packed) weft_workspace_free(call->backend, left.packed, left.nbytes);
    return status;
}

// Rows of width `n` as a product takes them; packed where they overlap or repeat, which BLAS can't read.
typedef struct even_rows {
    const void *data;
    weft_rows at;
    char *packed;
    int64_t nbytes;
} even_rows;

static weft_status take_rows(even_rows *e, const weft_view *x, int64_t n, weft_backend *backend, bool pack) {
    weft_rows r = {1, 0, 0, n};
    weft_rows_of(x, 1, &r);
    *e = (even_rows){.data = x->data, .at = r};
    const int64_t rows = r.outer * r.inner, size = weft_dtype_size(x->dtype);
    if (r.inner == 1 && r.outer == 1) e->at.row = n;
    if ((r.inner == 1 || r.row >= n) && !pack) return WEFT_OK;
    e->at = (weft_rows){1, rows, 0, n};
    e->nbytes = rows * n * size;
    e->packed = weft_workspace(backend, e->nbytes);
    if (!e->packed) return WEFT_ENOMEM;
    for (int64_t i = 0; i < rows; i++)
        memcpy(e->packed + i * n * size, (const char *)x->data + weft_row_at(&r, i) * size, (size_t)(n * size));
    e->data = e->packed;
    return WEFT_OK;
}

static void give_rows(even_rows *e, weft_backend *backend) {
    if (e->packed) weft_workspace_free(backend, e->packed, e->nbytes);
}

// Elements to skip between blocks, beside even rows.
static int64_t gap(const even_rows *e) {
    return e->at.outer > 1 ? e->at.block - e->at.inner * e->at.row : 0;
}

CPU_KERNEL(linear_backward) {
    const weft_view *dy = call->in[0], *weight = call->in[1], *dx = call->out[0];
    const int64_t k = weight->shape[0], n = weight->shape[1];
    if (dx->numel == 0) return WEFT_OK;
    even_rows rows;
    weft_status status = take_rows(&rows, dy, k, call->backend, false);
    if (status != WEFT_OK) return status;
    weft_gemm g = {.dtype = dy->dtype,
                   .m = dx->numel / n,
                   .n = n,
                   .k = k,
                   .lda = rows.at.row,
                   .ldb = n,
                   .ldc = n,
                   .alpha = 1,
                   .beta = call->at->AT(linear_backward, onto) ? 1 : 0,
                   .a = rows.data,
                   .b = weight->data,
                   .c = dx->data};
    g.gap_a = gap(&rows);
    g.row_group = g.gap_a ? rows.at.inner : weft_row_group(dy);
    status = weft_gemm_run(&g);
    give_rows(&rows, call->backend);
    return status;
}

CPU_KERNEL(linear) {
    const weft_view *x = call->in[0], *weight = call->in[1], *y = call->out[0];
    const int64_t k = weight->shape[1], n = weight->shape[0];
    if (y->numel == 0) return WEFT_OK;
    even_rows rows;
    weft_status status = take_rows(&rows, x, k, call->backend, false);
    if (status != WEFT_OK) return status;
    weft_gemm g = {.dtype = x->dtype,
                   .trans_b = true,
                   .m = y->numel / n,
                   .n = n,
                   .k = k,
                   .lda = rows.at.row,
                   .ldb = k,
                   .ldc = n,
                   .alpha = 1,
                   .a = rows.data,
                   .b = weight->data,
                   .c = y->data,
                   .bias = call->in[2] ? call->in[2]->data : NULL};
    g.gap_a = gap(&rows);
    g.row_group = g.gap_a ? rows.at.inner : weft_row_group(x);
    status = weft_gemm_run(&g);
    give_rows(&rows, call->backend);
    return status;
}

CPU_KERNEL(linear_weight_backward) {
    const weft_view *dy = call->in[0], *x = call->in[1], *dw = call->out[0];
    const int64_t m = dw->shape[0], n = dw->shape[1];
    if (dw->numel == 0) return WEFT_OK;
    even_rows left, right = {0};
    weft_status status = take_rows(&left, dy, m, call->backend, false);
    if (status == WEFT_OK) {
        status = take_rows(&right, x, n, call->backend, false);
        // both in blocks, but not in the same ones
        if (status == WEFT_OK && gap(&left) && gap(&right) && left.at.inner != right.at.inner)
            status = take_rows(&right, x, n, call->backend, true);
    }
    if (status == WEFT_OK)
        status = weft_gemm_run(&(weft_gemm){.dtype = x->dtype,
                                            .trans_a = true,
                                            .m = m,
                                            .n = n,
                                            .k = dy->numel / m,
                                            .lda = left.at.row,
                                            .ldb = right.at.row,
                                            .ldc = n,
                                            .alpha = 1,
                                            .a = left.data,
                                            .b = right.data,
                                            .c = dw->data,
                                            .k_group = gap(&left)    ? left.at.inner
                                                       : gap(&right) ? right.at.inner
                                                                     : 0,
                                            .k_gap_a = gap(&left),
                                            .k_gap_b = gap(&right)});
    give_rows(&right, call->backend);
    give_rows(&left, call->backend);
    return status;
}
