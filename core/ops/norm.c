// norm.c: shapes and gradients of layer_norm, rms_norm, both after a sum, and normalize.
#include "../core.h"

// x has a last dim, and the `count` inputs from `first` on are [last] where given.
static weft_status check_rows(const weft_shape_call *call, const weft_view *x, int first, int count) {
    if (x->ndim == 0) return weft_fail(WEFT_EINVAL, "x needs at least one dim");
    int64_t d = x->shape[x->ndim - 1];
    for (int i = first; i < first + count; i++) {
        const weft_view *w = call->in[i];
        if (w && (w->ndim != 1 || w->shape[0] != d))
            return weft_fail(WEFT_EINVAL, "%s must be [%lld], the size of the last dim",
                             weft_ops[call->op].in_name[i], (long long)d);
    }
    return WEFT_OK;
}

weft_status shape_layer_norm(weft_shape_call *call) {
    const weft_view *x = call->in[0];
    TRY(check_rows(call, x, 1, 2));
    TRY(weft_set_shape(&call->out[0], x->shape, x->ndim));
    call->out[1].dtype = call->out[2].dtype = weft_wide_dtype(x->dtype);
    TRY(weft_set_shape(&call->out[1], x->shape, x->ndim - 1));
    return weft_set_shape(&call->out[2], x->shape, x->ndim - 1);
}

weft_status shape_rms_norm(weft_shape_call *call) {
    const weft_view *x = call->in[0];
    TRY(check_rows(call, x, 1, 1));
    TRY(weft_set_shape(&call->out[0], x->shape, x->ndim));
    call->out[1].dtype = weft_wide_dtype(x->dtype);
    return weft_set_shape(&call->out[1], x->shape, x->ndim - 1);
}

static bool same_shape(const weft_view *a, const weft_view *b) {
    bool same = a->ndim == b->ndim;
    for (int d = 0; same && d < a->ndim; d++) same = a->shape[d] == b->shape[d];
    return same;
}

// add_layer_norm and add_rms_norm: what follows x and m is [last] where given.
weft_status shape_add_norm(weft_shape_call *call) {
    const weft_view *x = call->in[0];
    TRY(check_rows(call, x, 2, call->n_in - 2));
    if (!same_shape(x, call->in[1])) return weft_fail(WEFT_EINVAL, "x and m must have one shape");
    for (int i = 0; i < 2; i++) TRY(weft_set_shape(&call->out[i], x->shape, x->ndim));
    for (int i = 2; i < call->n_out; i++) {
        call->out[i].dtype = weft_wide_dtype(x->dtype);
        TRY(weft_set_shape(&call->out[i], x->shape, x->ndim - 1));
    }
    return WEFT_OK;
}

// dy and x of one shape, statistics one a row, and the outputs that `needs` asks for.
static weft_status check_statistics(const weft_shape_call *call, const weft_view *x, int first, int count) {
    for (int i = first; i < first + count; i++)
        if (call->in[i]->numel != weft_span(x, 0, x->ndim - 1) ||
            call->in[i]->dtype != weft_wide_dtype(x->dtype))
            return weft_fail(WEFT_EINVAL, "%s must have one %s for each row of x", weft_ops[call->op].in_name[i],
                             weft_dtype_name(weft_wide_dtype(x->dtype)));
    return WEFT_OK;
}

static weft_status backward_shapes(weft_shape_call *call, int statistics, int n_out, int64_t needs) {
    const weft_view *dy = call->in[0], *x = call->in[1];
    TRY(check_rows(call, x, 2, 1));
    if (!same_shape(dy, x)) return weft_fail(WEFT_EINVAL, "dy and x must have one shape");
    TRY(check_statistics(call, x, 3, statistics));
    const int64_t none = 0;
    if (needs & 1) TRY(weft_set_shape(&call->out[0], x->shape, x->ndim));
    else TRY(weft_set_shape(&call->out[0], &none, 1));
    for (int i = 1; i < n_out; i++)
        TRY(weft_set_shape(&call->out[i], (needs >> i) & 1 ? &x->shape[x->ndim - 1] : &none, 1));
    return WEFT_OK;
}

