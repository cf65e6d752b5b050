// loss.c: shapes and gradients of the losses.
#include "../core.h"

enum { MEAN, SUM, NONE };

static bool same_shape(const weft_view *a, const weft_view *b) {
    bool same = a->ndim == b->ndim;
    for (int d = 0; same && d < a->ndim; d++) same = a->shape[d] == b->shape[d];
    return same;
}

// A loss is a number, or has `shape` where nothing is averaged.
static weft_status loss_shape(weft_view *out, int64_t reduction, const int64_t *shape, int ndim) {
    out->dtype = weft_wide_dtype(out->dtype);
    return weft_set_shape(out, shape, reduction == NONE ? ndim : 0);
}

static weft_status check_dloss(const weft_view *dloss, const weft_view *x, int64_t reduction, int64_t n) {
    if (dloss->dtype != weft_wide_dtype(x->dtype))
        return weft_fail(WEFT_EINVAL, "dloss is %s; %s is expected", weft_dtype_name(dloss->dtype),
                         weft_dtype_name(weft_wide_dtype(x->dtype)));
    if (dloss->numel == (reduction == NONE ? n : 1)) return WEFT_OK;
    return weft_fail(WEFT_EINVAL, "dloss must have %lld elements", (long long)(reduction == NONE ? n : 1));
}

static weft_status check_lse(const weft_view *lse, const weft_view *x) {
    if (lse->numel == x->shape[0] && lse->dtype == weft_wide_dtype(x->dtype)) return WEFT_OK;
    return weft_fail(WEFT_EINVAL, "lse must have %lld elements of %s", (long long)x->shape[0],
                     weft_dtype_name(weft_wide_dtype(x->dtype)));
}

static weft_status check_classes(const weft_view *x, const weft_view *target) {
    if (x->ndim != 2)
        return weft_fail(WEFT_EINVAL, "x must be [N, C], got %d dims; reshape it first", x->ndim);
    if (target->ndim != 1 || target->shape[0] != x->shape[0])
        return weft_fail(WEFT_EINVAL, "target must be [%lld], one class a row of x", (long long)x->shape[0]);
    return WEFT_OK;
}

weft_status shape_cross_entropy(weft_shape_call *call) {
    const weft_view *x = call->in[0];
    const double smoothing = call->at->AT(cross_entropy, label_smoothing);
    TRY(check_classes(x, call->in[1]));
    if (!(smoothing >= 0 && smoothing <= 1))
        return weft_fail(WEFT_EINVAL, "label_smoothing is %g, expected 0 to 1", smoothing);
    TRY(loss_shape(&call->out[0], call->at->AT(cross_entropy, reduction), x->shape, 1));
    call->out[1].dtype = weft_wide_dtype(x->dtype);
    return weft_set_shape(&call->out[1], x->shape, 1);
}

weft_status shape_cross_entropy_backward(weft_shape_call *call) {
    const weft_view *x = call->in[1];
    TRY(check_classes(x, call->in[2]));
    TRY(check_dloss(call->in[0], x, call->at->AT(cross_entropy_backward, reduction), x->shape[0]));
    TRY(check_lse(call->in[3], x));
    return weft_set_shape(&call->out[0], x->shape, 2);
}

weft_status grad_cross_entropy(weft_grad_call *call) {
    const weft_attrs *at = call->at;
    HAVE(call->dx[0] = weft_cross_entropy_backward(
             call->dy[0], call->in[0], call->in[1], call->out[1], at->AT(cross_entropy, ignore_index),
             at->AT(cross_entropy, label_smoothing), at->AT(cross_entropy, reduction)));
    return WEFT_OK;
}

static weft_status check_soft(const weft_view *x, const weft_view *target) {
    if (x->ndim != 2)
        return weft_fail(WEFT_EINVAL, "x must be [N, C], got %d dims; reshape it first", x->ndim);
    if (target && !same_shape(x, target)) return weft_fail(WEFT_EINVAL, "x and target must have one shape");
    return WEFT_OK;
}

weft_status shape_cross_entropy_soft(weft_shape_call *call) {
    const weft_view *x = call->in[0];
    TRY(check_soft(x, call->in[1]));
    TRY(loss_shape(&call->out[0], call->at->AT(cross_entropy_soft, reduction), x->shape, 1));
    call->out[1].dtype = weft_wide_dtype(x->dtype);
    return weft_set_shape(&call->out[1], x->shape, 1);
}

