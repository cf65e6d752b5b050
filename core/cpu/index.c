// index.c: kernels that read and add by index. Indices are checked before anything is written.
// Additions to one place happen in the order of the index, whatever the number of threads.
#include "cpu.h"
#include <string.h>

#define GRAIN 16384   // elements of a piece
#define COLUMNS 256   // columns of a piece, where a line along the dim can't be cut

// Indices in order, the last dims in runs of even steps.
static weft_rows entries(const weft_view *index) {
    weft_rows r = {1, 0, 0, 0};
    if (!weft_rows_of(index, 0, &r)) r.inner = 0; // the dispatcher lets none of these through
    return r;
}

static weft_status check(const weft_view *index, int64_t size, const char *what) {
    const int64_t *i = index->data;
    const weft_rows at = entries(index);
    uint64_t largest = 0;
    for (int64_t o = 0; o < at.outer && index->numel; o++)
        for (int64_t k = 0; k < at.inner; k++) {
            uint64_t u = (uint64_t)i[o * at.block + k * at.row];
            largest = u > largest ? u : largest;
        }
    if (index->numel == 0 || largest < (uint64_t)size) return WEFT_OK;
    int64_t k = 0;
    while ((uint64_t)i[weft_row_at(&at, k)] < (uint64_t)size) k++;
    const long long bad = (long long)i[weft_row_at(&at, k)];
    if (size == 0)
        return weft_fail(WEFT_EINVAL, "%s %lld, position %lld: there is nothing to choose from", what, bad,
                         (long long)k + 1);
    return weft_fail(WEFT_EINVAL, "%s %lld outside 0..%lld, position %lld", what, bad, (long long)size - 1,
                     (long long)k + 1);
}

ALWAYS_INLINE int64_t real_dim(int64_t dim, int ndim) { return dim < 0 ? dim + ndim : dim; }
ALWAYS_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
ALWAYS_INLINE int64_t at_least_one(int64_t n) { return n > 0 ? n : 1; }

// --- whole stretches: embedding and index_select
// y[o][k] = x[o][index[k]], each a stretch of bytes
typedef struct copy_job {
    const char *x;
    char *y;
    const int64_t *index;
    weft_rows at;
    int64_t n, rows, bytes, total, grain;
} copy_job;

static void copy_piece(void *context, int64_t piece) {
    const copy_job *j = context;
    int64_t end = weft_piece_end(j->total, j->grain, piece);
    for (int64_t r = piece * j->grain; r < end; r++) {
        int64_t o = r / j->n, k = r % j->n;
        memcpy(j->y + r * j->bytes, j->x + (o * j->rows + j->index[weft_row_at(&j->at, k)]) * j->bytes,
               (size_t)j->bytes);
    }
}

static void copy_stretches(const weft_view *x, const weft_view *index, weft_view *y, int64_t outer,
                           int64_t rows, int64_t inner) {
    copy_job j = { x->data, y->data, index->data, entries(index), index->numel, rows,
                   inner * weft_dtype_size(x->dtype), outer * index->numel,
                   GRAIN / at_least_one(inner) + 1 };
    if (y->numel > 0) weft_parallel(weft_pieces(j.total, j.grain), copy_piece, &j);
}

CPU_KERNEL(embedding) {
    const weft_view *ids = call->in[0], *weight = call->in[1];
    weft_status code = check(ids, weight->shape[0], "id");
    if (code != WEFT_OK) return code;
    copy_stretches(weight, ids, call->out[0], 1, weight->shape[0], weight->shape[1]);
    return WEFT_OK;
}

CPU_KERNEL(index_select) {
    const weft_view *x = call->in[0], *index = call->in[1];
    const int dim = (int)real_dim(call->at->AT(index_select, dim), x->ndim);
    weft_status code = check(index, x->shape[dim], "index");
    if (code != WEFT_OK) return code;
    copy_stretches(x, index, call->out[0], weft_span(x, 0, dim), x->shape[dim],
                   weft_span(x, dim + 1, x->ndim));
    return WEFT_OK;
}

