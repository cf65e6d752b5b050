// sort.c: shapes and gradients of topk and sort.
#include "../core.h"

weft_status shape_topk(weft_shape_call *call) {
    const weft_view *x = call->in[0];
    int64_t dim = call->at->AT(topk, dim), k = call->at->AT(topk, k);
    TRY(weft_fix_dim(&dim, x->ndim));
    if (k < 0 || k > x->shape[dim])
        return weft_fail(WEFT_EINVAL, "k is %lld, the dim has %lld elements", (long long)k,
                         (long long)x->shape[dim]);
    int64_t shape[WEFT_MAX_DIMS];
    for (int d = 0; d < x->ndim; d++) shape[d] = d == dim ? k : x->shape[d];
    TRY(weft_set_shape(&call->out[0], shape, x->ndim));
    call->out[1].dtype = WEFT_INT64;
    return weft_set_shape(&call->out[1], shape, x->ndim);
}

weft_status shape_sort(weft_shape_call *call) {
    const weft_view *x = call->in[0];
    int64_t dim = call->at->AT(sort, dim);
    TRY(weft_fix_dim(&dim, x->ndim));
    TRY(weft_set_shape(&call->out[0], x->shape, x->ndim));
    call->out[1].dtype = WEFT_INT64;
    return weft_set_shape(&call->out[1], x->shape, x->ndim);
}

// dy goes back to where the values came from.
static weft_status scatter(weft_grad_call *call, int64_t dim) {
    if (!call->dy[0]) return WEFT_OK;
    weft_tensor *zeros = weft_zeros_as(&call->in_view[0]);
    HAVE(zeros);
    HAVE(call->dx[0] = weft_scatter_add(zeros, call->out[1], call->dy[0], dim));
    return WEFT_OK;
}

weft_status grad_topk(weft_grad_call *call) { return scatter(call, call->at->AT(topk, dim)); }
weft_status grad_sort(weft_grad_call *call) { return scatter(call, call->at->AT(sort, dim)); }
