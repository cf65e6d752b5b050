// random.c: shape rules and gradients of what is drawn.
#include "core.h"
#include <math.h>

// Where an operator keeps its dtype and device.
static void read_slots(const weft_shape_call *call, int64_t *dtype, int64_t *device) {
#define READ(op) *dtype = call->at->AT(op, dtype); *device = call->at->AT(op, device)
    switch (call->op) {
    case OP_randn: READ(randn); break;
    case OP_trunc_normal: READ(trunc_normal); break;
    case OP_randint: READ(randint); break;
    default: READ(rand); break;
    }
#undef READ
}

static weft_status check_trunc_normal(const weft_attrs *at) {
    double a = at->AT(trunc_normal, a), b = at->AT(trunc_normal, b);
    double std = at->AT(trunc_normal, std);
    if (!(std > 0 && std < (double)INFINITY))
        return weft_fail(WEFT_EINVAL, "std must be above 0 and finite, got %g", std);
    if (!(a < b))
        return weft_fail(WEFT_EINVAL, "empty interval: a = %g must be below b = %g", a, b);
    return WEFT_OK;
}

static weft_status check_randint(const weft_attrs *at, int dtype) {
    int64_t low = at->AT(randint, low), high = at->AT(randint, high);
    if (low >= high)
        return weft_fail(WEFT_EINVAL, "empty interval: low = %lld must be below high = %lld",
                         (long long)low, (long long)high);
    // The widest interval whose integers the dtype holds exactly.
    int64_t limit = dtype == WEFT_BFLOAT16 ? (int64_t)1 << 8
                  : dtype == WEFT_FLOAT32 ? (int64_t)1 << 24
                  : dtype == WEFT_FLOAT64 ? (int64_t)1 << 53
                  : dtype == WEFT_INT32 ? (int64_t)1 << 31 : INT64_MAX;
    if (low < -limit || high > limit)
        return weft_fail(WEFT_EINVAL, "%lld..%lld does not fit: %s holds the integers %lld..%lld",
                         (long long)low, (long long)high - 1, weft_dtype_name(dtype),
                         (long long)-limit, (long long)limit - 1);
    return WEFT_OK;
}

weft_status shape_random(weft_shape_call *call) {
    const weft_attrs *at = call->at;
    int64_t dtype, device;
    read_slots(call, &dtype, &device);
    if (dtype < 0 || dtype >= WEFT_N_DTYPES)
        return weft_fail(WEFT_EINVAL, "unknown dtype number %lld", (long long)dtype);
    // 16-bit floats are a dtype to compute in on GPUs only; meta stands for any device
    if (!(weft_ops[call->op].dtype_mask >> dtype & 1) && !(dtype == WEFT_BFLOAT16 && device != WEFT_CPU))
        return weft_fail(WEFT_EUNSUPPORTED, "can't draw %s; expected float32, float64%s",
                         weft_dtype_name((int)dtype),
                         call->op == OP_randint ? ", int32 or int64" : "");
    if (call->op == OP_trunc_normal) TRY(check_trunc_normal(at));
    if (call->op == OP_randint) TRY(check_randint(at, (int)dtype));
    call->out[0].dtype = (int32_t)dtype;
    call->out[0].device = (int32_t)device;
    return weft_set_shape(&call->out[0], at->list, at->n_list);
}

weft_status shape_randperm(weft_shape_call *call) {
    int64_t n = call->at->AT(randperm, n);
    if (n < 0) return weft_fail(WEFT_EINVAL, "n must not be negative, got %lld", (long long)n);
    call->out[0].dtype = WEFT_INT64;
    call->out[0].device = (int32_t)call->at->AT(randperm, device);
    return weft_set_shape(&call->out[0], &n, 1);
}

weft_status shape_multinomial(weft_shape_call *call) {
    const weft_view *w = call->in[0];
    int64_t n = call->at->AT(multinomial, n), shape[2] = { w->shape[0], n };
    if (w->ndim != 1 && w->ndim != 2)
        return weft_fail(WEFT_EINVAL, "weights must be [N, C] or [C], got %d dims", w->ndim);
    if (n < 1) return weft_fail(WEFT_EINVAL, "n must be at least 1, got %lld", (long long)n);
    call->out[0].dtype = WEFT_INT64;
    return w->ndim == 2 ? weft_set_shape(&call->out[0], shape, 2)
                        : weft_set_shape(&call->out[0], &n, 1);
}

// The same key and counter draw the same mask.
weft_status grad_dropout(weft_grad_call *call) {
    const weft_attrs *at = call->at;
    if (!NEEDS(call, 0)) return WEFT_OK;
    call->dx[0] = weft_dropout(call->dy[0], at->AT(dropout, p), at->rng_key, at->rng_counter);
    HAVE(call->dx[0]);
    return WEFT_OK;
}
