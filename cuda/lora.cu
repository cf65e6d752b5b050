// lora.cu: a linear layer with a low-rank branch, y = x W^T + b + scale dropout(x) A^T B^T, and its
// gradients. Products are cuda_product's. Dropout's mask is drawn where it is applied, as the CPU
// draws it; its factor 1 / (1 - p) goes into the products, which costs nothing and no rounding.
#include "cuda/blas.h"
#include "cuda/calls.h"
#include "cuda/each.h"
#define WEFT_FN static __host__ __device__ inline
#include "tensor/random.h"

#define GROUP 8             // elements a thread masks at a time: two draws

enum { NEED_DX = 1, NEED_DW = 2, NEED_DBIAS = 4, NEED_DA = 8, NEED_DB = 16 };

struct masking {
    uint64_t key, counter;
    uint32_t limit;         // kept: word >> 8 at least this
    int64_t n;
    const void *x;
    void *dropped, *dx;     // dropped = x where kept, else 0; the same to dx in place; either NULL
    template <class V> void visit(V &v) { v(x), v(dropped), v(dx); }
};

template <class T> DEVICE void mask_group(const T *from, T *to, int64_t first, int64_t n, bool whole, const bool *kept) {
    const T zero = narrow<T>((wide_t<T>)0);
    if (whole) {
        pack<T, GROUP> v = *reinterpret_cast<const pack<T, GROUP> *>(from + first);
        for (int j = 0; j < GROUP; j++)
            if (!kept[j]) v.v[j] = zero;
        *reinterpret_cast<pack<T, GROUP> *>(to + first) = v;
        return;
    }
    for (int j = 0; j < GROUP; j++)
        if (first + j < n) to[first + j] = kept[j] ? from[first + j] : zero;
}

template <class T> __global__ void __launch_bounds__(256) mask_kernel(const masking m, const bool aligned) {
    const T *x = static_cast<const T *>(m.x);
    T *dropped = static_cast<T *>(m.dropped), *dx = static_cast<T *>(m.dx);
    for (int64_t first = THREAD_INDEX * GROUP; first < m.n; first += THREAD_COUNT * GROUP) {
        bool kept[GROUP];
        for (int half = 0; half < 2; half++) {
            const weft_philox4 words = weft_philox(m.key, m.counter, (uint64_t)(first >> 2) + (uint64_t)half);
            for (int j = 0; j < 4; j++) kept[4 * half + j] = words.v[j] >> 8 >= m.limit;
        }
        const bool whole = aligned && first + GROUP <= m.n;
        if (x) mask_group(x, dropped, first, m.n, whole, kept);
        if (dx) mask_group(dx, dx, first, m.n, whole, kept);
    }
}

struct dropout { double p, keep; const weft_attrs *at; };

static dropout dropout_of(const weft_attrs *at, double p) { return dropout{ p, p < 1 ? 1 / (1 - p) : 0, at }; }

// rows * columns elements; x or dx may be NULL.
static weft_status apply_mask(const weft_call *call, const dropout *d, int dtype, int64_t n, const void *x, void *dropped,
                              void *dx) {
    if (n == 0) return WEFT_OK;
    const double scaled = d->p * 0x1p24;
    masking m = {};
    m.key = d->at->rng_key, m.counter = d->at->rng_counter;
    m.limit = (uint32_t)scaled;
    m.limit += (double)m.limit < scaled;
    m.n = n;
    m.x = x, m.dropped = dropped, m.dx = dx;
    const bool aligned = ((uintptr_t)x | (uintptr_t)dropped | (uintptr_t)dx) % 16 == 0;
    return with_float(dtype, [&](auto tag) {
        return LAUNCH(call, mask_kernel<TYPE_OF(tag)>, blocks_for(ceil_div(n, GROUP), 256), 256, 0, m, aligned);
    });
}

// --- rows-by-rows products: c [m, n] = alpha op(a) op(b) + beta c, all three contiguous
struct shape3 { int64_t m, n, k; };
static weft_status product(const weft_call *call, int dtype, shape3 s, double alpha, const void *a, bool trans_a,
                           const void *b, bool trans_b, double beta, void *c, const void *bias = nullptr) {
    cuda_gemm g = {};
    g.dtype = dtype;
    g.trans_a = trans_a, g.trans_b = trans_b;
    g.m = s.m, g.n = s.n, g.k = s.k;
    g.lda = trans_a ? s.m : s.k, g.ldb = trans_b ? s.k : s.n, g.ldc = s.n;
    g.batch = 1;
    g.alpha = alpha, g.beta = beta;
    g.a = a, g.b = b, g.bias = bias, g.c = c;
    return cuda_product(call, &g);
}

