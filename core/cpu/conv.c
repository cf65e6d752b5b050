// conv.c: 2-d convolution and its gradients over products. Windows of a block of positions are laid
// out as columns in scratch memory; blocks follow from shapes alone, so a picture gives the same
// bits alone or in a batch.
#include "slots.h"
#include <string.h>

#define POSITIONS 128  // forward: positions a piece
#define OUTPUTS 256    // forward: output channels a piece
#define WINDOW_ROWS 64 // dweight: rows of the window matrix a piece
#define RUN 256        // backward: positions at a time

typedef struct conv {
    int dtype;
    int64_t size;                           // bytes an element
    int64_t batch, channels, height, width; // channels: of one group
    int64_t groups, outputs, kh, kw;        // outputs: of one group
    int64_t out_h, out_w, stride_h, stride_w, pad_h, pad_w;
    int64_t window, positions;    // channels * kh * kw, out_h * out_w
    int64_t parts, blocks, grain; // how pieces are cut
    const char *x, *weight, *bias, *dy;
    char *y, *dx, *dw;
    weft_slots slots;
} conv;

// Where a row of the window matrix reads: channel and offset of its tap
typedef struct tap {
    int64_t channel, row, column;
} tap;

static tap tap_of(const conv *t, int64_t k) {
    return (tap){k / (t->kh * t->kw), k / t->kw % t->kh - t->pad_h, k % t->kw - t->pad_w};
}

// Columns of output row that fall inside the picture: [*low, *high)
static void inside(const conv *t, const tap *at, int64_t begin, int64_t end, int64_t *low,
                   int64_t *high) {
    *low = begin;
    *high = end;
    while (*low < *high && *low * t->stride_w + at->column < 0) ++*low;
    while (*high > *low && (*high - 1) * t->stride_w + at->column >= t->width) --*high;
}

// Rows [k0, k1) and positions [p0, p1) of the window matrix of one picture's group at x, and the
// way back, which adds them up.
#define WINDOWS(REAL, SUFFIX)                                                                      \
    static void gather_##SUFFIX(const conv *t, const void *picture, int64_t k0, int64_t k1,        \
                                int64_t p0, int64_t p1, void *to) {                                \
        for (int64_t k = k0; k < k1; k++) {                                                        \
            const tap at = tap_of(t, k);                                                           \
            const REAL *x = (const REAL *)picture + at.channel * t->height * t->width;             \
            REAL *row = (REAL *)to + (k - k0) * (p1 - p0);                                         \
            for (int64_t p = p0, end; p < p1; row += end - p, p = end) {                           \
                const int64_t i = p / t->out_w, line = i * t->stride_h + at.row,                   \
                              begin = p - i * t->out_w;                                            \
                int64_t low, high, stop = t->out_w < begin + p1 - p ? t->out_w : begin + p1 - p;   \
                end = p + stop - begin;                                                            \
                if (line < 0 || line >= t->height) {                                               \
                    memset(row, 0, sizeof(REAL) * (size_t)(stop - begin));                         \
                    continue;                                                                      \
                }                                                                                  \
                const REAL *from = x + line * t->width + at.column;                                \
                inside(t, &at, begin, stop, &low, &high);                                          \
                for (int64_t j = begin; j < low; j++) row[j - begin] = 0;                          \
                if (t->stride_w == 1)                                                              \
                    for (int64_t j = low; j < high; j++) row[j - begin] = from[j];                 \
                else                                                                               \
                    for (int64_t j = low; j < high; j++) row[j - begin] = from[j * t->stride_w];   \
                for (int64_t j = high; j < stop; j++) row[j - begin] = 0;                          \
            }                                                                                      \
        }                                                                                          \
    }                                                                                              \
    static void scatter_##SUFFIX(const conv *t, void *picture, int64_t k0, int64_t k1, int64_t p0, \
                                 int64_t p1, const void *source) {                                 \
        for (int64_t k = k0; k < k1; k++) {                                                        \
            const tap at = tap_of(t, k);                                                           \
            REAL *x = (REAL *)picture + at.channel * t->height * t->width;                         \
            const REAL *row = (const REAL *)source + (k - k0) * (p1 - p0);                         \
            for (int64_t p = p0, end; p < p1; row += end - p, p = end) {                           \
                const int64_t i = p / t->out_w, line = i * t->stride_h + at.row,                   \
                              begin = p - i * t->out_w;                                            \
                int64_t low, high, stop = t->out_w < begin + p1 - p ? t->out_w : begin + p1 - p;   \
                end = p + stop - begin;                                                            \
                if (line < 0 || line >= t->height) continue;                                       \
                REAL *to = x + line * t->width + at.column;                                        \
                inside(t, &at, begin, stop, &low, &high);                                          \
                for (int64_t j = low; j < high; j++) to[j * t->stride_w] += row[j - begin];        \
            }                                                                                      \
        }                                                                                          \
    }                                                                                              \
    static void fill_##SUFFIX(REAL *y, int64_t ld, int64_t n, int64_t m, const REAL *bias) {       \
        for (int64_t i = 0; i < n; i++)                                                            \
            for (int64_t j = 0; j < m; j++) y[i * ld + j] = bias[i];                               \
    }
