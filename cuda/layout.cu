// layout.cu: kernels that move elements without looking at them: flip, cat, pad, and the gradients
// of narrow and unfold. Copies of strided views (contiguous) are in cast.cu.
#include "cuda/cast.h"
#include "cuda/each.h"
#include "cuda/units.h"

template <class T> struct moved_fn {
    DEVICE T operator()(T x) const { return x; }
};

// out and in: any strides, one shape and size of element.
static weft_status copy_part(const weft_call *call, const weft_view *out, const weft_view *in) {
    const weft_view *views[2] = { out, in };
    return with_size(out->dtype, [&](auto tag) {
        using T = TYPE_OF(tag);
        return each_run<1, T, T, char, char>(call, views, moved_fn<T>{});
    });
}

CUDA_KERNEL(flip) {
    weft_view x = *call->in[0];
    const int64_t size = cuda_host->dtype_size(x.dtype);
    for (int i = 0; i < call->at->n_list && x.numel; i++) {
        const int64_t d = call->at->list[i] < 0 ? call->at->list[i] + x.ndim : call->at->list[i];
        x.data = static_cast<char *>(x.data) + (x.shape[d] - 1) * x.stride[d] * size;
        x.stride[d] = -x.stride[d];
    }
    return copy_part(call, call->out[0], &x);
}

// --- cat. y is seen as rows; input i fills a stretch of each. Inputs whose stretches lie in one piece
// and at one distance go CAT_PARTS to a launch, others one each.
#define CAT_PARTS 64
#define CAT_THREADS 256
#define CAT_CHUNK (8 * CAT_THREADS)     // units of a block

struct cat_part { const void *x; int64_t numel, span, step, at; };   // in units, but for cat_place
struct cat_table {
    cat_part part[CAT_PARTS];
    int32_t first[CAT_PARTS + 1];       // by part: its first block
    int32_t n;
    template <class V> void visit(V &v) {
        for (int k = 0; k < n; k++) v(part[k].x);
    }
};

template <class U>
__global__ void __launch_bounds__(CAT_THREADS) cat_kernel(const cat_table t, U *y, const int64_t row) {
    const int block = (int)blockIdx.x;
    int low = 0, high = t.n - 1;
    while (low < high) {                // the last part that starts at or before this block
        const int middle = (low + high + 1) / 2;
        if (t.first[middle] <= block) low = middle;
        else high = middle - 1;
    }
    const cat_part p = t.part[low];
    const U *x = static_cast<const U *>(p.x);
    const int64_t begin = (int64_t)(block - t.first[low]) * CAT_CHUNK;
    const int64_t end = begin + CAT_CHUNK < p.numel ? begin + CAT_CHUNK : p.numel;
    for (int64_t i = begin + threadIdx.x; i < end; i += CAT_THREADS) {
        int64_t at;
        const int64_t r = divided(i, p.span, &at);
        y[r * row + p.at + at] = x[r * p.step + at];
    }
}

// Whether x's dims from `dim` on lie in one piece and those before it are walked with one step. Fills
// span and step, in elements.
static bool cat_rows(const weft_view *x, int dim, cat_part *part) {
    int64_t expect = 1;
    for (int d = x->ndim - 1; d >= dim; d--) {
        if (x->shape[d] != 1 && x->stride[d] != expect) return false;
        expect *= x->shape[d];
    }
    part->span = expect;
    part->step = 0;
    int64_t rows = 1;
    for (int d = dim - 1; d >= 0; d--) {
        if (x->shape[d] == 1) continue;
        if (rows == 1) part->step = x->stride[d];
        else if (x->stride[d] != part->step * rows) return false;
        rows *= x->shape[d];
    }
    return true;
}

static weft_status cat_launch(const weft_call *call, cat_table *t, int64_t row, uint64_t bits) {
    if (t->n == 0) return WEFT_OK;
    const weft_view *y = call->out[0];
    const int64_t size = cuda_host->dtype_size(y->dtype), unit = unit_of(bits | (uint64_t)(row * size));
    for (int k = 0, blocks = 0; k < t->n; k++) {
        cat_part *p = &t->part[k];
        for (int64_t *n : { &p->numel, &p->span, &p->step, &p->at }) *n = *n * size / unit;
        t->first[k] = blocks;
        blocks += (int)ceil_div(p->numel, CAT_CHUNK);
        t->first[k + 1] = blocks;
    }
    weft_status code = with_unit(unit, [&](auto tag) {
        using U = TYPE_OF(tag);
        return LAUNCH(call, (cat_kernel<U>), (unsigned)t->first[t->n], CAT_THREADS, 0, *t,
                      static_cast<U *>(y->data), row * size / unit);
    });
    t->n = 0;
    return code;
}

