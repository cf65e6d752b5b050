// optim.cu: optimizer steps in place. One launch moves all groups of tensors that belong together (up to
// 610 of five, 1,600 of one; then another begins); a block takes one chunk of one group.
#include "cuda/block.h"
#include "cuda/each.h"
#include "tensor/adamw.h"

#define OPTIM_THREADS 256
#define OPTIM_CHUNK 8192        // elements of a block
#define OPTIM_VEC 4

// K tensors to a group. A launch's arguments are at most 32,764 bytes; they are copied at each launch, so
// what fits has the smaller table.
#define OPTIM_SMALL 3600
#define OPTIM_LARGE 32000
template <int K_, int BYTES> struct optim_table {
    static constexpr int K = K_, MOST = BYTES / (8 * K + 12);
    void *data[MOST][K];
    int64_t numel[MOST];
    int32_t first[MOST + 1];    // by group: its first block
    int32_t n;
    template <class V> void visit(V &v) {
        for (int g = 0; g < n; g++)
            for (int k = 0; k < K; k++) v(data[g][k]);
    }
};

struct chunk { int group; int64_t begin, end; };
template <class TABLE> DEVICE chunk chunk_of(const TABLE &t, int block) {
    int low = 0, high = t.n - 1;
    while (low < high) {        // the last group that starts at or before the block
        const int middle = (low + high + 1) / 2;
        if (t.first[middle] <= block) low = middle;
        else high = middle - 1;
    }
    const int64_t begin = (int64_t)(block - t.first[low]) * OPTIM_CHUNK;
    return chunk{ low, begin, begin + OPTIM_CHUNK < t.numel[low] ? begin + OPTIM_CHUNK : t.numel[low] };
}

template <class TABLE, class F> static weft_status fill_tables(const weft_call *call, int first, F launch) {
    constexpr int K = TABLE::K;
    TABLE t;
    int64_t done = 0;
    t.n = 0;
    t.first[0] = 0;
    for (int i = first; i + K <= call->n_in; i += K) {
        const int64_t numel = call->in[i]->numel, blocks = ceil_div(numel, OPTIM_CHUNK);
        if (numel == 0) continue;
        if (t.n == TABLE::MOST || t.first[t.n] + blocks > GRID_LIMIT) {
            TRY(launch(t, done));
            done += t.first[t.n];
            t.n = 0;
        }
        for (int k = 0; k < K; k++) t.data[t.n][k] = call->in[i + k]->data;
        t.numel[t.n] = numel;
        t.first[t.n + 1] = t.first[t.n] + (int32_t)blocks;
        t.n++;
    }
    return t.n ? launch(t, done) : WEFT_OK;
}

// Calls launch(table, blocks of earlier tables) for as many tables as inputs first .. n_in - 1 take.
template <int K, class F> static weft_status each_table(const weft_call *call, int first, F launch) {
    if ((call->n_in - first) / K <= optim_table<K, OPTIM_SMALL>::MOST)
        return fill_tables<optim_table<K, OPTIM_SMALL>>(call, first, launch);
    return fill_tables<optim_table<K, OPTIM_LARGE>>(call, first, launch);
}
#define TABLE_OF(t) std::remove_const_t<std::remove_reference_t<decltype(t)>>

// --- elementwise steps: step(a, b, ..) over what the tensors of a group hold at one place. READS and
// WRITES tell which of them are loaded and stored (bit k: tensor k). begin() is false where there is
// nothing to do.
template <class T, bool READ, int N> DEVICE void optim_load(void *p, int64_t i, T *v) {
    if constexpr (READ) {
        const pack<T, N> u = *reinterpret_cast<const pack<T, N> *>(static_cast<const T *>(p) + i);
        for (int j = 0; j < N; j++) v[j] = u.v[j];
    }
}
template <class T, bool WRITE, int N> DEVICE void optim_store(void *p, int64_t i, const T *v) {
    if constexpr (WRITE) {
        pack<T, N> u;
        for (int j = 0; j < N; j++) u.v[j] = v[j];
        *reinterpret_cast<pack<T, N> *>(static_cast<T *>(p) + i) = u;
    }
}
template <class T> DEVICE bool optim_aligned(const void *p) {
    return (uintptr_t)p % (sizeof(T) * OPTIM_VEC < 16 ? sizeof(T) * OPTIM_VEC : 16) == 0;
}

