// loss.cu: cross-entropy over classes and over soft targets, and losses over pairs of elements.
// Cross-entropy keeps one number a row, the logsumexp; probabilities are computed again for the
// gradient. Losses are summed in double, in an order that depends on shapes alone.
#include "cuda/online.h"

enum { MEAN, SUM, NONE };
#define TOTAL_THREADS 1024
#define PAIR_BLOCKS 1024

// --- from parts to the loss: their sum, for MEAN divided by the rows that count
struct total_job {
    const double *parts;
    const int64_t *target;      // NULL: `divisor` rows count
    double *counted;            // where only they are wanted
    int64_t n, rows, ignore;
    double divisor;
    template <class V> void visit(V &v) { v(parts); v(target); v(counted); }
};

template <class W>
__global__ void __launch_bounds__(TOTAL_THREADS) loss_total(const total_job j, W *loss) {
    double divisor = j.divisor, total = 0;
    if (j.target) {
        double counted = 0;
        for (int64_t i = threadIdx.x; i < j.rows; i += blockDim.x) counted += j.target[i] != j.ignore;
        divisor = block_sum(counted);
    }
    if (j.counted) {
        if (threadIdx.x == 0) *j.counted = divisor;
        return;
    }
    for (int64_t i = threadIdx.x; i < j.n; i += blockDim.x) total += j.parts[i];
    total = block_sum(total);
    if (threadIdx.x == 0) *loss = (W)(total / divisor);
}

static weft_status run_total(const weft_call *call, const total_job &j, const weft_view *loss) {
    if (loss && loss->dtype == WEFT_FLOAT64)
        return LAUNCH(call, loss_total<double>, 1, TOTAL_THREADS, 0, j, static_cast<double *>(loss->data));
    return LAUNCH(call, loss_total<float>, 1, TOTAL_THREADS, 0, j, loss ? static_cast<float *>(loss->data) : nullptr);
}

// --- cross-entropy
struct entropy_job {
    const void *x, *soft, *dloss, *lse_in;
    const int64_t *target;
    void *loss, *lse, *dx, *dtarget;    // loss: of each row, for NONE
    double *parts;                      // of each row, for MEAN and SUM
    const double *counted;              // for MEAN; NULL: n
    weft_rows dloss_at;
    int64_t n, classes, ignore;
    int32_t reduction;
    double smoothing;
    fault_sink faults;
    template <class V> void visit(V &v) {
        v(x); v(soft); v(dloss); v(lse_in); v(target); v(loss); v(lse); v(dx); v(dtarget); v(parts); v(counted);
        faults.visit(v);
    }
};

static void set_rows(entropy_job *j, const weft_view *x) {
    j->n = x->shape[0];
    j->classes = x->shape[1];
    j->x = x->data;
}

static void set_dloss(entropy_job *j, const weft_view *dloss) {
    j->dloss = dloss->data;
    weft_rows_of(dloss, 0, &j->dloss_at);
}

// 0: an ignored row; 1: one that counts; -1: one whose class does not exist, of which the host is told.
DEVICE int class_state(const entropy_job &j, int64_t row, bool live) {
    if (!live || j.target[row] == j.ignore) return 0;
    if (j.target[row] >= 0 && j.target[row] < j.classes) return 1;
    if (threadIdx.x == 0) j.faults.complain(FAULT_INDEX, (double)j.target[row], 0, (double)(j.classes - 1), row);
    return -1;
}

template <class W> DEVICE void put_loss(const entropy_job &j, int64_t row, double loss, double lse) {
    static_cast<W *>(j.lse)[row] = (W)lse;
    if (j.reduction == NONE) static_cast<W *>(j.loss)[row] = (W)loss;
    else j.parts[row] = loss;
}

