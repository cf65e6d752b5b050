// softmax.c: shapes and gradients of softmax and log_softmax.
#include "../core.h"

weft_status shape_along(weft_shape_call *call) {
    const weft_view *x = call->in[0];
    int64_t dim = call->at->AT(softmax, dim);  // the rows share the slot
    TRY(weft_fix_dim(&dim, x->ndim));
    if (call->n_in > 1) {
        const weft_view *y = call->in[1];
        bool same = y->ndim == x->ndim;
        for (int d = 0; same && d < x->ndim; d++) same = y->shape[d] == x->shape[d];
        if (!same) return weft_fail(WEFT_EINVAL, "both must have one shape");
    }
    return weft_set_shape(&call->out[0], x->shape, x->ndim);
}

weft_status grad_softmax(weft_grad_call *call) {
    HAVE(call->dx[0] = weft_softmax_backward(call->dy[0], call->out[0], call->at->AT(softmax, dim)));
    return WEFT_OK;
}

weft_status grad_log_softmax(weft_grad_call *call) {
    HAVE(call->dx[0] = weft_log_softmax_backward(call->dy[0], call->out[0], call->at->AT(log_softmax, dim)));
    return WEFT_OK;
}
