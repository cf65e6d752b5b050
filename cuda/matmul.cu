// matmul.cu: matrix products of strided, broadcast operands, and linear layers, over cuda_product.
#include "cuda/blas.h"
#include "cuda/calls.h"
#include <optional>

#define MANY 8  // calls of the provider that are dearer than copies that let one call do

// One operand as the provider takes it, and where its matrices lie by leading dim of the result.
struct operand {
    const char *data;
    bool trans;
    int64_t ld, stride[WEFT_MAX_DIMS];
    std::optional<scratch> packed;
};

static void set_strides(operand *o, const weft_view *x, int lead) {
    const int shift = lead - (x->ndim - 2);
    for (int d = 0; d < lead; d++)
        o->stride[d] = d < shift || x->shape[d - shift] == 1 ? 0 : x->stride[d - shift];
}

// x [..., rows, columns] as it lies, where rows or columns are whole; lead: leading dims of the result.
static bool take(operand *o, const weft_view *x, int lead) {
    const int n = x->ndim - 2;
    const int64_t rows = x->shape[n], columns = x->shape[n + 1], rs = x->stride[n], cs = x->stride[n + 1];
    o->data = static_cast<const char *>(x->data);
    if ((cs == 1 || columns == 1) && (rs >= columns || rows == 1)) {
        o->trans = false;
        o->ld = rows == 1 ? columns : rs;
    } else if ((rs == 1 || rows == 1) && (cs >= rows || columns == 1)) {
        o->trans = true;
        o->ld = columns == 1 ? rows : cs;
    } else return false;
    set_strides(o, x, lead);
    return true;
}

// A row-major copy of x, without repeating what a broadcast repeats.
static weft_status pack_operand(operand *o, const weft_call *call, const weft_view *x, int lead) {
    const int n = x->ndim - 2;
    weft_view from = *x, to = *x;
    int64_t stride = x->shape[n] * x->shape[n + 1];
    for (int d = n - 1; d >= 0; d--) {
        if (x->stride[d] == 0) from.shape[d] = to.shape[d] = 1;
        to.stride[d] = stride;
        stride *= to.shape[d];
    }
    to.stride[n + 1] = 1;
    to.stride[n] = x->shape[n + 1];
    from.numel = to.numel = stride;
    o->packed.emplace(call, stride * cuda_host->dtype_size(x->dtype));
    if (!o->packed->data) return WEFT_ENOMEM;
    to.data = o->packed->data;
    o->data = o->packed->as<char>();
    o->trans = false;
    o->ld = x->shape[n + 1];
    set_strides(o, &to, lead);
    return cuda_copy(call, &to, &from);
}

static weft_status set_operand(operand *o, const weft_call *call, const weft_view *x, int lead, bool copied) {
    if (!copied && take(o, x, lead)) return WEFT_OK;
    if (copied && (o->packed || weft_view_contiguous(x))) return WEFT_OK;
    return pack_operand(o, call, x, lead);
}

// Leading dims of the result that both operands walk evenly become one.
struct leading {
    int n;
    int64_t shape[WEFT_MAX_DIMS], a[WEFT_MAX_DIMS], b[WEFT_MAX_DIMS], c[WEFT_MAX_DIMS];
};
static leading merge(const weft_view *y, const operand *a, const operand *b, int lead, int64_t size) {
    leading l = {};
    for (int d = 0; d < lead; d++) {
        const int64_t count = y->shape[d];
        if (count == 1) continue;
        const int at = l.n - 1;
        const bool joins = l.n && l.a[at] == a->stride[d] * count && l.b[at] == b->stride[d] * count;
        if (!joins) l.shape[l.n++] = 1;
        l.shape[l.n - 1] *= count;
        l.a[l.n - 1] = a->stride[d];
        l.b[l.n - 1] = b->stride[d];
    }
    for (int d = l.n - 1; d >= 0; d--) {
        l.c[d] = size;
        size *= l.shape[d];
    }
    return l;
}

// The longest dim is the provider's batch; the others are walked here.
static int longest(const leading *l, int64_t *others) {
    int best = 0;
    for (int d = 1; d < l->n; d++)
        if (l->shape[d] > l->shape[best]) best = d;
    *others = 1;
    for (int d = 0; d < l->n; d++)
        if (d != best) *others *= l->shape[d];
    return best;
}

static weft_status multiply(const weft_call *call, const operand *a, const operand *b, leading l, int64_t m, int64_t n,
                            int64_t k) {
    const weft_view *y = call->out[0];
    const int64_t size = cuda_host->dtype_size(y->dtype);
    cuda_gemm g = {};
    g.dtype = y->dtype;
    g.trans_a = a->trans, g.trans_b = b->trans;
    g.m = m, g.n = n, g.k = k;
    g.lda = a->ld, g.ldb = b->ld, g.ldc = n;
    g.batch = 1;
    g.alpha = 1;
    g.a = a->data, g.b = b->data, g.c = y->data;
    // one shared right side under rows that follow each other: one product
    if (l.n == 1 && l.b[0] == 0 && !a->trans) {
        const int64_t row = m == 1 ? l.a[0] : a->ld;
        if (l.a[0] == m * row && row >= k) {
            g.m = m * l.shape[0];
            g.lda = row;
            l.n = 0;
        }
    }
    if (l.n == 0) return cuda_product(call, &g);
    int64_t others;
    const int last = longest(&l, &others);
    g.batch = l.shape[last];
    g.stride_a = l.a[last], g.stride_b = l.b[last], g.stride_c = l.c[last];
    for (int64_t i = 0; i < others; i++) {
        int64_t at_a = 0, at_b = 0, at_c = 0, rest = i;
        for (int d = l.n - 1; d >= 0; d--) {
            if (d == last) continue;
            const int64_t at = rest % l.shape[d];
            at_a += at * l.a[d];
            at_b += at * l.b[d];
            at_c += at * l.c[d];
            rest /= l.shape[d];
        }
        g.a = a->data + at_a * size;
        g.b = b->data + at_b * size;
        g.c = static_cast<char *>(y->data) + at_c * size;
        TRY(cuda_product(call, &g));
    }
    return WEFT_OK;
}

