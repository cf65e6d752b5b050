// each.h: how elementwise kernels walk their operands. A kernel supplies a span function that works
// on n consecutive elements; strides, broadcasting and threads are dealt with here.
//
// Long rows whose operands step by 1 or 0 are handed over as they lie. Anything else is gathered
// into blocks of EACH_BLOCK elements that stay in the first-level cache, and scattered from there.
// Each block's inputs are read before its output is written, so the output may be an input.
#ifndef WEFT_CPU_EACH_H
#define WEFT_CPU_EACH_H

#include <string.h>
#include "cpu.h"

#define EACH_BLOCK 512
#define EACH_MAX 4          // operands: the output, then up to three inputs
#define EACH_LONG_ROW 64
// Elements a piece: cheap spans are bound by memory, costly ones by arithmetic. Both multiples of
// EACH_BLOCK.
#define EACH_CHEAP 32768
#define EACH_COSTLY 8192

// p[0] is the output, p[1] .. the inputs
typedef void (*each_fn)(const void *context, int64_t n, void *const *p);

typedef struct each {
    each_fn fn;
    const void *context;
    int n_op, ndim;
    bool long_rows;
    int64_t numel, grain;
    int64_t shape[WEFT_MAX_DIMS], stride[EACH_MAX][WEFT_MAX_DIMS];
    bool flat[EACH_MAX];    // the operand's elements follow each other in the order of the walk
    int size[EACH_MAX];     // bytes an element
    char *data[EACH_MAX];
} each;

static inline int each_dtype_size(int dtype) {
    switch (dtype) {
    case WEFT_FLOAT64: case WEFT_INT64: return 8;
    case WEFT_FLOAT32: case WEFT_INT32: return 4;
    case WEFT_BFLOAT16: case WEFT_FLOAT16: return 2;
    default: return 1;
    }
}

// n elements, `from` stepping by stride, into consecutive places; and the reverse.
#define EACH_MOVERS(T) \
    typedef T __attribute__((may_alias)) each_##T; \
    static inline void each_gather_##T(each_##T *to, const each_##T *from, int64_t n, \
                                       int64_t stride) { \
        if (stride == 0) { \
            const T value = *from; \
            for (int64_t i = 0; i < n; i++) to[i] = value; \
        } else for (int64_t i = 0; i < n; i++) to[i] = from[i * stride]; \
    } \
    static inline void each_scatter_##T(each_##T *to, const each_##T *from, int64_t n, \
                                        int64_t stride) { \
        for (int64_t i = 0; i < n; i++) to[i * stride] = from[i]; \
    }
EACH_MOVERS(uint8_t)
EACH_MOVERS(uint16_t)
EACH_MOVERS(uint32_t)
EACH_MOVERS(uint64_t)

static inline void each_gather_run(void *to, const void *from, int64_t n, int64_t stride,
                                   int size) {
    if (stride == 1) {
        memcpy(to, from, (size_t)(n * size));
        return;
    }
    switch (size) {
    case 1: each_gather_uint8_t(to, from, n, stride); break;
    case 2: each_gather_uint16_t(to, from, n, stride); break;
    case 4: each_gather_uint32_t(to, from, n, stride); break;
    default: each_gather_uint64_t(to, from, n, stride); break;
    }
}

static inline void each_scatter_run(void *to, const void *from, int64_t n, int64_t stride,
                                    int size) {
    if (stride == 1) {
        memcpy(to, from, (size_t)(n * size));
        return;
    }
    switch (size) {
    case 1: each_scatter_uint8_t(to, from, n, stride); break;
    case 2: each_scatter_uint16_t(to, from, n, stride); break;
    case 4: each_scatter_uint32_t(to, from, n, stride); break;
    default: each_scatter_uint64_t(to, from, n, stride); break;
    }
}

// Puts view v into slot k, its dims aligned at the end of shape, with stride 0 where it broadcasts.
static inline void each_operand(each *e, int k, const weft_view *v, int ndim,
                                const int64_t *shape) {
    e->data[k] = v->data;
    e->size[k] = each_dtype_size(v->dtype);
    int missing = ndim - v->ndim;
    for (int d = 0; d < ndim; d++) {
        bool there = d >= missing && v->shape[d - missing] == shape[d];
        e->stride[k][d] = there ? v->stride[d - missing] : 0;
    }
}

