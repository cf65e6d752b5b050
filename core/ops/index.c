// index.c: shape rules and gradients of reading and adding by index.
#include "core.h"

weft_status shape_embedding(weft_shape_call *call) {
    const weft_view *ids = call->in[0], *weight = call->in[1];
    int64_t shape[WEFT_MAX_DIMS];
    if (weight->ndim != 2)
        return weft_fail(WEFT_EINVAL, "weight must be [rows, width], got %d dims", weight->ndim);
    if (ids->ndim == WEFT_MAX_DIMS)
        return weft_fail(WEFT_EINVAL, "ids has %d dims; the result would have one more than %d",
                         ids->ndim, WEFT_MAX_DIMS);
    for (int d = 0; d < ids->ndim; d++) shape[d] = ids->shape[d];
    shape[ids->ndim] = weight->shape[1];
    call->out[0].dtype = weight->dtype;
    return weft_set_shape(&call->out[0], shape, ids->ndim + 1);
}

weft_status grad_embedding(weft_grad_call *call) {
    if (!NEEDS(call, 1)) return WEFT_OK;
    call->dx[1] = weft_embedding_backward(call->in[0], call->dy[0], call->in_view[1].shape[0]);
    HAVE(call->dx[1]);
    return WEFT_OK;
}

weft_status shape_embedding_backward(weft_shape_call *call) {
    const weft_view *ids = call->in[0], *dy = call->in[1];
    int64_t rows = call->at->AT(embedding_backward, rows);
    if (rows < 0)
        return weft_fail(WEFT_EINVAL, "rows must not be negative, got %lld", (long long)rows);
    if (dy->ndim != ids->ndim + 1)
        return weft_fail(WEFT_EINVAL, "dy must have one dim more than ids, got %d and %d",
                         dy->ndim, ids->ndim);
    for (int d = 0; d < ids->ndim; d++)
        if (ids->shape[d] != dy->shape[d])
            return weft_fail(WEFT_EINVAL, "ids and dy differ in dim %d (%lld and %lld)", d + 1,
                             (long long)ids->shape[d], (long long)dy->shape[d]);
    call->out[0].dtype = dy->dtype;
    return weft_set_shape(&call->out[0], (int64_t[]){ rows, dy->shape[ids->ndim] }, 2);
}

// index has x's number of dims, and along every dim but `dim` at most x's size.
static weft_status check_index(const weft_view *x, const weft_view *index, int64_t *dim) {
    TRY(weft_fix_dim(dim, x->ndim));
    if (index->ndim != x->ndim)
        return weft_fail(WEFT_EINVAL, "index must have the %d dims of x, got %d", x->ndim,
                         index->ndim);
    for (int d = 0; d < x->ndim; d++)
        if (d != *dim && index->shape[d] > x->shape[d])
            return weft_fail(WEFT_EINVAL, "index is larger than x in dim %d (%lld and %lld)",
                             d + 1, (long long)index->shape[d], (long long)x->shape[d]);
    return WEFT_OK;
}

weft_status shape_gather(weft_shape_call *call) {
    const weft_view *x = call->in[0], *index = call->in[1];
    int64_t dim = call->at->AT(gather, dim);
    TRY(check_index(x, index, &dim));
    return weft_set_shape(&call->out[0], index->shape, index->ndim);
}

weft_status grad_gather(weft_grad_call *call) {
    if (!NEEDS(call, 0)) return WEFT_OK;
    weft_tensor *zeros = weft_zeros_as(&call->in_view[0]);
    HAVE(zeros);
    call->dx[0] = weft_scatter_add(zeros, call->in[1], call->dy[0], call->at->AT(gather, dim));
    HAVE(call->dx[0]);
    return WEFT_OK;
}

weft_status shape_scatter_add(weft_shape_call *call) {
    const weft_view *x = call->in[0], *index = call->in[1], *src = call->in[2];
    int64_t dim = call->at->AT(scatter_add, dim);
    TRY(check_index(x, index, &dim));
    bool same = src->ndim == index->ndim;
    for (int d = 0; same && d < src->ndim; d++) same = src->shape[d] == index->shape[d];
    if (!same)
        return weft_fail(WEFT_EINVAL, "src must have the shape of index; narrow the larger one");
    return weft_set_shape(&call->out[0], x->shape, x->ndim);
}