template <class S, int N> DEVICE void optim_move(const S &step, void *const *p, int64_t i) {
    constexpr int R = S::READS, W = S::WRITES;
    typename S::A a[N];
    typename S::B b[N];
    typename S::C c[N];
    typename S::D d[N];
    typename S::E e[N];
    optim_load<typename S::A, (R & 1) != 0, N>(p[0], i, a);
    if constexpr (S::K > 1) optim_load<typename S::B, (R & 2) != 0, N>(p[1], i, b);
    if constexpr (S::K > 2) optim_load<typename S::C, (R & 4) != 0, N>(p[2], i, c);
    if constexpr (S::K > 3) optim_load<typename S::D, (R & 8) != 0, N>(p[3], i, d);
    if constexpr (S::K > 4) optim_load<typename S::E, (R & 16) != 0, N>(p[4], i, e);
    for (int j = 0; j < N; j++) step(a[j], b[j], c[j], d[j], e[j]);
    optim_store<typename S::A, (W & 1) != 0, N>(p[0], i, a);
    if constexpr (S::K > 2) optim_store<typename S::C, (W & 4) != 0, N>(p[2], i, c);
    if constexpr (S::K > 3) optim_store<typename S::D, (W & 8) != 0, N>(p[3], i, d);
    if constexpr (S::K > 4) optim_store<typename S::E, (W & 16) != 0, N>(p[4], i, e);
}

template <class S, class TABLE> __global__ void __launch_bounds__(OPTIM_THREADS) optim_kernel(const TABLE t, const S given) {
    S step = given;
    if (!step.begin()) return;
    const chunk c = chunk_of(t, (int)blockIdx.x);
    void *const *p = t.data[c.group];
    bool aligned = optim_aligned<typename S::A>(p[0]);
    if constexpr (S::K > 1) aligned = aligned && optim_aligned<typename S::B>(p[1]);
    if constexpr (S::K > 2) aligned = aligned && optim_aligned<typename S::C>(p[2]);
    if constexpr (S::K > 3) aligned = aligned && optim_aligned<typename S::D>(p[3]);
    if constexpr (S::K > 4) aligned = aligned && optim_aligned<typename S::E>(p[4]);
    const int64_t whole = aligned ? c.begin + (c.end - c.begin) / OPTIM_VEC * OPTIM_VEC : c.begin;
    for (int64_t i = c.begin + threadIdx.x * OPTIM_VEC; i < whole; i += OPTIM_THREADS * OPTIM_VEC)
        optim_move<S, OPTIM_VEC>(step, p, i);
    for (int64_t i = whole + threadIdx.x; i < c.end; i += OPTIM_THREADS) optim_move<S, 1>(step, p, i);
}

template <class S> static weft_status optim_run(const weft_call *call, int first, const S &step) {
    return each_table<S::K>(call, first, [&](const auto &t, int64_t) {
        return LAUNCH(call, (optim_kernel<S, TABLE_OF(t)>), (unsigned)t.first[t.n], OPTIM_THREADS, 0, t, step);
    });
}

template <class T_A, class T_B, class T_C, class T_D, class T_E, int READ, int WRITE> struct optim_step {
    typedef T_A A;
    typedef T_B B;
    typedef T_C C;
    typedef T_D D;
    typedef T_E E;
    static constexpr int READS = READ, WRITES = WRITE;
    DEVICE bool begin() { return true; }
};

// p *= 1 - lr wd;  m, v: running means of g and g^2;
// p -= lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)
template <class W> struct adamw_rates {
    W keep, b1, a1, b2, a2, rate, fix2, eps;
    const double *now;      // of a captured graph: keep, rate, fix2, and above 0 where the step is to be made
    template <class V> void visit(V &v) { v(now); }
    adamw_rates(const weft_call *call, double lr, double beta1, double beta2, double epsilon, double decay, double t) {
        const weft_rates r = weft_rates_of(lr, beta1, beta2, decay, t);
        keep = (W)r.keep;
        b1 = (W)beta1;
        a1 = (W)(1 - beta1);
        b2 = (W)beta2;
        a2 = (W)(1 - beta2);
        rate = (W)r.rate;
        fix2 = (W)r.fix2;
        eps = (W)epsilon;
        now = device_of(call)->rates;
    }
    DEVICE bool begin() {
        if (!now) return true;
        keep = (W)now[0];
        rate = (W)now[1];
        fix2 = (W)now[2];
        return now[3] > 0;
    }
    DEVICE W moved(W p, W g, W &m, W &v) const {
        m = b1 * m + a1 * g;
        v = b2 * v + a2 * (g * g);
        return p * keep - rate * m / (sqrt(v * fix2) + eps);
    }
};

