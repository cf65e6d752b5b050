// reduce.c: sums and what is built from them, extremes along a dim, running sums. Any strides.
//
// The dims of x are split into kept and reduced ones, each sorted by stride and merged where they
// run on. `row` work goes along the innermost reduced dim, `column` work along the innermost kept
// one. Work is cut by shapes and strides alone and partial results are combined in order, so that
// the number of threads changes no bit. Floats are summed in double, integers in int64.
#include <string.h>
#include "math.h"

#define WORK 65536     // elements a piece
#define OUTPUTS 1024   // outputs a piece, at most

typedef enum map { SUM, SQUARE_DISTANCE, SQUARE, ABS, POWER, NONZERO, LARGEST_ABS, SMALLEST_ABS, LARGEST, EXP } map;

typedef struct plan {
    int nk, nr;                                               // kept and reduced dims, each at least 1
    int64_t kshape[WEFT_MAX_DIMS], kx[WEFT_MAX_DIMS], ky[WEFT_MAX_DIMS];  // outermost first
    int64_t rshape[WEFT_MAX_DIMS], rx[WEFT_MAX_DIMS], ry[WEFT_MAX_DIMS];
    int64_t n_out, n_red;
    bool column;
} plan;

static int64_t magnitude(int64_t a) { return a < 0 ? -a : a; }

// Adds a dim, keeping the list sorted: larger strides first, the given order between equals.
static void add_dim(int64_t *shape, int64_t *sx, int64_t *sy, int *n, int64_t size, int64_t x, int64_t y) {
    int at = (*n)++;
    for (; at > 0 && magnitude(sx[at - 1]) < magnitude(x); at--) {
        shape[at] = shape[at - 1]; sx[at] = sx[at - 1]; sy[at] = sy[at - 1];
    }
    shape[at] = size; sx[at] = x; sy[at] = y;
}

static void merge_dims(int64_t *shape, int64_t *sx, int64_t *sy, int *n) {
    int last = 0;
    if (*n == 0) { shape[0] = 1; sx[0] = sy[0] = 0; *n = 1; }
    for (int d = 1; d < *n; d++) {
        if (sx[last] == sx[d] * shape[d] && sy[last] == sy[d] * shape[d]) {
            shape[last] *= shape[d]; sx[last] = sx[d]; sy[last] = sy[d];
        } else {
            last++;
            shape[last] = shape[d]; sx[last] = sx[d]; sy[last] = sy[d];
        }
    }
    *n = last + 1;
}

// mask: dims that go. y is row-major over the kept dims, or over all where whole is set.
static void make_plan(plan *p, const weft_view *x, uint32_t mask, bool whole) {
    memset(p, 0, sizeof *p);
    p->n_out = p->n_red = 1;
    int64_t ystride[WEFT_MAX_DIMS], run = 1;
    for (int d = x->ndim - 1; d >= 0; d--) {
        bool reduced = mask >> d & 1;
        ystride[d] = reduced && !whole ? 0 : run;
        if (!reduced || whole) run *= x->shape[d];
    }
    for (int d = 0; d < x->ndim; d++) {
        int64_t size = x->shape[d];
        bool reduced = mask >> d & 1;
        *(reduced ? &p->n_red : &p->n_out) *= size;
        if (size == 1) continue;
        if (reduced) add_dim(p->rshape, p->rx, p->ry, &p->nr, size, x->stride[d], ystride[d]);
        else add_dim(p->kshape, p->kx, p->ky, &p->nk, size, x->stride[d], ystride[d]);
    }
    if (p->n_out == 0 || p->n_red == 0) p->nk = p->nr = 0;
    bool any_kept = p->nk > 0, any_reduced = p->nr > 0;
    merge_dims(p->kshape, p->kx, p->ky, &p->nk);
    merge_dims(p->rshape, p->rx, p->ry, &p->nr);
    if (p->n_red == 0) {  // nothing to read, but outputs to write
        p->kshape[0] = p->n_out;
        p->ky[0] = 1;
    }
    int64_t k = magnitude(p->kx[p->nk - 1]), r = magnitude(p->rx[p->nr - 1]);
    int64_t n_k = p->kshape[p->nk - 1], n_r = p->rshape[p->nr - 1];
    if (!any_kept) p->column = false;
    else if (!any_reduced) p->column = true;
    else if (r == 1) p->column = n_r < 8 && n_k >= 16;
    else p->column = k == 1 || (k != 0 && k < r);
}

// Counts through dims in row-major order, with the offset that belongs to it.
typedef struct walk {
    int n;
    const int64_t *shape, *stride;
    int64_t at[WEFT_MAX_DIMS], offset;
} walk;

