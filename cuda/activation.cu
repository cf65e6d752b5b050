// activation.cu: activations and their gradients, elementwise, any strides.
#include "cuda/each.h"

// x within [-bound, bound]; beyond it every curve here has reached its limit. Keeps infinity times
// zero out of the products. NaN stays.
template <class W> DEVICE W bounded(W x, W bound) { return x < -bound ? -bound : x > bound ? bound : x; }
template <class W> DEVICE W floored(W x, W bound) { return x < -bound ? -bound : x; }

DEVICE float quotient(float a, float b) { return __fdividef(a, b); }    // b from 1 to 2^126, or infinite
DEVICE double quotient(double a, double b) { return a / b; }

// P(Z > t) of the standard normal for t >= 0, given g = exp(-t^2 / 2): g times a polynomial in
// 1 / (1 + 0.29 t), the CPU's own.
DEVICE float normal_tail(float t, float g) {
    const float u = quotient(1.0f, 1.0f + 0.29f * t);
    float p = 3.9346365550458021e-2f;
    p = p * u - 1.9330396707792954e-1f;
    p = p * u + 3.0800043159794332e-1f;
    p = p * u - 1.5455177142447160e-1f;
    p = p * u + 1.8899206781265912e-1f;
    p = p * u + 7.4913679751186943e-2f;
    p = p * u + 1.2148966900821040e-1f;
    p = p * u + 1.1508631133939611e-1f;
    p = p * u + 2.7193764827789008e-5f;
    return g * p;
}

// Phi(x), and the density at x. The tail is computed, not 1 minus the rest: small results keep
// their digits.
DEVICE float normal(float x, float *density) {
    const float t = fabsf(x), g = expf(-0.5f * t * t), tail = normal_tail(t, g);
    *density = 0.398942280f * g;
    return x < 0 ? tail : 1.0f - tail;
}
DEVICE double normal(double x, double *density) {
    *density = 0.39894228040143267794 * exp(-0.5 * x * x);
    return 0.5 * erfc(-x * 0.70710678118654752440);
}

// exp(-|v|) gives the logistic function of v as 1 / (1 + e) or e / (1 + e), and its slope as
// e / (1 + e)^2, without cancellation.
template <class W> DEVICE W logistic(W v, W *slope) {
    const W e = exp(-fabs(v)), r = quotient((W)1, (W)1 + e);
    *slope = e * r * r;
    return v < 0 ? e * r : r;
}

// 0.5 x (1 + tanh(u)) = x logistic(2u), u = sqrt(2 / pi) (x + 0.044715 x^3)
#define TWO_U(b) ((W)1.59576912160573071 * (b) * ((W)1 + (W)0.044715 * (b) * (b)))
#define TWO_U_SLOPE(b) ((W)1.59576912160573071 * ((W)1 + (W)0.134145 * (b) * (b)))