CUDA_KERNEL(lora_linear) {
    const weft_view *x = call->in[0], *weight = call->in[1], *bias = call->in[2], *a = call->in[3], *b = call->in[4];
    const weft_view *y = call->out[0], *h = call->out[1];
    const int64_t rows = weft_span(x, 0, x->ndim - 1), in = weight->shape[1], out = weight->shape[0], r = a->shape[0];
    const dropout d = dropout_of(call->at, call->at->AT(lora_linear, p));
    const int dtype = x->dtype;
    if (rows == 0) return WEFT_OK;
    TRY(product(call, dtype, { rows, out, in }, 1, x->data, false, weight->data, true, 0, y->data, bias ? bias->data : nullptr));
    if (d.p > 0) {
        scratch dropped(call, x->numel * cuda_host->dtype_size(dtype));
        if (!dropped.data) return WEFT_ENOMEM;
        TRY(apply_mask(call, &d, dtype, x->numel, x->data, dropped.data, nullptr));
        TRY(product(call, dtype, { rows, r, in }, d.keep, dropped.data, false, a->data, true, 0, h->data));
    } else TRY(product(call, dtype, { rows, r, in }, 1, x->data, false, a->data, true, 0, h->data));
    return product(call, dtype, { rows, out, r }, call->at->AT(lora_linear, scale), h->data, false, b->data, true, 1, y->data);
}

// With t = scale dy B: dx = dy W + mask(t A), dA = t^T mask(x). The mask is drawn once for both.
CUDA_KERNEL(lora_linear_backward) {
    const weft_view *dy = call->in[0], *x = call->in[1], *weight = call->in[2], *a = call->in[3], *b = call->in[4], *h = call->in[5];
    const int64_t needs = call->at->AT(lora_linear_backward, needs);
    const double scale = call->at->AT(lora_linear_backward, scale);
    const dropout d = dropout_of(call->at, call->at->AT(lora_linear_backward, p));
    const bool need_dx = needs & NEED_DX, need_da = needs & NEED_DA, masked = d.p > 0;
    const int dtype = dy->dtype;
    const int64_t size = cuda_host->dtype_size(dtype);
    const int64_t rows = weft_span(dy, 0, dy->ndim - 1), out = dy->shape[dy->ndim - 1];
    const int64_t in = x ? x->shape[x->ndim - 1] : weight ? weight->shape[1] : 0;
    const int64_t r = b ? b->shape[1] : h ? h->shape[h->ndim - 1] : 0;
    void *const dx = call->out[0]->data;
    if (need_dx || need_da) {
        scratch t(call, rows * r * size), dropped(call, masked && need_da ? rows * in * size : 0);
        if (!t.data || !dropped.data) return WEFT_ENOMEM;
        TRY(product(call, dtype, { rows, r, out }, scale * (masked ? d.keep : 1), dy->data, false, b->data, false, 0, t.data));
        if (need_dx && masked) TRY(product(call, dtype, { rows, in, r }, 1, t.data, false, a->data, false, 0, dx));
        if (masked)
            TRY(apply_mask(call, &d, dtype, rows * in, need_da ? x->data : nullptr, dropped.data, need_dx ? dx : nullptr));
        if (need_dx) TRY(product(call, dtype, { rows, in, out }, 1, dy->data, false, weight->data, false, masked ? 1 : 0, dx));
        if (need_dx && !masked) TRY(product(call, dtype, { rows, in, r }, 1, t.data, false, a->data, false, 1, dx));
        if (need_da)
            TRY(product(call, dtype, { r, in, rows }, 1, t.data, true, masked ? dropped.data : x->data, false, 0, call->out[3]->data));
    }
    if (needs & NEED_DW) TRY(product(call, dtype, { out, in, rows }, 1, dy->data, true, x->data, false, 0, call->out[1]->data));
    if (needs & NEED_DB) TRY(product(call, dtype, { out, r, rows }, scale, dy->data, true, h->data, false, 0, call->out[4]->data));
    if (needs & NEED_DBIAS) TRY(cuda_sum_rows(call, call->out[2], dy));
    return WEFT_OK;
}