#define ADAMW_RATES(op, call) \
    { call, (call)->at->AT(op, lr), (call)->at->AT(op, beta1), (call)->at->AT(op, beta2), (call)->at->AT(op, eps), \
      (call)->at->AT(op, weight_decay), (double)(call)->at->AT(op, step) }

template <class T> struct adamw_step : optim_step<T, T, T, T, char, 15, 13> {
    static constexpr int K = 4;
    adamw_rates<wide_t<T>> rates;
    adamw_step(const weft_call *call) : rates ADAMW_RATES(adamw_, call) {}
    template <class V> void visit(V &v) { rates.visit(v); }
    DEVICE bool begin() { return rates.begin(); }
    DEVICE void operator()(T &p, T g, T &m, T &v, char) const {
        wide_t<T> mi = widen<T>(m), vi = widen<T>(v);
        p = narrow<T>(rates.moved(widen<T>(p), widen<T>(g), mi, vi));
        m = narrow<T>(mi);
        v = narrow<T>(vi);
    }
};
CUDA_KERNEL(adamw_) {
    return with_float(call->in[0]->dtype, [&](auto tag) { return optim_run(call, 0, adamw_step<TYPE_OF(tag)>(call)); });
}

// The same on float32 m, v and master; parameter and gradient are bfloat16.
struct mixed_step : optim_step<bf16, bf16, float, float, float, 30, 29> {
    static constexpr int K = 5;
    adamw_rates<float> rates;
    mixed_step(const weft_call *call) : rates ADAMW_RATES(adamw_mixed_, call) {}
    template <class V> void visit(V &v) { rates.visit(v); }
    DEVICE bool begin() { return rates.begin(); }
    DEVICE void operator()(bf16 &p, bf16 g, float &m, float &v, float &master) const {
        master = rates.moved(master, widen<bf16>(g), m, v);
        p = narrow<bf16>(master);
    }
};
CUDA_KERNEL(adamw_mixed_) { return optim_run(call, 0, mixed_step(call)); }

// Without momentum the buffer is neither read nor written.
template <class T, bool MOMENTUM> struct sgd_step : optim_step<T, T, T, char, char, MOMENTUM ? 7 : 3, MOMENTUM ? 5 : 1> {
    static constexpr int K = 3;
    wide_t<T> lr, momentum, decay;
    int32_t nesterov;
    sgd_step(const weft_attrs *a) : lr((wide_t<T>)a->AT(sgd_, lr)), momentum((wide_t<T>)a->AT(sgd_, momentum)),
                                    decay((wide_t<T>)a->AT(sgd_, weight_decay)), nesterov(a->AT(sgd_, nesterov) != 0) {}
    DEVICE void operator()(T &p, T g, T &b, char, char) const {
        const wide_t<T> d = widen<T>(g) + decay * widen<T>(p);
        wide_t<T> by = d;
        if constexpr (MOMENTUM) {
            const wide_t<T> bi = momentum * widen<T>(b) + d;
            b = narrow<T>(bi);
            by = nesterov ? d + momentum * bi : bi;
        }
        p = narrow<T>(widen<T>(p) - lr * by);
    }
};
CUDA_KERNEL(sgd_) {
    return with_float(call->in[0]->dtype, [&](auto tag) {
        using T = TYPE_OF(tag);
        if (call->at->AT(sgd_, momentum) == 0) return optim_run(call, 0, sgd_step<T, false>(call->at));
        return optim_run(call, 0, sgd_step<T, true>(call->at));
    });
}