weft_status grad_scatter_add(weft_grad_call *call) {
    if (NEEDS(call, 0)) HAVE(call->dx[0] = weft_alias(call->dy[0]));
    if (NEEDS(call, 2)) {
        call->dx[2] = weft_gather(call->dy[0], call->in[1], call->at->AT(scatter_add, dim));
        HAVE(call->dx[2]);
    }
    return WEFT_OK;
}

static weft_status check_vector(const weft_view *x, const weft_view *index, int64_t *dim) {
    TRY(weft_fix_dim(dim, x->ndim));
    if (index->ndim != 1)
        return weft_fail(WEFT_EINVAL, "index must be a vector, got %d dims", index->ndim);
    return WEFT_OK;
}

weft_status shape_index_select(weft_shape_call *call) {
    const weft_view *x = call->in[0], *index = call->in[1];
    int64_t dim = call->at->AT(index_select, dim), shape[WEFT_MAX_DIMS];
    TRY(check_vector(x, index, &dim));
    for (int d = 0; d < x->ndim; d++) shape[d] = d == dim ? index->shape[0] : x->shape[d];
    return weft_set_shape(&call->out[0], shape, x->ndim);
}

weft_status grad_index_select(weft_grad_call *call) {
    if (!NEEDS(call, 0)) return WEFT_OK;
    const weft_view *x = &call->in_view[0];
    if (x->ndim == 2 && call->at->AT(index_select, dim) % 2 == 0) { // dim 0 or -2: rows, as of a table
        HAVE(call->dx[0] = weft_embedding_backward(call->in[1], call->dy[0], x->shape[0]));
        return WEFT_OK;
    }
    weft_tensor *zeros = weft_zeros_as(x);
    HAVE(zeros);
    call->dx[0] = weft_index_add(zeros, call->in[1], call->dy[0], call->at->AT(index_select, dim));
    HAVE(call->dx[0]);
    return WEFT_OK;
}

weft_status shape_index_add(weft_shape_call *call) {
    const weft_view *x = call->in[0], *index = call->in[1], *src = call->in[2];
    int64_t dim = call->at->AT(index_add, dim);
    TRY(check_vector(x, index, &dim));
    if (src->ndim != x->ndim)
        return weft_fail(WEFT_EINVAL, "src must have the %d dims of x, got %d", x->ndim, src->ndim);
    for (int d = 0; d < x->ndim; d++) {
        int64_t expected = d == dim ? index->shape[0] : x->shape[d];
        if (src->shape[d] != expected)
            return weft_fail(WEFT_EINVAL, "src must have size %lld in dim %d, got %lld",
                             (long long)expected, d + 1, (long long)src->shape[d]);
    }
    return weft_set_shape(&call->out[0], x->shape, x->ndim);
}

weft_status grad_index_add(weft_grad_call *call) {
    if (NEEDS(call, 0)) HAVE(call->dx[0] = weft_alias(call->dy[0]));
    if (NEEDS(call, 2)) {
        call->dx[2] = weft_index_select(call->dy[0], call->in[1], call->at->AT(index_add, dim));
        HAVE(call->dx[2]);
    }
    return WEFT_OK;
}

weft_status shape_index_copy(weft_shape_call *call) {
    const weft_view *x = call->in[0], *index = call->in[1], *src = call->in[2];
    int64_t dim = 0;
    TRY(check_vector(x, index, &dim));
    bool fits = src->ndim == x->ndim && src->shape[0] == index->shape[0];
    for (int d = 1; fits && d < x->ndim; d++) fits = src->shape[d] == x->shape[d];
    if (!fits)
        return weft_fail(WEFT_EINVAL, "src must hold a row of x for each of the %lld indices", (long long)index->shape[0]);
    if (!weft_view_contiguous(x) || !weft_view_contiguous(src) || !weft_view_contiguous(index))
        return weft_fail(WEFT_EINVAL, "x is written in place: x, index and src must be contiguous");
    return WEFT_OK;
}
