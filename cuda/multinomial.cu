// multinomial.cu: drawing indices by weight, a block to a row, in float64 and with the CPU's bits.
#define WEFT_FN static __host__ __device__ inline
#include "cuda/block.h"
#include "cuda/draws.h"
#include "tensor/random.h"

#define MOST_THREADS 256
#define MOST_BLOCKS 1024    // each has a stretch of scratch memory of its own
#define SUM_TILE 1024

struct rows {
    int64_t *y;
    double *scratch;        // by block: `classes` numbers
    int64_t n_rows, classes, n;
    uint64_t key, counter;
    const uint64_t *clock;
    int32_t by_sums;
    int32_t replacement;
    fault_sink faults;
    template <class V> void visit(V &v) { v(y); v(scratch); v(clock); faults.visit(v); }
    // 53 bits for draw number e
    DEVICE double uniform(int64_t e) const {
        const weft_philox4 w = weft_philox(key, counter_now(counter, clock), (uint64_t)e >> 1);
        return e & 1 ? weft_uniform64(w.v[2], w.v[3]) : weft_uniform64(w.v[0], w.v[1]);
    }
};

struct min_op { template <class T> DEVICE T operator()(T a, T b) const { return b < a ? b : a; } };

// With replacement: draw j of the row falls where u * total lies among the running sums, which one
// thread adds up in the CPU's order. A zero weight is never the first sum above u * total.
template <class T> DEVICE void draw_by_sums(const rows &r, int64_t row, double largest, const T *w, double *sums) {
    SHARED(double, tile, [SUM_TILE]);
    const int thread = (int)threadIdx.x, threads = (int)blockDim.x;
    int64_t last = 0;
    double total = 0;       // of thread 0
    for (int64_t base = 0; base < r.classes; base += SUM_TILE) {
        const int count = (int)(r.classes - base < SUM_TILE ? r.classes - base : SUM_TILE);
        for (int i = thread; i < count; i += threads) {
            tile[i] = (double)widen<T>(w[base + i]) / largest;
            if (tile[i] > 0) last = base + i;
        }
        __syncthreads();
        if (thread == 0)
            for (int i = 0; i < count; i++) tile[i] = total += tile[i];
        __syncthreads();
        for (int i = thread; i < count; i += threads) sums[base + i] = tile[i];
        __syncthreads();
    }
    last = block_reduce(last, max_op(), (int64_t)0);
    total = block_sum(total);   // the other threads' are 0
    for (int64_t j = thread; j < r.n; j += threads) {
        const double at = r.uniform(row * r.n + j) * total;
        int64_t low = 0, high = last;
        while (low < high) {
            const int64_t middle = low + (high - low) / 2;
            if (sums[middle] > at) high = middle;
            else low = middle + 1;
        }
        r.y[row * r.n + j] = low;
    }
}

// Without replacement: each index waits for a time -log(u) / weight, and the n first ones in order are
// the draws. Each is looked for among those later than the one before: n walks over the row.
template <class T> DEVICE void draw_by_times(const rows &r, int64_t row, double largest, const T *w, double *times) {
    SHARED(double, best, [MOST_THREADS]);
    SHARED(int64_t, best_at, [MOST_THREADS]);
    const int thread = (int)threadIdx.x, threads = (int)blockDim.x;
    for (int64_t i = thread; i < r.classes; i += threads) {
        const double weight = (double)widen<T>(w[i]), part = weight / largest;
        const double u = r.uniform(row * r.classes + i) + 0x1p-54;
        times[i] = weight == 0 ? (double)NAN : part > 0 ? -weft_log64(u) / part : (double)INFINITY;
    }
    double before = -1;
    int64_t before_at = -1;
    for (int64_t j = 0; j < r.n; j++) {
        double first = NAN;
        int64_t first_at = -1;
        for (int64_t i = thread; i < r.classes; i += threads) {     // a thread reads what it wrote
            const double t = times[i];
            const bool left = t > before || (t == before && i > before_at);
            if (left && (first_at < 0 || t < first)) {
                first = t;
                first_at = i;
            }
        }
        best[thread] = first;
        best_at[thread] = first_at;
        __syncthreads();
        for (int half = threads / 2; half > 0; half /= 2) {
            if (thread < half && best_at[thread + half] >= 0) {
                const double t = best[thread + half];
                const int64_t at = best_at[thread + half];
                if (best_at[thread] < 0 || t < best[thread] || (t == best[thread] && at < best_at[thread])) {
                    best[thread] = t;
                    best_at[thread] = at;
                }
            }
            __syncthreads();
        }
        before = best[0];
        before_at = best_at[0];
        __syncthreads();
        if (thread == 0) r.y[row * r.n + j] = before_at;
    }
}

template <class T> __global__ void __launch_bounds__(MOST_THREADS) multinomial_kernel(const rows r, const T *weights) {
    const int thread = (int)threadIdx.x, threads = (int)blockDim.x;
    double *own = r.scratch + (int64_t)blockIdx.x * r.classes;
    for (int64_t row = blockIdx.x; row < r.n_rows; row += gridDim.x) {
        const T *w = weights + row * r.classes;
        double largest = 0;
        int64_t positive = 0, bad = INT64_MAX;
        for (int64_t i = thread; i < r.classes; i += threads) {
            const double x = (double)widen<T>(w[i]);
            if (!(x >= 0 && x < (double)INFINITY)) bad = bad < i ? bad : i;
            positive += x > 0;
            largest = x > largest ? x : largest;
        }
        bad = block_reduce(bad, min_op(), (int64_t)INT64_MAX);
        positive = block_sum(positive);
        largest = block_reduce(largest, max_op(), 0.0);
        const bool few = !r.replacement && positive > 0 && positive < r.n;
        if (bad != INT64_MAX || few || positive == 0) {
            for (int64_t j = thread; j < r.n; j += threads) r.y[row * r.n + j] = -1;
            if (thread == 0 && bad != INT64_MAX) r.faults.complain(FAULT_WEIGHT, (double)widen<T>(w[bad]), (double)row, 0, bad);
            else if (thread == 0 && few) r.faults.complain(FAULT_DRAWS, (double)r.n, (double)row, (double)positive);
        } else if (r.by_sums) draw_by_sums(r, row, largest, w, own);
        else draw_by_times(r, row, largest, w, own);
        __syncthreads();
    }
}

CUDA_KERNEL(multinomial) {
    const weft_view *w = call->in[0], *y = call->out[0];
    rows r = {};
    TRY(named_draw(call));
    if (y->numel == 0) return WEFT_OK;
    r.y = static_cast<int64_t *>(y->data);
    r.classes = w->shape[w->ndim - 1];
    r.n_rows = weft_span(w, 0, w->ndim - 1);
    r.n = call->at->AT(multinomial, n);
    r.key = call->at->rng_key;
    r.counter = call->at->rng_counter;
    r.clock = device_of(call)->clock;
    r.replacement = call->at->AT(multinomial, replacement) != 0;
    r.by_sums = r.replacement || r.n == 1;
    r.faults = faults(call, OP_multinomial);
    const unsigned blocks = blocks_for(r.n_rows, 1, MOST_BLOCKS);
    scratch own(call, (int64_t)blocks * r.classes * (int64_t)sizeof(double));
    if (!own.data) return WEFT_ENOMEM;
    r.scratch = own.as<double>();
    return with_float(w->dtype, [&](auto tag) {
        using T = TYPE_OF(tag);
        return LAUNCH(call, (multinomial_kernel<T>), blocks, r.classes <= 64 ? 32 : MOST_THREADS, 0, r,
                      static_cast<const T *>(w->data));
    });
}
