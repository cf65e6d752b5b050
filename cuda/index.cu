// index.cu: kernels that read and add by index. What is added to one place is added in the order of
// the index: keys (place, position) are sorted where threads could not walk that order side by side.
// An index out of range is told to the host, and left out.
#include "cuda/each.h"
#include "cuda/keys.h"
#include "cuda/units.h"

// --- whole stretches: embedding and index_select. y[o][k] = x[o][index[k]], each `units` long
struct stretches {
    const void *x;
    void *y;
    const int64_t *index;
    weft_rows index_at;         // its elements
    int64_t numel, n, rows, units;
    fault_sink faults;
    template <class V> void visit(V &v) { v(x); v(y); v(index); faults.visit(v); }
};

template <class U> __global__ void __launch_bounds__(EACH_THREADS) stretch_kernel(const stretches s) {
    for (int64_t i = THREAD_INDEX; i < s.numel; i += THREAD_COUNT) {
        int64_t u, k;
        const int64_t o = divided(divided(i, s.units, &u), s.n, &k), at = s.index[row_at(s.index_at, k)];
        U v = {};
        if ((uint64_t)at < (uint64_t)s.rows) v = static_cast<const U *>(s.x)[(o * s.rows + at) * s.units + u];
        else s.faults.complain(FAULT_INDEX, (double)at, 0, (double)(s.rows - 1), k);
        static_cast<U *>(s.y)[i] = v;
    }
}

static weft_rows elements_of(const weft_view *index) {
    weft_rows r = { 1, 0, 0, 0 };
    weft_rows_of(index, 0, &r);
    return r;
}

static weft_status copy_stretches(const weft_call *call, const weft_view *x, const weft_view *index, int64_t rows,
                                  int64_t inner, int op) {
    const weft_view *y = call->out[0];
    const int64_t size = cuda_host->dtype_size(x->dtype);
    if (y->numel == 0) return WEFT_OK;
    const int64_t unit = unit_of((uint64_t)(uintptr_t)x->data | (uint64_t)(uintptr_t)y->data | (uint64_t)(inner * size));
    const stretches s = { x->data, y->data, static_cast<const int64_t *>(index->data), elements_of(index),
                          y->numel * size / unit, index->numel, rows, inner * size / unit, faults(call, op) };
    return with_unit(unit, [&](auto tag) {
        return LAUNCH(call, (stretch_kernel<TYPE_OF(tag)>), blocks_for(s.numel, EACH_THREADS), EACH_THREADS, 0, s);
    });
}

static int real_dim(int64_t dim, int ndim) { return (int)(dim < 0 ? dim + ndim : dim); }

CUDA_KERNEL(embedding) {
    const weft_view *ids = call->in[0], *weight = call->in[1];
    return copy_stretches(call, weight, ids, weight->shape[0], weight->shape[1], OP_embedding);
}

CUDA_KERNEL(index_select) {
    const weft_view *x = call->in[0];
    const int dim = real_dim(call->at->AT(index_select, dim), x->ndim);
    return copy_stretches(call, x, call->in[1], x->shape[dim], weft_span(x, dim + 1, x->ndim), OP_index_select);
}

// --- index_copy_: x[index[k]] = src[k]
template <class U> __global__ void __launch_bounds__(EACH_THREADS) place_kernel(const stretches s) {
    for (int64_t i = THREAD_INDEX; i < s.numel; i += THREAD_COUNT) {
        int64_t u;
        const int64_t k = divided(i, s.units, &u), at = s.index[row_at(s.index_at, k)];
        if (at >= s.rows) s.faults.complain(FAULT_INDEX, (double)at, 0, (double)(s.rows - 1), k);
        else if (at >= 0) static_cast<U *>(s.y)[at * s.units + u] = static_cast<const U *>(s.x)[i];
    }
}

CUDA_KERNEL(index_copy_) {
    const weft_view *x = call->in[0], *index = call->in[1], *src = call->in[2];
    const int64_t row = weft_span(x, 1, x->ndim) * cuda_host->dtype_size(x->dtype);
    if (src->numel == 0) return WEFT_OK;
    const int64_t unit = unit_of((uint64_t)(uintptr_t)x->data | (uint64_t)(uintptr_t)src->data | (uint64_t)row);
    const stretches s = { src->data, x->data, static_cast<const int64_t *>(index->data), elements_of(index),
                          index->numel * row / unit, index->numel, x->shape[0], row / unit, faults(call, OP_index_copy_) };
    return with_unit(unit, [&](auto tag) {
        return LAUNCH(call, (place_kernel<TYPE_OF(tag)>), blocks_for(s.numel, EACH_THREADS), EACH_THREADS, 0, s);
    });
}

