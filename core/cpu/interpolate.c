// interpolate.c: bicubic resizing and its transpose. Both axes are sparse matrices of taps,
// computed in double; a plane goes through one axis, then the other.
#include "math.h"
#include "slots.h"
#include <string.h>

// Row i of an axis: weights of source positions first[i] .. first[i] + count[i] - 1.
typedef struct axis {
    int64_t from, to, most; // sizes, and taps a row at most
    int64_t *first, *count; // [to]
    double *weight;         // [to, most]
} axis;

typedef struct resize {
    const weft_call *call;
    axis rows, columns;
    weft_slots slots;
} resize;

static double cubic(double x, double a) {
    x = fabs(x);
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
    return 0;
}

// Taps outside fall on the edge.
static void set_plain(axis *s, double step) {
    for (int64_t i = 0; i < s->to; i++) {
        const double center = ((double)i + 0.5) * step - 0.5;
        const int64_t base = (int64_t)floor(center);
        const double t = center - (double)base;
        double *w = s->weight + i * s->most;
        int64_t low = base - 1, high = base + 2;
        low = low < 0 ? 0 : low >= s->from ? s->from - 1 : low;
        high = high < 0 ? 0 : high >= s->from ? s->from - 1 : high;
        s->first[i] = low;
        s->count[i] = high - low + 1;
        for (int64_t k = 0; k < s->count[i]; k++) w[k] = 0;
        for (int64_t k = -1; k <= 2; k++) {
            int64_t j = base + k;
            j = j < 0 ? 0 : j >= s->from ? s->from - 1 : j;
            w[j - low] += cubic(t - (double)k, -0.75);
        }
    }
}

// The kernel is widened where the picture shrinks; taps outside are dropped, the rest sum to 1.
static void set_antialias(axis *s, double step) {
    const double factor = step > 1 ? step : 1;
    for (int64_t i = 0; i < s->to; i++) {
        const double center = ((double)i + 0.5) * step;
        int64_t low = (int64_t)floor(center - 2 * factor + 0.5),
                high = (int64_t)floor(center + 2 * factor + 0.5);
        low = low < 0 ? 0 : low;
        high = high > s->from ? s->from : high;
        if (low >= s->from) low = s->from - 1; // a given scale may point past the edge
        if (high <= low) high = low + 1;
        double *w = s->weight + i * s->most, sum = 0;
        s->first[i] = low;
        s->count[i] = high - low;
        for (int64_t j = low; j < high; j++) {
            w[j - low] = cubic(((double)j + 0.5 - center) / factor, -0.5);
            sum += w[j - low];
        }
        for (int64_t j = low; j < high; j++) w[j - low] = sum != 0 ? w[j - low] / sum : 1;
    }
}

static double step_of(int64_t from, int64_t to, double scale) {
    return scale > 0 ? 1 / scale : (double)from / (double)to;
}

static int64_t taps(int64_t from, int64_t to, double scale, bool antialias) {
    const double step = step_of(from, to, scale), most = antialias && step > 1 ? 4 * step + 3 : 7;
    return most < (double)from ? (int64_t)most : from;
}

static int64_t axis_size(const axis *s) {
    return s->to * (int64_t)(16 + 8 * s->most);
}

static void set_axis(axis *s, void *memory, double scale, bool antialias) {
    const double step = step_of(s->from, s->to, scale);
    s->first = memory;
    s->count = s->first + s->to;
    s->weight = (double *)(void *)(s->count + s->to);
    if (antialias)
        set_antialias(s, step);
    else
        set_plain(s, step);
}

