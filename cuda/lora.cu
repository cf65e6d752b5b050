// lora.cu: a linear layer with a low-rank branch, y = x W^T + b + scale dropout(x) A^T B^T, and its
// gradients. Large products are cuda_product's, the branch is a kernel of low_rank.cu, and its first
// factor's gradient under dropout one of low_rank_gradient.cu. Dropout's mask is drawn where x is read, as
// the CPU draws it; its factor 1 / (1 - p) goes into the products, which costs nothing and no rounding.
#include "cuda/blas.h"
#include "cuda/calls.h"
#include "cuda/draws.h"
#include "cuda/low_rank.h"

enum { NEED_DX = 1, NEED_DW = 2, NEED_DBIAS = 4, NEED_DA = 8, NEED_DB = 16 };

struct dropout { double p, keep; const weft_attrs *at; };

static dropout dropout_of(const weft_attrs *at, double p) { return dropout{ p, p < 1 ? 1 / (1 - p) : 0, at }; }

// A draw keeps its element where its upper 24 bits are at least this.
static uint32_t limit_of(const dropout *d) {
    const double scaled = d->p * 0x1p24;
    const uint32_t limit = (uint32_t)scaled;
    return limit + ((double)limit < scaled);
}

static low_rank branch(const weft_call *call, const dropout *d, int64_t rows, int64_t r) {
    low_rank p = {};
    p.rows = rows, p.r = p.line = r;
    p.key = d->at->rng_key, p.counter = d->at->rng_counter, p.clock = device_of(call)->clock;
    p.limit = limit_of(d);
    p.after = 1;
    return p;
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
    if (d.p > 0) TRY(named_draw(call));
    const int dtype = x->dtype;
    if (rows == 0) return WEFT_OK;
    TRY(product(call, dtype, { rows, out, in }, 1, x->data, false, weight->data, true, 0, y->data, bias ? bias->data : nullptr));
    low_rank p = branch(call, &d, rows, r);
    p.turned = true;
    p.in = in, p.out = out;
    p.x = x->data, p.down = a->data, p.up = b->data, p.h = h->data, p.y = y->data;
    p.drop_x = d.p > 0;
    p.before = d.p > 0 ? d.keep : 1, p.after = call->at->AT(lora_linear, scale);
    return cuda_low_rank(call, dtype, p);
}

// With t = scale dy B: dx = dy W + mask(t A), dA = t^T mask(x).
CUDA_KERNEL(lora_linear_backward) {
    const weft_view *dy = call->in[0], *x = call->in[1], *weight = call->in[2], *a = call->in[3], *b = call->in[4], *h = call->in[5];
    const int64_t needs = call->at->AT(lora_linear_backward, needs);
    const double scale = call->at->AT(lora_linear_backward, scale);
    const dropout d = dropout_of(call->at, call->at->AT(lora_linear_backward, p));
    if (d.p > 0) TRY(named_draw(call));
    const bool need_dx = needs & NEED_DX, need_da = needs & NEED_DA, masked = d.p > 0;
    const bool onto = call->at->AT(lora_linear_backward, onto) != 0;
    const int dtype = dy->dtype;
    const int64_t size = cuda_host->dtype_size(dtype);
    const int64_t rows = weft_span(dy, 0, dy->ndim - 1), out = dy->shape[dy->ndim - 1];
    const int64_t in = x ? x->shape[x->ndim - 1] : weight ? weight->shape[1] : 0;
    const int64_t r = b ? b->shape[1] : h ? h->shape[h->ndim - 1] : 0;
    void *const dx = call->out[0]->data;
    if (need_dx || need_da) {
        scratch t(call, rows * r * size);
        if (!t.data) return WEFT_ENOMEM;
        if (need_dx) TRY(product(call, dtype, { rows, in, out }, 1, dy->data, false, weight->data, false, onto, dx));
        low_rank p = branch(call, &d, rows, r);
        p.in = out, p.out = in;
        p.x = dy->data, p.down = b->data, p.up = need_dx ? a->data : nullptr, p.h = t.data, p.y = need_dx ? dx : nullptr;
        p.drop_y = masked;
        p.before = scale * (masked ? d.keep : 1);
        TRY(cuda_low_rank(call, dtype, p));
        if (need_da && masked) TRY(cuda_low_rank_gradient(call, dtype, p, x->data, in, call->out[3]->data));
        else if (need_da)
            TRY(product(call, dtype, { r, in, rows }, 1, t.data, true, x->data, false, 0, call->out[3]->data));
    }
    if (needs & NEED_DW) TRY(product(call, dtype, { out, in, rows }, 1, dy->data, true, x->data, false, 0, call->out[1]->data));
    if (needs & NEED_DB) TRY(product(call, dtype, { out, r, rows }, scale, dy->data, true, h->data, false, 0, call->out[4]->data));
    if (needs & NEED_DBIAS) TRY(cuda_sum_rows(call, call->out[2], dy));
    return WEFT_OK;
}
