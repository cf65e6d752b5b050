// view.c: shapes, strides, and the functions that make, read and write tensors.
#include "../core.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

void weft_make_contiguous_strides(weft_view *v) {
    int64_t step = 1;
    for (int d = v->ndim - 1; d >= 0; d--) {
        v->stride[d] = step;
        step *= v->shape[d] > 0 ? v->shape[d] : 1;
    }
}

weft_status weft_set_shape(weft_view *v, const int64_t *shape, int n) {
    if (n < 0 || n > WEFT_MAX_DIMS)
        return weft_fail(WEFT_EINVAL, "%d dims: a tensor has 0 to %d", n, WEFT_MAX_DIMS);
    int64_t numel = 1;
    for (int d = 0; d < n; d++) {
        if (shape[d] < 0)
            return weft_fail(WEFT_EINVAL, "size %lld of dim %d is negative", (long long)shape[d], d + 1);
        if (__builtin_mul_overflow(numel, shape[d], &numel) || numel > (int64_t)1 << 46)
            return weft_fail(WEFT_EINVAL, "the shape holds more than 2^46 elements");
        v->shape[d] = shape[d];
    }
    v->ndim = n;
    v->numel = numel;
    weft_make_contiguous_strides(v);
    return WEFT_OK;
}

weft_status weft_fix_dim(int64_t *dim, int ndim) {
    int64_t d = *dim < 0 ? *dim + ndim : *dim;
    if (d < 0 || d >= ndim) {
        if (ndim == 0) return weft_fail(WEFT_EINVAL, "a 0-dim tensor has no dims");
        return weft_fail(WEFT_EINVAL, "dim %lld outside 1..%d (or -%d..-1)",
                         (long long)(*dim < 0 ? *dim : *dim + 1), ndim, ndim);
    }
    *dim = d;
    return WEFT_OK;
}

weft_status weft_broadcast_shapes(weft_view *out, const weft_view *a, const weft_view *b) {
    int n = a->ndim > b->ndim ? a->ndim : b->ndim;
    int64_t shape[WEFT_MAX_DIMS];
    for (int d = 0; d < n; d++) {
        int64_t x = d < n - a->ndim ? 1 : a->shape[d - (n - a->ndim)];
        int64_t y = d < n - b->ndim ? 1 : b->shape[d - (n - b->ndim)];
        if (x != y && x != 1 && y != 1)
            return weft_fail(WEFT_EINVAL, "sizes %lld and %lld of dim %d (from the end) don't broadcast",
                             (long long)x, (long long)y, d - n);
        shape[d] = x == 1 ? y : x;
    }
    return weft_set_shape(out, shape, n);
}

weft_status weft_describe(char *buffer, size_t size, const weft_view *v) {
    size_t at = 0;
    at += (size_t)snprintf(buffer, size, "[");
    for (int d = 0; d < v->ndim && at < size; d++)
        at += (size_t)snprintf(buffer + at, size - at, d ? ",%lld" : "%lld", (long long)v->shape[d]);
    if (at < size) snprintf(buffer + at, size - at, "]");
    return WEFT_OK;
}

bool weft_is_contiguous(const weft_tensor *t) { return weft_view_contiguous(&t->v); }

weft_tensor *weft_empty(const int64_t *shape, int n_shape, int dtype, int device) {
    weft_view v = { .dtype = dtype, .device = device };
    if (dtype < 0 || dtype >= WEFT_N_DTYPES) {
        weft_fail(WEFT_EINVAL, "unknown dtype number %d", dtype);
        return NULL;
    }
    if (weft_set_shape(&v, shape, n_shape) != WEFT_OK) return NULL;
    weft_storage *s = weft_storage_new(v.numel * weft_dtype_size(dtype), device);
    if (!s) return NULL;
    v.data = device == WEFT_META ? NULL : s->data;
    weft_tensor *t = weft_handle_new(&v, s);
    weft_storage_release(s);
    return t;
}

weft_tensor *weft_full(const int64_t *shape, int n_shape, double value, int dtype, int device) {
    weft_tensor *t = weft_empty(shape, n_shape, dtype, device);
    if (t && weft_fill_(t, value) != WEFT_OK) {
        weft_free(t);
        return NULL;
    }
    return t;
}

weft_tensor *weft_zeros(const int64_t *shape, int n_shape, int dtype, int device) {
    return weft_full(shape, n_shape, 0, dtype, device);
}

weft_tensor *weft_zeros_as(const weft_view *v) { return weft_zeros(v->shape, v->ndim, v->dtype, v->device); }