#define PLANES(REAL, SUFFIX)                                                                       \
    static void forward_##SUFFIX(void *context, int64_t plane) {                                   \
        resize *t = context;                                                                       \
        const axis *v = &t->rows, *h = &t->columns;                                                \
        const REAL *x = (const REAL *)t->call->in[0]->data + plane * v->from * h->from;            \
        REAL *y = (REAL *)t->call->out[0]->data + plane * v->to * h->to,                           \
             *part = weft_slots_take(&t->slots);                                                   \
        for (int64_t r = 0; r < v->from; r++)                                                      \
            for (int64_t i = 0; i < h->to; i++) {                                                  \
                const double *w = h->weight + i * h->most;                                         \
                const REAL *from = x + r * h->from + h->first[i];                                  \
                REAL sum = 0;                                                                      \
                for (int64_t k = 0; k < h->count[i]; k++) sum += (REAL)w[k] * from[k];             \
                part[r * h->to + i] = sum;                                                         \
            }                                                                                      \
        for (int64_t i = 0; i < v->to; i++) {                                                      \
            REAL *to = y + i * h->to;                                                              \
            memset(to, 0, sizeof(REAL) * (size_t)h->to);                                           \
            for (int64_t k = 0; k < v->count[i]; k++) {                                            \
                const REAL w = (REAL)v->weight[i * v->most + k],                                   \
                           *from = part + (v->first[i] + k) * h->to;                               \
                for (int64_t j = 0; j < h->to; j++) to[j] += w * from[j];                          \
            }                                                                                      \
        }                                                                                          \
        weft_slots_give(&t->slots, part);                                                          \
    }                                                                                              \
    static void backward_##SUFFIX(void *context, int64_t plane) {                                  \
        resize *t = context;                                                                       \
        const axis *v = &t->rows, *h = &t->columns;                                                \
        const REAL *dy = (const REAL *)t->call->in[0]->data + plane * v->to * h->to;               \
        REAL *dx = (REAL *)t->call->out[0]->data + plane * v->from * h->from,                      \
             *part = weft_slots_take(&t->slots);                                                   \
        memset(part, 0, sizeof(REAL) * (size_t)(v->from * h->to));                                 \
        memset(dx, 0, sizeof(REAL) * (size_t)(v->from * h->from));                                 \
        for (int64_t i = 0; i < v->to; i++)                                                        \
            for (int64_t k = 0; k < v->count[i]; k++) {                                            \
                const REAL w = (REAL)v->weight[i * v->most + k], *from = dy + i * h->to;           \
                REAL *to = part + (v->first[i] + k) * h->to;                                       \
                for (int64_t j = 0; j < h->to; j++) to[j] += w * from[j];                          \
            }                                                                                      \
        for (int64_t r = 0; r < v->from; r++)                                                      \
            for (int64_t i = 0; i < h->to; i++) {                                                  \
                const double *w = h->weight + i * h->most;                                         \
                REAL *to = dx + r * h->from + h->first[i];                                         \
                for (int64_t k = 0; k < h->count[i]; k++)                                          \
                    to[k] += (REAL)w[k] * part[r * h->to + i];                                     \
            }                                                                                      \
        weft_slots_give(&t->slots, part);                                                          \
    }
PLANES(float, f32)
PLANES(double, f64)

// source: the picture that taps point into; result: the one they make
static weft_status run(const weft_call *call, const weft_view *source, const weft_view *result,
                       double scale_h, double scale_w, bool antialias, weft_piece_fn fn) {
    const int64_t planes = source->shape[0] * source->shape[1];
    if (planes == 0) return WEFT_OK;
    resize t = {.call = call,
                .rows = {.from = source->shape[2], .to = result->shape[2]},
                .columns = {.from = source->shape[3], .to = result->shape[3]}};
    t.rows.most = taps(t.rows.from, t.rows.to, scale_h, antialias);
    t.columns.most = taps(t.columns.from, t.columns.to, scale_w, antialias);
    const int64_t first = axis_size(&t.rows), nbytes = first + axis_size(&t.columns);
    char *tables = weft_workspace(call->backend, nbytes);
    if (!tables) return WEFT_ENOMEM;
    set_axis(&t.rows, tables, scale_h, antialias);
    set_axis(&t.columns, tables + first, scale_w, antialias);
    weft_status status =
        weft_slots_open(&t.slots, call->backend, planes,
                        t.rows.from * t.columns.to * weft_dtype_size(source->dtype));
    if (status == WEFT_OK) {
        weft_parallel(planes, fn, &t);
        weft_slots_close(&t.slots);
    }
    weft_workspace_free(call->backend, tables, nbytes);
    return status;
}

CPU_KERNEL(interpolate) {
    const weft_attrs *at = call->at;
    const weft_view *x = call->in[0];
    return run(call, x, call->out[0], at->AT(interpolate, scale_h), at->AT(interpolate, scale_w),
               at->AT(interpolate, antialias) != 0,
               x->dtype == WEFT_FLOAT32 ? forward_f32 : forward_f64);
}

CPU_KERNEL(interpolate_backward) {
    const weft_attrs *at = call->at;
    const weft_view *dy = call->in[0];
    return run(call, call->out[0], dy, at->AT(interpolate_backward, scale_h),
               at->AT(interpolate_backward, scale_w), at->AT(interpolate_backward, antialias) != 0,
               dy->dtype == WEFT_FLOAT32 ? backward_f32 : backward_f64);
}
