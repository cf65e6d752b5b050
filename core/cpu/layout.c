// layout.c: kernels that move elements without looking at them: copies of strided views, and what
// is built from such copies (cat, flip, pad, the gradients of narrow and unfold).
#include "copy.h"
#include "half.h"

typedef struct filling { int size; _Alignas(8) char element[8]; } filling;

static void fill_span(const void *context, int64_t n, void *const *p) {
    const filling *f = context;
    each_gather_run(p[0], f->element, n, 0, f->size);
}

static void fill_view(const weft_view *out, const void *element) {
    filling f = { .size = each_dtype_size(out->dtype) };
    memcpy(f.element, element, (size_t)f.size);
    each_run(&out, 1, fill_span, &f, EACH_CHEAP);
}

CPU_KERNEL(contiguous) {
    copy_view(call->out[0], call->in[0]);
    return WEFT_OK;
}

static weft_view part_of(const weft_view *v, int64_t dim, int64_t start, int64_t length) {
    weft_view part = *v;
    part.data = (char *)v->data + start * v->stride[dim] * each_dtype_size(v->dtype);
    part.numel = v->shape[dim] ? v->numel / v->shape[dim] * length : 0;
    part.shape[dim] = length;
    return part;
}

CPU_KERNEL(flip) {
    weft_view x = *call->in[0];
    for (int i = 0; i < call->at->n_list && x.numel; i++) {
        int64_t d = call->at->list[i] < 0 ? call->at->list[i] + x.ndim : call->at->list[i];
        x.data = (char *)x.data + (x.shape[d] - 1) * x.stride[d] * each_dtype_size(x.dtype);
        x.stride[d] = -x.stride[d];
    }
    copy_view(call->out[0], &x);
    return WEFT_OK;
}

CPU_KERNEL(cat) {
    const weft_view *y = call->out[0];
    int64_t dim = call->at->AT(cat, dim), start = 0;
    if (dim < 0) dim += y->ndim;
    for (int i = 0; i < call->n_in; i++) {
        const weft_view *x = call->in[i];
        weft_view part = part_of(y, dim, start, x->shape[dim]);
        copy_view(&part, x);
        start += x->shape[dim];
    }
    return WEFT_OK;
}

// --- borders. The slabs before and after x in each dim are filled; x lies between them.
static void fill_around(weft_view inside, int64_t dim, int64_t before, int64_t length,
                        const void *element, weft_view *rest) {
    weft_view low = part_of(&inside, dim, 0, before);
    weft_view high = part_of(&inside, dim, before + length, inside.shape[dim] - before - length);
    fill_view(&low, element);
    fill_view(&high, element);
    *rest = part_of(&inside, dim, before, length);
}

// value as an element of dtype. 16-bit floats and integers go through the rules of cast.
static void element_of(double value, int dtype, void *element) {
    bool inside = value >= -0x1p63 && value < 0x1p63;
    int64_t whole = inside ? (int64_t)value : value > 0 ? INT64_MAX : value < 0 ? INT64_MIN : 0;
    int32_t i32 = (int32_t)(whole > INT32_MAX ? INT32_MAX : whole < INT32_MIN ? INT32_MIN : whole);
    uint8_t u8 = (uint8_t)(whole > 255 ? 255 : whole < 0 ? 0 : whole);
    uint8_t truth = value != 0;
    float f32 = (float)value, odd = weft_round_to_odd(value);
    uint16_t b16 = weft_bfloat16_of(odd), f16 = weft_float16_of(odd);
    const void *from[WEFT_N_DTYPES] = { &f32, &value, &b16, &f16, &i32, &whole, &u8, &truth };
    memcpy(element, from[dtype], (size_t)each_dtype_size(dtype));
}

CPU_KERNEL(pad) {
    const weft_view *x = call->in[0];
    weft_view inside = *call->out[0];
    char element[8];
    element_of(call->at->AT(pad, value), x->dtype, element);
    for (int d = 0; d < x->ndim; d++)
        fill_around(inside, d, call->at->list[2 * d], x->shape[d], element, &inside);
    copy_view(&inside, x);
    return WEFT_OK;
}

CPU_KERNEL(narrow_backward) {
    const weft_view *dy = call->in[0];
    weft_view inside = *call->out[0];
    int64_t dim = call->at->AT(narrow_backward, dim), start = call->at->AT(narrow_backward, start);
    const uint64_t zero = 0;
    if (dim < 0) dim += dy->ndim;
    if (start < 0) start += call->at->AT(narrow_backward, size);
    fill_around(inside, dim, start, dy->shape[dim], &zero, &inside);
    copy_view(&inside, dy);
    return WEFT_OK;
}

// --- unfold_backward: dx[o, p, i] = sum over windows w that hold p of dy[o, w, i, p - w * step],
// windows in order.
typedef struct folding {
    const void *dy;
    void *dx;
    int64_t size, windows, inner, length, step, rows, per_piece;
} folding;

#define FOLD(T) \
    static void fold_##T(void *context, int64_t piece) { \
        const folding *f = context; \
        const T *dy = f->dy; \
        int64_t end = weft_piece_end(f->rows, f->per_piece, piece); \
        for (int64_t row = piece * f->per_piece; row < end; row++) { \
            int64_t o = row / f->size * f->windows, at = row % f->size; \
            int64_t first = at < f->length ? 0 : (at - f->length) / f->step + 1; \
            int64_t last = at / f->step < f->windows ? at / f->step : f->windows - 1; \
            T *dx = (T *)f->dx + row * f->inner; \
            for (int64_t i = 0; i < f->inner; i++) { \
                T sum = 0; \
                for (int64_t w = first; w <= last; w++) \
                    sum += dy[((o + w) * f->inner + i) * f->length + at - w * f->step]; \
                dx[i] = sum; \
            } \
        } \
    }
FOLD(float)
FOLD(double)

CPU_KERNEL(unfold_backward) {
    const weft_view *dy = call->in[0], *dx = call->out[0];
    int64_t dim = call->at->AT(unfold_backward, dim);
    if (dx->numel == 0) return WEFT_OK;
    if (dim < 0) dim += dx->ndim;
    folding f = { .dy = dy->data, .dx = dx->data, .size = dx->shape[dim], .windows = dy->shape[dim],
                  .inner = weft_span(dx, (int)dim + 1, dx->ndim), .length = dy->shape[dx->ndim],
                  .step = call->at->AT(unfold_backward, step) };
    f.rows = dx->numel / f.inner;
    f.per_piece = weft_pieces(EACH_COSTLY, f.inner);
    weft_parallel(weft_pieces(f.rows, f.per_piece),
                  dx->dtype == WEFT_FLOAT32 ? fold_float : fold_double, &f);
    return WEFT_OK;
}
