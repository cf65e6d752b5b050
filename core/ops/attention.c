// attention.c: shapes and gradients of scaled dot-product attention and rotary positions.
#include "../core.h"

#define LL(x) ((long long)(x))
#define MAX_HEAD 256

// The memory of x [B, H, N, D] lies as [B, N, H, D], so that going back to that is free.
static weft_status heads_last(weft_view *out, int64_t b, int64_t h, int64_t n, int64_t d) {
    TRY(weft_set_shape(out, (int64_t[]){b, h, n, d}, 4));
    const int64_t stride[4] = {n * h * d, d, h * d, 1};
    for (int i = 0; i < 4; i++) out->stride[i] = stride[i];
    return WEFT_OK;
}

static weft_status check_heads(const weft_view *q, const weft_view *k, const weft_view *v) {
    if (q->ndim != 4 || k->ndim != 4 || v->ndim != 4)
        return weft_fail(WEFT_EINVAL, "expected q [B, H, N, D] and k, v [B, H, M, D]");
    for (int i = 0; i < 4; i++) {
        if (k->shape[i] != v->shape[i])
            return weft_fail(WEFT_EINVAL, "k and v differ in dim %d (%lld and %lld)", i + 1,
                             LL(k->shape[i]), LL(v->shape[i]));
        if (i != 2 && q->shape[i] != k->shape[i])
            return weft_fail(WEFT_EINVAL, "q and k differ in dim %d (%lld and %lld)", i + 1,
                             LL(q->shape[i]), LL(k->shape[i]));
    }
    if (q->shape[3] < 1 || q->shape[3] > MAX_HEAD)
        return weft_fail(WEFT_EINVAL, "the head size D must be 1 to %d, got %lld", MAX_HEAD,
                         LL(q->shape[3]));
    return WEFT_OK;
}

weft_status shape_attention(weft_shape_call *call) {
    const weft_view *q = call->in[0], *k = call->in[1], *mask = call->in[3];
    TRY(check_heads(q, k, call->in[2]));
    const double p = call->at->AT(scaled_dot_product_attention, p);
    if (!(p >= 0 && p <= 1)) return weft_fail(WEFT_EINVAL, "p must lie in [0, 1], got %g", p);
    if (mask) {
        const int64_t full[4] = {q->shape[0], q->shape[1], q->shape[2], k->shape[2]};
        if (mask->dtype != WEFT_BOOL && mask->dtype != WEFT_UINT8 && mask->dtype != q->dtype)
            return weft_fail(WEFT_EINVAL, "mask must be bool or %s, got %s",
                             weft_dtype_name(q->dtype), weft_dtype_name(mask->dtype));
        if (mask->ndim > 4)
            return weft_fail(WEFT_EINVAL, "mask has %d dims, expected at most 4", mask->ndim);
        for (int i = 0; i < mask->ndim; i++) {
            const int64_t want = full[4 - mask->ndim + i];
            if (mask->shape[i] != 1 && mask->shape[i] != want)
                return weft_fail(WEFT_EINVAL,
                                 "mask's dim %d is %lld, expected 1 or %lld: [B, H, N, M] is "
                                 "[%lld, %lld, %lld, %lld]",
                                 i + 1, LL(mask->shape[i]), LL(want), LL(full[0]), LL(full[1]),
                                 LL(full[2]), LL(full[3]));
        }
    }
    TRY(heads_last(&call->out[0], q->shape[0], q->shape[1], q->shape[2], q->shape[3]));
    call->out[1].dtype = weft_wide_dtype(q->dtype);
    return weft_set_shape(&call->out[1], q->shape, 3);
}

weft_status shape_attention_backward(weft_shape_call *call) {
    const weft_view *const *in = call->in;
    const int64_t needs = call->at->AT(attention_backward, needs);
    TRY(check_heads(in[1], in[2], in[3]));
    for (int i = 0; i < 3; i++) {
        const weft_view *x = in[i + 1];
        if (needs >> i & 1)
            TRY(heads_last(&call->out[i], x->shape[0], x->shape[1], x->shape[2], x->shape[3]));
        else
            TRY(weft_set_shape(&call->out[i], (int64_t[]){0}, 1));
    }
    return WEFT_OK;
}

weft_status grad_attention(weft_grad_call *call) {
    if (NEEDS(call, 3))
        return weft_fail(WEFT_EAUTOGRAD,
                         "scaled_dot_product_attention: the mask has no gradient; detach it, or "
                         "write the attention with matmul and softmax");
    weft_tensor *const *in = call->in;
    const weft_tensor *args[7] = {call->dy[0], in[0],        in[1],       in[2],
                                  in[3],       call->out[0], call->out[1]};
    weft_attrs at = *call->at;
    at.AT(attention_backward, causal) = call->at->AT(scaled_dot_product_attention, causal);
    at.AT(attention_backward, needs) = (int64_t)(call->needs & 7);
    at.AT(attention_backward, scale) = call->at->AT(scaled_dot_product_attention, scale);
    at.AT(attention_backward, p) = call->at->AT(scaled_dot_product_attention, p);
    weft_tensor *d[3];
    TRY(weft_dispatch(OP_attention_backward, args, 7, &at, d));
    for (int i = 0; i < 3; i++)
        if (NEEDS(call, i)) call->dx[i] = d[i];
    return WEFT_OK;
}

// y gets x's order of dims, so that no copy follows where heads are a transposed view.
static void strides_like(weft_view *y, const weft_view *x) {
    int order[WEFT_MAX_DIMS];
    for (int i = 0; i < x->ndim; i++) {
        int at = i;
        for (; at > 0 && x->stride[order[at - 1]] < x->stride[i]; at--) order[at] = order[at - 1];
        order[at] = i;
    }
    int64_t stride = 1;
    for (int i = x->ndim - 1; i >= 0; i--) {
        y->stride[order[i]] = stride;
        stride *= x->shape[order[i]] > 1 ? x->shape[order[i]] : 1;
    }
}

weft_status shape_rotary(weft_shape_call *call) {
    const weft_view *x = call->in[0];
    if (x->ndim < 2 || x->shape[x->ndim - 1] % 2)
        return weft_fail(WEFT_EINVAL, "expected x [..., N, D] with an even D");
    const int64_t n = x->shape[x->ndim - 2], half = x->shape[x->ndim - 1] / 2;
    for (int i = 1; i <= 2; i++)
        if (call->in[i]->ndim != 2 || call->in[i]->shape[0] != n || call->in[i]->shape[1] != half)
            return weft_fail(WEFT_EINVAL, "cos and sin must be [N, D/2] = [%lld, %lld]", LL(n),
                             LL(half));
    TRY(weft_set_shape(&call->out[0], x->shape, x->ndim));
    strides_like(&call->out[0], x);
    return WEFT_OK;
}

weft_status grad_rotary(weft_grad_call *call) {
    if (NEEDS(call, 1) || NEEDS(call, 2))
        return weft_fail(WEFT_EAUTOGRAD, "rotary: cos and sin have no gradient; detach them");
    HAVE(call->dx[0] =
             weft_rotary(call->dy[0], call->in[1], call->in[2], !call->at->AT(rotary, inverse)));
    return WEFT_OK;
}