// --- keys of a vector of indices: index, then position
struct vector_keys {
    const int64_t *index;
    weft_rows index_at;
    int64_t rows;
    int32_t shift;              // bits of a position
    fault_sink faults;
    template <class V> void visit(V &v) { v(index); faults.visit(v); }
    DEVICE uint64_t operator()(int64_t i) const {
        const int64_t at = index[row_at(index_at, i)];
        if ((uint64_t)at < (uint64_t)rows) return (uint64_t)at << shift | (uint64_t)i;
        faults.complain(FAULT_INDEX, (double)at, 0, (double)(rows - 1), i);
        return KEY_NONE;
    }
};

static int bits_of(int64_t n) {     // of the numbers below n
    int bits = 1;
    while ((int64_t)1 << bits < n) bits++;
    return bits;
}

static vector_keys keys_of(const weft_call *call, const weft_view *index, int64_t rows, int op) {
    return vector_keys{ static_cast<const int64_t *>(index->data), elements_of(index), rows, bits_of(index->numel),
                        faults(call, op) };
}

// --- embedding_backward. The sorted positions are cut into pieces of FOLD; a block sums the runs of
// equal ids in its piece. A run that lies in one piece goes to its row at once; others leave a partial
// sum a piece (first: of the run that came in, second: of the run that goes on), which are added up
// in order by the piece where the run begins.
#define FOLD 16
#define FOLD_THREADS 256

struct folds {
    const uint64_t *keys;
    weft_rows dy_rows;
    int64_t n, width, pieces;
    int32_t shift;
    template <class V> void visit(V &v) { v(keys); }
    DEVICE int64_t id(int64_t i) const { return i < 0 || i >= n || keys[i] == KEY_NONE ? -1 : (int64_t)(keys[i] >> shift); }
    DEVICE int64_t position(int64_t i) const { return (int64_t)(keys[i] & (((uint64_t)1 << shift) - 1)); }
};

template <class T, int VEC>
__global__ void __launch_bounds__(FOLD_THREADS) fold_rows(const folds f, const T *__restrict__ dy, T *__restrict__ dw,
                                                          wide_t<T> *__restrict__ partial) {
    const int64_t piece = blockIdx.x, begin = piece * FOLD;
    const int64_t column = ((int64_t)blockIdx.y * FOLD_THREADS + threadIdx.x) * VEC;
    if (column >= f.width) return;
    const int count = (int)(f.n - begin < FOLD ? f.n - begin : FOLD);
    wide_t<T> sum[VEC];
    int64_t id = f.id(begin);
    bool came_in = f.id(begin - 1) == id;
    for (int j = 0; j < VEC; j++) sum[j] = 0;
    for (int i = 0; i < count && id >= 0; i++) {
        const pack<T, VEC> v = *reinterpret_cast<const pack<T, VEC> *>(dy + row_at(f.dy_rows, f.position(begin + i)) + column);
        for (int j = 0; j < VEC; j++) sum[j] += widen<T>(v.v[j]);
        const int64_t next = f.id(begin + i + 1);
        if (next == id && i + 1 < count) continue;
        if (came_in || next == id) {
            wide_t<T> *to = partial + (2 * piece + !came_in) * f.width + column;
            for (int j = 0; j < VEC; j++) to[j] = sum[j];
        } else {
            pack<T, VEC> out;
            for (int j = 0; j < VEC; j++) out.v[j] = narrow<T>(sum[j]);
            *reinterpret_cast<pack<T, VEC> *>(dw + id * f.width + column) = out;
        }
        for (int j = 0; j < VEC; j++) sum[j] = 0;
        came_in = false;
        id = next;
    }
}