weft_status shape_cross_entropy_soft_backward(weft_shape_call *call) {
    const weft_view *x = call->in[1], *target = call->in[2];
    const int64_t needs = call->at->AT(cross_entropy_soft_backward, needs), none = 0;
    TRY(check_soft(x, target));
    if ((needs & 1) && !target) return weft_fail(WEFT_EINVAL, "target is missing: dx needs it");
    TRY(check_dloss(call->in[0], x, call->at->AT(cross_entropy_soft_backward, reduction), x->shape[0]));
    TRY(check_lse(call->in[3], x));
    for (int i = 0; i < 2; i++)
        TRY((needs >> i) & 1 ? weft_set_shape(&call->out[i], x->shape, 2) : weft_set_shape(&call->out[i], &none, 1));
    return WEFT_OK;
}

weft_status grad_cross_entropy_soft(weft_grad_call *call) {
    weft_tensor *out[2];
    TRY(weft_cross_entropy_soft_backward(call->dy[0], call->in[0], call->in[1], call->out[1],
                                         call->at->AT(cross_entropy_soft, reduction), (int64_t)call->needs, out));
    for (int i = 0; i < 2; i++)
        if (NEEDS(call, i)) call->dx[i] = out[i];
    return WEFT_OK;
}

// --- losses over pairs of elements
static int64_t pair_reduction(const weft_shape_call *call) {
    switch (call->op) {
    case OP_binary_cross_entropy_with_logits: return call->at->AT(binary_cross_entropy_with_logits, reduction);
    case OP_bce_backward: return call->at->AT(bce_backward, reduction);
    case OP_smooth_l1: return call->at->AT(smooth_l1, reduction);
    default: return call->at->AT(smooth_l1_backward, reduction);
    }
}

static weft_status check_beta(const weft_shape_call *call) {
    if (call->op != OP_smooth_l1 || call->at->AT(smooth_l1, beta) >= 0) return WEFT_OK;
    return weft_fail(WEFT_EINVAL, "beta is %g, expected 0 or more", call->at->AT(smooth_l1, beta));
}

weft_status shape_pair_loss(weft_shape_call *call) {
    const weft_view *x = call->in[0];
    if (!same_shape(x, call->in[1])) return weft_fail(WEFT_EINVAL, "x and target must have one shape");
    TRY(check_beta(call));
    return loss_shape(&call->out[0], pair_reduction(call), x->shape, x->ndim);
}

weft_status shape_pair_loss_backward(weft_shape_call *call) {
    const weft_view *x = call->in[1];
    if (!same_shape(x, call->in[2])) return weft_fail(WEFT_EINVAL, "x and target must have one shape");
    TRY(check_dloss(call->in[0], x, pair_reduction(call), x->numel));
    return weft_set_shape(&call->out[0], x->shape, x->ndim);
}

// d loss / d target is -x, scaled as the loss is.
weft_status grad_bce(weft_grad_call *call) {
    const int64_t reduction = call->at->AT(binary_cross_entropy_with_logits, reduction);
    if (NEEDS(call, 0))
        HAVE(call->dx[0] = weft_bce_backward(call->dy[0], call->in[0], call->in[1], reduction));
    if (NEEDS(call, 1)) {
        double scale = reduction == MEAN ? -1.0 / (double)call->in_view[0].numel : -1.0;
        weft_tensor *dy = weft_affine(call->dy[0], scale, 0);
        HAVE(dy);
        if (dy->v.dtype != call->in_view[0].dtype) HAVE(dy = weft_cast(dy, call->in_view[0].dtype));
        HAVE(call->dx[1] = weft_mul(call->in[0], dy));
    }
    return WEFT_OK;
}

weft_status grad_smooth_l1(weft_grad_call *call) {
    weft_tensor *dx = weft_smooth_l1_backward(call->dy[0], call->in[0], call->in[1], call->at->AT(smooth_l1, beta),
                                              call->at->AT(smooth_l1, reduction));
    HAVE(dx);
    if (NEEDS(call, 1)) HAVE(call->dx[1] = weft_neg(dx));
    if (NEEDS(call, 0)) call->dx[0] = dx;
    return WEFT_OK;
}
