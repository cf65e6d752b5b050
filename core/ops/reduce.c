// reduce.c: shapes and gradients of sums, norms, extremes and running sums.
#include <math.h>
#include "../core.h"

// The dims of the list as a mask, all of them when it is empty.
static weft_status dims_mask(const weft_attrs *at, int ndim, uint32_t *mask) {
    *mask = at->n_list ? 0 : (1u << ndim) - 1;
    for (int i = 0; i < at->n_list; i++) {
        int64_t dim = at->list[i];
        TRY(weft_fix_dim(&dim, ndim));
        if (*mask >> dim & 1) return weft_fail(WEFT_EINVAL, "dims name one dim twice");
        *mask |= 1u << dim;
    }
    return WEFT_OK;
}

static int kept_shape(const weft_view *x, uint32_t mask, bool keepdim, int64_t *shape) {
    int n = 0;
    for (int d = 0; d < x->ndim; d++) {
        if (!(mask >> d & 1)) shape[n++] = x->shape[d];
        else if (keepdim) shape[n++] = 1;
    }
    return n;
}

static int64_t reduced_size(const weft_view *x, uint32_t mask) {
    int64_t n = 1;
    for (int d = 0; d < x->ndim; d++)
        if (mask >> d & 1) n *= x->shape[d];
    return n;
}

weft_status shape_reduce(weft_shape_call *call) {
    const weft_view *x = call->in[0];
    const weft_attrs *at = call->at;
    bool keepdim = call->op == OP_sum ? at->AT(sum, keepdim) : call->op == OP_mean ? at->AT(mean, keepdim)
                 : call->op == OP_var ? at->AT(var, keepdim) : call->op == OP_norm ? at->AT(norm, keepdim)
                 : at->AT(logsumexp, keepdim);
    uint32_t mask;
    TRY(dims_mask(at, x->ndim, &mask));
    if (call->op == OP_norm && isinf(at->AT(norm, p)) && reduced_size(x, mask) == 0)
        return weft_fail(WEFT_EINVAL, "the dims hold no element to take the largest of");
    int64_t shape[WEFT_MAX_DIMS] = { 0 };
    int n = kept_shape(x, mask, keepdim, shape);
    if (call->op == OP_sum && x->dtype == WEFT_INT32) call->out[0].dtype = WEFT_INT64;
    return weft_set_shape(&call->out[0], shape, n);
}

static weft_status along_one(weft_shape_call *call, bool keepdim, int64_t *shape, int *n) {
    const weft_view *x = call->in[0];
    int64_t dim = call->at->AT(max, dim);  // max, min, argmax and argmin share the slots
    TRY(weft_fix_dim(&dim, x->ndim));
    if (x->shape[dim] == 0)
        return weft_fail(WEFT_EINVAL, "the dim has size 0: there is no element to choose");
    *n = kept_shape(x, 1u << dim, keepdim, shape);
    return WEFT_OK;
}

weft_status shape_extremum(weft_shape_call *call) {
    int64_t shape[WEFT_MAX_DIMS] = { 0 };
    int n = 0;
    TRY(along_one(call, call->at->AT(max, keepdim), shape, &n));
    TRY(weft_set_shape(&call->out[0], shape, n));
    call->out[1].dtype = WEFT_INT64;
    return weft_set_shape(&call->out[1], shape, n);
}

weft_status shape_arg(weft_shape_call *call) {
    int64_t shape[WEFT_MAX_DIMS] = { 0 };
    int n = 0;
    TRY(along_one(call, call->at->AT(argmax, keepdim), shape, &n));
    call->out[0].dtype = WEFT_INT64;
    return weft_set_shape(&call->out[0], shape, n);
}

// --- gradients

// t, of the reduced shape, with the dims of mask as 1: ready to broadcast against x.
static weft_tensor *with_dims(const weft_tensor *t, const weft_view *x, uint32_t mask) {
    int64_t shape[WEFT_MAX_DIMS] = { 0 };
    int n = kept_shape(x, mask, true, shape);
    return weft_reshape(t, shape, n);
}

static weft_tensor *spread(const weft_tensor *t, const weft_view *x, uint32_t mask) {
    weft_tensor *k = with_dims(t, x, mask);
    return k ? weft_expand(k, x->shape, x->ndim) : NULL;
}

weft_status grad_sum(weft_grad_call *call) {
    const weft_view *x = &call->in_view[0];
    uint32_t mask;
    TRY(dims_mask(call->at, x->ndim, &mask));
    HAVE(call->dx[0] = spread(call->dy[0], x, mask));
    return WEFT_OK;
}

weft_status grad_mean(weft_grad_call *call) {
    const weft_view *x = &call->in_view[0];
    uint32_t mask;
    TRY(dims_mask(call->at, x->ndim, &mask));
    weft_tensor *each = weft_affine(call->dy[0], 1.0 / (double)reduced_size(x, mask), 0);
    HAVE(each);
    HAVE(call->dx[0] = spread(each, x, mask));
    return WEFT_OK;
}