template <class T>
__global__ void __launch_bounds__(FOLD_THREADS) fold_pieces(const folds f, T *__restrict__ dw,
                                                            const wide_t<T> *__restrict__ partial) {
    const int64_t piece = blockIdx.x, end = (piece + 1) * FOLD;
    const int64_t column = (int64_t)blockIdx.y * FOLD_THREADS + threadIdx.x;
    const int64_t id = f.id(end - 1);
    // only where the run at the end of this piece began in it and goes on
    if (column >= f.width || id < 0 || f.id(end) != id) return;
    if (f.id(end - FOLD) == id && f.id(end - FOLD - 1) == id) return;
    wide_t<T> sum = partial[(2 * piece + 1) * f.width + column];
    for (int64_t p = piece + 1; f.id(p * FOLD) == id; p++) sum += partial[2 * p * f.width + column];
    dw[id * f.width + column] = narrow<T>(sum);
}

template <class T>
static weft_status add_rows(const weft_call *call, const folds &f, const weft_view *dy, const weft_view *dw) {
    constexpr int WIDE = 16 / sizeof(T);
    scratch partial(call, 2 * f.pieces * f.width * (int64_t)sizeof(wide_t<T>));
    if (!partial.data) return WEFT_ENOMEM;
    const T *from = static_cast<const T *>(dy->data);
    T *to = static_cast<T *>(dw->data);
    const bool wide = f.width % WIDE == 0 && rows_aligned(f.dy_rows, WIDE) && ((uintptr_t)from | (uintptr_t)to) % 16 == 0;
    const dim3 grid((unsigned)f.pieces, (unsigned)ceil_div(f.width, FOLD_THREADS * (wide ? WIDE : 1)));
    if (wide) TRY(LAUNCH(call, (fold_rows<T, WIDE>), grid, FOLD_THREADS, 0, f, from, to, partial.as<wide_t<T>>()));
    else TRY(LAUNCH(call, (fold_rows<T, 1>), grid, FOLD_THREADS, 0, f, from, to, partial.as<wide_t<T>>()));
    const dim3 columns((unsigned)f.pieces, (unsigned)ceil_div(f.width, FOLD_THREADS));
    return LAUNCH(call, (fold_pieces<T>), columns, FOLD_THREADS, 0, f, to, partial.as<wide_t<T>>());
}

CUDA_KERNEL(embedding_backward) {
    const weft_view *ids = call->in[0], *dy = call->in[1], *dw = call->out[0];
    const int64_t n = ids->numel;
    TRY(cuda_check(cudaMemsetAsync(dw->data, 0, (size_t)(dw->numel * cuda_host->dtype_size(dw->dtype)), stream_of(call)),
                   "embedding_backward"));
    if (n == 0) return WEFT_OK;
    scratch keys(call, keys_padded(n) * (int64_t)sizeof(uint64_t));
    if (!keys.data) return WEFT_ENOMEM;
    const vector_keys source = keys_of(call, ids, dw->shape[0], OP_embedding_backward);
    TRY(keys_sort(call, source, keys.as<uint64_t>(), n));
    if (dw->numel == 0) return WEFT_OK;
    folds f = { keys.as<uint64_t>(), {}, n, dw->shape[1], ceil_div(n, FOLD), source.shift };
    weft_rows_of(dy, 1, &f.dy_rows);
    return with_float(dy->dtype, [&](auto tag) { return add_rows<TYPE_OF(tag)>(call, f, dy, dw); });
}

// --- index_add: y[o][index[k]] += src[o][k], each `inner` long. A thread adds up a run of equal
// indices, from the place where the run begins.
struct adding {
    const uint64_t *keys;
    int64_t n, outer, inner, rows;
    int32_t shift;
    template <class V> void visit(V &v) { v(keys); }
};

// Integers wrap around.
template <class F> static weft_status with_sum(int dtype, F f) {
    switch (dtype) {
    case WEFT_INT32: return f(type_tag<uint32_t>{});
    case WEFT_INT64: return f(type_tag<uint64_t>{});
    default: return with_float(dtype, f);
    }
}

