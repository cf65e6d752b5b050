// linalg.h: what decompositions share: a batch of matrices, the first one that can't be factored, and
// steps that a warp or a block takes together.
#ifndef WEFT_CUDA_LINALG_H
#define WEFT_CUDA_LINALG_H

#include "cuda/block.h"

#define MATRIX_THREADS 512
#define MATRIX_SCRATCH ((int64_t)256 << 20)     // bytes at a time, a matrix's at the least
#define NOTHING 0xffffffffffffffffull
#define WARP ((int64_t)(threadIdx.x >> 5))
#define WARPS ((int64_t)(blockDim.x >> 5))
#define LANE ((int64_t)(threadIdx.x & 31))

struct matrices {
    const void *in[2];
    void *out[3];
    double *work;               // `stretch` numbers a block
    unsigned long long *found;  // first: what is not finite, by input and position; then: matrix and pivot
    int64_t m, n, first, stretch;
    template <class V> void visit(V &v) {
        v(in[0]), v(in[1]), v(out[0]), v(out[1]), v(out[2]), v(work), v(found);
    }
};

// Matrix i can't be factored beyond that pivot. The first matrix is the one that is told.
DEVICE void fails(const matrices &t, int64_t i, int64_t pivot) {
    atomicMin(&t.found[1], (unsigned long long)i << 32 | (unsigned long long)pivot);
}

// A power of two that brings the largest entry near 1, so that squares neither vanish nor overflow.
template <class T> DEVICE double scale_of(const T *x, int64_t n) {
    double most = 0;
    for (int64_t e = threadIdx.x; e < n; e += blockDim.x) most = fmax(most, fabs((double)x[e]));
    most = block_max(most);
    int exponent = 0;
    frexp(most, &exponent);
    return most > 0 ? ldexp(1.0, exponent < -1000 ? 1000 : -exponent) : 1;
}

// x - tau v (v . x) from row j on, for a warp; v[j] counts as 1.
DEVICE void reflect(const double *v, double tau, int64_t j, int64_t m, double *x) {
    double dot = LANE == 0 ? x[j] : 0;
    for (int64_t r = j + 1 + LANE; r < m; r += 32) dot += v[r] * x[r];
    dot = tau * warp_sum(dot);
    if (LANE == 0) x[j] -= dot;
    for (int64_t r = j + 1 + LANE; r < m; r += 32) x[r] -= dot * v[r];
    __syncwarp();
}

template <class T> __global__ void __launch_bounds__(256)
not_finite_kernel(const T *x, const int64_t n, const unsigned long long input, unsigned long long *found) {
    for (int64_t i = THREAD_INDEX; i < n; i += THREAD_COUNT)
        if (!(fabs((double)x[i]) < (double)INFINITY)) atomicMin(found, input << 60 | (unsigned long long)i);
}

static __global__ void report_kernel(const unsigned long long *found, const int what, const fault_sink faults) {
    if (found[0] != NOTHING)
        faults.complain(FAULT_FINITE, (double)(found[0] & ((1ull << 60) - 1)), (double)(found[0] >> 60), 0);
    else if (found[1] != NOTHING)
        faults.complain(what, (double)(found[1] >> 32), (double)(found[1] & 0xffffffffull), 0);
}

// More threads than a small matrix has work for only wait.
static inline unsigned threads_for(int64_t rows, int64_t columns) {
    const int64_t n = columns > rows / 16 ? columns : rows / 16;
    return n <= 4 ? 32 : n <= 32 ? 128 : n <= 64 ? 256 : MATRIX_THREADS;
}

// launch(tag, matrices, blocks) for runs of the batch that fit the scratch memory; stretch: doubles a
// matrix. what: the complaint of `fails`.
template <class F>
weft_status decompose(const weft_call *call, int op, int what, int64_t m, int64_t n, int64_t stretch, F launch) {
    const weft_view *x = call->in[0];
    const int dtype = x->dtype;
    if (dtype != WEFT_FLOAT32 && dtype != WEFT_FLOAT64)
        return weft_fail(WEFT_EUNSUPPORTED, "decompositions need float32 or float64; convert the input first");
    const int64_t count = weft_span(x, 0, x->ndim - 2);
    const int64_t room = MATRIX_SCRATCH / ((stretch + 1) * 8), most = room < 1 ? 1 : room > count ? count : room;
    scratch found(call, 16), work(call, most * stretch * 8);
    if (!found.data || !work.data) return WEFT_ENOMEM;
    TRY(cuda_check(cudaMemsetAsync(found.data, 0xff, 16, stream_of(call)), "fill"));
    matrices t = {};
    t.found = found.as<unsigned long long>();
    t.work = work.as<double>();
    t.m = m, t.n = n, t.stretch = stretch;
    for (int i = 0; i < call->n_in; i++) t.in[i] = call->in[i]->data;
    for (int i = 0; i < call->n_out; i++) t.out[i] = call->out[i]->data;
    const auto run = [&](auto tag) -> weft_status {
        using T = TYPE_OF(tag);
        for (int i = 0; i < call->n_in; i++) {
            const int64_t numel = call->in[i]->numel;
            if (numel > 0)
                TRY(LAUNCH(call, not_finite_kernel<T>, blocks_for(numel, 1024), 256, 0,
                           static_cast<const T *>(t.in[i]), numel, (unsigned long long)i, t.found));
        }
        if (call->out[0]->numel > 0)
            for (t.first = 0; t.first < count; t.first += most)
                TRY(launch(tag, t, (unsigned)(count - t.first < most ? count - t.first : most)));
        return WEFT_OK;
    };
    TRY(dtype == WEFT_FLOAT32 ? run(type_tag<float>{}) : run(type_tag<double>{}));
    return LAUNCH(call, report_kernel, 1, 1, 0, t.found, what, faults(call, op));
}

#endif