weft_tensor *weft_from(const void *data, const int64_t *shape, int n_shape, int dtype) {
    weft_tensor *t = weft_empty(shape, n_shape, dtype, WEFT_CPU);
    if (t && t->v.numel) memcpy(t->v.data, data, (size_t)(t->v.numel * weft_dtype_size(dtype)));
    return t;
}

weft_tensor *weft_wrap(void *data, int64_t nbytes, const int64_t *shape, int n_shape, int dtype,
                       void (*release)(void *), void *context) {
    weft_view v = { .data = data, .dtype = dtype, .device = WEFT_CPU };
    if (weft_set_shape(&v, shape, n_shape) != WEFT_OK) return NULL;
    if (v.numel * weft_dtype_size(dtype) > nbytes) {
        weft_fail(WEFT_EINVAL, "wrap: the shape wants %lld bytes of %lld",
                  (long long)(v.numel * weft_dtype_size(dtype)), (long long)nbytes);
        return NULL;
    }
    weft_storage *s = weft_pool_alloc(sizeof *s);
    if (!s) return NULL;
    *s = (weft_storage){ .data = data, .nbytes = nbytes, .refs = 1, .device = WEFT_CPU,
                         .release = release, .context = context };
    weft_tensor *t = weft_handle_new(&v, s);
    if (!t) {
        weft_pool_free(s, sizeof *s);  // the caller still owns data
        return NULL;
    }
    s->refs--;
    return t;
}

weft_tensor *weft_detach(const weft_tensor *t) { return weft_handle_new(&t->v, H(t)->storage); }

weft_tensor *weft_alias(const weft_tensor *t) {
    weft_tensor *a = weft_detach(t);
    if (a && H(t)->node) {
        H(a)->node = H(t)->node;
        H(a)->out_index = H(t)->out_index;
        weft_node_retain(H(a)->node);
        a->requires_grad = t->requires_grad;
        a->is_leaf = t->is_leaf;
    }
    return a;
}

weft_tensor *weft_strided(const weft_tensor *t, const int64_t *shape, const int64_t *stride, int n,
                          int64_t offset) {
    weft_view v = t->v;
    if (weft_set_shape(&v, shape, n) != WEFT_OK) return NULL;
    int64_t size = weft_dtype_size(t->v.dtype);
    int64_t base = t->v.data ? ((char *)t->v.data - (char *)H(t)->storage->data) / size : 0;
    int64_t low = base + offset, high = low;
    for (int d = 0; d < n; d++) {
        v.stride[d] = stride[d];
        if (shape[d] > 1) *(stride[d] < 0 ? &low : &high) += (shape[d] - 1) * stride[d];
    }
    if (v.numel && (low < 0 || high >= H(t)->storage->nbytes / size)) {
        weft_fail(WEFT_EINVAL, "strided: elements %lld..%lld lie outside the storage of %lld",
                  (long long)low, (long long)high, (long long)(H(t)->storage->nbytes / size));
        return NULL;
    }
    if (v.data) v.data = (char *)H(t)->storage->data + (base + offset) * size;
    return weft_handle_new(&v, H(t)->storage);
}

weft_tensor *weft_arange(double start, double stop, double step, int dtype, int device) {
    if (step == 0 || !isfinite(start) || !isfinite(stop) || !isfinite(step)) {
        weft_fail(WEFT_EINVAL, "arange: start %g, stop %g, step %g: finite numbers and a step other than 0 are expected",
                  start, stop, step);
        return NULL;
    }
    double count = ceil((stop - start) / step);
    if (count > 0x1p46) {
        weft_fail(WEFT_EINVAL, "arange: more than 2^46 elements from %g to %g by %g", start, stop, step);
        return NULL;
    }
    int64_t n = count > 0 ? (int64_t)count : 0;
    weft_tensor *t = weft_empty(&n, 1, dtype, device);
    if (!t || device == WEFT_META) return t;
    // in float64 first (or for good), so that rounding is that of every conversion
    weft_tensor *exact = dtype == WEFT_FLOAT64 && device == WEFT_CPU ? t : weft_empty(&n, 1, WEFT_FLOAT64, WEFT_CPU);
    weft_status code = exact ? WEFT_OK : WEFT_ENOMEM;
    for (int64_t i = 0; exact && i < n; i++) ((double *)exact->v.data)[i] = start + (double)i * step;
    if (exact && exact != t) {
        code = weft_copy_(t, exact);
        weft_free(exact);
    }
    if (code == WEFT_OK) return t;
    weft_free(t);
    return NULL;
}