// Drops dims of size 1 and joins neighbours that every operand walks as one.
static inline void each_coalesce(each *e, int ndim, const int64_t *shape) {
    int n = 0;
    for (int d = 0; d < ndim; d++) {
        if (shape[d] == 1) continue;
        bool joins = n > 0;
        for (int k = 0; k < e->n_op && joins; k++)
            joins = e->stride[k][n - 1] == e->stride[k][d] * shape[d];
        if (joins) e->shape[n - 1] *= shape[d];
        else e->shape[n++] = shape[d];
        for (int k = 0; k < e->n_op; k++) e->stride[k][n - 1] = e->stride[k][d];
    }
    if (n == 0) {
        e->shape[0] = 1;
        for (int k = 0; k < e->n_op; k++) e->stride[k][0] = 1;
        n = 1;
    }
    e->ndim = n;
    e->long_rows = n == 1 || e->shape[n - 1] >= EACH_LONG_ROW;
    for (int k = 0; k < e->n_op; k++) {
        int64_t last = e->stride[k][n - 1], expect = 1;
        if (last != 1 && (last != 0 || k == 0)) e->long_rows = false;
        e->flat[k] = true;
        for (int d = n - 1; d >= 0; expect *= e->shape[d--])
            if (e->stride[k][d] != expect) e->flat[k] = false;
    }
}

static inline void each_prepare(each *e, const weft_view *const *views, int n_op) {
    const weft_view *out = views[0];
    e->n_op = n_op;
    e->numel = out->numel;
    bool plain = true;
    for (int k = 0; k < n_op && plain; k++)
        plain = views[k]->numel == out->numel && weft_view_contiguous(views[k]);
    if (plain) {
        e->ndim = 1;
        e->long_rows = true;
        e->shape[0] = out->numel;
        for (int k = 0; k < n_op; k++) {
            e->stride[k][0] = 1;
            e->flat[k] = true;
            e->data[k] = views[k]->data;
            e->size[k] = each_dtype_size(views[k]->dtype);
        }
        return;
    }
    for (int k = 0; k < n_op; k++) each_operand(e, k, views[k], out->ndim, out->shape);
    each_coalesce(e, out->ndim, out->shape);
}

// Finds element i of the walk: base of operands [from, to) at the start of its row, place in the
// outer dims. Returns the position inside the row.
static inline int64_t each_seek(const each *e, int64_t i, int from, int to, char **base,
                                int64_t *place) {
    int inner = e->ndim - 1;
    for (int k = from; k < to; k++) base[k] = e->data[k];
    if (inner == 0) return i;
    int64_t row = i / e->shape[inner], at = i - row * e->shape[inner];
    for (int d = inner - 1; d >= 0; d--) {
        int64_t next = d ? row / e->shape[d] : 0;
        place[d] = row - next * e->shape[d];
        for (int k = from; k < to; k++) base[k] += place[d] * e->stride[k][d] * e->size[k];
        row = next;
    }
    return at;
}

// On to the next row.
static inline void each_advance(const each *e, int from, int to, char **base, int64_t *place) {
    for (int d = e->ndim - 2; d >= 0; d--) {
        for (int k = from; k < to; k++) base[k] += e->stride[k][d] * e->size[k];
        if (++place[d] < e->shape[d]) return;
        for (int k = from; k < to; k++) base[k] -= e->shape[d] * e->stride[k][d] * e->size[k];
        place[d] = 0;
    }
}

// Rows of operands that step by 1 or 0.
static inline void each_rows(const each *e, int64_t begin, int64_t end) {
    int inner = e->ndim - 1;
    int64_t length = e->shape[inner], place[WEFT_MAX_DIMS];
    _Alignas(64) char block[EACH_MAX][EACH_BLOCK * 8];
    char *base[EACH_MAX];
    int64_t at = each_seek(e, begin, 0, e->n_op, base, place);
    for (int64_t i = begin; i < end;) {
        int64_t n = length - at < end - i ? length - at : end - i, step = n;
        for (int k = 1; k < e->n_op; k++) {
            if (e->stride[k][inner] != 0) continue;
            if (step > EACH_BLOCK) step = EACH_BLOCK;
            each_gather_run(block[k], base[k], step, 0, e->size[k]);
        }
        for (int64_t j = 0; j < n; j += step) {
            void *p[EACH_MAX];
            for (int k = 0; k < e->n_op; k++)
                p[k] = e->stride[k][inner] == 0 ? block[k] : base[k] + (at + j) * e->size[k];
            e->fn(e->context, n - j < step ? n - j : step, p);
        }
        at = 0;
        if ((i += n) < end) each_advance(e, 0, e->n_op, base, place);
    }
}