CUDA_KERNEL(cat) {
    const weft_view *y = call->out[0];
    const int64_t size = cuda_host->dtype_size(y->dtype);
    int dim = (int)call->at->AT(cat, dim);
    if (dim < 0) dim += y->ndim;
    if (y->numel == 0) return WEFT_OK;
    const int64_t inner = weft_span(y, dim + 1, y->ndim), row = inner * y->shape[dim];
    cat_table t;
    uint64_t bits = (uint64_t)(uintptr_t)y->data;
    t.n = 0;
    for (int64_t i = 0, start = 0; i < call->n_in; start += call->in[i++]->shape[dim]) {
        const weft_view *x = call->in[i];
        cat_part *p = &t.part[t.n];
        if (x->numel == 0) continue;
        if (!cat_rows(x, dim, p)) {
            weft_view part = *y;
            part.data = static_cast<char *>(y->data) + start * inner * size;
            part.shape[dim] = x->shape[dim];
            part.numel = x->numel;
            TRY(copy_part(call, &part, x));
            continue;
        }
        p->x = x->data;
        p->numel = x->numel;
        p->at = start * inner;
        bits |= (uint64_t)(uintptr_t)x->data | (uint64_t)((p->span | p->step | p->at) * size);
        if (++t.n == CAT_PARTS) {
            TRY(cat_launch(call, &t, row, bits));
            bits = (uint64_t)(uintptr_t)y->data;
        }
    }
    return cat_launch(call, &t, row, bits);
}

// --- x inside y, and one value around it
struct place {
    const void *x;
    void *y;
    int64_t numel, shape[WEFT_MAX_DIMS], before[WEFT_MAX_DIMS], size[WEFT_MAX_DIMS], stride[WEFT_MAX_DIMS];
    int32_t ndim;
    template <class V> void visit(V &v) { v(x); v(y); }
};

template <class T, int VEC> __global__ void __launch_bounds__(EACH_THREADS) place_kernel(const place p, const T value) {
    for (int64_t i = THREAD_INDEX * VEC; i < p.numel; i += THREAD_COUNT * VEC) {
        int64_t rest = i, at = 0, c;
        bool inside = true;
        for (int d = p.ndim - 1; d >= 0; d--) {
            rest = divided(rest, p.shape[d], &c);
            c -= p.before[d];
            inside = inside && c >= 0 && c < p.size[d];
            at += c * p.stride[d];
        }
        pack<T, VEC> v;
        for (int j = 0; j < VEC; j++) v.v[j] = value;
        if (inside) v = *reinterpret_cast<const pack<T, VEC> *>(static_cast<const T *>(p.x) + at);
        *reinterpret_cast<pack<T, VEC> *>(static_cast<T *>(p.y) + i) = v;
    }
}

template <class T> static weft_status place_run(const weft_call *call, const place &p, T value) {
    constexpr int WIDE = 16 / sizeof(T);
    const int inner = p.ndim - 1;
    int64_t bits = p.shape[inner] | p.before[inner] | p.size[inner];
    for (int d = 0; d < inner; d++) bits |= p.stride[d];
    const bool wide = bits % WIDE == 0 && p.stride[inner] == 1 && ((uintptr_t)p.x | (uintptr_t)p.y) % 16 == 0;
    if (wide)
        return LAUNCH(call, (place_kernel<T, WIDE>), blocks_for(p.numel / WIDE, EACH_THREADS), EACH_THREADS, 0, p, value);
    return LAUNCH(call, (place_kernel<T, 1>), blocks_for(p.numel, EACH_THREADS), EACH_THREADS, 0, p, value);
}

