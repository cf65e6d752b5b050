// elementwise.c: shape rules and gradients of elementwise arithmetic, comparisons and choices.
// The rules `broadcast`, `compare` and `same` serve other families too.
#include "core.h"

// --- shapes
weft_status shape_broadcast(weft_shape_call *call) {
    return weft_broadcast_shapes(&call->out[0], call->in[0], call->in[1]);
}

static bool same_shape(const weft_view *a, const weft_view *b) {
    bool same = a->ndim == b->ndim;
    for (int d = 0; same && d < a->ndim; d++) same = a->shape[d] == b->shape[d];
    return same;
}

// The first input's shape; further inputs, if any, must have it too.
weft_status shape_same(weft_shape_call *call) {
    const weft_view *x = call->in[0];
    for (int i = 1; i < call->n_in; i++)
        if (!same_shape(x, call->in[i]))
            return weft_fail(WEFT_EINVAL, "shapes differ; both must be the same");
    return weft_set_shape(&call->out[0], x->shape, x->ndim);
}

weft_status shape_compare(weft_shape_call *call) {
    call->out[0].dtype = WEFT_BOOL;
    return call->n_in == 1 ? shape_same(call) : shape_broadcast(call);
}

weft_status shape_where(weft_shape_call *call) {
    weft_view both = call->out[0];
    TRY(weft_broadcast_shapes(&both, call->in[1], call->in[2]));
    return weft_broadcast_shapes(&call->out[0], call->in[0], &both);
}

weft_status shape_masked_fill(weft_shape_call *call) {
    TRY(weft_broadcast_shapes(&call->out[0], call->in[0], call->in[1]));
    if (!same_shape(&call->out[0], call->in[0]))
        return weft_fail(WEFT_EINVAL, "mask does not broadcast to x's shape; expand x first");
    return WEFT_OK;
}

weft_status shape_cast(weft_shape_call *call) {
    int64_t dtype = call->at->AT(cast, dtype);
    if (dtype < 0 || dtype >= WEFT_N_DTYPES)
        return weft_fail(WEFT_EINVAL, "unknown dtype number %lld", (long long)dtype);
    call->out[0].dtype = (int32_t)dtype;
    return weft_set_shape(&call->out[0], call->in[0]->shape, call->in[0]->ndim);
}

// --- gradients. give: the gradient of input i is t with broadcasting undone.
static weft_status give(weft_grad_call *call, int i, const weft_tensor *t) {
    HAVE(t);
    HAVE(call->dx[i] = weft_sum_to(t, &call->in_view[i]));
    return WEFT_OK;
}

// The gradient of a single input is dy times factor.
static weft_status give_product(weft_grad_call *call, const weft_tensor *factor) {
    HAVE(factor);
    HAVE(call->dx[0] = weft_mul(call->dy[0], factor));
    return WEFT_OK;
}

weft_status grad_zero(weft_grad_call *call) {
    if (NEEDS(call, 0)) HAVE(call->dx[0] = weft_zeros_as(&call->in_view[0]));
    return WEFT_OK;
}

weft_status grad_add(weft_grad_call *call) {
    if (NEEDS(call, 0)) TRY(give(call, 0, call->dy[0]));
    if (NEEDS(call, 1)) TRY(give(call, 1, call->dy[0]));
    return WEFT_OK;
}

weft_status grad_sub(weft_grad_call *call) {
    if (NEEDS(call, 0)) TRY(give(call, 0, call->dy[0]));
    if (NEEDS(call, 1)) TRY(give(call, 1, weft_neg(call->dy[0])));
    return WEFT_OK;
}

weft_status grad_mul(weft_grad_call *call) {
    if (NEEDS(call, 0)) TRY(give(call, 0, weft_mul(call->dy[0], call->in[1])));
    if (NEEDS(call, 1)) TRY(give(call, 1, weft_mul(call->dy[0], call->in[0])));
    return WEFT_OK;
}

// d/db (a / b) = -(1 / b) (a / b)
weft_status grad_div(weft_grad_call *call) {
    const weft_tensor *b = call->in[1];
    weft_tensor *share, *ratio, *product;
    HAVE(share = weft_div(call->dy[0], b));
    if (NEEDS(call, 0)) TRY(give(call, 0, share));
    if (!NEEDS(call, 1)) return WEFT_OK;
    HAVE(ratio = weft_div(call->in[0], b));
    HAVE(product = weft_mul(share, ratio));
    return give(call, 1, weft_neg(product));
}

// d/da = b a^(b - 1), 0 where b is 0; d/db = a^b log a, 0 where a is 0.
weft_status grad_pow(weft_grad_call *call) {
    const weft_tensor *a = call->in[0], *b = call->in[1];
    weft_tensor *t, *zero, *mask;
    HAVE(zero = weft_zeros(NULL, 0, a->v.dtype, a->v.device));
    if (NEEDS(call, 0)) {
        HAVE(t = weft_affine(b, 1, -1));
        HAVE(t = weft_pow(a, t));
        HAVE(t = weft_mul(t, b));
        HAVE(mask = weft_eq(b, zero));
        HAVE(t = weft_masked_fill(t, mask, 0));
        TRY(give(call, 0, weft_mul(call->dy[0], t)));
    }
    if (NEEDS(call, 1)) {
        HAVE(t = weft_log(a));
        HAVE(t = weft_mul(call->out[0], t));
        HAVE(mask = weft_eq(a, zero));
        HAVE(t = weft_masked_fill(t, mask, 0));
        TRY(give(call, 1, weft_mul(call->dy[0], t)));
    }
    return WEFT_OK;
}

