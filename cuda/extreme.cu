// extreme.cu: largest and smallest elements along a dim with their places, and running sums.
#include "cuda/block.h"
#include "cuda/plan.h"

#define THREADS 256

// --- extremes: NaN beats all; the first of equals stays
template <class W> struct candidate { W v; int64_t at; };

template <class W> struct better_op {
    bool smallest;
    DEVICE candidate<W> operator()(candidate<W> a, candidate<W> b) const {
        const bool nan_a = a.v != a.v, nan_b = b.v != b.v;
        if (b.at < 0) return a;
        if (a.at < 0) return b;
        if (nan_a != nan_b) return nan_b ? b : a;
        if (!nan_a && a.v != b.v) return (smallest ? b.v < a.v : b.v > a.v) ? b : a;
        return b.at < a.at ? b : a;
    }
};

struct extreme_job {
    reduce_plan plan;
    void *values;       // NULL: places only
    int64_t *places;
    bool smallest;
    template <class V> void visit(V &v) { plan.visit(v); v(values); v(places); }
};

template <class T, class W> DEVICE void write_extreme(const extreme_job &j, int64_t o, candidate<W> best) {
    const int64_t at = plan_offset(j.plan.kshape, j.plan.ky, j.plan.nk, o);
    if (j.values) static_cast<T *>(j.values)[at] = narrow<T>(best.v);
    j.places[at] = best.at;
}

// One output a warp.
template <class T> __global__ void __launch_bounds__(THREADS) extreme_rows(const extreme_job j) {
    typedef wide_t<T> W;
    const reduce_plan &p = j.plan;
    const int64_t o = (int64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    if (o >= p.n_out) return;
    const T *x = static_cast<const T *>(p.x) + plan_offset(p.kshape, p.kx, p.nk, o);
    const better_op<W> better{ j.smallest };
    candidate<W> best{ (W)0, -1 };
    for (int64_t i = threadIdx.x % 32; i < p.n_red; i += 32) best = better(best, candidate<W>{ widen<T>(x[i * p.rx[0]]), i });
    for (int d = 16; d > 0; d >>= 1) {
        candidate<W> other;
        other.v = __shfl_xor_sync(FULL_WARP, best.v, d);
        other.at = __shfl_xor_sync(FULL_WARP, best.at, d);
        best = better(best, other);
    }
    if (threadIdx.x % 32 == 0) write_extreme<T>(j, o, best);
}

// One output a thread, where outputs lie side by side.
template <class T> __global__ void __launch_bounds__(THREADS) extreme_columns(const extreme_job j) {
    typedef wide_t<T> W;
    const reduce_plan &p = j.plan;
    const better_op<W> better{ j.smallest };
    for (int64_t o = THREAD_INDEX; o < p.n_out; o += THREAD_COUNT) {
        const T *x = static_cast<const T *>(p.x) + plan_offset(p.kshape, p.kx, p.nk, o);
        candidate<W> best{ (W)0, -1 };
        for (int64_t i = 0; i < p.n_red; i++) best = better(best, candidate<W>{ widen<T>(x[i * p.rx[0]]), i });
        write_extreme<T>(j, o, best);
    }
}

static weft_status extreme(const weft_call *call, int64_t dim, bool smallest, bool with_values) {
    const weft_view *x = call->in[0];
    if (call->out[0]->numel == 0) return WEFT_OK;
    extreme_job j = {};
    if (dim < 0) dim += x->ndim;
    plan_make(&j.plan, x, x->ndim ? 1u << dim : 0, false);
    j.values = with_values ? call->out[0]->data : nullptr;
    j.places = static_cast<int64_t *>(call->out[with_values ? 1 : 0]->data);
    j.smallest = smallest;
    return with_number(x->dtype, [&](auto tag) {
        using T = TYPE_OF(tag);
        if (j.plan.column) return LAUNCH(call, extreme_columns<T>, blocks_for(j.plan.n_out, THREADS), THREADS, 0, j);
        return LAUNCH(call, extreme_rows<T>, (unsigned)ceil_div(j.plan.n_out, THREADS / 32), THREADS, 0, j);
    });
}

CUDA_KERNEL(max) { return extreme(call, call->at->AT(max, dim), false, true); }
CUDA_KERNEL(min) { return extreme(call, call->at->AT(min, dim), true, true); }
CUDA_KERNEL(argmax) { return extreme(call, call->at->AT(argmax, dim), false, false); }
CUDA_KERNEL(argmin) { return extreme(call, call->at->AT(argmin, dim), true, false); }

// --- running sums
template <class A> DEVICE A warp_scan(A v) {
    const int lane = (int)threadIdx.x & 31;
    for (int d = 1; d < 32; d <<= 1) {
        const A other = __shfl_up_sync(FULL_WARP, v, d);
        if (lane >= d) v += other;
    }
    return v;
}

// A block a line, a tile of THREADS elements after another.
template <class T> __global__ void __launch_bounds__(THREADS) cumsum_rows(const reduce_plan p) {
    typedef wide_t<T> A;
    SHARED(A, totals, [THREADS / 32]);
    const int lane = (int)threadIdx.x & 31, warp = (int)threadIdx.x >> 5;
    const T *x = static_cast<const T *>(p.x) + plan_offset(p.kshape, p.kx, p.nk, blockIdx.x);
    T *y = static_cast<T *>(p.y) + plan_offset(p.kshape, p.ky, p.nk, blockIdx.x);
    A carry = 0;
    for (int64_t base = 0; base < p.n_red; base += THREADS) {
        const int64_t i = base + threadIdx.x;
        const A v = warp_scan<A>(i < p.n_red ? (A)widen<T>(x[i * p.rx[0]]) : (A)0);
        __syncthreads();
        if (lane == 31) totals[warp] = v;
        __syncthreads();
        A before = carry;
        for (int w = 0; w < warp; w++) before += totals[w];
        if (i < p.n_red) y[i * p.ry[0]] = narrow<T>(before + v);
        for (int w = 0; w < THREADS / 32; w++) carry += totals[w];
    }
}

template <class T> __global__ void __launch_bounds__(THREADS) cumsum_columns(const reduce_plan p) {
    typedef wide_t<T> A;
    for (int64_t o = THREAD_INDEX; o < p.n_out; o += THREAD_COUNT) {
        const T *x = static_cast<const T *>(p.x) + plan_offset(p.kshape, p.kx, p.nk, o);
        T *y = static_cast<T *>(p.y) + plan_offset(p.kshape, p.ky, p.nk, o);
        A sum = 0;
        for (int64_t i = 0; i < p.n_red; i++) y[i * p.ry[0]] = narrow<T>(sum += (A)widen<T>(x[i * p.rx[0]]));
    }
}

CUDA_KERNEL(cumsum) {
    const weft_view *x = call->in[0];
    if (x->numel == 0) return WEFT_OK;
    int64_t dim = call->at->AT(cumsum, dim);
    if (dim < 0) dim += x->ndim;
    reduce_plan p;
    plan_make(&p, x, x->ndim ? 1u << dim : 0, true);
    p.y = call->out[0]->data;
    return with_number(x->dtype, [&](auto tag) {
        using T = TYPE_OF(tag);
        if (p.column) return LAUNCH(call, cumsum_columns<T>, blocks_for(p.n_out, THREADS), THREADS, 0, p);
        return LAUNCH(call, cumsum_rows<T>, (unsigned)p.n_out, THREADS, 0, p);
    });
}