template <class T, int VEC>
__global__ void __launch_bounds__(EACH_THREADS) add_kernel(const adding a, const T *__restrict__ src, T *__restrict__ y) {
    const int64_t units = a.inner / VEC, total = a.n * a.outer * units;
    for (int64_t e = THREAD_INDEX; e < total; e += THREAD_COUNT) {
        int64_t u, o;
        int64_t k = divided(divided(e, units, &u), a.outer, &o);
        const uint64_t key = a.keys[k], row = key >> a.shift, mask = ((uint64_t)1 << a.shift) - 1;
        if (key == KEY_NONE || (k > 0 && a.keys[k - 1] >> a.shift == row)) continue;
        pack<T, VEC> *to = reinterpret_cast<pack<T, VEC> *>(y + (o * a.rows + (int64_t)row) * a.inner) + u;
        pack<T, VEC> v = *to;
        wide_t<T> sum[VEC];
        for (int j = 0; j < VEC; j++) sum[j] = widen<T>(v.v[j]);
        for (; k < a.n && a.keys[k] >> a.shift == row; k++) {
            const int64_t at = (o * a.n + (int64_t)(a.keys[k] & mask)) * a.inner;
            v = reinterpret_cast<const pack<T, VEC> *>(src + at)[u];
            for (int j = 0; j < VEC; j++) sum[j] += widen<T>(v.v[j]);
        }
        for (int j = 0; j < VEC; j++) v.v[j] = narrow<T>(sum[j]);
        *to = v;
    }
}

static weft_status copy_first(const weft_call *call) {
    const weft_view *x = call->in[0];
    return cuda_check(cudaMemcpyAsync(call->out[0]->data, x->data, (size_t)(x->numel * cuda_host->dtype_size(x->dtype)),
                                      cudaMemcpyDeviceToDevice, stream_of(call)), "copying x");
}

CUDA_KERNEL(index_add) {
    const weft_view *x = call->in[0], *index = call->in[1], *src = call->in[2];
    const int dim = real_dim(call->at->AT(index_add, dim), x->ndim);
    if (x->numel) TRY(copy_first(call));
    if (index->numel == 0) return WEFT_OK;
    scratch keys(call, keys_padded(index->numel) * (int64_t)sizeof(uint64_t));
    if (!keys.data) return WEFT_ENOMEM;
    const vector_keys source = keys_of(call, index, x->shape[dim], OP_index_add);
    TRY(keys_sort(call, source, keys.as<uint64_t>(), index->numel));
    if (src->numel == 0 || x->numel == 0) return WEFT_OK;
    const adding a = { keys.as<uint64_t>(), index->numel, weft_span(x, 0, dim), weft_span(x, dim + 1, x->ndim),
                       x->shape[dim], source.shift };
    return with_sum(x->dtype, [&](auto tag) {
        using T = TYPE_OF(tag);
        constexpr int WIDE = 16 / sizeof(T);
        const T *from = static_cast<const T *>(src->data);
        T *to = static_cast<T *>(call->out[0]->data);
        const bool wide = a.inner % WIDE == 0 && ((uintptr_t)from | (uintptr_t)to) % 16 == 0;
        if (wide)
            return LAUNCH(call, (add_kernel<T, WIDE>), blocks_for(src->numel / WIDE, EACH_THREADS), EACH_THREADS, 0, a, from, to);
        return LAUNCH(call, (add_kernel<T, 1>), blocks_for(src->numel, EACH_THREADS), EACH_THREADS, 0, a, from, to);
    });
}

// --- element by element. A walk over index (operand 0) that says where its element lies in x but for
// the part along dim (operand 1).
static each_walk walk_of(const weft_view *x, const weft_view *index, int dim, bool along) {
    weft_view of_index = *index, of_x = *index;
    int64_t step = 1;
    for (int d = x->ndim - 1; d >= 0; step *= x->shape[d--]) of_x.stride[d] = d == dim ? 0 : step;
    if (!along) {               // the lines along dim, not their elements
        if (index->shape[dim]) of_index.numel /= index->shape[dim];
        of_index.shape[dim] = of_x.shape[dim] = 1;
    }
    const weft_view *views[2] = { &of_index, &of_x };
    each_walk e;
    each_prepare(&e, views, 2);
    return e;
}

struct picking {
    const int64_t *index;
    int64_t size, step, n, index_step;      // of x along dim; of index along dim
    fault_sink faults;
    template <class V> void visit(V &v) { v(index); faults.visit(v); }
    DEVICE bool refuse(int64_t k, int64_t i) const {
        if ((uint64_t)k < (uint64_t)size) return false;
        faults.complain(FAULT_INDEX, (double)k, 0, (double)(size - 1), i);
        return true;
    }
};

static picking picking_of(const weft_call *call, const weft_view *x, const weft_view *index, int dim, int op) {
    return picking{ static_cast<const int64_t *>(index->data), x->shape[dim], weft_span(x, dim + 1, x->ndim),
                    index->shape[dim], weft_span(index, dim + 1, index->ndim), faults(call, op) };
}