// Input i takes dy where high > low, half of it where they are equal.
static weft_status give_winner(weft_grad_call *call, int i, const weft_tensor *high,
                               const weft_tensor *low) {
    int dtype = call->in_view[i].dtype;
    weft_tensor *wins, *ties, *sum;
    if (!NEEDS(call, i)) return WEFT_OK;
    HAVE(wins = weft_gt(high, low));
    HAVE(ties = weft_ge(high, low));
    HAVE(wins = weft_cast(wins, dtype));
    HAVE(ties = weft_cast(ties, dtype));
    HAVE(sum = weft_add(wins, ties));
    HAVE(sum = weft_affine(sum, 0.5, 0));
    return give(call, i, weft_mul(call->dy[0], sum));
}

weft_status grad_maximum(weft_grad_call *call) {
    TRY(give_winner(call, 0, call->in[0], call->in[1]));
    return give_winner(call, 1, call->in[1], call->in[0]);
}

weft_status grad_minimum(weft_grad_call *call) {
    TRY(give_winner(call, 0, call->in[1], call->in[0]));
    return give_winner(call, 1, call->in[0], call->in[1]);
}

weft_status grad_affine(weft_grad_call *call) {
    if (NEEDS(call, 0)) HAVE(call->dx[0] = weft_affine(call->dy[0], call->at->AT(affine, mul), 0));
    return WEFT_OK;
}

weft_status grad_pow_scalar(weft_grad_call *call) {
    double e = call->at->AT(pow_scalar, exponent);
    weft_tensor *t;
    if (!NEEDS(call, 0)) return WEFT_OK;
    if (e == 0) return grad_zero(call);
    HAVE(t = e == 2 ? weft_alias(call->in[0]) : weft_pow_scalar(call->in[0], e - 1));
    return give_product(call, weft_affine(t, e, 0));
}

weft_status grad_neg(weft_grad_call *call) {
    if (NEEDS(call, 0)) HAVE(call->dx[0] = weft_neg(call->dy[0]));
    return WEFT_OK;
}

weft_status grad_abs(weft_grad_call *call) {
    return NEEDS(call, 0) ? give_product(call, weft_sign(call->in[0])) : WEFT_OK;
}

weft_status grad_exp(weft_grad_call *call) {
    return NEEDS(call, 0) ? give_product(call, call->out[0]) : WEFT_OK;
}

weft_status grad_log(weft_grad_call *call) {
    if (NEEDS(call, 0)) HAVE(call->dx[0] = weft_div(call->dy[0], call->in[0]));
    return WEFT_OK;
}

weft_status grad_sqrt(weft_grad_call *call) {
    weft_tensor *t;
    if (!NEEDS(call, 0)) return WEFT_OK;
    HAVE(t = weft_div(call->dy[0], call->out[0]));
    HAVE(call->dx[0] = weft_affine(t, 0.5, 0));
    return WEFT_OK;
}

weft_status grad_rsqrt(weft_grad_call *call) {
    weft_tensor *t;
    if (!NEEDS(call, 0)) return WEFT_OK;
    HAVE(t = weft_pow_scalar(call->out[0], 3));
    return give_product(call, weft_affine(t, -0.5, 0));
}

weft_status grad_sin(weft_grad_call *call) {
    return NEEDS(call, 0) ? give_product(call, weft_cos(call->in[0])) : WEFT_OK;
}

weft_status grad_cos(weft_grad_call *call) {
    weft_tensor *t;
    if (!NEEDS(call, 0)) return WEFT_OK;
    HAVE(t = weft_sin(call->in[0]));
    return give_product(call, weft_neg(t));
}

// What clamp leaves as it is lies inside the bounds.
weft_status grad_clamp(weft_grad_call *call) {
    weft_tensor *t;
    if (!NEEDS(call, 0)) return WEFT_OK;
    HAVE(t = weft_clamp(call->in[0], call->at->AT(clamp, min), call->at->AT(clamp, max)));
    HAVE(t = weft_eq(t, call->in[0]));
    return give_product(call, weft_cast(t, call->in_view[0].dtype));
}

weft_status grad_where(weft_grad_call *call) {
    weft_tensor *no;
    if (NEEDS(call, 1)) {
        HAVE(no = weft_logical_not(call->in[0]));
        TRY(give(call, 1, weft_masked_fill(call->dy[0], no, 0)));
    }
    if (NEEDS(call, 2)) TRY(give(call, 2, weft_masked_fill(call->dy[0], call->in[0], 0)));
    return WEFT_OK;
}

weft_status grad_masked_fill(weft_grad_call *call) {
    if (NEEDS(call, 0)) HAVE(call->dx[0] = weft_masked_fill(call->dy[0], call->in[1], 0));
    return WEFT_OK;
}

weft_status grad_cast(weft_grad_call *call) {
    if (NEEDS(call, 0)) HAVE(call->dx[0] = weft_cast(call->dy[0], call->in_view[0].dtype));
    return WEFT_OK;
}

weft_status shape_to_device(weft_shape_call *call) {
    const weft_view *x = call->in[0];
    const int64_t to = call->at->AT(to_device, device);
    if (to < 0 || to >= WEFT_N_DEVICES) return weft_fail(WEFT_EINVAL, "unknown device number %lld", (long long)to);
    if (x->device == WEFT_META && to != WEFT_META)
        return weft_fail(WEFT_EINVAL, "a tensor on meta has no values to move");
    call->out[0].device = (int32_t)to;
    return weft_set_shape(&call->out[0], x->shape, x->ndim);
}

weft_status grad_to_device(weft_grad_call *call) {
    HAVE(call->dx[0] = weft_to_device(call->dy[0], call->in_view[0].device));
    return WEFT_OK;
}