// (1 - s) (lse - x[t]) + s (lse - average of x)
template <class T, int VEC, int PER>
__global__ void __launch_bounds__(ROW_THREADS) entropy_classes(const entropy_job j) {
    typedef wide_t<T> W;
    const int64_t packs = j.classes / VEC;
    FOR_ROWS(row, j.n) {
        const bool live = row < j.n;
        const int state = class_state(j, row, live);
        const T *const from = static_cast<const T *>(j.x) + row * j.classes;
        const row_part<T, VEC, PER> x(from, state ? packs : 0);
        const exp_sum<W> e = row_exp_sum<T, VEC, PER>(x);
        const double lse = (double)e.max + log(e.sum);
        double average = 0;
        if (j.smoothing > 0) {
            each_pack<PER>(x.packs, [&](int i, auto k) {
                const pack<T, VEC> p = x.at(i, k);
                W s = 0;
                for (int c = 0; c < VEC; c++) s += widen<T>(p.v[c]);
                average += (double)s;
            });
            average = row_sum(average) / (double)j.classes;
        }
        if (!live || threadIdx.x) continue;
        double loss = state == 0 ? 0 : state < 0 ? (double)NAN : lse - (double)widen<T>(from[j.target[row]]);
        if (state > 0 && j.smoothing > 0) loss = (1 - j.smoothing) * loss + j.smoothing * (lse - average);
        put_loss<W>(j, row, loss, state ? lse : 0);
    }
}

// What a row's gradient is multiplied by.
template <class W> DEVICE W weight_of(const entropy_job &j, int64_t row) {
    const W *const dloss = static_cast<const W *>(j.dloss);
    if (j.reduction == NONE) return dloss[row_at(j.dloss_at, row)];
    return j.reduction == SUM ? dloss[0] : (W)((double)dloss[0] / (j.counted ? *j.counted : (double)j.n));
}

template <class T, int VEC>
__global__ void __launch_bounds__(ROW_THREADS) entropy_classes_grad(const entropy_job j) {
    typedef wide_t<T> W;
    const W even = (W)(j.smoothing / (double)j.classes), own = (W)(1 - j.smoothing);
    FOR_ROWS(row, j.n) {
        if (row >= j.n) continue;
        const int state = class_state(j, row, true);
        const int64_t target = j.target[row];
        const W weight = state ? weight_of<W>(j, row) : (W)0, lse = static_cast<const W *>(j.lse_in)[row];
        const T *const x = static_cast<const T *>(j.x) + row * j.classes;
        T *const dx = static_cast<T *>(j.dx) + row * j.classes;
        each_pack<0>(j.classes / VEC, [&](int, int64_t k) {
            pack<T, VEC> p;
            if (state) p = read_pack<T, VEC>(x, k);
            for (int c = 0; c < VEC; c++) {
                W v = 0;
                if (state) v = (exp_for<T>(widen<T>(p.v[c]) - lse) - even - (k * VEC + c == target ? own : (W)0)) * weight;
                p.v[c] = narrow<T>(v);
            }
            write_pack<T, VEC>(dx, k, p);
        });
    }
}

// Sums of t and of t * x over the columns that are there; each thread of the row gets them.
template <class T, int VEC, int PER>
DEVICE void soft_sums(const row_part<T, VEC, PER> &x, const row_part<T, VEC, PER> &t, double *mass, double *dot) {
    typedef wide_t<T> W;
    *mass = *dot = 0;
    each_pack<PER>(x.packs, [&](int i, auto k) {
        const pack<T, VEC> p = x.at(i, k), q = t.at(i, k);
        W s = 0, d = 0;
        for (int c = 0; c < VEC; c++) {
            const W v = widen<T>(p.v[c]), u = widen<T>(q.v[c]);
            if (v == -(W)INFINITY) continue;
            s += u;
            d += u * v;
        }
        *mass += (double)s;
        *dot += (double)d;
    });
    row_sum2(*mass, *dot);
}

template <class T, int VEC, int PER>
__global__ void __launch_bounds__(ROW_THREADS) entropy_soft(const entropy_job j) {
    const int64_t packs = j.classes / VEC;
    FOR_ROWS(row, j.n) {
        const int64_t mine = row < j.n ? packs : 0;
        const row_part<T, VEC, PER> x(static_cast<const T *>(j.x) + row * j.classes, mine);
        const row_part<T, VEC, PER> t(static_cast<const T *>(j.soft) + row * j.classes, mine);
        const exp_sum<wide_t<T>> e = row_exp_sum<T, VEC, PER>(x);
        double mass, dot;
        soft_sums<T, VEC, PER>(x, t, &mass, &dot);
        const double lse = (double)e.max + log(e.sum);
        if (row < j.n && threadIdx.x == 0) put_loss<wide_t<T>>(j, row, lse * mass - dot, lse);
    }
}

