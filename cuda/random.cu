// random.cu: kernels that draw, with the CPU's bits: core/tensor/random.h is shared, and neither side
// contracts. bfloat16 takes the draws of float32, rounded (uniform ones cut, so that 1 is never met).
#define WEFT_FN static __host__ __device__ inline
#include "cuda/block.h"
#include "cuda/draws.h"
#include "cuda/each.h"
#include "tensor/random.h"
#include <memory>
#include <new>

struct stream {
    uint64_t key, counter;
    const uint64_t *clock;      // of a captured graph
    template <class V> void visit(V &v) { v(clock); }
    DEVICE weft_philox4 operator()(uint64_t block) const { return weft_philox(key, counter_now(counter, clock), block); }
};
static stream stream_in(const weft_call *call) {
    return stream{ call->at->rng_key, call->at->rng_counter, device_of(call)->clock };
}

// Four words make PER elements; the last block may make fewer.
template <class T, int PER, class F>
__global__ void __launch_bounds__(EACH_THREADS) draw_kernel(const stream s, const F f, T *y, const int64_t numel) {
    for (int64_t b = THREAD_INDEX; b * PER < numel; b += THREAD_COUNT) {
        const weft_philox4 w = s((uint64_t)b);
        pack<T, PER> v;
        f(w, b * PER, v.v);
        if ((b + 1) * PER <= numel) reinterpret_cast<pack<T, PER> *>(y)[b] = v;
        else
            for (int j = 0; j < PER; j++)   // a fixed count keeps v in registers
                if (b * PER + j < numel) y[b * PER + j] = v.v[j];
    }
}

template <class T, int PER, class F> static weft_status draw(const weft_call *call, const F &f) {
    const weft_view *y = call->out[0];
    TRY(named_draw(call));
    if (y->numel == 0) return WEFT_OK;
    return LAUNCH(call, (draw_kernel<T, PER, F>), blocks_for(ceil_div(y->numel, PER), EACH_THREADS), EACH_THREADS, 0,
                  stream_in(call), f, static_cast<T *>(y->data), y->numel);
}

// --- uniform
DEVICE void uniform_of(uint32_t word, float *y) { *y = weft_uniform32(word); }
DEVICE void uniform_of(uint32_t word, bf16 *y) {
    const float v = weft_uniform32(word);
    uint32_t bits;
    memcpy(&bits, &v, 4);
    bits &= 0xffff0000u;
    float cut;
    memcpy(&cut, &bits, 4);
    *y = narrow<bf16>(cut);
}
struct rand_narrow {
    template <class T> DEVICE void operator()(const weft_philox4 &w, int64_t, T *y) const {
        for (int j = 0; j < 4; j++) uniform_of(w.v[j], &y[j]);
    }
};
struct rand_wide {
    DEVICE void operator()(const weft_philox4 &w, int64_t, double *y) const {
        y[0] = weft_uniform64(w.v[0], w.v[1]);
        y[1] = weft_uniform64(w.v[2], w.v[3]);
    }
};
CUDA_KERNEL(rand) {
    switch (call->out[0]->dtype) {
    case WEFT_FLOAT64: return draw<double, 2>(call, rand_wide{});
    case WEFT_BFLOAT16: return draw<bf16, 4>(call, rand_narrow{});
    default: return draw<float, 4>(call, rand_narrow{});
    }
}

// --- normal
struct randn_narrow {
    template <class T> DEVICE void operator()(const weft_philox4 &w, int64_t, T *y) const {
        float v[4];
        weft_normal32(w.v[0], w.v[1], &v[0], &v[1]);
        weft_normal32(w.v[2], w.v[3], &v[2], &v[3]);
        for (int j = 0; j < 4; j++) y[j] = narrow<T>(v[j]);
    }
};
struct randn_wide {
    DEVICE void operator()(const weft_philox4 &w, int64_t, double *y) const { weft_normal64(w.v, &y[0], &y[1]); }
};
CUDA_KERNEL(randn) {
    switch (call->out[0]->dtype) {
    case WEFT_FLOAT64: return draw<double, 2>(call, randn_wide{});
    case WEFT_BFLOAT16: return draw<bf16, 4>(call, randn_narrow{});
    default: return draw<float, 4>(call, randn_narrow{});
    }
}

// low, high: of a standard normal, before std; min, max: after it.
template <class T>
__global__ void __launch_bounds__(EACH_THREADS) trunc_kernel(const stream s, T *y, const int64_t numel, const double low,
                                                             const double high, const double std, const double min,
                                                             const double max) {
    typedef wide_t<T> W;
    const W a = (W)min, b = (W)max;
    for (int64_t i = THREAD_INDEX; i < numel; i += THREAD_COUNT) {
        const double x = weft_cut_normal(s.key, counter_now(s.counter, s.clock), (uint64_t)i, 0, low, high, std::is_same<T, double>::value);
        const W v = (W)x * (W)std;
        y[i] = narrow<T>(v < a ? a : v > b ? b : v);
    }
}
CUDA_KERNEL(trunc_normal) {
    const weft_view *y = call->out[0];
    const double std = call->at->AT(trunc_normal, std), a = call->at->AT(trunc_normal, a), b = call->at->AT(trunc_normal, b);
    TRY(named_draw(call));
    if (y->numel == 0) return WEFT_OK;
    return with_float(y->dtype, [&](auto tag) {
        using T = TYPE_OF(tag);
        return LAUNCH(call, (trunc_kernel<T>), blocks_for(y->numel, EACH_THREADS), EACH_THREADS, 0, stream_in(call),
                      static_cast<T *>(y->data), y->numel, a / std, b / std, std, a, b);
    });
}