weft_status shape_layer_norm_backward(weft_shape_call *call) {
    return backward_shapes(call, 2, 3, call->at->AT(layer_norm_backward, needs));
}

weft_status shape_rms_norm_backward(weft_shape_call *call) {
    return backward_shapes(call, 1, 2, call->at->AT(rms_norm_backward, needs));
}

weft_status shape_add_norm_backward(weft_shape_call *call) {
    const bool layer = call->op == OP_add_layer_norm_backward;
    const weft_view *dsum = call->in[0], *x = call->in[2];
    const int64_t none = 0, needs = layer ? call->at->AT(add_layer_norm_backward, needs)
                                          : call->at->AT(add_rms_norm_backward, needs);
    const int rows = layer ? 2 : 1, statistics = layer ? 2 : 1;     // outputs that have x's shape
    TRY(check_rows(call, x, 3, call->n_in - statistics - 3));
    if (!same_shape(call->in[1], x) || (dsum && !same_shape(dsum, x)))
        return weft_fail(WEFT_EINVAL, "dsum, dy and sum must have one shape");
    TRY(check_statistics(call, x, call->n_in - statistics, statistics));
    if (layer && (needs & 3) == 2) return weft_fail(WEFT_EINVAL, "dm comes with dx");
    for (int i = 0; i < call->n_out; i++) {
        if (!(needs >> i & 1)) TRY(weft_set_shape(&call->out[i], &none, 1));
        else if (i < rows) TRY(weft_set_shape(&call->out[i], x->shape, x->ndim));
        else TRY(weft_set_shape(&call->out[i], &x->shape[x->ndim - 1], 1));
    }
    return WEFT_OK;
}

// Hands over the outputs that are wanted; the empty ones die with the scope.
static void hand_over(weft_grad_call *call, weft_tensor **out, int n) {
    for (int i = 0; i < n; i++)
        if (NEEDS(call, i)) call->dx[i] = out[i];
}

weft_status grad_layer_norm(weft_grad_call *call) {
    if (!(call->needs & 3)) {  // the bias alone: x was not kept
        if (NEEDS(call, 2)) HAVE(call->dx[2] = weft_sum_to(call->dy[0], &call->in_view[2]));
        return WEFT_OK;
    }
    weft_tensor *out[3];
    TRY(weft_layer_norm_backward(call->dy[0], call->in[0], call->in[1], call->out[1], call->out[2],
                                 call->at->AT(layer_norm, eps), (int64_t)call->needs, out));
    hand_over(call, out, 3);
    return WEFT_OK;
}

weft_status grad_rms_norm(weft_grad_call *call) {
    weft_tensor *out[2];
    TRY(weft_rms_norm_backward(call->dy[0], call->in[0], call->in[1], call->out[1], (int64_t)call->needs, out));
    hand_over(call, out, 2);
    return WEFT_OK;
}

// Of a sum whose norm nobody used: dx is its gradient.
static weft_status sum_alone(weft_grad_call *call, weft_tensor *dx, bool scaled) {
    if (NEEDS(call, 1)) HAVE(call->dx[1] = scaled ? weft_mul(dx, call->in[2]) : weft_alias(dx));
    if (scaled && NEEDS(call, 2)) {
        weft_tensor *product;
        HAVE(product = weft_mul(dx, call->in[1]));
        HAVE(call->dx[2] = weft_sum_to(product, &call->in_view[2]));
    }
    if (NEEDS(call, 0)) HAVE(call->dx[0] = weft_alias(dx));
    for (int i = scaled ? 3 : 2; i < call->n_in; i++)
        if (NEEDS(call, i)) HAVE(call->dx[i] = weft_zeros_as(&call->in_view[i]));
    return WEFT_OK;
}