static __attribute__((noinline)) void walk_start(walk *w, const int64_t *shape, const int64_t *stride, int n, int64_t linear) {
    w->n = n; w->shape = shape; w->stride = stride; w->offset = 0;
    for (int d = n - 1; d >= 0; d--) {
        w->at[d] = linear % shape[d];
        linear /= shape[d];
        w->offset += w->at[d] * stride[d];
    }
}

static inline void walk_next(walk *w) {
    for (int d = w->n - 1; d >= 0; d--) {
        w->offset += w->stride[d];
        if (++w->at[d] < w->shape[d]) return;
        w->offset -= w->shape[d] * w->stride[d];
        w->at[d] = 0;
    }
}

static uint32_t dims_mask(const weft_attrs *at, int ndim) {
    uint32_t mask = 0;
    for (int i = 0; i < at->n_list; i++) mask |= 1u << (at->list[i] < 0 ? at->list[i] + ndim : at->list[i]);
    return at->n_list ? mask : (1u << ndim) - 1;
}

typedef enum reduction { REDUCE_SUM, REDUCE_MEAN, REDUCE_VAR, REDUCE_NORM, REDUCE_LOGSUMEXP } reduction;

typedef struct reduce_job {
    plan plan;
    reduction what;
    const void *x;
    void *y;
    double p;                // of norm
    double divisor;          // mean, var
    map first, second;
    bool twice;              // the second map runs with a constant from the first
    int64_t block, chunk;    // outputs a piece; reduced elements a piece (all of them when not split)
    int64_t blocks, chunks;
    void *partial, *constant;  // [chunks][n_out], [n_out] when split
    int stage;
} reduce_job;

static void set_maps(reduce_job *j) {
    switch (j->what) {
    case REDUCE_SUM: case REDUCE_MEAN: j->first = SUM; break;
    case REDUCE_VAR: j->first = SUM; j->second = SQUARE_DISTANCE; j->twice = true; break;
    case REDUCE_LOGSUMEXP: j->first = LARGEST; j->second = EXP; j->twice = true; break;
    case REDUCE_NORM:
        j->first = j->p == 2 ? SQUARE : j->p == 1 ? ABS : j->p == 0 ? NONZERO
                 : isinf(j->p) ? (j->p > 0 ? LARGEST_ABS : SMALLEST_ABS) : POWER;
        break;
    }
}

// What the second map subtracts, from the result of the first.
static inline double constant_of(const reduce_job *j, double first) {
    if (j->what == REDUCE_VAR) return first / (double)j->plan.n_red;
    return isinf(first) ? 0 : first;
}

static inline double finish(const reduce_job *j, double acc, double constant) {
    switch (j->what) {
    case REDUCE_SUM: return acc;
    case REDUCE_MEAN: case REDUCE_VAR: return acc / j->divisor;
    case REDUCE_LOGSUMEXP: return constant + log(acc);
    case REDUCE_NORM:
        if (j->first == SQUARE) return sqrt(acc);
        if (j->first == POWER) return pow(acc, 1 / j->p);
        return acc;
    }
    return acc;
}

static inline double start_of(map m) {
    return m == LARGEST ? -INFINITY : m == SMALLEST_ABS ? INFINITY : 0;
}

typedef struct along_job {
    plan plan;
    const void *x;
    void *values;      // NULL: indices only
    int64_t *indices;
    int64_t block;
    bool smallest;
} along_job;

#define T float
#define PLACE int32_t  // counts along a dim, as wide as T so that columns vectorise
#define ACC double
#define FN(name) name##_f32
#define MATH(name) weft_##name##f
#define FLOATING 1
#define IS_NAN(v) ((v) != (v))
#include "reduce_body.h"
#include "extreme_body.h"
#undef T
#undef PLACE
#undef FN
#undef MATH
#define T double
#define PLACE int64_t
#define FN(name) name##_f64
#define MATH(name) weft_##name##d
#include "reduce_body.h"
#include "extreme_body.h"
#undef T
#undef PLACE
#undef ACC
#undef FN
#undef MATH
#undef FLOATING
#undef IS_NAN
#define T int32_t
#define PLACE int32_t
#define ACC int64_t
#define FN(name) name##_i32
#define FLOATING 0
#define IS_NAN(v) ((void)(v), 0)
#include "reduce_body.h"
#include "extreme_body.h"
#undef T
#undef PLACE
#undef FN
#define T int64_t
#define PLACE int64_t
#define FN(name) name##_i64
#include "reduce_body.h"
#include "extreme_body.h"

static weft_piece_fn by_dtype(int dtype, weft_piece_fn f32, weft_piece_fn f64, weft_piece_fn i32, weft_piece_fn i64) {
    return dtype == WEFT_FLOAT32 ? f32 : dtype == WEFT_FLOAT64 ? f64 : dtype == WEFT_INT32 ? i32 : i64;
}
#define BY_DTYPE(dtype, name) by_dtype(dtype, name##_f32, name##_f64, name##_i32, name##_i64)