// In this form an average that equals its value stays equal to it.
template <class T> struct ema_step : optim_step<T, T, char, char, char, 3, 1> {
    static constexpr int K = 2;
    wide_t<T> rest;
    const double *now;      // of a captured graph: 1 - decay, and fourth whether to move
    ema_step(const weft_call *call) : rest((wide_t<T>)(1 - call->at->AT(ema_, decay))), now(device_of(call)->rates) {}
    template <class V> void visit(V &v) { v(now); }
    DEVICE bool begin() {
        if (now) rest = (wide_t<T>)now[0];
        return !now || now[3] > 0;
    }
    DEVICE void operator()(T &e, T p, char, char, char) const {
        e = narrow<T>(widen<T>(e) + rest * (widen<T>(p) - widen<T>(e)));
    }
};
CUDA_KERNEL(ema_) {
    return with_float(call->in[0]->dtype, [&](auto tag) { return optim_run(call, 0, ema_step<TYPE_OF(tag)>(call)); });
}

// The norm is read where it lies. A NaN goes on into the gradients.
template <class T> struct clip_step : optim_step<T, char, char, char, char, 1, 1> {
    static constexpr int K = 1;
    const void *norm;
    int32_t wide;
    double max_norm;
    wide_t<T> factor;
    clip_step(const weft_view *v, double most) : norm(v->data), wide(v->dtype == WEFT_FLOAT64), max_norm(most), factor(1) {}
    template <class V> void visit(V &v) { v(norm); }
    DEVICE bool begin() {
        const double n = wide ? *static_cast<const double *>(norm) : (double)*static_cast<const float *>(norm);
        const double f = max_norm / (n + 1e-6);
        factor = (wide_t<T>)f;
        return !(f >= 1);
    }
    DEVICE void operator()(T &x, char, char, char, char) const { x = narrow<T>(widen<T>(x) * factor); }
};
CUDA_KERNEL(clip_) {
    if (call->n_in == 1) return WEFT_OK;
    const double most = call->at->AT(clip_, max_norm);
    return with_float(call->in[1]->dtype, [&](auto tag) { return optim_run(call, 1, clip_step<TYPE_OF(tag)>(call->in[0], most)); });
}

// --- global_norm: each block's sum of squares, then their sum, both in float64 and in a fixed order
template <class T, class TABLE>
__global__ void __launch_bounds__(OPTIM_THREADS) squares_kernel(const TABLE t, double *partial) {
    const chunk c = chunk_of(t, (int)blockIdx.x);
    const T *x = static_cast<const T *>(t.data[c.group][0]);
    const int64_t whole = optim_aligned<T>(x) ? c.begin + (c.end - c.begin) / OPTIM_VEC * OPTIM_VEC : c.begin;
    double sum = 0;
    for (int64_t i = c.begin + threadIdx.x * OPTIM_VEC; i < whole; i += OPTIM_THREADS * OPTIM_VEC) {
        T v[OPTIM_VEC];
        optim_load<T, true, OPTIM_VEC>(const_cast<T *>(x), i, v);
        for (int j = 0; j < OPTIM_VEC; j++) sum += (double)widen<T>(v[j]) * (double)widen<T>(v[j]);
    }
    for (int64_t i = whole + threadIdx.x; i < c.end; i += OPTIM_THREADS) sum += (double)widen<T>(x[i]) * (double)widen<T>(x[i]);
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

static __global__ void __launch_bounds__(1024) norm_kernel(const double *partial, const int64_t n, float *norm) {
    double sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += 1024) sum += partial[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *norm = (float)sqrt(sum);
}

CUDA_KERNEL(global_norm) {
    int64_t blocks = 0;
    for (int i = 0; i < call->n_in; i++) blocks += ceil_div(call->in[i]->numel, OPTIM_CHUNK);
    scratch partial(call, blocks * (int64_t)sizeof(double));
    if (!partial.data) return WEFT_ENOMEM;
    TRY(with_float(call->in[0]->dtype, [&](auto tag) {
        using T = TYPE_OF(tag);
        return each_table<1>(call, 0, [&](const auto &t, int64_t done) {
            return LAUNCH(call, (squares_kernel<T, TABLE_OF(t)>), (unsigned)t.first[t.n], OPTIM_THREADS, 0, t, partial.as<double>() + done);
        });
    }));
    return LAUNCH(call, norm_kernel, 1, 1024, 0, partial.as<double>(), blocks, static_cast<float *>(call->out[0]->data));
}