// before: by dim, where x begins in y.
static weft_status place_in(const weft_call *call, const weft_view *y, const weft_view *x, const int64_t *before,
                            double value) {
    place p = {};
    int n = 0;
    if (y->numel == 0) return WEFT_OK;
    p.x = x->data;
    p.y = y->data;
    p.numel = y->numel;
    for (int d = 0; d < y->ndim; d++) {
        const bool whole = x->shape[d] == y->shape[d];
        if (whole && x->shape[d] == 1) continue;
        // a dim that x fills is walked with the one before it as one
        if (whole && n > 0 && p.stride[n - 1] == x->stride[d] * x->shape[d]) {
            p.shape[n - 1] *= y->shape[d];
            p.before[n - 1] *= y->shape[d];
            p.size[n - 1] *= y->shape[d];
            p.stride[n - 1] = x->stride[d];
            continue;
        }
        p.shape[n] = y->shape[d];
        p.before[n] = before[d];
        p.size[n] = x->shape[d];
        p.stride[n++] = x->stride[d];
    }
    if (n == 0) {
        p.shape[0] = p.size[0] = p.stride[0] = 1;
        n = 1;
    }
    p.ndim = n;
    switch (y->dtype) {
    case WEFT_FLOAT32: return place_run<float>(call, p, converted<float>(value));
    case WEFT_FLOAT64: return place_run<double>(call, p, value);
    case WEFT_BFLOAT16: return place_run<bf16>(call, p, converted<bf16>(value));
    case WEFT_FLOAT16: return place_run<half_t>(call, p, converted<half_t>(value));
    case WEFT_INT32: return place_run<int32_t>(call, p, converted<int32_t>(value));
    case WEFT_INT64: return place_run<int64_t>(call, p, converted<int64_t>(value));
    case WEFT_UINT8: return place_run<uint8_t>(call, p, converted<uint8_t>(value));
    default: return place_run<uint8_t>(call, p, (uint8_t)(value != 0));
    }
}

CUDA_KERNEL(pad) {
    const weft_view *x = call->in[0];
    int64_t before[WEFT_MAX_DIMS] = { 0 };
    for (int d = 0; d < x->ndim; d++) before[d] = call->at->list[2 * d];
    return place_in(call, call->out[0], x, before, call->at->AT(pad, value));
}

CUDA_KERNEL(narrow_backward) {
    const weft_view *dy = call->in[0];
    int64_t dim = call->at->AT(narrow_backward, dim), start = call->at->AT(narrow_backward, start);
    int64_t before[WEFT_MAX_DIMS] = { 0 };
    if (dim < 0) dim += dy->ndim;
    before[dim] = start < 0 ? start + call->at->AT(narrow_backward, size) : start;
    return place_in(call, call->out[0], dy, before, 0);
}

// --- unfold_backward: dx[o, p, i] = sum over windows w that hold p of dy[o, w, i, p - w * step],
// windows in order
struct folding { int64_t numel, size, windows, inner, length, step; };

template <class T>
__global__ void __launch_bounds__(EACH_THREADS) fold_kernel(const folding f, const T *__restrict__ dy, T *__restrict__ dx) {
    for (int64_t e = THREAD_INDEX; e < f.numel; e += THREAD_COUNT) {
        int64_t i, at;
        const int64_t o = divided(divided(e, f.inner, &i), f.size, &at);
        const int64_t first = at < f.length ? 0 : (at - f.length) / f.step + 1;
        const int64_t last = at / f.step < f.windows ? at / f.step : f.windows - 1;
        wide_t<T> sum = 0;
        for (int64_t w = first; w <= last; w++)
            sum += widen<T>(dy[((o * f.windows + w) * f.inner + i) * f.length + at - w * f.step]);
        dx[e] = narrow<T>(sum);
    }
}

CUDA_KERNEL(unfold_backward) {
    const weft_view *dy = call->in[0], *dx = call->out[0];
    int64_t dim = call->at->AT(unfold_backward, dim);
    if (dx->numel == 0) return WEFT_OK;
    if (dim < 0) dim += dx->ndim;
    const folding f = { dx->numel, dx->shape[dim], dy->shape[dim], weft_span(dx, (int)dim + 1, dx->ndim),
                        dy->shape[dx->ndim], call->at->AT(unfold_backward, step) };
    return with_float(dx->dtype, [&](auto tag) {
        using T = TYPE_OF(tag);
        return LAUNCH(call, (fold_kernel<T>), blocks_for(f.numel, EACH_THREADS), EACH_THREADS, 0, f,
                      static_cast<const T *>(dy->data), static_cast<T *>(dx->data));
    });
}
