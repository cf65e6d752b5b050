// attention.h: what the kernels of attention share: the operands of a call, which keys a query may
// see, and the draws of dropout. attention.cu has the kernels for every dtype, attention_bf16.cu
// those on tensor cores.
#ifndef WEFT_CUDA_ATTENTION_H
#define WEFT_CUDA_ATTENTION_H

#include "cuda/device.h"
#define WEFT_FN static __host__ __device__ inline
#include "tensor/random.h"

struct head_view {       // [B, H, rows, D], or [B, H, rows]
    void *data;
    int64_t stride[4];
    bool pieces;         // rows of bfloat16 that are whole, aligned pieces of 16 bytes
};

struct attention_args {
    head_view q, k, v, y, dy, dq, dk, dv, lse;
    void *delta;         // [B, H, N]: the sum over a row of dy * y, statistics' type
    void *mask;
    int64_t mask_stride[4];
    bool mask_bytes;     // bool or uint8; else of q's dtype and added
    bool causal, drop;
    int64_t heads, n, m, d;
    double scale, keep;  // keep: what dropout multiplies by
    uint32_t drop_below; // dropped where the upper 24 bits of the word are below
    uint64_t key, counter;
    const uint64_t *clock;
    template <class V> void visit(V &v_) {
        v_(clock);
        for (head_view *p : { &q, &k, &v, &y, &dy, &dq, &dk, &dv, &lse }) v_(p->data);
        v_(delta);
        v_(only_read(mask));
    }
};

template <class T> DEVICE T *head_of(const attention_args &a, const head_view &v, int64_t head) {
    return static_cast<T *>(v.data) + head / a.heads * v.stride[0] + head % a.heads * v.stride[1];
}

// Keys that query i may see, not counting the mask: none for a query that is not there.
DEVICE int64_t visible_keys(const attention_args &a, int64_t i) {
    if (i >= a.n) return 0;
    if (!a.causal) return a.m;
    const int64_t n = i + a.m - a.n + 1;
    return n < 0 ? 0 : n < a.m ? n : a.m;
}
// Keys from j on that some query of [begin, end) sees end here.
DEVICE int64_t visible_end(const attention_args &a, int64_t end) {
    return visible_keys(a, (end < a.n ? end : a.n) - 1);
}
// The first query that sees key j.
DEVICE int64_t first_query(const attention_args &a, int64_t j) {
    const int64_t i = j - a.m + a.n;
    return a.causal && i > 0 ? i : 0;
}

// score s of query i and key j with the mask.
template <class T> DEVICE wide_t<T> masked(const attention_args &a, int64_t head, int64_t i, int64_t j, wide_t<T> s) {
    if (!a.mask) return s;
    const int64_t at = head / a.heads * a.mask_stride[0] + head % a.heads * a.mask_stride[1] +
                       i * a.mask_stride[2] + j * a.mask_stride[3];
    if (a.mask_bytes) return static_cast<const uint8_t *>(a.mask)[at] ? s : (wide_t<T>)-INFINITY;
    return s + widen<T>(static_cast<const T *>(a.mask)[at]);
}

// Bits 0..3: which of the elements 4 * block .. 4 * block + 3 of [B, H, N, M] dropout keeps.
DEVICE unsigned kept_bits(const attention_args &a, uint64_t block) {
    const weft_philox4 w = weft_philox(a.key, counter_now(a.counter, a.clock), block);
    unsigned bits = 0;
    for (int i = 0; i < 4; i++) bits |= (unsigned)(w.v[i] >> 8 >= a.drop_below) << i;
    return bits;
}

// What each kernel of the gradient is given: delta's, dq's (which works out delta itself in bfloat16), that
// of dk and dv.
static inline attention_args of_rows(attention_args a) {
    for (head_view *p : { &a.q, &a.k, &a.v, &a.dq, &a.dk, &a.dv, &a.lse }) p->data = nullptr;
    a.mask = nullptr;
    return a;
}
static inline attention_args of_queries(attention_args a, bool with_y = false) {
    if (!with_y) a.y.data = nullptr;
    a.dk.data = a.dv.data = nullptr;
    return a;
}
static inline attention_args of_keys(attention_args a) {
    a.y.data = a.dq.data = nullptr;
    return a;
}

// bfloat16 on tensor cores, for heads up to ATTENTION_BF16_HEAD
#define ATTENTION_BF16_HEAD 128
weft_status attention_bf16_forward(const weft_call *call, const attention_args &a, int64_t heads);
// delta is there, or dq is wanted too
weft_status attention_bf16_backward(const weft_call *call, const attention_args &a, int64_t heads, int64_t needs);

#endif