template <class T, int VEC, int PER>
__global__ void __launch_bounds__(ROW_THREADS) entropy_soft_grad(const entropy_job j) {
    typedef wide_t<T> W;
    const int64_t packs = j.classes / VEC;
    FOR_ROWS(row, j.n) {
        const bool live = row < j.n;
        const int64_t mine = live ? packs : 0, at = row * j.classes;
        const row_part<T, VEC, PER> x(static_cast<const T *>(j.x) + at, mine);
        const W weight = live ? weight_of<W>(j, row) : (W)0, lse = live ? static_cast<const W *>(j.lse_in)[row] : (W)0;
        if (j.dx) {
            const row_part<T, VEC, PER> t(static_cast<const T *>(j.soft) + at, mine);
            double mass, dot;
            soft_sums<T, VEC, PER>(x, t, &mass, &dot);
            T *const dx = static_cast<T *>(j.dx) + at;
            each_pack<PER>(mine, [&](int i, auto k) {
                pack<T, VEC> p = x.at(i, k);
                const pack<T, VEC> q = t.at(i, k);
                for (int c = 0; c < VEC; c++) {
                    const W v = widen<T>(p.v[c]), g = (exp_for<T>(v - lse) * (W)mass - widen<T>(q.v[c])) * weight;
                    p.v[c] = narrow<T>(v == -(W)INFINITY ? (W)0 : g);
                }
                write_pack<T, VEC>(dx, k, p);
            });
        }
        if (!j.dtarget) continue;
        T *const dt = static_cast<T *>(j.dtarget) + at;
        each_pack<PER>(mine, [&](int i, auto k) {
            pack<T, VEC> p = x.at(i, k);
            for (int c = 0; c < VEC; c++) {
                const W v = widen<T>(p.v[c]);
                p.v[c] = narrow<T>(v == -(W)INFINITY ? (W)0 : (lse - v) * weight);
            }
            write_pack<T, VEC>(dt, k, p);
        });
    }
}

// launch(T, vec, per, grid) for the rows; then their losses become one.
template <class F> static weft_status entropy_forward(const weft_call *call, entropy_job *j, F launch) {
    const weft_view *x = call->in[0];
    set_rows(j, x);
    j->loss = call->out[0]->data;
    j->lse = call->out[1]->data;
    scratch parts(call, j->reduction == NONE ? 0 : j->n * (int64_t)sizeof(double));
    if (!parts.data) return WEFT_ENOMEM;
    j->parts = parts.as<double>();
    if (j->n > 0)
        TRY(with_float(x->dtype, [&](auto tag) {
            using T = TYPE_OF(tag);
            const row_grid g = row_grid_of<T>(j->n, j->classes, address(j->x) | address(j->soft), 4);
            return with_row_grid<T, 4>(g, [&](auto vec, auto per) { return launch(tag, vec, per, g); });
        }));
    if (j->reduction == NONE) return WEFT_OK;
    total_job t = {};
    t.parts = j->parts;
    t.n = t.rows = j->n;
    t.divisor = j->reduction == SUM ? 1 : (double)j->n;
    t.ignore = j->ignore;
    if (j->reduction == MEAN) t.target = j->target;
    return run_total(call, t, call->out[0]);
}

CUDA_KERNEL(cross_entropy) {
    entropy_job j = {};
    j.target = static_cast<const int64_t *>(call->in[1]->data);
    j.ignore = call->at->AT(cross_entropy, ignore_index);
    j.smoothing = call->at->AT(cross_entropy, label_smoothing);
    j.reduction = (int32_t)call->at->AT(cross_entropy, reduction);
    j.faults = faults(call, OP_cross_entropy);
    return entropy_forward(call, &j, [&](auto tag, auto vec, auto per, const row_grid &g) {
        using T = TYPE_OF(tag);
        return LAUNCH(call, (entropy_classes<T, COUNT_OF(vec), COUNT_OF(per)>), g.blocks, g.block, 0, j);
    });
}

CUDA_KERNEL(cross_entropy_soft) {
    entropy_job j = {};
    j.soft = call->in[1]->data;
    j.reduction = (int32_t)call->at->AT(cross_entropy_soft, reduction);
    j.faults = faults(call, OP_cross_entropy_soft);
    return entropy_forward(call, &j, [&](auto tag, auto vec, auto per, const row_grid &g) {
        using T = TYPE_OF(tag);
        return LAUNCH(call, (entropy_soft<T, COUNT_OF(vec), COUNT_OF(per)>), g.blocks, g.block, 0, j);
    });
}