// --- integers
struct randint_fn {
    int64_t low;
    uint64_t range;
    DEVICE int64_t one(uint32_t a, uint32_t b) const { return (int64_t)((uint64_t)low + weft_below(a, b, range)); }
    template <class T> DEVICE void operator()(const weft_philox4 &w, int64_t, T *y) const {
        y[0] = narrow<T>((wide_t<T>)one(w.v[0], w.v[1]));
        y[1] = narrow<T>((wide_t<T>)one(w.v[2], w.v[3]));
    }
};
CUDA_KERNEL(randint) {
    const int64_t low = call->at->AT(randint, low), high = call->at->AT(randint, high);
    const randint_fn f = { low, (uint64_t)high - (uint64_t)low };
    return with_number(call->out[0]->dtype, [&](auto tag) { return draw<TYPE_OF(tag), 2>(call, f); });
}

// Fisher and Yates: step k exchanges positions n - 1 - k and one not above it. Each step needs what
// the one before it left, and none needs the device: the host makes the permutation (about 10 ns an
// element) and uploads it without waiting.
CUDA_KERNEL(randperm) {
    const weft_view *out = call->out[0];
    const int64_t n = out->numel;
    if (n == 0) return WEFT_OK;
    std::unique_ptr<int64_t[]> y(new (std::nothrow) int64_t[(size_t)n]);
    if (!y) return weft_fail(WEFT_ENOMEM, "no memory for %lld indices on the host", (long long)n);
    for (int64_t i = 0; i < n; i++) y[i] = i;
    weft_philox4 w = {};
    for (int64_t k = 0; k < n - 1; k++) {
        const int64_t last = n - 1 - k;
        if (k % 2 == 0) w = weft_philox(call->at->rng_key, call->at->rng_counter, (uint64_t)k >> 1);
        const uint64_t j = weft_below(w.v[2 * (k & 1)], w.v[2 * (k & 1) + 1], (uint64_t)last + 1);
        const int64_t t = y[last];
        y[last] = y[j];
        y[j] = t;
    }
    return call->backend->upload(call->backend, out->data, y.get(), n * (int64_t)sizeof(int64_t));
}

// --- masks
// p may have any strides: operand 0 of the walk is the output's place.
template <class T>
__global__ void __launch_bounds__(EACH_THREADS) bernoulli_kernel(const stream s, const each_walk e, const fault_sink faults) {
    for (int64_t b = THREAD_INDEX; 4 * b < e.numel; b += THREAD_COUNT) {
        const weft_philox4 w = s((uint64_t)b);
        for (int j = 0; j < 4; j++) {
            if (4 * b + j >= e.numel) break;
            int64_t at[EACH_MAX];
            each_offsets(e, 4 * b + j, at);
            const double p = (double)widen<T>(static_cast<const T *>(e.data[1])[at[1]]);
            if (!(p >= 0 && p <= 1)) faults.complain(FAULT_PROBABILITY, p, 0, 1, 4 * b + j);
            static_cast<T *>(e.data[0])[at[0]] = narrow<T>((wide_t<T>)(weft_kept(w.v[j], p) ? 0 : 1));
        }
    }
}
CUDA_KERNEL(bernoulli) {
    const weft_view *views[2] = { call->out[0], call->in[0] };
    each_walk e;
    TRY(named_draw(call));
    if (call->out[0]->numel == 0) return WEFT_OK;
    each_prepare(&e, views, 2);
    return with_float(call->in[0]->dtype, [&](auto tag) {
        return LAUNCH(call, (bernoulli_kernel<TYPE_OF(tag)>), blocks_for(ceil_div(e.numel, 4), EACH_THREADS), EACH_THREADS, 0,
                      stream_in(call), e, faults(call, OP_bernoulli));
    });
}

// The rule of weft_kept, compared as integers: word / 2^32 is cut to 24 bits.
template <class T, bool ALIGNED> struct dropout_fn {
    const T *x;
    int64_t numel;
    uint32_t limit;
    wide_t<T> scale;
    template <class V> void visit(V &v) { v(x); }
    DEVICE void operator()(const weft_philox4 &w, int64_t first, T *y) const {
        pack<T, 4> in;
        if (ALIGNED && first + 4 <= numel) in = *reinterpret_cast<const pack<T, 4> *>(x + first);
        else for (int j = 0; j < 4; j++) in.v[j] = first + j < numel ? x[first + j] : narrow<T>(0);
        for (int j = 0; j < 4; j++) y[j] = w.v[j] >> 8 >= limit ? narrow<T>(widen<T>(in.v[j]) * scale) : narrow<T>(0);
    }
};
CUDA_KERNEL(dropout) {
    const weft_view *x = call->in[0];
    const double p = call->at->AT(dropout, p);
    if (!(p >= 0 && p <= 1)) return weft_fail(WEFT_EINVAL, "p must lie in 0..1, got %g", p);
    const uint32_t limit = (uint32_t)std::ceil(p * 0x1p24);
    return with_float(x->dtype, [&](auto tag) {
        using T = TYPE_OF(tag);
        const T *from = static_cast<const T *>(x->data);
        const wide_t<T> scale = (wide_t<T>)(1 / (1 - p));
        if ((uintptr_t)from % alignof(pack<T, 4>) == 0)
            return draw<T, 4>(call, dropout_fn<T, true>{ from, x->numel, limit, scale });
        return draw<T, 4>(call, dropout_fn<T, false>{ from, x->numel, limit, scale });
    });
}