// 2 (x - mean) / (n - correction)
weft_status grad_var(weft_grad_call *call) {
    const weft_view *x = &call->in_view[0];
    const weft_attrs *at = call->at;
    uint32_t mask;
    TRY(dims_mask(at, x->ndim, &mask));
    double divisor = (double)(reduced_size(x, mask) - at->AT(var, correction));
    weft_tensor *mean = weft_mean(call->in[0], at->list, at->n_list, 1), *off, *dy;
    HAVE(mean);
    HAVE(off = weft_sub(call->in[0], mean));
    HAVE(dy = weft_affine(call->dy[0], 2 / (divisor > 0 ? divisor : 0), 0));
    HAVE(dy = with_dims(dy, x, mask));
    HAVE(call->dx[0] = weft_mul(off, dy));
    return WEFT_OK;
}

// t where y ~= 0, else 0
static weft_tensor *zero_where_zero(const weft_tensor *t, const weft_tensor *y) {
    weft_tensor *zero = weft_full(NULL, 0, 0, y->v.dtype, y->v.device);
    weft_tensor *mask = zero ? weft_eq(y, zero) : NULL;
    return mask ? weft_masked_fill(t, mask, 0) : NULL;
}

// sign(x) |x|^(p-1) / y^(p-1), 0 where y is 0; for p = inf ties share the gradient.
weft_status grad_norm(weft_grad_call *call) {
    const weft_view *view = &call->in_view[0];
    const weft_tensor *x = call->in[0], *y = call->out[0];
    const double p = call->at->AT(norm, p);
    uint32_t mask;
    TRY(dims_mask(call->at, view->ndim, &mask));
    weft_tensor *dy = with_dims(call->dy[0], view, mask), *t, *u;
    HAVE(dy);
    HAVE(y = with_dims(y, view, mask));
    if (p == 2) {
        HAVE(t = weft_div(dy, y));
        HAVE(t = zero_where_zero(t, y));
        HAVE(call->dx[0] = weft_mul(x, t));
        return WEFT_OK;
    }
    weft_tensor *sign = weft_sign(x);
    HAVE(sign);
    if (p == 0) {
        HAVE(call->dx[0] = weft_zeros_as(view));
    } else if (p == 1) {
        HAVE(call->dx[0] = weft_mul(sign, dy));
    } else if (isinf(p)) {
        HAVE(t = weft_abs(x));
        HAVE(t = weft_eq(t, y));
        HAVE(t = weft_cast(t, view->dtype));
        HAVE(u = weft_sum(t, call->at->list, call->at->n_list, 1));
        HAVE(dy = weft_div(dy, u));
        HAVE(t = weft_mul(t, sign));
        HAVE(call->dx[0] = weft_mul(t, dy));
    } else {
        HAVE(t = weft_abs(x));
        HAVE(t = weft_pow_scalar(t, p - 1));
        if (p < 1) HAVE(t = zero_where_zero(t, x));
        HAVE(t = weft_mul(t, sign));
        HAVE(u = weft_pow_scalar(y, p - 1));
        HAVE(u = weft_div(dy, u));
        HAVE(u = zero_where_zero(u, y));
        HAVE(call->dx[0] = weft_mul(t, u));
    }
    return WEFT_OK;
}

weft_status grad_logsumexp(weft_grad_call *call) {
    const weft_view *x = &call->in_view[0];
    uint32_t mask;
    TRY(dims_mask(call->at, x->ndim, &mask));
    weft_tensor *y = with_dims(call->out[0], x, mask), *dy = with_dims(call->dy[0], x, mask), *t, *u;
    HAVE(y);
    HAVE(dy);
    HAVE(t = weft_sub(call->in[0], y));
    HAVE(t = weft_exp(t));
    // y of 100 is rounded by 4e-6, and each share with it: their sum, 1 but for that, takes it out
    HAVE(u = weft_sum(t, call->at->list, call->at->n_list, 1));
    HAVE(dy = weft_div(dy, u));
    HAVE(call->dx[0] = weft_mul(t, dy));
    return WEFT_OK;
}

// dy goes to the chosen element.
weft_status grad_extremum(weft_grad_call *call) {
    const weft_view *x = &call->in_view[0];
    if (!call->dy[0]) return WEFT_OK;
    int64_t dim = call->at->AT(max, dim);
    TRY(weft_fix_dim(&dim, x->ndim));
    weft_tensor *dy = with_dims(call->dy[0], x, 1u << dim), *at = with_dims(call->out[1], x, 1u << dim), *zeros;
    HAVE(dy);
    HAVE(at);
    HAVE(zeros = weft_zeros_as(x));
    HAVE(call->dx[0] = weft_scatter_add(zeros, at, dy, dim));
    return WEFT_OK;
}

// The sum of dy from each place to the end.
weft_status grad_cumsum(weft_grad_call *call) {
    int64_t dim = call->at->AT(cumsum, dim);
    TRY(weft_fix_dim(&dim, call->in_view[0].ndim));
    weft_tensor *t = weft_flip(call->dy[0], &dim, 1);
    HAVE(t);
    HAVE(t = weft_cumsum(t, dim));
    HAVE(call->dx[0] = weft_flip(t, &dim, 1));
    return WEFT_OK;
}