static weft_status reduce(const weft_call *call, reduction what, double p, int64_t correction) {
    const weft_view *x = call->in[0], *y = call->out[0];
    if (y->numel == 0) return WEFT_OK;
    reduce_job j = { .what = what, .x = x->data, .y = y->data, .p = p };
    make_plan(&j.plan, x, dims_mask(call->at, x->ndim), false);
    set_maps(&j);
    int64_t n_out = j.plan.n_out, n_red = j.plan.n_red;
    j.divisor = (double)(n_red > correction ? n_red - correction : 0);
    // whole outputs a piece where there are enough of them, else each reduction is split
    int64_t block = n_red ? WORK / n_red : OUTPUTS, least = j.plan.column ? 64 : 1;
    j.block = block < least ? least : block > OUTPUTS ? OUTPUTS : block;
    j.chunk = n_red;
    if (n_red > 1 && n_out * n_red > 2 * WORK && weft_pieces(n_out, j.block) < 16) {
        j.block = j.plan.column ? (n_out < OUTPUTS ? n_out : OUTPUTS) : 1;
        j.chunk = WORK / j.block;
    }
    j.blocks = weft_pieces(n_out, j.block);
    j.chunks = n_red ? weft_pieces(n_red, j.chunk) : 1;
    if (j.chunks == 1) {
        weft_parallel(j.blocks, BY_DTYPE(x->dtype, whole_piece), &j);
        return WEFT_OK;
    }
    int64_t bytes = (j.chunks + 1) * n_out * 8;
    j.partial = weft_workspace(call->backend, bytes);
    if (!j.partial) return WEFT_ENOMEM;
    j.constant = (char *)j.partial + j.chunks * n_out * 8;
    weft_piece_fn part = BY_DTYPE(x->dtype, part_piece), join = BY_DTYPE(x->dtype, join_piece);
    for (j.stage = 0; j.stage < (j.twice ? 2 : 1); j.stage++) {
        weft_parallel(j.blocks * j.chunks, part, &j);
        weft_parallel(weft_pieces(n_out, OUTPUTS), join, &j);
    }
    weft_workspace_free(call->backend, j.partial, bytes);
    return WEFT_OK;
}

CPU_KERNEL(sum) { return reduce(call, REDUCE_SUM, 0, 0); }
CPU_KERNEL(mean) { return reduce(call, REDUCE_MEAN, 0, 0); }
CPU_KERNEL(var) { return reduce(call, REDUCE_VAR, 0, call->at->AT(var, correction)); }
CPU_KERNEL(norm) { return reduce(call, REDUCE_NORM, call->at->AT(norm, p), 0); }
CPU_KERNEL(logsumexp) { return reduce(call, REDUCE_LOGSUMEXP, 0, 0); }

static void set_block(along_job *j) {
    int64_t block = WORK / j->plan.n_red, least = j->plan.column ? 128 : 1;
    j->block = block < least ? least : block > OUTPUTS ? OUTPUTS : block;
}

static weft_status extreme(const weft_call *call, int64_t dim, bool smallest, bool with_values) {
    const weft_view *x = call->in[0];
    if (call->out[0]->numel == 0) return WEFT_OK;
    along_job j = { .x = x->data, .smallest = smallest, .values = with_values ? call->out[0]->data : NULL,
                    .indices = call->out[with_values ? 1 : 0]->data };
    if (dim < 0) dim += x->ndim;
    make_plan(&j.plan, x, x->ndim ? 1u << dim : 0, false);
    if (j.plan.n_red > INT32_MAX) j.plan.column = false;
    set_block(&j);
    weft_parallel(weft_pieces(j.plan.n_out, j.block), BY_DTYPE(x->dtype, extreme_piece), &j);
    return WEFT_OK;
}

CPU_KERNEL(max) { return extreme(call, call->at->AT(max, dim), false, true); }
CPU_KERNEL(min) { return extreme(call, call->at->AT(min, dim), true, true); }
CPU_KERNEL(argmax) { return extreme(call, call->at->AT(argmax, dim), false, false); }
CPU_KERNEL(argmin) { return extreme(call, call->at->AT(argmin, dim), true, false); }

CPU_KERNEL(cumsum) {
    const weft_view *x = call->in[0];
    if (x->numel == 0) return WEFT_OK;
    along_job j = { .x = x->data, .values = call->out[0]->data };
    int64_t dim = call->at->AT(cumsum, dim);
    if (dim < 0) dim += x->ndim;
    make_plan(&j.plan, x, x->ndim ? 1u << dim : 0, true);
    set_block(&j);
    weft_parallel(weft_pieces(j.plan.n_out, j.block), BY_DTYPE(x->dtype, cumsum_piece), &j);
    return WEFT_OK;
}