CUDA_KERNEL(cross_entropy_backward) {
    entropy_job j = {};
    set_dloss(&j, call->in[0]);
    set_rows(&j, call->in[1]);
    j.target = static_cast<const int64_t *>(call->in[2]->data);
    j.lse_in = call->in[3]->data;
    j.dx = call->out[0]->data;
    j.ignore = call->at->AT(cross_entropy_backward, ignore_index);
    j.smoothing = call->at->AT(cross_entropy_backward, label_smoothing);
    j.reduction = (int32_t)call->at->AT(cross_entropy_backward, reduction);
    j.faults = faults(call, OP_cross_entropy_backward);
    if (j.n == 0) return WEFT_OK;
    scratch counted(call, sizeof(double));
    if (!counted.data) return WEFT_ENOMEM;
    if (j.reduction == MEAN) {
        total_job t = {};
        t.target = j.target;
        t.counted = counted.as<double>();
        t.rows = j.n;
        t.ignore = j.ignore;
        TRY(run_total(call, t, nullptr));
        j.counted = t.counted;
    }
    return with_float(call->in[1]->dtype, [&](auto tag) -> weft_status {
        using T = TYPE_OF(tag);
        constexpr int WIDE = 16 / sizeof(T);
        const row_grid g = row_grid_of<T>(j.n, j.classes, address(j.x) | address(j.dx), 4);
        if (g.vec == 1) return LAUNCH(call, (entropy_classes_grad<T, 1>), g.blocks, g.block, 0, j);
        return LAUNCH(call, (entropy_classes_grad<T, WIDE>), g.blocks, g.block, 0, j);
    });
}

CUDA_KERNEL(cross_entropy_soft_backward) {
    const int64_t needs = call->at->AT(cross_entropy_soft_backward, needs);
    entropy_job j = {};
    set_dloss(&j, call->in[0]);
    set_rows(&j, call->in[1]);
    j.soft = call->in[2] ? call->in[2]->data : nullptr;
    j.lse_in = call->in[3]->data;
    j.dx = needs & 1 ? call->out[0]->data : nullptr;
    j.dtarget = needs & 2 ? call->out[1]->data : nullptr;
    j.reduction = (int32_t)call->at->AT(cross_entropy_soft_backward, reduction);
    j.faults = faults(call, OP_cross_entropy_soft_backward);
    if (j.n == 0 || (!j.dx && !j.dtarget)) return WEFT_OK;
    return with_float(call->in[1]->dtype, [&](auto tag) {
        using T = TYPE_OF(tag);
        const uintptr_t all = address(j.x) | address(j.soft) | address(j.dx) | address(j.dtarget);
        const row_grid g = row_grid_of<T>(j.n, j.classes, all, 4);
        return with_row_grid<T, 4>(g, [&](auto vec, auto per) {
            return LAUNCH(call, (entropy_soft_grad<T, COUNT_OF(vec), COUNT_OF(per)>), g.blocks, g.block, 0, j);
        });
    });
}

// --- losses over pairs: value(x, t) and slope(x, t) in W
// max(x, 0) - x t + log(1 + exp(-|x|))
template <class W> struct bce {
    DEVICE W value(W x, W t) const { return (x > 0 ? x : (W)0) - x * t + (W)log1p(exp(-fabs(x))); }
    DEVICE W slope(W x, W t) const {
        const W e = exp(-fabs(x));
        return (x < 0 ? e : (W)1) / ((W)1 + e) - t;
    }
};
template <class W> struct huber {
    W beta;
    DEVICE W value(W x, W t) const {
        const W d = x - t, a = d < 0 ? -d : d;
        return a < beta ? d * d / (2 * beta) : a - beta / 2;
    }
    DEVICE W slope(W x, W t) const {
        const W d = x - t, a = d < 0 ? -d : d, sign = d > 0 ? (W)1 : d < 0 ? (W)-1 : d;
        return a < beta ? d / beta : sign;
    }
};

template <class T, class L> struct pair_value {
    L loss;
    DEVICE wide_t<T> operator()(T x, T t) const { return loss.value(widen<T>(x), widen<T>(t)); }
};
template <class T, class L> struct pair_slope {
    L loss;
    wide_t<T> scale;
    DEVICE T operator()(wide_t<T> dloss, T x, T t) const {
        return narrow<T>(loss.slope(widen<T>(x), widen<T>(t)) * (dloss * scale));
    }
};

