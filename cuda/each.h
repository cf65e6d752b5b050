// each.h: how elementwise kernels walk their operands, of any strides and broadcast. Neighbouring
// dims that every operand walks as one are joined first. A thread works on VEC elements that lie
// side by side in the innermost dim (16 bytes of the widest operand) where all operands step by 1
// or 0 there and are aligned, else on one.
#ifndef WEFT_CUDA_EACH_H
#define WEFT_CUDA_EACH_H

#include "cuda/device.h"

#define EACH_MAX 4          // operands: the output, then up to three inputs
#define EACH_THREADS 256

struct each_walk {
    void *data[EACH_MAX];
    int64_t numel, shape[WEFT_MAX_DIMS], stride[EACH_MAX][WEFT_MAX_DIMS];  // outermost dim first
    int32_t ndim, n_op;
    template <class V> void visit(V &v) {
        v(data[0]);
        for (int k = 1; k < n_op; k++) v(only_read(data[k]));
    }
};

// views[0] is the output; inputs broadcast to its shape.
static inline void each_prepare(each_walk *e, const weft_view *const *views, int n_op) {
    const weft_view *out = views[0];
    memset(e, 0, sizeof *e);
    e->n_op = n_op;
    e->numel = out->numel;
    int n = 0;
    for (int d = 0; d < out->ndim; d++) {
        const int64_t size = out->shape[d];
        if (size == 1) continue;
        int64_t step[EACH_MAX];
        bool joins = n > 0;
        for (int k = 0; k < n_op; k++) {
            const weft_view *v = views[k];
            int at = d - (out->ndim - v->ndim);
            step[k] = at >= 0 && v->shape[at] == size ? v->stride[at] : 0;
            joins = joins && e->stride[k][n - 1] == step[k] * size;
        }
        if (joins) e->shape[n - 1] *= size;
        else e->shape[n++] = size;
        for (int k = 0; k < n_op; k++) e->stride[k][n - 1] = step[k];
    }
    if (n == 0) e->shape[n++] = 1;
    e->ndim = n;
    for (int k = 0; k < n_op; k++) e->data[k] = views[k]->data;
}

// Elements that a thread may take side by side: a power of two, at most `most`.
static inline int each_width(const each_walk *e, const int *sizes, int most) {
    const int inner = e->ndim - 1;
    int width = most;
    while (width > 1 && e->shape[inner] % width) width >>= 1;
    for (int k = 0; k < e->n_op; k++) {
        const int64_t last = e->stride[k][inner];
        if (last == 0 && k > 0) continue;
        if (last != 1) return 1;
        while (width > 1 && (uintptr_t)e->data[k] % (unsigned)(width * sizes[k])) width >>= 1;
        for (int d = 0; d < inner; d++)
            while (width > 1 && e->stride[k][d] % width) width >>= 1;
    }
    return width;
}

// n elements at once: one load or store of n * sizeof(T) bytes where that is a size that exists.
template <class T, int N> struct alignas(sizeof(T) * N > 16 ? 16 : sizeof(T) * N) pack { T v[N]; };

// Where element i of the walk lies in each operand.
DEVICE void each_offsets(const each_walk &e, int64_t i, int64_t *at) {
    for (int k = 0; k < EACH_MAX; k++) at[k] = 0;
    if (e.ndim == 1) {
        for (int k = 0; k < EACH_MAX; k++) at[k] = i * e.stride[k][0];
        return;
    }
    if (e.numel <= 0xffffffffll) {   // 32-bit division is several times cheaper
        uint32_t rest = (uint32_t)i;
        for (int d = e.ndim - 1; d >= 0; d--) {
            const uint32_t size = (uint32_t)e.shape[d], q = rest / size, r = rest - q * size;
            for (int k = 0; k < EACH_MAX; k++) at[k] += r * e.stride[k][d];
            rest = q;
        }
        return;
    }
    for (int d = e.ndim - 1; d >= 0; d--) {
        const int64_t size = e.shape[d], q = i / size, r = i - q * size;
        for (int k = 0; k < EACH_MAX; k++) at[k] += r * e.stride[k][d];
        i = q;
    }
}