WINDOWS(float, f32)
WINDOWS(double, f64)

static void gather(const conv *t, const void *x, int64_t k0, int64_t k1, int64_t p0, int64_t p1,
                   void *to) {
    if (t->dtype == WEFT_FLOAT32)
        gather_f32(t, x, k0, k1, p0, p1, to);
    else
        gather_f64(t, x, k0, k1, p0, p1, to);
}

static int64_t less(int64_t a, int64_t b) {
    return a < b ? a : b;
}

// One picture's group, a block of outputs, a block of positions.
static void forward(void *context, int64_t piece) {
    conv *t = context;
    const int64_t p0 = piece % t->blocks * POSITIONS, p1 = less(p0 + POSITIONS, t->positions);
    const int64_t o0 = piece / t->blocks % t->parts * OUTPUTS, o1 = less(o0 + OUTPUTS, t->outputs);
    const int64_t both = piece / t->blocks / t->parts, g = both % t->groups;
    void *columns = weft_slots_take(&t->slots);
    gather(t, t->x + both * t->channels * t->height * t->width * t->size, 0, t->window, p0, p1,
           columns);
    const int64_t o = g * t->outputs + o0;
    char *y = t->y + ((both * t->outputs + o0) * t->positions + p0) * t->size;
    if (t->bias && t->dtype == WEFT_FLOAT32)
        fill_f32((float *)(void *)y, t->positions, o1 - o0, p1 - p0,
                 (const float *)(const void *)t->bias + o);
    else if (t->bias)
        fill_f64((double *)(void *)y, t->positions, o1 - o0, p1 - p0,
                 (const double *)(const void *)t->bias + o);
    weft_gemm_here(&(weft_gemm){.dtype = t->dtype,
                                .m = o1 - o0,
                                .n = p1 - p0,
                                .k = t->window,
                                .lda = t->window,
                                .ldb = p1 - p0,
                                .ldc = t->positions,
                                .alpha = 1,
                                .beta = t->bias ? 1 : 0,
                                .a = t->weight + o * t->window * t->size,
                                .b = columns,
                                .c = y});
    weft_slots_give(&t->slots, columns);
}

// dx of one picture's group, `grain` channels: no two pieces write the same place.
static void backward_x(void *context, int64_t piece) {
    conv *t = context;
    const int64_t c0 = piece % t->parts * t->grain, c1 = less(c0 + t->grain, t->channels),
                  both = piece / t->parts;
    const int64_t k0 = c0 * t->kh * t->kw, k1 = c1 * t->kh * t->kw, g = both % t->groups,
                  plane = t->height * t->width;
    void *columns = weft_slots_take(&t->slots);
    char *dx = t->dx + both * t->channels * plane * t->size;
    memset(dx + c0 * plane * t->size, 0, (size_t)((c1 - c0) * plane * t->size));
    for (int64_t p0 = 0; p0 < t->positions; p0 += RUN) {
        const int64_t p1 = less(p0 + RUN, t->positions);
        weft_gemm_here(&(weft_gemm){.dtype = t->dtype,
                                    .trans_a = true,
                                    .m = k1 - k0,
                                    .n = p1 - p0,
                                    .k = t->outputs,
                                    .lda = t->window,
                                    .ldb = t->positions,
                                    .ldc = p1 - p0,
                                    .alpha = 1,
                                    .a = t->weight + (g * t->outputs * t->window + k0) * t->size,
                                    .b = t->dy + (both * t->outputs * t->positions + p0) * t->size,
                                    .c = columns});
        if (t->dtype == WEFT_FLOAT32)
            scatter_f32(t, dx, k0, k1, p0, p1, columns);
        else
            scatter_f64(t, dx, k0, k1, p0, p1, columns);
    }
    weft_slots_give(&t->slots, columns);
}