CPU_KERNEL(index_copy_) {
    const weft_view *x = call->in[0], *index = call->in[1], *src = call->in[2];
    const int64_t *i = index->data, rows = x->shape[0];
    const int64_t bytes = weft_span(x, 1, x->ndim) * weft_dtype_size(x->dtype);
    for (int64_t k = 0; k < index->numel; k++)
        if (i[k] >= rows)
            return weft_fail(WEFT_EINVAL, "index %lld is not below %lld, position %lld", (long long)i[k], (long long)rows,
                             (long long)k + 1);
    if (bytes == 0) return WEFT_OK;
    for (int64_t k = 0; k < index->numel; k++)
        if (i[k] >= 0) memcpy((char *)x->data + i[k] * bytes, (const char *)src->data + k * bytes, (size_t)bytes);
    return WEFT_OK;
}

// --- embedding_backward: positions sorted by id, then each row of dweight sums its own, in order
typedef struct rows_job {
    const void *dy;
    void *dw;
    const int64_t *start, *position;  // positions of row r: position[start[r] .. start[r + 1] - 1]
    weft_rows at;                     // where dy's rows lie
    int64_t rows, width, row_grain, row_pieces;
} rows_job;

#define SUM_ROWS(REAL) \
static void sum_rows_##REAL(void *context, int64_t piece) { \
    const rows_job *j = context; \
    const int64_t c0 = piece / j->row_pieces * COLUMNS, c1 = least(c0 + COLUMNS, j->width); \
    const int64_t end = weft_piece_end(j->rows, j->row_grain, piece % j->row_pieces); \
    double sum[COLUMNS]; \
    for (int64_t r = piece % j->row_pieces * j->row_grain; r < end; r++) { \
        REAL *RESTRICT dw = (REAL *)j->dw + r * j->width + c0; \
        const int64_t n = c1 - c0; \
        for (int64_t c = 0; c < n; c++) sum[c] = 0; \
        for (int64_t k = j->start[r]; k < j->start[r + 1]; k++) { \
            const REAL *RESTRICT dy = (const REAL *)j->dy + weft_row_at(&j->at, j->position[k]) + c0; \
            for (int64_t c = 0; c < n; c++) sum[c] += dy[c]; \
        } \
        for (int64_t c = 0; c < n; c++) dw[c] = (REAL)sum[c]; \
    } \
}
SUM_ROWS(float)
SUM_ROWS(double)

CPU_KERNEL(embedding_backward) {
    const weft_view *ids = call->in[0], *dy = call->in[1], *dw = call->out[0];
    const int64_t rows = dw->shape[0], n = ids->numel, *id = ids->data;
    weft_status code = check(ids, rows, "id");
    if (code != WEFT_OK || dw->numel == 0) return code;
    const int64_t nbytes = (rows + 2 + n) * (int64_t)sizeof(int64_t);
    int64_t *start = weft_workspace(call->backend, nbytes);
    if (!start) return WEFT_ENOMEM;
    // start[r + 2] counts row r, then becomes where it ends; placing moves start[r + 1] there.
    int64_t *position = start + rows + 2;
    memset(start, 0, (size_t)(rows + 2) * sizeof *start);
    const weft_rows at = entries(ids);
    for (int64_t k = 0; k < n; k++) start[id[weft_row_at(&at, k)] + 2]++;
    for (int64_t r = 0; r < rows; r++) start[r + 2] += start[r + 1];
    for (int64_t k = 0; k < n; k++) position[start[id[weft_row_at(&at, k)] + 1]++] = k;
    rows_job j = { .dy = dy->data, .dw = dw->data, .start = start, .position = position,
                   .rows = rows, .width = dw->shape[1] };
    weft_rows_of(dy, 1, &j.at);
    j.row_grain = GRAIN / least(j.width, COLUMNS) / 4 + 1;
    j.row_pieces = weft_pieces(rows, j.row_grain);
    weft_parallel(j.row_pieces * weft_pieces(j.width, COLUMNS),
                  dy->dtype == WEFT_FLOAT32 ? sum_rows_float : sum_rows_double, &j);
    weft_workspace_free(call->backend, start, nbytes);
    return WEFT_OK;
}

