// activation.c: kernels of activations and their gradients, float32 and float64.
#include "copy.h"
#include "math.h"

#define ACTIVATION(op, T, s) EACH_SPAN1(op##_span##s, T, T, op##_##s(X))
#define GRADIENT(op, T, s) EACH_SPAN2(op##_span##s, T, T, op##_##s(A, B))
#define BOTH(SPAN, op) \
    SPAN(op, float, f) \
    SPAN(op, double, d) \
    CPU_KERNEL(op) { \
        bool f32 = call->out[0]->dtype == WEFT_FLOAT32; \
        return each_call(call, f32 ? op##_spanf : op##_spand, NULL, \
                         f32 ? EACH_CHEAP : EACH_COSTLY); \
    }

// x within [-bound, bound]; beyond it every curve here has reached its limit. Keeps infinity times
// zero out of the products. NaN stays.
#define BOUND(x, bound) ((x) < -(bound) ? -(bound) : (x) > (bound) ? (bound) : (x))
#define FLOOR(x, bound) ((x) < -(bound) ? -(bound) : (x))

// --- relu
EACH_SPAN1(relu_spanf, float, float, X <= 0 ? 0 : X)
EACH_SPAN1(relu_spand, double, double, X <= 0 ? 0 : X)
EACH_SPAN2(relu_backward_spanf, float, float, B > 0 ? A : 0)
EACH_SPAN2(relu_backward_spand, double, double, B > 0 ? A : 0)
CPU_KERNEL(relu) {
    bool f32 = call->out[0]->dtype == WEFT_FLOAT32;
    return each_call(call, f32 ? relu_spanf : relu_spand, NULL, EACH_CHEAP);
}
CPU_KERNEL(relu_backward) {
    bool f32 = call->out[0]->dtype == WEFT_FLOAT32;
    return each_call(call, f32 ? relu_backward_spanf : relu_backward_spand, NULL, EACH_CHEAP);
}

// --- gelu: x Phi(x). The tail is computed, not 1 minus the rest: small results keep their digits.
ALWAYS_INLINE float gelu_f(float x) {
    float t = __builtin_fabsf(x);
    float tail = weft_normal_tailf(t, weft_exp_negf(-0.5f * t * t));
    return FLOOR(x, 20.0f) * (x < 0 ? tail : 1.0f - tail);
}
ALWAYS_INLINE double gelu_d(double x) {
    return FLOOR(x, 60.0) * 0.5 * erfc(-x * 0.70710678118654752440);
}
BOTH(ACTIVATION, gelu)

ALWAYS_INLINE float gelu_backward_f(float dy, float x) {
    float b = BOUND(x, 20.0f), t = __builtin_fabsf(b);
    float g = weft_exp_negf(-0.5f * t * t);
    float tail = weft_normal_tailf(t, g);
    return dy * ((b < 0 ? tail : 1.0f - tail) + b * (0.398942280f * g));
}
ALWAYS_INLINE double gelu_backward_d(double dy, double x) {
    double b = BOUND(x, 60.0);
    return dy * (0.5 * erfc(-b * 0.70710678118654752440) +
                 b * 0.39894228040143267794 * exp(-0.5 * b * b));
}
BOTH(GRADIENT, gelu_backward)

