// matmul.c: shapes and gradients of matrix products and linear layers.
#include "../core.h"
#include <string.h>

#define LL(x) ((long long)(x))

weft_status shape_matmul(weft_shape_call *call) {
    const weft_view *a = call->in[0], *b = call->in[1];
    if (a->ndim < 1 || b->ndim < 1)
        return weft_fail(WEFT_EINVAL, "a number has no matrix product; use mul");
    const int64_t inner_a = a->shape[a->ndim - 1],
                  inner_b = b->shape[b->ndim > 1 ? b->ndim - 2 : 0];
    if (inner_a != inner_b)
        return weft_fail(WEFT_EINVAL, "inner sizes differ (%lld and %lld)", LL(inner_a),
                         LL(inner_b));
    weft_view lead_a = *a, lead_b = *b, lead = call->out[0];
    lead_a.ndim = a->ndim > 2 ? a->ndim - 2 : 0;
    lead_b.ndim = b->ndim > 2 ? b->ndim - 2 : 0;
    TRY(weft_broadcast_shapes(&lead, &lead_a, &lead_b));
    int64_t shape[WEFT_MAX_DIMS + 2];
    int n = lead.ndim;
    memcpy(shape, lead.shape, sizeof(int64_t) * (size_t)n);
    if (a->ndim > 1) shape[n++] = a->shape[a->ndim - 2];
    if (b->ndim > 1) shape[n++] = b->shape[b->ndim - 1];
    return weft_set_shape(&call->out[0], shape, n);
}

// Transposes the last two dims.
static weft_tensor *turned(const weft_tensor *t) {
    return weft_transpose(t, -2, -1);
}

static weft_tensor *rows_of(const weft_tensor *t) {
    const int64_t shape[2] = {-1, t->v.shape[t->v.ndim - 1]};
    return t->v.ndim == 2 ? weft_alias(t) : weft_reshape(t, shape, 2);
}

weft_status grad_matmul(weft_grad_call *call) {
    const weft_view *va = &call->in_view[0], *vb = &call->in_view[1];
    const weft_tensor *a = call->in[0], *b = call->in[1], *dy = call->dy[0];
    // vectors become matrices first
    if (va->ndim == 1) {
        HAVE(dy = weft_unsqueeze(dy, vb->ndim == 1 ? -1 : -2));
        if (a) HAVE(a = weft_unsqueeze(a, 0));
    }
    if (vb->ndim == 1) {
        HAVE(dy = weft_unsqueeze(dy, -1));
        if (b) HAVE(b = weft_unsqueeze(b, 1));
    }
    weft_view matrix_a = *va, matrix_b = *vb;
    if (va->ndim == 1) TRY(weft_set_shape(&matrix_a, (int64_t[]){1, va->shape[0]}, 2));
    if (vb->ndim == 1) TRY(weft_set_shape(&matrix_b, (int64_t[]){vb->shape[0], 1}, 2));
    weft_tensor *d;
    if (NEEDS(call, 0)) {
        HAVE(d = turned(b));
        HAVE(d = weft_matmul(dy, d));
        HAVE(d = weft_sum_to(d, &matrix_a));
        if (va->ndim == 1) HAVE(d = weft_reshape(d, va->shape, 1));
        call->dx[0] = d;
    }
    if (NEEDS(call, 1)) {
        // one right side under many matrices: their rows are one long product
        if (matrix_b.ndim == 2 && a->v.ndim > 2 && a->v.numel > 0 && dy->v.numel > 0) {
            HAVE(a = rows_of(a));
            HAVE(dy = rows_of(dy));
        }
        HAVE(d = turned(a));
        HAVE(d = weft_matmul(d, dy));
        HAVE(d = weft_sum_to(d, &matrix_b));
        if (vb->ndim == 1) HAVE(d = weft_reshape(d, vb->shape, 1));
        call->dx[1] = d;
    }
    return WEFT_OK;
}