// --- numbers in and out
static float half_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 1023;
    uint32_t bits;
    if (exponent == 31) bits = sign | 0x7f800000u | mantissa << 13;
    else if (exponent) bits = sign | (exponent + 112) << 23 | mantissa << 13;
    else {
        float f = (float)mantissa * 0x1p-24f;
        return sign ? -f : f;
    }
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static double load(const char *p, int dtype) {
    union { uint32_t u; float f; } b;
    switch (dtype) {
    case WEFT_FLOAT32: { float v; memcpy(&v, p, 4); return v; }
    case WEFT_FLOAT64: { double v; memcpy(&v, p, 8); return v; }
    case WEFT_BFLOAT16: { uint16_t v; memcpy(&v, p, 2); b.u = (uint32_t)v << 16; return b.f; }
    case WEFT_FLOAT16: { uint16_t v; memcpy(&v, p, 2); return half_to_float(v); }
    case WEFT_INT32: { int32_t v; memcpy(&v, p, 4); return v; }
    case WEFT_INT64: { int64_t v; memcpy(&v, p, 8); return (double)v; }
    default: return *(const uint8_t *)p;
    }
}

// LuaJIT keeps types in the payload of NaN: one that it does not know would be taken for an object.
static double one_nan(double v) { return v != v ? (double)NAN : v; }

static const char *element(const weft_view *v, int64_t i) {
    int64_t at = 0;
    for (int d = v->ndim - 1; d >= 0; d--) {
        at += i % v->shape[d] * v->stride[d];
        i /= v->shape[d];
    }
    return (const char *)v->data + at * weft_dtype_size(v->dtype);
}

static weft_status has_data(const weft_tensor *t, const char *what) {
    if (t->v.device == WEFT_META)
        return weft_fail(WEFT_EINVAL, "%s: a tensor on meta has no values to read", what);
    return WEFT_OK;
}

// A copy on the CPU of what lies on a GPU; the caller frees it.
static weft_tensor *fetched(const weft_tensor *t) {
    bool was = weft_set_grad_enabled(false);
    weft_tensor *y = weft_to_device(t, WEFT_CPU);
    weft_set_grad_enabled(was);
    return y;
}

double weft_item(const weft_tensor *t) {
    if (has_data(t, "item") != WEFT_OK) return NAN;
    if (t->v.numel != 1) {
        char text[160];
        weft_describe(text, sizeof text, &t->v);
        weft_fail(WEFT_EINVAL, "item: a tensor of one element is expected, got %s", text);
        return NAN;
    }
    if (weft_host_reaches(&t->v)) return one_nan(load(t->v.data, t->v.dtype));
    char value[8];
    weft_backend *b = weft_backend_of(t->v.device);
    if (b->download(b, value, t->v.data, weft_dtype_size(t->v.dtype)) != WEFT_OK) return NAN;
    return one_nan(load(value, t->v.dtype));
}

weft_status weft_read(const weft_tensor *t, double *out, int64_t n) {
    TRY(has_data(t, "read"));
    if (n < 0 || n > t->v.numel)
        return weft_fail(WEFT_EINVAL, "read: %lld elements of a tensor of %lld", (long long)n, (long long)t->v.numel);
    weft_tensor *near = weft_host_reaches(&t->v) ? NULL : fetched(t);
    if (!near && !weft_host_reaches(&t->v)) return weft_error_code();
    const weft_view *v = near ? &near->v : &t->v;
    for (int64_t i = 0; i < n; i++) out[i] = one_nan(load(element(v, i), t->v.dtype));
    weft_free(near);
    return WEFT_OK;
}

// Converts one double into a tensor's dtype through a float64 tensor and copy_, so that rounding is
// the same as everywhere else.
weft_status weft_write(weft_tensor *t, const double *in, int64_t n) {
    TRY(has_data(t, "write"));
    if (n != t->v.numel)
        return weft_fail(WEFT_EINVAL, "write: %lld values for a tensor of %lld", (long long)n, (long long)t->v.numel);
    if (n == 0) return WEFT_OK;
    if (n == 1 && t->v.dtype == WEFT_INT64 && weft_host_reaches(&t->v)) {
        *(int64_t *)t->v.data = (int64_t)in[0];
        H(t)->storage->version++;
        return WEFT_OK;
    }
    weft_tensor *source = weft_from(in, t->v.shape, t->v.ndim, WEFT_FLOAT64);
    if (!source) return WEFT_ENOMEM;
    weft_status code = weft_copy_(t, source);
    weft_free(source);
    return code;
}