// --- element by element: gather and scatter_add
// The index is seen as [outer, n, inner]. Its outer and inner sizes may be below those of x, so
// the offsets of lines come from lists.
typedef struct lines_job {
    const void *in;
    void *out;
    const int64_t *index, *outer_at, *inner_at;   // offsets in x of o and of i
    int64_t outer, n, inner, step;                // step: from one position along dim to the next
    int64_t outer_grain, inner_grain, outer_pieces;
} lines_job;

// Offsets in x of the points of dims from .. to - 1 of index, row-major.
static void list_offsets(const weft_view *x, const weft_view *index, int from, int to,
                         int64_t *offsets) {
    int64_t n = weft_span(index, from, to);
    for (int64_t i = 0; i < n; i++) {
        int64_t rest = i, offset = 0, stride = weft_span(x, to, x->ndim);
        for (int d = to - 1; d >= from; d--) {
            offset += rest % index->shape[d] * stride;
            rest /= index->shape[d];
            stride *= x->shape[d];
        }
        offsets[i] = offset;
    }
}

#define LINES(NAME, TYPE, STATEMENT) \
static void NAME(void *context, int64_t piece) { \
    const lines_job *j = context; \
    const int64_t o0 = piece % j->outer_pieces * j->outer_grain; \
    const int64_t o1 = least(o0 + j->outer_grain, j->outer); \
    const int64_t i0 = piece / j->outer_pieces * j->inner_grain; \
    const int64_t i1 = least(i0 + j->inner_grain, j->inner); \
    const int64_t *RESTRICT inner_at = j->inner_at; \
    const TYPE *RESTRICT in = j->in; \
    TYPE *RESTRICT out = j->out; \
    for (int64_t o = o0; o < o1; o++) { \
        const int64_t base = j->outer_at[o]; \
        for (int64_t k = 0; k < j->n; k++) { \
            const int64_t row = (o * j->n + k) * j->inner; \
            for (int64_t i = i0; i < i1; i++) { \
                const int64_t at = base + j->index[row + i] * j->step + inner_at[i]; \
                STATEMENT; \
            } \
        } \
    } \
}
#define GATHER(TYPE) LINES(gather_##TYPE, TYPE, out[row + i] = in[at])
// Unsigned sums wrap; they are the same bits as signed ones.
#define SCATTER(TYPE) LINES(scatter_##TYPE, TYPE, out[at] += in[row + i])
GATHER(uint8_t)
GATHER(uint16_t)
GATHER(uint32_t)
GATHER(uint64_t)
SCATTER(float)
SCATTER(double)
SCATTER(uint32_t)
SCATTER(uint64_t)

// Cuts lines of x along dim into pieces and runs them.
static weft_status run_lines(const weft_call *call, const weft_view *x, const weft_view *index,
                             int dim, lines_job j, weft_piece_fn fn) {
    if (index->numel == 0) return WEFT_OK;
    j.index = index->data;
    j.outer = weft_span(index, 0, dim);
    j.n = index->shape[dim];
    j.inner = weft_span(index, dim + 1, index->ndim);
    j.step = weft_span(x, dim + 1, x->ndim);
    const int64_t nbytes = (j.outer + j.inner) * (int64_t)sizeof(int64_t);
    int64_t *offsets = weft_workspace(call->backend, nbytes);
    if (!offsets) return WEFT_ENOMEM;
    list_offsets(x, index, 0, dim, offsets);
    list_offsets(x, index, dim + 1, x->ndim, offsets + j.outer);
    j.outer_at = offsets;
    j.inner_at = offsets + j.outer;
    j.inner_grain = j.inner > COLUMNS && j.n * j.inner > GRAIN ? COLUMNS : j.inner;
    j.outer_grain = GRAIN / (j.n * j.inner_grain) + 1;
    j.outer_pieces = weft_pieces(j.outer, j.outer_grain);
    weft_parallel(j.outer_pieces * weft_pieces(j.inner, j.inner_grain), fn, &j);
    weft_workspace_free(call->backend, offsets, nbytes);
    return WEFT_OK;
}