static weft_status check_linear(const weft_view *x, const weft_view *weight,
                                const weft_view *bias) {
    if (x->ndim < 1 || weight->ndim != 2)
        return weft_fail(WEFT_EINVAL, "expected x [..., in] and weight [out, in]");
    if (x->shape[x->ndim - 1] != weight->shape[1])
        return weft_fail(WEFT_EINVAL, "x ends in %lld, weight [out, in] wants %lld",
                         LL(x->shape[x->ndim - 1]), LL(weight->shape[1]));
    if (bias && (bias->ndim != 1 || bias->shape[0] != weight->shape[0]))
        return weft_fail(WEFT_EINVAL, "bias must be [%lld]", LL(weight->shape[0]));
    return WEFT_OK;
}

weft_status shape_linear(weft_shape_call *call) {
    const weft_view *x = call->in[0], *weight = call->in[1];
    TRY(check_linear(x, weight, call->in[2]));
    int64_t shape[WEFT_MAX_DIMS];
    memcpy(shape, x->shape, sizeof shape);
    shape[x->ndim - 1] = weight->shape[0];
    return weft_set_shape(&call->out[0], shape, x->ndim);
}

weft_status shape_linear_weight_backward(weft_shape_call *call) {
    const weft_view *dy = call->in[0], *x = call->in[1];
    bool same = dy->ndim >= 1 && dy->ndim == x->ndim;
    for (int d = 0; same && d < dy->ndim - 1; d++) same = dy->shape[d] == x->shape[d];
    if (!same) return weft_fail(WEFT_EINVAL, "expected dy [..., out] and x [..., in]");
    const int64_t shape[2] = {dy->shape[dy->ndim - 1], x->shape[x->ndim - 1]};
    return weft_set_shape(&call->out[0], shape, 2);
}

weft_status shape_linear_backward(weft_shape_call *call) {
    const weft_view *dy = call->in[0], *weight = call->in[1];
    if (dy->ndim < 1 || weight->ndim != 2 || dy->shape[dy->ndim - 1] != weight->shape[0])
        return weft_fail(WEFT_EINVAL, "expected dy [..., out] and weight [out, in]");
    int64_t shape[WEFT_MAX_DIMS];
    memcpy(shape, dy->shape, sizeof shape);
    shape[dy->ndim - 1] = weight->shape[1];
    return weft_set_shape(&call->out[0], shape, dy->ndim);
}

// The result of a dispatch onto a gradient: that gradient.
static weft_tensor *landed(weft_tensor *d, weft_tensor *onto) {
    if (!onto) return d;
    weft_free(d);
    return onto;
}

static weft_status linear_dx(weft_grad_call *call) {
    const weft_tensor *dy = call->dy[0];
    if (!weft_is_contiguous(dy)) {
        HAVE(call->dx[0] = weft_matmul(dy, call->in[1]));
        return WEFT_OK;
    }
    const weft_tensor *args[2] = {dy, call->in[1]};
    weft_attrs at = {0};
    at.AT(linear_backward, onto) = call->onto[0] != NULL;
    weft_tensor *d;
    TRY(weft_dispatch_onto(OP_linear_backward, args, 2, &at, &d, call->onto[0]));
    call->dx[0] = landed(d, call->onto[0]);
    return WEFT_OK;
}

weft_status grad_linear(weft_grad_call *call) {
    const weft_tensor *dy = call->dy[0];
    if (NEEDS(call, 1)) HAVE(call->dx[1] = weft_linear_weight_backward(dy, call->in[0]));
    if (NEEDS(call, 2)) HAVE(call->dx[2] = weft_sum_to(dy, &call->in_view[2]));
    return NEEDS(call, 0) ? linear_dx(call) : WEFT_OK;
}