// dweight of one group, WINDOW_ROWS columns of it: all pictures, in order.
static void backward_w(void *context, int64_t piece) {
    conv *t = context;
    const int64_t k0 = piece % t->parts * WINDOW_ROWS, k1 = less(k0 + WINDOW_ROWS, t->window),
                  g = piece / t->parts;
    void *columns = weft_slots_take(&t->slots);
    char *dw = t->dw + (g * t->outputs * t->window + k0) * t->size;
    bool first = true;
    for (int64_t b = 0; b < t->batch; b++) {
        const int64_t both = b * t->groups + g;
        for (int64_t p0 = 0; p0 < t->positions; p0 += RUN, first = false) {
            const int64_t p1 = less(p0 + RUN, t->positions);
            gather(t, t->x + both * t->channels * t->height * t->width * t->size, k0, k1, p0, p1,
                   columns);
            weft_gemm_here(
                &(weft_gemm){.dtype = t->dtype,
                             .trans_b = true,
                             .m = t->outputs,
                             .n = k1 - k0,
                             .k = p1 - p0,
                             .lda = t->positions,
                             .ldb = p1 - p0,
                             .ldc = t->window,
                             .alpha = 1,
                             .beta = first ? 0 : 1,
                             .a = t->dy + (both * t->outputs * t->positions + p0) * t->size,
                             .b = columns,
                             .c = dw});
        }
    }
    weft_slots_give(&t->slots, columns);
}

static weft_status run(conv *t, const weft_call *call, int64_t pieces, int64_t scratch,
                       weft_piece_fn fn) {
    weft_status status = weft_slots_open(&t->slots, call->backend, pieces, scratch * t->size);
    if (status != WEFT_OK) return status;
    weft_parallel(pieces, fn, t);
    weft_slots_close(&t->slots);
    return WEFT_OK;
}

static void finish(conv *t) {
    t->size = weft_dtype_size(t->dtype);
    t->window = t->channels * t->kh * t->kw;
    t->positions = t->out_h * t->out_w;
}

CPU_KERNEL(conv2d) {
    const weft_view *x = call->in[0], *w = call->in[1], *y = call->out[0];
    const weft_attrs *at = call->at;
    if (y->numel == 0) return WEFT_OK;
    conv t = {.dtype = x->dtype,
              .batch = x->shape[0],
              .channels = w->shape[1],
              .height = x->shape[2],
              .width = x->shape[3],
              .groups = at->AT(conv2d, groups),
              .kh = w->shape[2],
              .kw = w->shape[3],
              .out_h = y->shape[2],
              .out_w = y->shape[3],
              .stride_h = at->AT(conv2d, stride_h),
              .stride_w = at->AT(conv2d, stride_w),
              .pad_h = at->AT(conv2d, pad_h),
              .pad_w = at->AT(conv2d, pad_w),
              .x = x->data,
              .weight = w->data,
              .bias = call->in[2] ? call->in[2]->data : NULL,
              .y = y->data};
    t.outputs = w->shape[0] / t.groups;
    finish(&t);
    t.blocks = weft_pieces(t.positions, POSITIONS);
    t.parts = weft_pieces(t.outputs, OUTPUTS);
    return run(&t, call, t.batch * t.groups * t.parts * t.blocks, t.window * POSITIONS, forward);
}

CPU_KERNEL(conv2d_backward) {
    const weft_view *dy = call->in[0], *x = call->in[1], *w = call->in[2], *dx = call->out[0],
                    *dw = call->out[1];
    const weft_attrs *at = call->at;
    conv t = {.dtype = dy->dtype,
              .batch = dy->shape[0],
              .groups = at->AT(conv2d_backward, groups),
              .kh = at->AT(conv2d_backward, kh),
              .kw = at->AT(conv2d_backward, kw),
              .height = at->AT(conv2d_backward, h),
              .width = at->AT(conv2d_backward, w),
              .out_h = dy->shape[2],
              .out_w = dy->shape[3],
              .stride_h = at->AT(conv2d_backward, stride_h),
              .stride_w = at->AT(conv2d_backward, stride_w),
              .pad_h = at->AT(conv2d_backward, pad_h),
              .pad_w = at->AT(conv2d_backward, pad_w),
              .x = x ? x->data : NULL,
              .weight = w ? w->data : NULL,
              .dy = dy->data,
              .dx = dx->data,
              .dw = dw->data};
    t.outputs = dy->shape[1] / t.groups;
    t.channels = x ? x->shape[1] / t.groups : w ? w->shape[1] : 0;
    finish(&t);
    weft_status status = WEFT_OK;
    if (dx->numel > 0) {
        t.grain = (WINDOW_ROWS + t.kh * t.kw - 1) / (t.kh * t.kw);
        t.parts = weft_pieces(t.channels, t.grain);
        status =
            run(&t, call, t.batch * t.groups * t.parts, t.grain * t.kh * t.kw * RUN, backward_x);
    }
    if (status == WEFT_OK && dw->numel > 0) {
        if (t.batch == 0) {
            memset(dw->data, 0, (size_t)(dw->numel * t.size));
            return WEFT_OK;
        }
        t.parts = weft_pieces(t.window, WINDOW_ROWS);
        status = run(&t, call, t.groups * t.parts, WINDOW_ROWS * RUN, backward_w);
    }
    return status;
}