template <class T, int VEC> DEVICE void each_load(const each_walk &e, int k, int64_t at, T *v) {
    const T *from = static_cast<const T *>(e.data[k]) + at;
    if (VEC > 1 && e.stride[k][e.ndim - 1] == 0) {
        for (int j = 0; j < VEC; j++) v[j] = *from;
        return;
    }
    const pack<T, VEC> p = *reinterpret_cast<const pack<T, VEC> *>(from);
    for (int j = 0; j < VEC; j++) v[j] = p.v[j];
}

// y = f(a, b, c) for the first N inputs; f takes and returns what it likes and is given elements as
// they are stored. Unused inputs are given the type char.
template <int N, int VEC, class F, class Y, class A, class B, class C>
__global__ void __launch_bounds__(EACH_THREADS) each_kernel(const each_walk e, const F f) {
    for (int64_t i = THREAD_INDEX * VEC; i < e.numel; i += THREAD_COUNT * VEC) {
        int64_t at[EACH_MAX];
        each_offsets(e, i, at);
        A a[VEC];
        B b[VEC];
        C c[VEC];
        if constexpr (N >= 1) each_load<A, VEC>(e, 1, at[1], a);
        if constexpr (N >= 2) each_load<B, VEC>(e, 2, at[2], b);
        if constexpr (N >= 3) each_load<C, VEC>(e, 3, at[3], c);
        pack<Y, VEC> y;
        for (int j = 0; j < VEC; j++) {
            if constexpr (N == 0) y.v[j] = f();
            else if constexpr (N == 1) y.v[j] = f(a[j]);
            else if constexpr (N == 2) y.v[j] = f(a[j], b[j]);
            else y.v[j] = f(a[j], b[j], c[j]);
        }
        Y *to = static_cast<Y *>(e.data[0]) + at[0];
        *reinterpret_cast<pack<Y, VEC> *>(to) = y;
    }
}

template <int N, class Y, class A, class B, class C, class F>
weft_status each_run(const weft_call *call, const weft_view *const *views, const F &f) {
    if (views[0]->numel == 0) return WEFT_OK;
    each_walk e;
    each_prepare(&e, views, N + 1);
    const int sizes[EACH_MAX] = { sizeof(Y), sizeof(A), sizeof(B), sizeof(C) };
    constexpr int AB = sizeof(A) > sizeof(B) ? sizeof(A) : sizeof(B), CY = sizeof(C) > sizeof(Y) ? sizeof(C) : sizeof(Y);
    constexpr int WIDEST = AB > CY ? AB : CY, WIDE = WIDEST == 1 ? 8 : 16 / WIDEST;
    if (each_width(&e, sizes, WIDE) == WIDE)
        return LAUNCH(call, (each_kernel<N, WIDE, F, Y, A, B, C>),
                      blocks_for(ceil_div(e.numel, WIDE), EACH_THREADS), EACH_THREADS, 0, e, f);
    return LAUNCH(call, (each_kernel<N, 1, F, Y, A, B, C>), blocks_for(e.numel, EACH_THREADS), EACH_THREADS,
                  0, e, f);
}

// The call's output from its inputs.
template <class Y, class A, class F> weft_status each1(const weft_call *call, const F &f) {
    const weft_view *v[2] = { call->out[0], call->in[0] };
    return each_run<1, Y, A, char, char>(call, v, f);
}
template <class Y, class A, class B, class F> weft_status each2(const weft_call *call, const F &f) {
    const weft_view *v[3] = { call->out[0], call->in[0], call->in[1] };
    return each_run<2, Y, A, B, char>(call, v, f);
}
template <class Y, class A, class B, class C, class F> weft_status each3(const weft_call *call, const F &f) {
    const weft_view *v[4] = { call->out[0], call->in[0], call->in[1], call->in[2] };
    return each_run<3, Y, A, B, C>(call, v, f);
}

#endif