// Moves elements [begin, begin + n) of operand k between where they lie and consecutive places.
static inline void each_move(const each *e, int k, int64_t begin, int64_t n, void *line,
                             bool gather) {
    int inner = e->ndim - 1;
    int64_t length = e->shape[inner], stride = e->stride[k][inner], place[WEFT_MAX_DIMS];
    char *base[EACH_MAX], *b = line;
    int64_t at = each_seek(e, begin, k, k + 1, base, place);
    for (;;) {
        int64_t m = length - at < n ? length - at : n;
        char *p = base[k] + at * stride * e->size[k];
        if (gather) each_gather_run(b, p, m, stride, e->size[k]);
        else each_scatter_run(p, b, m, stride, e->size[k]);
        b += m * e->size[k];
        if ((n -= m) == 0) return;
        at = 0;
        each_advance(e, k, k + 1, base, place);
    }
}

static inline void each_blocks(const each *e, int64_t begin, int64_t end) {
    _Alignas(64) char block[EACH_MAX][EACH_BLOCK * 8];
    for (int64_t i = begin; i < end; i += EACH_BLOCK) {
        int64_t n = end - i < EACH_BLOCK ? end - i : EACH_BLOCK;
        void *p[EACH_MAX];
        for (int k = 0; k < e->n_op; k++) {
            p[k] = e->flat[k] ? (void *)(e->data[k] + i * e->size[k]) : block[k];
            if (k && !e->flat[k]) each_move(e, k, i, n, p[k], true);
        }
        e->fn(e->context, n, p);
        if (!e->flat[0]) each_move(e, 0, i, n, p[0], false);
    }
}

static inline void each_piece(void *context, int64_t piece) {
    const each *e = context;
    int64_t begin = piece * e->grain, end = weft_piece_end(e->numel, e->grain, piece);
    if (e->long_rows) each_rows(e, begin, end);
    else each_blocks(e, begin, end);
}

// Runs fn over views[0] (the output) and the inputs after it, cut in pieces of grain elements.
static inline weft_status each_run(const weft_view *const *views, int n_op, each_fn fn,
                                   const void *context, int64_t grain) {
    each e;
    if (views[0]->numel == 0) return WEFT_OK;
    each_prepare(&e, views, n_op);
    e.fn = fn;
    e.context = context;
    e.grain = grain;
    if (e.numel <= grain) each_piece(&e, 0);
    else weft_parallel(weft_pieces(e.numel, grain), each_piece, &e);
    return WEFT_OK;
}

// A walk that only reads: fn sees the elements of view as its first input, nothing is written.
static inline void each_search(const weft_view *view, each_fn fn, const void *context) {
    const weft_view *views[2] = { view, view };
    each e;
    if (view->numel == 0) return;
    each_prepare(&e, views, 2);
    e.flat[0] = true;       // never scattered
    e.fn = fn;
    e.context = context;
    e.grain = EACH_CHEAP;
    weft_parallel(weft_pieces(e.numel, e.grain), each_piece, &e);
}

// --- span functions. X, or A, B and C, are elements of the inputs.
#define EACH_SPAN1(name, TY, TX, expr) \
    static void name(const void *context, int64_t n, void *const *p) { \
        TY *y = p[0]; \
        const TX *x = p[1]; \
        (void)context; \
        _Pragma("omp simd") \
        for (int64_t i = 0; i < n; i++) { \
            const TX X = x[i]; \
            y[i] = (TY)(expr); \
        } \
    }
#define EACH_SPAN2(name, TY, TX, expr) \
    static void name(const void *context, int64_t n, void *const *p) { \
        TY *y = p[0]; \
        const TX *a = p[1], *b = p[2]; \
        (void)context; \
        _Pragma("omp simd") \
        for (int64_t i = 0; i < n; i++) { \
            const TX A = a[i], B = b[i]; \
            y[i] = (TY)(expr); \
        } \
    }

#endif
