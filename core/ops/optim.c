// optim.c: shape rules of what the optimizer does in place.
#include "core.h"

// Groups of tensors that belong together: how many, and from which input on.
typedef struct groups { int first, size; const char *what; } groups;

static groups groups_of(weft_op op) {
    switch (op) {
    case OP_adamw_: return (groups){ 0, 4, "(parameter, gradient, m, v) quadruples" };
    case OP_adamw_mixed_: return (groups){ 0, 5, "(parameter, gradient, m, v, master) quintuples" };
    case OP_sgd_: return (groups){ 0, 3, "(parameter, gradient, momentum buffer) triples" };
    case OP_ema_: return (groups){ 0, 2, "(average, value) pairs" };
    default: return (groups){ 1, 1, "tensors" };
    }
}

static bool same_shape(const weft_view *a, const weft_view *b) {
    bool same = a->ndim == b->ndim;
    for (int d = 0; same && d < a->ndim; d++) same = a->shape[d] == b->shape[d];
    return same;
}

static bool fraction(double x) { return x >= 0 && x < 1; }

static weft_status check_rates(const weft_shape_call *call) {
    const weft_attrs *at = call->at;
    if (call->op == OP_adamw_ || call->op == OP_adamw_mixed_) {  // their attributes are the same
        double b1 = at->AT(adamw_, beta1), b2 = at->AT(adamw_, beta2);
        if (!fraction(b1) || !fraction(b2))
            return weft_fail(WEFT_EINVAL, "beta1 and beta2 must lie in [0, 1), got %g and %g", b1,
                             b2);
        if (!(at->AT(adamw_, eps) >= 0))
            return weft_fail(WEFT_EINVAL, "eps must not be negative, got %g", at->AT(adamw_, eps));
        if (at->AT(adamw_, step) < 1)
            return weft_fail(WEFT_EINVAL, "step counts from 1, got %lld",
                             (long long)at->AT(adamw_, step));
    }
    if (call->op == OP_ema_ && !(at->AT(ema_, decay) >= 0 && at->AT(ema_, decay) <= 1))
        return weft_fail(WEFT_EINVAL, "decay must lie in 0..1, got %g", at->AT(ema_, decay));
    if (call->op == OP_clip_ && !(at->AT(clip_, max_norm) >= 0))
        return weft_fail(WEFT_EINVAL, "max_norm must not be negative, got %g",
                         at->AT(clip_, max_norm));
    return WEFT_OK;
}

weft_status shape_optim(weft_shape_call *call) {
    const groups g = groups_of(call->op);
    const int count = call->n_in - g.first;
    if (count % g.size != 0)
        return weft_fail(WEFT_EINVAL, "expected %s, got %d tensors", g.what, count);
    if (call->op == OP_clip_) {
        const weft_view *norm = call->in[0];
        if (norm->numel != 1 || (norm->dtype != WEFT_FLOAT32 && norm->dtype != WEFT_FLOAT64))
            return weft_fail(WEFT_EINVAL, "norm must be one float32 or float64");
    }
    for (int i = g.first; i < call->n_in; i++) {
        const weft_view *x = call->in[i], *lead = call->in[i - (i - g.first) % g.size];
        if (!same_shape(x, lead)) {
            char a[128], b[128];
            weft_describe(a, sizeof a, lead);
            weft_describe(b, sizeof b, x);
            return weft_fail(WEFT_EINVAL, "tensors %d and %d belong together but differ in shape "
                             "(%s and %s); expected %s", i - g.first - (i - g.first) % g.size + 1,
                             i - g.first + 1, a, b, g.what);
        }
        if (!weft_view_contiguous(x))
            return weft_fail(WEFT_EINVAL, "tensor %d is written in place and must be contiguous",
                             i - g.first + 1);
    }
    return check_rates(call);
}

weft_status shape_global_norm(weft_shape_call *call) {
    if (call->n_in == 0) return weft_fail(WEFT_EINVAL, "expected at least one tensor");
    call->out[0].dtype = WEFT_FLOAT32;
    return weft_set_shape(&call->out[0], NULL, 0);
}

// As optim, of bfloat16 parameters and gradients and float32 m, v and masters.
weft_status shape_optim_mixed(weft_shape_call *call) {
    TRY(shape_optim(call));
    for (int i = 0; i < call->n_in; i++) {
        const int k = i % 5, want = k == 0 ? WEFT_BFLOAT16 : k == 1 ? call->in[i - 1]->dtype : WEFT_FLOAT32;
        if (call->in[i]->dtype != want)
            return weft_fail(WEFT_EINVAL, "tensor %d is %s, expected %s", i + 1, weft_dtype_name(call->in[i]->dtype),
                             weft_dtype_name(want));
    }
    return WEFT_OK;
}