CUDA_KERNEL(matmul) {
    const weft_view *y = call->out[0];
    if (y->numel == 0) return WEFT_OK;
    const weft_view a = weft_as_matrix(call->in[0], true), b = weft_as_matrix(call->in[1], false);
    const int64_t m = a.shape[a.ndim - 2], k = a.shape[a.ndim - 1], n = b.shape[b.ndim - 1];
    if (k == 0) return call->backend->fill(call->backend, y, 0);
    const int lead = (a.ndim > b.ndim ? a.ndim : b.ndim) - 2;
    operand left = {}, right = {};
    TRY(set_operand(&left, call, &a, lead, false));
    TRY(set_operand(&right, call, &b, lead, false));
    leading l = merge(y, &left, &right, lead, m * n);
    int64_t calls;
    longest(&l, &calls);
    if (calls > MANY) {
        TRY(set_operand(&left, call, &a, lead, true));
        TRY(set_operand(&right, call, &b, lead, true));
        l = merge(y, &left, &right, lead, m * n);
    }
    return multiply(call, &left, &right, l, m, n, k);
}

// --- linear layers. Rows [..., width] as they lie: a matrix, or where `blocks` may be many a batch of them,
// unless those are so low that a copy costs less; rows that overlap are copied.
#define LEAST_BLOCK 64
struct matrix_rows {
    const void *data;
    int64_t blocks, rows, ld, stride;
    std::optional<scratch> packed;
};
static weft_status set_rows(matrix_rows *o, const weft_call *call, const weft_view *x, bool many) {
    const int64_t width = x->shape[x->ndim - 1], rows = weft_span(x, 0, x->ndim - 1);
    weft_rows at;
    if (weft_rows_of(x, 1, &at) && (at.inner == 1 || at.row >= width) &&
        (at.outer == 1 || (many && at.inner >= LEAST_BLOCK))) {
        o->data = x->data;
        o->blocks = at.outer, o->rows = at.inner, o->stride = at.block;
        o->ld = at.inner == 1 ? width : at.row;
        return WEFT_OK;
    }
    weft_view to = *x;
    int64_t stride = 1;
    for (int d = x->ndim - 1; d >= 0; stride *= x->shape[d--]) to.stride[d] = stride;
    o->packed.emplace(call, x->numel * cuda_host->dtype_size(x->dtype));
    if (!o->packed->data) return WEFT_ENOMEM;
    o->data = to.data = o->packed->data;
    o->blocks = 1, o->rows = rows, o->ld = width, o->stride = 0;
    return cuda_copy(call, &to, x);
}

static void set_left(cuda_gemm *g, const matrix_rows *a) {
    g->a = a->data;
    g->m = a->rows, g->lda = a->ld;
    g->batch = a->blocks, g->stride_a = a->stride;
    g->stride_c = g->m * g->n;
    g->ldc = g->n;
    g->alpha = 1;
}

CUDA_KERNEL(linear_weight_backward) {
    const weft_view *dy = call->in[0], *x = call->in[1], *dw = call->out[0];
    if (dw->numel == 0) return WEFT_OK;
    if (dy->numel == 0) return call->backend->fill(call->backend, dw, 0);
    matrix_rows left = {}, right = {};
    TRY(set_rows(&left, call, dy, false));
    TRY(set_rows(&right, call, x, false));
    cuda_gemm g = {};
    g.dtype = x->dtype;
    g.trans_a = true;
    g.m = dw->shape[0], g.n = dw->shape[1], g.k = left.rows;
    g.lda = left.ld, g.ldb = right.ld, g.ldc = g.n;
    g.batch = 1;
    g.alpha = 1;
    g.a = left.data, g.b = right.data, g.c = dw->data;
    return cuda_product(call, &g);
}

CUDA_KERNEL(linear_backward) {
    const weft_view *dy = call->in[0], *weight = call->in[1], *dx = call->out[0];
    if (dx->numel == 0) return WEFT_OK;
    const bool onto = call->at->AT(linear_backward, onto) != 0;
    matrix_rows left = {};
    TRY(set_rows(&left, call, dy, true));
    cuda_gemm g = {};
    g.dtype = dy->dtype;
    g.n = weight->shape[1], g.k = weight->shape[0];
    set_left(&g, &left);
    g.ldb = g.n;
    g.beta = onto;
    g.b = weight->data, g.c = dx->data;
    return cuda_product(call, &g);
}

CUDA_KERNEL(linear) {
    const weft_view *x = call->in[0], *weight = call->in[1], *bias = call->in[2], *y = call->out[0];
    if (y->numel == 0) return WEFT_OK;
    matrix_rows left = {};
    TRY(set_rows(&left, call, x, true));
    cuda_gemm g = {};
    g.dtype = x->dtype;
    g.trans_b = true;
    g.n = weight->shape[0], g.k = weight->shape[1];
    set_left(&g, &left);
    g.ldb = g.k;
    g.b = weight->data, g.bias = bias ? bias->data : nullptr, g.c = y->data;
    return cuda_product(call, &g);
}
