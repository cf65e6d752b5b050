// linalg.c: shape rules and gradients of matrix decompositions and systems.
#include "core.h"

static weft_status check_matrix(const weft_view *x, const char *name) {
    if (x->ndim >= 2) return WEFT_OK;
    return weft_fail(WEFT_EINVAL, "%s must have at least 2 dims, got %d", name, x->ndim);
}

static weft_status check_square(const weft_view *x, const char *name) {
    TRY(check_matrix(x, name));
    int64_t m = x->shape[x->ndim - 2], n = x->shape[x->ndim - 1];
    if (m == n) return WEFT_OK;
    return weft_fail(WEFT_EINVAL, "%s must be square, got %lld by %lld", name, (long long)m,
                     (long long)n);
}

// x's leading dims, then an m by n matrix; n -1: a vector of m.
static weft_status set_matrix(weft_view *y, const weft_view *x, int64_t m, int64_t n) {
    int64_t shape[WEFT_MAX_DIMS];
    int lead = x->ndim - 2;
    for (int d = 0; d < lead; d++) shape[d] = x->shape[d];
    shape[lead] = m;
    shape[lead + 1] = n;
    return weft_set_shape(y, shape, n < 0 ? lead + 1 : lead + 2);
}

weft_status shape_svd(weft_shape_call *call) {
    const weft_view *x = call->in[0];
    TRY(check_matrix(x, "x"));
    int64_t m = x->shape[x->ndim - 2], n = x->shape[x->ndim - 1], k = m < n ? m : n;
    TRY(set_matrix(&call->out[0], x, m, k));
    TRY(set_matrix(&call->out[1], x, k, -1));
    return set_matrix(&call->out[2], x, k, n);
}

weft_status shape_qr(weft_shape_call *call) {
    const weft_view *x = call->in[0];
    TRY(check_matrix(x, "x"));
    int64_t m = x->shape[x->ndim - 2], n = x->shape[x->ndim - 1], k = m < n ? m : n;
    TRY(set_matrix(&call->out[0], x, m, k));
    return set_matrix(&call->out[1], x, k, n);
}

weft_status shape_cholesky(weft_shape_call *call) {
    TRY(check_square(call->in[0], "x"));
    return weft_set_shape(&call->out[0], call->in[0]->shape, call->in[0]->ndim);
}

weft_status shape_solve(weft_shape_call *call) {
    const weft_view *a = call->in[0], *b = call->in[1];
    TRY(check_square(a, "a"));
    if (b->ndim != a->ndim)
        return weft_fail(WEFT_EINVAL, "b must have the %d dims of a, got %d", a->ndim, b->ndim);
    for (int d = 0; d < a->ndim - 1; d++)
        if (a->shape[d] != b->shape[d])
            return weft_fail(WEFT_EINVAL, "a and b differ in dim %d (%lld and %lld)", d + 1,
                             (long long)a->shape[d], (long long)b->shape[d]);
    return weft_set_shape(&call->out[0], b->shape, b->ndim);
}

// db = a^-T dx, da = -db x^T
weft_status grad_solve(weft_grad_call *call) {
    weft_tensor *at, *db, *xt, *product;
    HAVE(at = weft_transpose(call->in[0], -2, -1));
    HAVE(db = weft_solve(at, call->dy[0]));
    if (NEEDS(call, 1)) call->dx[1] = db;
    if (NEEDS(call, 0)) {
        HAVE(xt = weft_transpose(call->out[0], -2, -1));
        HAVE(product = weft_matmul(db, xt));
        HAVE(call->dx[0] = weft_neg(product));
    }
    return WEFT_OK;
}

// 1 below the diagonal, 1/2 on it, 0 above.
static weft_tensor *half_lower(const weft_view *v) {
    int64_t n = v->shape[v->ndim - 1];
    weft_tensor *i = weft_arange(0, (double)n, 1, v->dtype, v->device), *column, *row, *d, *half;
    if (!i || !(column = weft_unsqueeze(i, 1)) || !(row = weft_unsqueeze(i, 0))) return NULL;
    // i - j is a whole number: (i - j) / 2 + 1/2 cut to 0 .. 1
    if (!(d = weft_sub(column, row)) || !(half = weft_affine(d, 0.5, 0.5))) return NULL;
    return weft_clamp(half, 0, 1);
}

// With y the factor: s = y^-T phi(y^T dy) y^-1, dx = (s + s^T) / 2; phi keeps the lower triangle
// and half of the diagonal.
weft_status grad_cholesky(weft_grad_call *call) {
    weft_tensor *y = call->out[0], *yt, *phi, *mask, *left, *right, *s, *st, *sum;
    if (!NEEDS(call, 0)) return WEFT_OK;
    HAVE(yt = weft_transpose(y, -2, -1));
    HAVE(phi = weft_matmul(yt, call->dy[0]));
    HAVE(mask = half_lower(&call->in_view[0]));
    HAVE(phi = weft_mul(phi, mask));
    HAVE(left = weft_solve(yt, phi));                      // y^-T phi
    HAVE(left = weft_transpose(left, -2, -1));
    HAVE(right = weft_solve(yt, left));                    // y^-T phi^T y^-1 = s^T
    HAVE(s = weft_transpose(right, -2, -1));
    st = right;
    HAVE(sum = weft_add(s, st));
    HAVE(call->dx[0] = weft_affine(sum, 0.5, 0));
    return WEFT_OK;
}
