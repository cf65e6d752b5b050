// online.h: the largest element m of a list and the sum of exp(x - m). Long lists are read once: a
// thread's sum is scaled when its maximum rises, and to the common one in the end. NaN is passed over
// by the maximum and stays in the sum. In a list of -inf alone every x - m is NaN.
#ifndef WEFT_CUDA_ONLINE_H
#define WEFT_CUDA_ONLINE_H

#include "cuda/rows.h"

// exp for x <= 0, no more exact than a result in T can show
template <class T> DEVICE wide_t<T> exp_for(wide_t<T> x) { return exp(x); }
template <> DEVICE float exp_for<float>(float x) { return expf(x); }
template <> DEVICE float exp_for<bf16>(float x) { return __expf(x); }

template <class W> struct exp_sum {
    W max;
    double sum;
    DEVICE exp_sum() : max(-(W)INFINITY), sum(0) {}
    DEVICE double scaled(W to) const { return max == to || to == -(W)INFINITY ? sum : sum * (double)exp(max - to); }
};

template <class T, int VEC> DEVICE wide_t<T> largest(wide_t<T> max, const pack<T, VEC> &p) {
    for (int c = 0; c < VEC; c++) {
        const wide_t<T> v = widen<T>(p.v[c]);
        max = v > max ? v : max;
    }
    return max;
}

template <class T, int VEC> DEVICE void add_pack(exp_sum<wide_t<T>> &e, const pack<T, VEC> &p) {
    typedef wide_t<T> W;
    const W max = largest<T, VEC>(e.max, p), from = max == -(W)INFINITY ? (W)0 : max;
    W sum = 0;
    for (int c = 0; c < VEC; c++) sum += exp_for<T>(widen<T>(p.v[c]) - from);
    if (max > e.max) e.sum = e.scaled(max);
    e.sum += (double)sum;
    e.max = max;
}

// Over the threads of a row; each gets the result.
template <class T, int VEC, int PER> DEVICE exp_sum<wide_t<T>> row_exp_sum(const row_part<T, VEC, PER> &x) {
    typedef wide_t<T> W;
    exp_sum<W> e;
    if constexpr (PER > 0) {
        each_pack<PER>(x.packs, [&](int i, auto k) { e.max = largest<T, VEC>(e.max, x.at(i, k)); });
        e.max = row_reduce(e.max, max_op());
        W sum = 0;
        each_pack<PER>(x.packs, [&](int i, auto k) {
            const pack<T, VEC> p = x.at(i, k);
            for (int c = 0; c < VEC; c++) sum += exp_for<T>(widen<T>(p.v[c]) - e.max);
        });
        e.sum = (double)row_sum(sum);
    } else {
        each_pack<0>(x.packs, [&](int i, auto k) { add_pack<T, VEC>(e, x.at(i, k)); });
        const W max = row_reduce(e.max, max_op());
        e.sum = row_sum(e.scaled(max));
        e.max = max;
    }
    return e;
}

// Over the threads of a column.
template <class W> DEVICE exp_sum<W> column_exp_sum(exp_sum<W> e) {
    const W max = column_reduce(e.max, max_op());
    e.sum = column_reduce(e.scaled(max), add_op());
    e.max = max;
    return e;
}

#endif