template <class T, int VEC, class L>
__global__ void __launch_bounds__(256) pair_sums(const T *x, const T *t, const int64_t packs, const L loss, double *parts) {
    double total = 0;
    for (int64_t k = THREAD_INDEX; k < packs; k += THREAD_COUNT) {
        const pack<T, VEC> p = read_pack<T, VEC>(x, k), q = read_pack<T, VEC>(t, k);
        wide_t<T> s = 0;
        for (int c = 0; c < VEC; c++) s += loss.value(widen<T>(p.v[c]), widen<T>(q.v[c]));
        total += (double)s;
    }
    total = block_sum(total);
    if (threadIdx.x == 0) parts[blockIdx.x] = total;
}

template <class T, class L> static weft_status pair_forward(const weft_call *call, int64_t reduction, const L &loss) {
    if (reduction == NONE) return each2<wide_t<T>, T, T>(call, pair_value<T, L>{ loss });
    constexpr int WIDE = 16 / sizeof(T);
    const T *const x = static_cast<const T *>(call->in[0]->data), *const t = static_cast<const T *>(call->in[1]->data);
    const int64_t n = call->in[0]->numel;
    const bool wide = n % WIDE == 0 && (address(x) | address(t)) % 16 == 0;
    const int64_t packs = wide ? n / WIDE : n;
    const unsigned blocks = blocks_for(packs, 4 * 256, PAIR_BLOCKS);
    scratch parts(call, blocks * (int64_t)sizeof(double));
    if (!parts.data) return WEFT_ENOMEM;
    if (wide) TRY(LAUNCH(call, (pair_sums<T, WIDE, L>), blocks, 256, 0, x, t, packs, loss, parts.as<double>()));
    else TRY(LAUNCH(call, (pair_sums<T, 1, L>), blocks, 256, 0, x, t, packs, loss, parts.as<double>()));
    total_job total = {};
    total.parts = parts.as<double>();
    total.n = blocks;
    total.divisor = reduction == SUM ? 1 : (double)n;
    return run_total(call, total, call->out[0]);
}

template <class T, class L> static weft_status pair_backward(const weft_call *call, int64_t reduction, const L &loss) {
    // dloss: one number for all, or one for each element, whatever dims it has
    weft_view dloss = *call->in[1];
    dloss.data = call->in[0]->data;
    if (reduction != NONE) {
        dloss.ndim = 0;
        dloss.numel = 1;
    }
    const weft_view *views[4] = { call->out[0], &dloss, call->in[1], call->in[2] };
    const wide_t<T> scale = (wide_t<T>)(reduction == MEAN ? 1.0 / (double)call->in[1]->numel : 1.0);
    return each_run<3, T, wide_t<T>, T, T>(call, views, pair_slope<T, L>{ loss, scale });
}

CUDA_KERNEL(binary_cross_entropy_with_logits) {
    return with_float(call->in[0]->dtype, [&](auto tag) {
        using T = TYPE_OF(tag);
        return pair_forward<T>(call, call->at->AT(binary_cross_entropy_with_logits, reduction), bce<wide_t<T>>{});
    });
}
CUDA_KERNEL(bce_backward) {
    return with_float(call->in[1]->dtype, [&](auto tag) {
        using T = TYPE_OF(tag);
        return pair_backward<T>(call, call->at->AT(bce_backward, reduction), bce<wide_t<T>>{});
    });
}
CUDA_KERNEL(smooth_l1) {
    return with_float(call->in[0]->dtype, [&](auto tag) {
        using T = TYPE_OF(tag);
        const huber<wide_t<T>> loss{ (wide_t<T>)call->at->AT(smooth_l1, beta) };
        return pair_forward<T>(call, call->at->AT(smooth_l1, reduction), loss);
    });
}
CUDA_KERNEL(smooth_l1_backward) {
    return with_float(call->in[1]->dtype, [&](auto tag) {
        using T = TYPE_OF(tag);
        const huber<wide_t<T>> loss{ (wide_t<T>)call->at->AT(smooth_l1_backward, beta) };
        return pair_backward<T>(call, call->at->AT(smooth_l1_backward, reduction), loss);
    });
}