weft_status shape_lora_linear(weft_shape_call *call) {
    const weft_view *x = call->in[0], *weight = call->in[1], *a = call->in[3], *b = call->in[4];
    TRY(check_linear(x, weight, call->in[2]));
    if (a->ndim != 2 || a->shape[1] != weight->shape[1] || a->shape[0] < 1)
        return weft_fail(WEFT_EINVAL, "lora_a must be [r, %lld] with r at least 1",
                         LL(weight->shape[1]));
    if (b->ndim != 2 || b->shape[0] != weight->shape[0] || b->shape[1] != a->shape[0])
        return weft_fail(WEFT_EINVAL, "lora_b must be [%lld, %lld]", LL(weight->shape[0]),
                         LL(a->shape[0]));
    const double p = call->at->AT(lora_linear, p);
    if (!(p >= 0 && p <= 1)) return weft_fail(WEFT_EINVAL, "p must lie in [0, 1], got %g", p);
    int64_t shape[WEFT_MAX_DIMS];
    memcpy(shape, x->shape, sizeof shape);
    shape[x->ndim - 1] = weight->shape[0];
    TRY(weft_set_shape(&call->out[0], shape, x->ndim));
    shape[x->ndim - 1] = a->shape[0];
    return weft_set_shape(&call->out[1], shape, x->ndim);
}

enum { LORA_DX = 1, LORA_DW = 2, LORA_DBIAS = 4, LORA_DA = 8, LORA_DB = 16 };

static weft_status missing(const char *what, const char *wanted) {
    return weft_fail(WEFT_EINVAL, "%s is needed for %s", what, wanted);
}

weft_status shape_lora_linear_backward(weft_shape_call *call) {
    const weft_view *dy = call->in[0], *x = call->in[1], *weight = call->in[2];
    const weft_view *a = call->in[3], *b = call->in[4], *h = call->in[5];
    const int64_t needs = call->at->AT(lora_linear_backward, needs), out = dy->shape[dy->ndim - 1];
    int64_t shape[WEFT_MAX_DIMS];
    for (int i = 0; i < 5; i++) TRY(weft_set_shape(&call->out[i], (int64_t[]){0}, 1));
    if (needs & LORA_DX) {
        if (!weight || !a || !b) return missing("weight, lora_a and lora_b", "dx");
        memcpy(shape, dy->shape, sizeof shape);
        shape[dy->ndim - 1] = weight->shape[1];
        TRY(weft_set_shape(&call->out[0], shape, dy->ndim));
    }
    if (needs & LORA_DW) {
        if (!x) return missing("x", "dweight");
        TRY(weft_set_shape(&call->out[1], (int64_t[]){out, x->shape[x->ndim - 1]}, 2));
    }
    if (needs & LORA_DBIAS) TRY(weft_set_shape(&call->out[2], &out, 1));
    if (needs & LORA_DA) {
        if (!x || !b) return missing("x and lora_b", "dlora_a");
        TRY(weft_set_shape(&call->out[3], (int64_t[]){b->shape[1], x->shape[x->ndim - 1]}, 2));
    }
    if (needs & LORA_DB) {
        if (!h) return missing("h", "dlora_b");
        TRY(weft_set_shape(&call->out[4], (int64_t[]){out, h->shape[h->ndim - 1]}, 2));
    }
    return WEFT_OK;
}

weft_status grad_lora_linear(weft_grad_call *call) {
    weft_tensor *const *in = call->in;
    const weft_tensor *args[6] = {call->dy[0], in[0], in[1], in[3], in[4], call->out[1]};
    weft_attrs at = *call->at;
    const double scale = call->at->AT(lora_linear, scale), p = call->at->AT(lora_linear, p);
    at.AT(lora_linear_backward, scale) = scale;
    at.AT(lora_linear_backward, p) = p;
    at.AT(lora_linear_backward, needs) = (int64_t)(call->needs & 31);
    at.AT(lora_linear_backward, onto) = call->onto[0] != NULL;
    weft_tensor *d[5];
    TRY(weft_dispatch_onto(OP_lora_linear_backward, args, 6, &at, d, call->onto[0]));
    for (int i = 1; i < 5; i++)
        if (NEEDS(call, i)) call->dx[i] = d[i];
    if (NEEDS(call, 0)) call->dx[0] = landed(d[0], call->onto[0]);
    return WEFT_OK;
}