// --- the rest are written once for both. exp(-|v|) gives the logistic function of v as 1 / (1 + e)
// or e / (1 + e), and its slope as e / (1 + e)^2, without cancellation.
#define SMOOTH(T, s, FABS) \
    ALWAYS_INLINE T logistic_##s(T v, T *slope) { \
        T e = weft_exp##s(-FABS(v)), r = (T)1 / ((T)1 + e); \
        *slope = e * r * r; \
        return v < 0 ? e * r : r; \
    } \
    /* 0.5 x (1 + tanh(u)) = x logistic(2u), u = sqrt(2 / pi) (x + 0.044715 x^3) */ \
    ALWAYS_INLINE T gelu_tanh_##s(T x) { \
        T b = BOUND(x, (T)60), slope; \
        T v = (T)1.59576912160573071 * b * ((T)1 + (T)0.044715 * b * b); \
        return FLOOR(x, (T)60) * logistic_##s(v, &slope); \
    } \
    ALWAYS_INLINE T gelu_tanh_backward_##s(T dy, T x) { \
        T b = BOUND(x, (T)60), slope; \
        T v = (T)1.59576912160573071 * b * ((T)1 + (T)0.044715 * b * b); \
        T dv = (T)1.59576912160573071 * ((T)1 + (T)0.134145 * b * b); \
        T y = logistic_##s(v, &slope); \
        return dy * (y + b * slope * dv); \
    } \
    ALWAYS_INLINE T silu_##s(T x) { return FLOOR(x, (T)800) * weft_sigmoid##s(x); } \
    ALWAYS_INLINE T silu_backward_##s(T dy, T x) { \
        T b = BOUND(x, (T)800), slope; \
        T y = logistic_##s(b, &slope); \
        return dy * (y + b * slope); \
    } \
    ALWAYS_INLINE T tanh_##s(T x) { return weft_tanh##s(x); } \
    ALWAYS_INLINE T tanh_backward_##s(T dy, T y) { return dy * ((T)1 - y * y); } \
    ALWAYS_INLINE T sigmoid_##s(T x) { return weft_sigmoid##s(x); } \
    ALWAYS_INLINE T sigmoid_backward_##s(T dy, T y) { return dy * (y * ((T)1 - y)); } \
    ALWAYS_INLINE T erf_##s(T x) { return weft_erf##s(x); } \
    ALWAYS_INLINE T erf_backward_##s(T dy, T x) { \
        return dy * ((T)1.12837916709551257390 * weft_exp_neg##s(-x * x)); \
    }
SMOOTH(float, f, __builtin_fabsf)
SMOOTH(double, d, __builtin_fabs)

EACH_SPAN2(silu_gate_spanf, float, float, silu_f(A) * B)
EACH_SPAN2(silu_gate_spand, double, double, silu_d(A) * B)
CPU_KERNEL(silu_gate) {
    bool f32 = call->out[0]->dtype == WEFT_FLOAT32;
    return each_call(call, f32 ? silu_gate_spanf : silu_gate_spand, NULL, f32 ? EACH_CHEAP : EACH_COSTLY);
}

#define GATE_PIECE(T, s) \
    static void silu_gate_piece_##s(void *context, int64_t piece) { \
        const weft_call *call = context; \
        const int64_t first = piece * EACH_COSTLY; \
        const int64_t n = weft_piece_end(call->out[0]->numel, EACH_COSTLY, piece) - first; \
        const T *RESTRICT dy = (const T *)call->in[0]->data + first; \
        const T *RESTRICT gate = (const T *)call->in[1]->data + first; \
        const T *RESTRICT up = (const T *)call->in[2]->data + first; \
        T *RESTRICT dgate = (T *)call->out[0]->data + first, *RESTRICT dup = (T *)call->out[1]->data + first; \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++) { \
            T b = BOUND(gate[i], (T)800), slope; \
            T open = logistic_##s(b, &slope); \
            dup[i] = dy[i] * (FLOOR(gate[i], (T)800) * open); \
            dgate[i] = dy[i] * up[i] * (open + b * slope); \
        } \
    }
GATE_PIECE(float, f)
GATE_PIECE(double, d)
CPU_KERNEL(silu_gate_backward) {
    weft_call shared = *call;
    weft_parallel(weft_pieces(call->out[0]->numel, EACH_COSTLY),
                  call->out[0]->dtype == WEFT_FLOAT32 ? silu_gate_piece_f : silu_gate_piece_d, &shared);
    return WEFT_OK;
}

BOTH(ACTIVATION, gelu_tanh)
BOTH(GRADIENT, gelu_tanh_backward)
BOTH(ACTIVATION, silu)
BOTH(GRADIENT, silu_backward)
BOTH(ACTIVATION, tanh)
BOTH(GRADIENT, tanh_backward)
BOTH(ACTIVATION, sigmoid)
BOTH(GRADIENT, sigmoid_backward)
BOTH(ACTIVATION, erf)
BOTH(GRADIENT, erf_backward)