weft_status grad_add_layer_norm(weft_grad_call *call) {
    const bool scaled = call->in_view[2].ndim > 0;
    if (!call->dy[1]) return sum_alone(call, call->dy[0], scaled);
    if (!(call->needs & 15)) {  // the bias alone
        if (NEEDS(call, 4)) HAVE(call->dx[4] = weft_sum_to(call->dy[1], &call->in_view[4]));
        return WEFT_OK;
    }
    weft_tensor *out[4];
    const bool dm = scaled && NEEDS(call, 1), dx = call->needs & 7;
    TRY(weft_add_layer_norm_backward(call->dy[0], call->dy[1], call->out[0], dm ? call->in[2] : NULL, call->in[3],
                                     call->out[2], call->out[3],
                                     dx | dm << 1 | (int64_t)(call->needs >> 3 & 3) << 2, out));
    if (NEEDS(call, 1)) HAVE(call->dx[1] = weft_alias(out[dm ? 1 : 0]));
    if (scaled && NEEDS(call, 2)) {
        weft_tensor *product;
        HAVE(product = weft_mul(out[0], call->in[1]));
        HAVE(call->dx[2] = weft_sum_to(product, &call->in_view[2]));
    }
    if (NEEDS(call, 0)) call->dx[0] = out[0];
    if (NEEDS(call, 3)) call->dx[3] = out[2];
    if (NEEDS(call, 4)) call->dx[4] = out[3];
    return WEFT_OK;
}

weft_status grad_add_rms_norm(weft_grad_call *call) {
    if (!call->dy[1]) return sum_alone(call, call->dy[0], false);
    weft_tensor *out[2];
    const int64_t dx = (call->needs & 3) != 0;
    TRY(weft_add_rms_norm_backward(call->dy[0], call->dy[1], call->out[0], call->in[2], call->out[2],
                                   dx | (int64_t)(call->needs >> 2 & 1) << 1, out));
    if (NEEDS(call, 1)) HAVE(call->dx[1] = weft_alias(out[0]));
    if (NEEDS(call, 0)) call->dx[0] = out[0];
    if (NEEDS(call, 2)) call->dx[2] = out[1];
    return WEFT_OK;
}

weft_status shape_normalize(weft_shape_call *call) {
    const weft_view *x = call->in[0];
    int64_t dim = call->at->AT(normalize, dim), shape[WEFT_MAX_DIMS] = { 0 };
    TRY(weft_fix_dim(&dim, x->ndim));
    for (int d = 0; d < x->ndim; d++) shape[d] = d == dim ? 1 : x->shape[d];
    TRY(weft_set_shape(&call->out[0], x->shape, x->ndim));
    call->out[1].dtype = weft_wide_dtype(x->dtype);
    return weft_set_shape(&call->out[1], shape, x->ndim);
}

weft_status shape_normalize_backward(weft_shape_call *call) {
    const weft_view *dy = call->in[0], *y = call->in[1], *norm = call->in[2];
    int64_t dim = call->at->AT(normalize_backward, dim);
    TRY(weft_fix_dim(&dim, dy->ndim));
    bool fits = y->ndim == dy->ndim && norm->ndim == dy->ndim && norm->dtype == weft_wide_dtype(y->dtype);
    for (int d = 0; fits && d < dy->ndim; d++)
        fits = y->shape[d] == dy->shape[d] && norm->shape[d] == (d == dim ? 1 : dy->shape[d]);
    if (!fits) return weft_fail(WEFT_EINVAL, "dy and y must have one shape, norm that shape with 1 along dim");
    return weft_set_shape(&call->out[0], dy->shape, dy->ndim);
}

weft_status grad_normalize(weft_grad_call *call) {
    HAVE(call->dx[0] = weft_normalize_backward(call->dy[0], call->out[0], call->out[1],
                                               call->at->AT(normalize, dim), call->at->AT(normalize, eps)));
    return WEFT_OK;
}