CPU_KERNEL(gather) {
    const weft_view *x = call->in[0], *index = call->in[1];
    const int dim = (int)real_dim(call->at->AT(gather, dim), x->ndim);
    weft_status code = check(index, x->shape[dim], "index");
    if (code != WEFT_OK) return code;
    lines_job j = { .in = x->data, .out = call->out[0]->data };
    weft_piece_fn fn = gather_uint8_t;
    switch (weft_dtype_size(x->dtype)) {
    case 2: fn = gather_uint16_t; break;
    case 4: fn = gather_uint32_t; break;
    case 8: fn = gather_uint64_t; break;
    }
    return run_lines(call, x, index, dim, j, fn);
}

static void copy_all(const weft_view *x, weft_view *y) {
    if (x->numel > 0) memcpy(y->data, x->data, (size_t)(x->numel * weft_dtype_size(x->dtype)));
}

CPU_KERNEL(scatter_add) {
    const weft_view *x = call->in[0], *index = call->in[1], *src = call->in[2];
    const int dim = (int)real_dim(call->at->AT(scatter_add, dim), x->ndim);
    weft_status code = check(index, x->shape[dim], "index");
    if (code != WEFT_OK) return code;
    copy_all(x, call->out[0]);
    lines_job j = { .in = src->data, .out = call->out[0]->data };
    weft_piece_fn fn = scatter_float;
    switch (x->dtype) {
    case WEFT_FLOAT64: fn = scatter_double; break;
    case WEFT_INT32: fn = scatter_uint32_t; break;
    case WEFT_INT64: fn = scatter_uint64_t; break;
    }
    return run_lines(call, x, index, dim, j, fn);
}

// --- index_add: y[o][index[k]] += src[o][k], each a stretch of `inner` elements
typedef struct add_job {
    const void *src;
    void *y;
    const int64_t *index;
    int64_t outer, n, rows, inner, outer_grain, inner_grain, outer_pieces;
} add_job;

#define ADD(TYPE) \
static void add_##TYPE(void *context, int64_t piece) { \
    const add_job *j = context; \
    const int64_t o0 = piece % j->outer_pieces * j->outer_grain; \
    const int64_t o1 = least(o0 + j->outer_grain, j->outer); \
    const int64_t i0 = piece / j->outer_pieces * j->inner_grain; \
    const int64_t n = least(i0 + j->inner_grain, j->inner) - i0; \
    for (int64_t o = o0; o < o1; o++) { \
        for (int64_t k = 0; k < j->n; k++) { \
            TYPE *RESTRICT y = (TYPE *)j->y + (o * j->rows + j->index[k]) * j->inner + i0; \
            const TYPE *RESTRICT src = (const TYPE *)j->src + (o * j->n + k) * j->inner + i0; \
            for (int64_t i = 0; i < n; i++) y[i] += src[i]; \
        } \
    } \
}
ADD(float)
ADD(double)
ADD(uint32_t)
ADD(uint64_t)

CPU_KERNEL(index_add) {
    const weft_view *x = call->in[0], *index = call->in[1], *src = call->in[2];
    const int dim = (int)real_dim(call->at->AT(index_add, dim), x->ndim);
    weft_status code = check(index, x->shape[dim], "index");
    if (code != WEFT_OK) return code;
    copy_all(x, call->out[0]);
    if (src->numel == 0) return WEFT_OK;
    add_job j = { .src = src->data, .y = call->out[0]->data, .index = index->data,
                  .outer = weft_span(x, 0, dim), .n = index->numel, .rows = x->shape[dim],
                  .inner = weft_span(x, dim + 1, x->ndim) };
    j.inner_grain = j.inner > COLUMNS && j.n * j.inner > GRAIN ? COLUMNS : j.inner;
    j.outer_grain = GRAIN / (j.n * j.inner_grain) + 1;
    j.outer_pieces = weft_pieces(j.outer, j.outer_grain);
    weft_piece_fn fn = add_float;
    switch (x->dtype) {
    case WEFT_FLOAT64: fn = add_double; break;
    case WEFT_INT32: fn = add_uint32_t; break;
    case WEFT_INT64: fn = add_uint64_t; break;
    }
    weft_parallel(j.outer_pieces * weft_pieces(j.inner, j.inner_grain), fn, &j);
    return WEFT_OK;
}