template <class T>
__global__ void __launch_bounds__(EACH_THREADS) gather_kernel(const each_walk e, const picking p, const T *__restrict__ x,
                                                              T *__restrict__ y) {
    for (int64_t i = THREAD_INDEX; i < e.numel; i += THREAD_COUNT) {
        int64_t at[EACH_MAX];
        each_offsets(e, i, at);
        const int64_t k = p.index[i];
        T v = {};
        if (!p.refuse(k, i)) v = x[at[1] + k * p.step];
        y[i] = v;
    }
}

CUDA_KERNEL(gather) {
    const weft_view *x = call->in[0], *index = call->in[1];
    const int dim = real_dim(call->at->AT(gather, dim), x->ndim);
    if (index->numel == 0) return WEFT_OK;
    const each_walk e = walk_of(x, index, dim, true);
    const picking p = picking_of(call, x, index, dim, OP_gather);
    return with_size(x->dtype, [&](auto tag) {
        using T = TYPE_OF(tag);
        return LAUNCH(call, (gather_kernel<T>), blocks_for(e.numel, EACH_THREADS), EACH_THREADS, 0, e, p,
                      static_cast<const T *>(x->data), static_cast<T *>(call->out[0]->data));
    });
}

// --- scatter_add. A line along dim adds to a line of x that no other adds to, so a thread walks each.
// Where lines are few and long, and for bfloat16 (sums are rounded once), keys are sorted instead.
template <class T>
__global__ void __launch_bounds__(EACH_THREADS) scatter_lines(const each_walk e, const picking p, const T *__restrict__ src,
                                                              T *__restrict__ y) {
    for (int64_t i = THREAD_INDEX; i < e.numel; i += THREAD_COUNT) {
        int64_t at[EACH_MAX];
        each_offsets(e, i, at);
        for (int64_t j = 0; j < p.n; j++, at[0] += p.index_step) {
            const int64_t k = p.index[at[0]];
            if (p.refuse(k, at[0])) continue;
            T *to = y + at[1] + k * p.step;
            *to = narrow<T>(widen<T>(*to) + widen<T>(src[at[0]]));
        }
    }
}

struct scatter_keys {
    each_walk e;
    picking p;
    int32_t shift;
    template <class V> void visit(V &v) { p.visit(v); }
    DEVICE uint64_t operator()(int64_t i) const {
        int64_t at[EACH_MAX];
        each_offsets(e, i, at);
        const int64_t k = p.index[i];
        if (p.refuse(k, i)) return KEY_NONE;
        return (uint64_t)(at[1] + k * p.step) << shift | (uint64_t)i;
    }
};

CUDA_KERNEL(scatter_add) {
    const weft_view *x = call->in[0], *index = call->in[1], *src = call->in[2];
    const int dim = real_dim(call->at->AT(scatter_add, dim), x->ndim);
    const int64_t n = index->numel;
    if (x->numel) TRY(copy_first(call));
    if (n == 0) return WEFT_OK;
    const picking p = picking_of(call, x, index, dim, OP_scatter_add);
    const bool short_or_many = p.n <= 32 || n / p.n >= 4096;
    if (p.n == 1 || (short_or_many && x->dtype != WEFT_BFLOAT16)) {
        const each_walk e = walk_of(x, index, dim, false);
        return with_sum(x->dtype, [&](auto tag) {
            using T = TYPE_OF(tag);
            return LAUNCH(call, (scatter_lines<T>), blocks_for(e.numel, EACH_THREADS), EACH_THREADS, 0, e, p,
                          static_cast<const T *>(src->data), static_cast<T *>(call->out[0]->data));
        });
    }
    scratch keys(call, keys_padded(n) * (int64_t)sizeof(uint64_t));
    if (!keys.data) return WEFT_ENOMEM;
    const scatter_keys source = { walk_of(x, index, dim, true), p, bits_of(n) };
    TRY(keys_sort(call, source, keys.as<uint64_t>(), n));
    const adding a = { keys.as<uint64_t>(), n, 1, 1, x->numel, source.shift };
    return with_sum(x->dtype, [&](auto tag) {
        using T = TYPE_OF(tag);
        return LAUNCH(call, (add_kernel<T, 1>), blocks_for(n, EACH_THREADS), EACH_THREADS, 0, a,
                      static_cast<const T *>(src->data), static_cast<T *>(call->out[0]->data));
    });
}