#define ACTIVATION(name, body) \
    template <class T> struct name##_fn { \
        DEVICE T operator()(T stored) const { \
            typedef wide_t<T> W; \
            const W x = widen<T>(stored); \
            W slope; \
            (void)slope; \
            return narrow<T>((W)(body)); \
        } \
    }; \
    CUDA_KERNEL(name) { \
        return with_float(call->out[0]->dtype, [&](auto tag) { \
            using T = TYPE_OF(tag); \
            return each1<T, T>(call, name##_fn<T>{}); \
        }); \
    }
// v is the input x or the output y, as the row saves it.
#define GRADIENT(name, v, setup, body) \
    template <class T> struct name##_fn { \
        DEVICE T operator()(T stored_dy, T stored) const { \
            typedef wide_t<T> W; \
            const W dy = widen<T>(stored_dy), v = widen<T>(stored); \
            setup; \
            return narrow<T>((W)(body)); \
        } \
    }; \
    CUDA_KERNEL(name) { \
        return with_float(call->out[0]->dtype, [&](auto tag) { \
            using T = TYPE_OF(tag); \
            return each2<T, T, T>(call, name##_fn<T>{}); \
        }); \
    }

ACTIVATION(relu, x <= 0 ? (W)0 : x)
GRADIENT(relu_backward, y, , y > 0 ? dy : (W)0)

ACTIVATION(gelu, floored(x, (W)60) * normal(x, &slope))
GRADIENT(gelu_backward, x, const W b = bounded(x, (W)60); W g; const W p = normal(b, &g), dy * (p + b * g))

ACTIVATION(gelu_tanh, floored(x, (W)60) * logistic(TWO_U(bounded(x, (W)60)), &slope))
GRADIENT(gelu_tanh_backward, x, const W b = bounded(x, (W)60); W g; const W p = logistic(TWO_U(b), &g),
         dy * (p + b * g * TWO_U_SLOPE(b)))

ACTIVATION(silu, floored(x, (W)800) * logistic(x, &slope))
GRADIENT(silu_backward, x, const W b = bounded(x, (W)800); W g; const W p = logistic(b, &g), dy * (p + b * g))

template <class T> struct silu_gate_fn {
    DEVICE T operator()(T gate, T up) const {
        typedef wide_t<T> W;
        W slope;
        const W x = widen<T>(gate);
        return narrow<T>(floored(x, (W)800) * logistic(x, &slope) * widen<T>(up));
    }
};
CUDA_KERNEL(silu_gate) {
    return with_float(call->out[0]->dtype, [&](auto tag) {
        using T = TYPE_OF(tag);
        return each2<T, T, T>(call, silu_gate_fn<T>{});
    });
}

// All five side by side, 16 bytes at a time where they are aligned.
template <class T, int VEC>
__global__ void __launch_bounds__(EACH_THREADS) silu_gate_gradient(const T *dy, const T *gate, const T *up, T *dgate, T *dup,
                                                                   const int64_t n) {
    typedef wide_t<T> W;
    typedef pack<T, VEC> P;
    for (int64_t i = THREAD_INDEX * VEC; i < n; i += THREAD_COUNT * VEC) {
        const P d = *reinterpret_cast<const P *>(dy + i), g = *reinterpret_cast<const P *>(gate + i);
        const P u = *reinterpret_cast<const P *>(up + i);
        P to_gate, to_up;
        for (int k = 0; k < VEC; k++) {
            const W x = widen<T>(g.v[k]), b = bounded(x, (W)800), dk = widen<T>(d.v[k]);
            W slope;
            const W open = logistic(b, &slope);
            to_up.v[k] = narrow<T>(dk * (floored(x, (W)800) * open));
            to_gate.v[k] = narrow<T>(dk * widen<T>(u.v[k]) * (open + b * slope));
        }
        *reinterpret_cast<P *>(dgate + i) = to_gate;
        *reinterpret_cast<P *>(dup + i) = to_up;
    }
}

CUDA_KERNEL(silu_gate_backward) {
    const int64_t n = call->out[0]->numel;
    if (n == 0) return WEFT_OK;
    return with_float(call->out[0]->dtype, [&](auto tag) {
        using T = TYPE_OF(tag);
        constexpr int WIDE = 16 / sizeof(T);
        const T *dy = static_cast<const T *>(call->in[0]->data), *gate = static_cast<const T *>(call->in[1]->data);
        const T *up = static_cast<const T *>(call->in[2]->data);
        T *dgate = static_cast<T *>(call->out[0]->data), *dup = static_cast<T *>(call->out[1]->data);
        const bool aligned = ((uintptr_t)dy | (uintptr_t)gate | (uintptr_t)up | (uintptr_t)dgate | (uintptr_t)dup) % 16 == 0;
        if (aligned && n % WIDE == 0)
            return LAUNCH(call, (silu_gate_gradient<T, WIDE>), blocks_for(n / WIDE, EACH_THREADS), EACH_THREADS, 0, dy, gate,
                          up, dgate, dup, n);
        return LAUNCH(call, (silu_gate_gradient<T, 1>), blocks_for(n, EACH_THREADS), EACH_THREADS, 0, dy, gate, up, dgate,
                      dup, n);
    });
}

ACTIVATION(tanh, tanh(x))
GRADIENT(tanh_backward, y, , dy * ((W)1 - y * y))

ACTIVATION(sigmoid, logistic(x, &slope))
GRADIENT(sigmoid_backward, y, , dy * (y * ((W)1 - y)))

ACTIVATION(erf, erf(x))
GRADIENT(erf_backward, x, , dy * ((W)1.12837916709551257390 * exp(-x * x)))
