// conv.cu: 2-d convolution and its gradients over cuda_product. The windows of a chunk of pictures are
// laid out as a matrix in scratch memory, a place (a picture's position) one way, a tap (group,
// channel, row and column of the kernel) the other; a bias is one more tap, whose input is 1. Windows that
// overlap would be laid out several times over: a library that convolves (dnn.h) is asked for those first.
#include "cuda/blas.h"
#include "cuda/calls.h"
#include "cuda/dnn.h"
#include "cuda/each.h"

#ifndef WEFT_CONV_CHUNK
#define WEFT_CONV_CHUNK (256 << 20) // bytes of windows at a time, a picture's at the least
#endif
#define SIDE 8                      // rows of the matrices that products read are multiples of it

struct conv : convolution {
    int64_t size;                           // bytes an element
    int64_t window, positions;              // channels * kh * kw, out_h * out_w
    // the matrix of windows
    bool by_place;                          // rows are places; else rows are taps
    bool ones;                              // tap number `window` of each group is 1
    int64_t taps, places, pictures;         // of a group and of a picture, rounded up; of a chunk
    int64_t tap_step, place_step;
};

static int64_t rounded(int64_t n) { return (n + SIDE - 1) / SIDE * SIDE; }

static weft_status plan(conv *t, bool ones) {
    t->size = cuda_host->dtype_size(t->dtype);
    t->window = t->channels * t->kh * t->kw;
    t->positions = t->out_h * t->out_w;
    // where windows don't overlap, neighbours in a picture are neighbours in a window
    t->by_place = t->stride_w >= t->kw && t->kw >= 4;
    t->ones = ones;
    t->taps = rounded(t->window + ones);
    t->places = t->by_place ? t->positions : rounded(t->positions);
    const int64_t picture = t->groups * t->taps * t->places * t->size;
    t->pictures = picture > 0 ? WEFT_CONV_CHUNK / picture : t->batch;
    t->pictures = t->pictures < 1 ? 1 : t->pictures > t->batch ? t->batch : t->pictures;
    if (t->groups * t->taps > INT32_MAX || t->pictures * t->places > INT32_MAX || t->height * t->width > INT32_MAX)
        return weft_fail(WEFT_EUNSUPPORTED, "pictures of %lld x %lld and windows of %lld elements are too large",
                         (long long)t->height, (long long)t->width, (long long)t->window);
    return WEFT_OK;
}

// For a chunk of `count` pictures
static void lay_out(conv *t, int64_t count) {
    t->pictures = count;
    t->place_step = t->by_place ? t->groups * t->taps : 1;
    t->tap_step = t->by_place ? 1 : count * t->places;
}

static int64_t matrix_bytes(const conv *t) { return t->groups * t->taps * t->places * t->pictures * t->size; }

struct conv_data {
    const void *from;
    void *to;
    template <class V> void visit(V &v) { v(from), v(to); }
};

// A place and a tap, and what comes next.
struct place_at {
    int b, i, j;
    DEVICE void set(const conv &t, uint32_t place) {
        const uint32_t places = (uint32_t)t.places, p = place % places;
        b = (int)(place / places);
        i = (int)(p / (uint32_t)t.out_w);
        j = (int)(p % (uint32_t)t.out_w);
    }
    DEVICE void next(const conv &t) {   // within a picture; rows below the last are padding
        if (++j < t.out_w) return;
        j = 0;
        i++;
    }
};
struct tap_at {
    int group, channel, row, column, k;
    DEVICE void set(const conv &t, uint32_t tap) {
        const uint32_t taps = (uint32_t)t.taps, kw = (uint32_t)t.kw, kh = (uint32_t)t.kh;
        group = (int)(tap / taps);
        k = (int)(tap - (uint32_t)group * taps);
        column = (int)((uint32_t)k % kw);
        row = (int)((uint32_t)k / kw % kh);
        channel = (int)((uint32_t)k / kw / kh);
    }
    DEVICE void next(const conv &t) {   // within a group
        k++;
        if (++column < t.kw) return;
        column = 0;
        if (++row < t.kh) return;
        row = 0;
        channel++;
    }
};

template <class T> DEVICE T fetch(const conv &t, const T *x, const place_at &p, const tap_at &at) {
    const wide_t<T> zero = 0, one = 1;
    if (at.k >= t.window) return narrow<T>(t.ones && at.k == t.window ? one : zero);
    const int64_t row = p.i * t.stride_h + at.row - t.pad_h, column = p.j * t.stride_w + at.column - t.pad_w;
    if (p.i >= t.out_h || row < 0 || row >= t.height || column < 0 || column >= t.width) return narrow<T>(zero);
    const int64_t channel = (p.b * t.groups + at.group) * t.channels + at.channel;
    return x[(channel * t.height + row) * t.width + column];
}

// Pictures to windows: 16 bytes of the matrix at a time, in the order it lies.
template <class T> __global__ void __launch_bounds__(256) gather_kernel(const conv t, const conv_data d) {
    constexpr int VEC = 16 / sizeof(T);
    const T *x = static_cast<const T *>(d.from);
    const int64_t line = t.by_place ? t.place_step : t.tap_step;     // a multiple of VEC
    const int64_t total = t.groups * t.taps * t.places * t.pictures;
    for (int64_t e = THREAD_INDEX * VEC; e < total; e += THREAD_COUNT * VEC) {
        const uint32_t row = (uint32_t)(e / line), column = (uint32_t)(e - row * line);
        place_at place;
        tap_at tap;
        place.set(t, t.by_place ? row : column);
        tap.set(t, t.by_place ? column : row);
        pack<T, VEC> v;
        for (int j = 0; j < VEC; j++) {
            v.v[j] = fetch(t, x, place, tap);
            if (t.by_place) tap.next(t);
            else place.next(t);
        }
        *reinterpret_cast<pack<T, VEC> *>(static_cast<T *>(d.to) + e) = v;
    }
}

// Windows back to pictures: each pixel adds up the taps that read it, in order.
template <class T> __global__ void __launch_bounds__(256) collect_kernel(const conv t, const conv_data d) {
    typedef wide_t<T> W;
    const T *windows = static_cast<const T *>(d.from);
    const int64_t plane = t.height * t.width, total = t.pictures * t.groups * t.channels * plane;
    for (int64_t e = THREAD_INDEX; e < total; e += THREAD_COUNT) {
        const int64_t channel = e / plane;
        const int pixel = (int)(e - channel * plane), i = pixel / (int)t.width, j = pixel - i * (int)t.width;
        const int64_t c = channel % t.channels, g = channel / t.channels % t.groups, b = channel / t.channels / t.groups;
        const int64_t first = g * t.taps + c * t.kh * t.kw;
        W sum = 0;
        for (int row = (int)((i + t.pad_h) % t.stride_h); row < t.kh; row += (int)t.stride_h) {
            const int64_t y = (i + t.pad_h - row) / t.stride_h;
            if (i + t.pad_h < row) break;
            if (y >= t.out_h) continue;
            for (int column = (int)((j + t.pad_w) % t.stride_w); column < t.kw; column += (int)t.stride_w) {
                const int64_t x = (j + t.pad_w - column) / t.stride_w;
                if (j + t.pad_w < column) break;
                if (x >= t.out_w) continue;
                const int64_t place = b * t.places + y * t.out_w + x, tap = first + row * t.kw + column;
                sum += widen<T>(windows[place * t.place_step + tap * t.tap_step]);
            }
        }
        static_cast<T *>(d.to)[e] = narrow<T>(sum);
    }
}

// Weights as products read them: rows of `taps`, the bias where the windows have their 1.
struct padding {
    const void *weight, *bias;
    void *to;
    int64_t rows, window, taps;
    template <class V> void visit(V &v) { v(weight), v(bias), v(to); }
};
template <class T> __global__ void __launch_bounds__(256) pad_kernel(const padding p) {
    for (int64_t e = THREAD_INDEX; e < p.rows * p.taps; e += THREAD_COUNT) {
        const int64_t row = e / p.taps, k = e - row * p.taps;
        T v = narrow<T>((wide_t<T>)0);
        if (k < p.window) v = static_cast<const T *>(p.weight)[row * p.window + k];
        else if (p.bias && k == p.window) v = static_cast<const T *>(p.bias)[row];
        static_cast<T *>(p.to)[e] = v;
    }
}

static const char *at(const void *p, int64_t elements, const conv *t) {
    return static_cast<const char *>(p) + elements * t->size;
}

static weft_status gather(const weft_call *call, const conv *t, const void *x, int64_t first, void *to) {
    const conv_data d = { at(x, first * t->groups * t->channels * t->height * t->width, t), to };
    const int64_t packs = matrix_bytes(t) / 16;
    if (packs == 0) return WEFT_OK;
    return with_float(t->dtype, [&](auto tag) {
        return LAUNCH(call, gather_kernel<TYPE_OF(tag)>, blocks_for(packs, 256), 256, 0, *t, d);
    });
}

// A product for each picture of the chunk and each group: the provider counts the longer of the two.
// step_g, step_b: elements of a, b, c from group to group and from picture to picture.
struct steps { int64_t a, b, c; };
static weft_status each_product(const weft_call *call, const conv *t, cuda_gemm g, steps group, steps picture) {
    const bool groups_inside = t->groups > t->pictures;
    const steps inner = groups_inside ? group : picture, outer = groups_inside ? picture : group;
    const cuda_gemm first = g;
    g.dtype = t->dtype;
    g.alpha = 1;
    g.batch = groups_inside ? t->groups : t->pictures;
    g.stride_a = inner.a, g.stride_b = inner.b, g.stride_c = inner.c;
    for (int64_t i = 0; i < (groups_inside ? t->pictures : t->groups); i++) {
        g.a = at(first.a, i * outer.a, t);
        g.b = at(first.b, i * outer.b, t);
        g.c = const_cast<char *>(at(first.c, i * outer.c, t));
        TRY(cuda_product(call, &g));
    }
    return WEFT_OK;
}

static weft_status forward(const weft_call *call, conv *t, const void *x, const void *weight, const void *bias, void *y) {
    const bool as_it_is = t->taps == t->window;
    scratch windows(call, matrix_bytes(t)), padded(call, as_it_is ? 0 : t->groups * t->outputs * t->taps * t->size);
    if (!windows.data || !padded.data) return WEFT_ENOMEM;
    if (!as_it_is) {
        const padding p = { weight, bias, padded.data, t->groups * t->outputs, t->window, t->taps };
        TRY(with_float(t->dtype, [&](auto tag) {
            return LAUNCH(call, pad_kernel<TYPE_OF(tag)>, blocks_for(p.rows * p.taps, 256), 256, 0, p);
        }));
        weight = padded.data;
    }
    const int64_t most = t->pictures;
    for (int64_t first = 0; first < t->batch; first += most) {
        lay_out(t, t->batch - first < most ? t->batch - first : most);
        TRY(gather(call, t, x, first, windows.data));
        cuda_gemm g = {};
        g.trans_b = t->by_place;
        g.m = t->outputs, g.n = t->positions, g.k = t->taps;
        g.lda = t->taps, g.ldb = t->by_place ? t->place_step : t->tap_step, g.ldc = t->positions;
        g.a = weight, g.b = windows.data;
        g.c = const_cast<char *>(at(y, first * t->groups * t->outputs * t->positions, t));
        TRY(each_product(call, t, g, { t->outputs * t->taps, t->taps * t->tap_step, t->outputs * t->positions },
                         { 0, t->places * t->place_step, t->groups * t->outputs * t->positions }));
    }
    return WEFT_OK;
}

static weft_status backward_x(const weft_call *call, conv *t, const void *dy, const void *weight, void *dx) {
    scratch windows(call, matrix_bytes(t));
    if (!windows.data) return WEFT_ENOMEM;
    const int64_t most = t->pictures, in = t->groups * t->channels * t->height * t->width,
                  out = t->groups * t->outputs * t->positions;
    for (int64_t first = 0; first < t->batch; first += most) {
        lay_out(t, t->batch - first < most ? t->batch - first : most);
        const steps dy_steps = { t->outputs * t->positions, out, 0 }, weights = { t->outputs * t->window, 0, 0 };
        const int64_t group = t->taps * t->tap_step, picture = t->places * t->place_step;
        cuda_gemm g = {};
        g.trans_a = true;
        g.k = t->outputs;
        g.c = windows.data;
        if (t->by_place) {      // dy^T W
            g.m = t->positions, g.n = t->window;
            g.lda = t->positions, g.ldb = t->window, g.ldc = t->place_step;
            g.a = at(dy, first * out, t), g.b = weight;
            TRY(each_product(call, t, g, { dy_steps.a, weights.a, group }, { dy_steps.b, weights.b, picture }));
        } else {                // W^T dy
            g.m = t->window, g.n = t->positions;
            g.lda = t->window, g.ldb = t->positions, g.ldc = t->tap_step;
            g.a = weight, g.b = at(dy, first * out, t);
            TRY(each_product(call, t, g, { weights.a, dy_steps.a, group }, { weights.b, dy_steps.b, picture }));
        }
        const conv_data d = { windows.data, const_cast<char *>(at(dx, first * in, t)) };
        TRY(with_float(t->dtype, [&](auto tag) {
            return LAUNCH(call, collect_kernel<TYPE_OF(tag)>, blocks_for(t->pictures * in, 256), 256, 0, *t, d);
        }));
    }
    return WEFT_OK;
}

// dy of a chunk with all places of an output in a row, as the sum over them wants it.
static weft_status line_up(const weft_call *call, const conv *t, const void *dy, void *to) {
    const int64_t rows = t->groups * t->outputs;
    weft_view from = {}, lines = {};
    from.dtype = lines.dtype = t->dtype;
    from.ndim = lines.ndim = 3;
    const int64_t shape[3] = { rows, t->pictures, t->positions };
    const int64_t strides[3] = { t->positions, rows * t->positions, 1 }, to_strides[3] = { t->pictures * t->places, t->places, 1 };
    memcpy(from.shape, shape, sizeof shape);
    memcpy(lines.shape, shape, sizeof shape);
    memcpy(from.stride, strides, sizeof strides);
    memcpy(lines.stride, to_strides, sizeof to_strides);
    from.numel = lines.numel = rows * t->pictures * t->positions;
    from.data = const_cast<void *>(dy);
    lines.data = to;
    if (t->places != t->positions)
        TRY(cuda_check(cudaMemsetAsync(to, 0, (size_t)(rows * t->pictures * t->places * t->size), stream_of(call)), "windows"));
    return cuda_copy(call, &lines, &from);
}

static weft_status backward_w(const weft_call *call, conv *t, const void *dy, const void *x, void *dw) {
    const int64_t rows = t->groups * t->outputs, most = t->pictures;
    scratch windows(call, matrix_bytes(t)), lines(call, rows * t->pictures * t->places * t->size);
    if (!windows.data || !lines.data) return WEFT_ENOMEM;
    for (int64_t first = 0; first < t->batch; first += most) {
        lay_out(t, t->batch - first < most ? t->batch - first : most);
        TRY(gather(call, t, x, first, windows.data));
        TRY(line_up(call, t, at(dy, first * rows * t->positions, t), lines.data));
        cuda_gemm g = {};
        g.dtype = t->dtype;
        g.trans_b = !t->by_place;
        g.m = t->outputs, g.n = t->window, g.k = t->pictures * t->places;
        g.lda = g.k, g.ldb = t->by_place ? t->place_step : t->tap_step, g.ldc = t->window;
        g.batch = t->groups;
        g.stride_a = t->outputs * g.k, g.stride_b = t->taps * t->tap_step, g.stride_c = t->outputs * t->window;
        g.alpha = 1;
        g.beta = first > 0 ? 1 : 0;
        g.a = lines.data, g.b = windows.data, g.c = dw;
        TRY(cuda_product(call, &g));
    }
    return WEFT_OK;
}

// --- by a library
// The bias of each output at every place of y
static weft_status spread_bias(const weft_call *call, const conv *t, const void *bias, void *y) {
    const int64_t shape[3] = { t->batch, t->groups * t->outputs, t->positions };
    const int64_t strides[3] = { shape[1] * shape[2], shape[2], 1 };
    weft_view to = {}, from = {};
    to.dtype = from.dtype = t->dtype;
    to.ndim = from.ndim = 3;
    memcpy(to.shape, shape, sizeof shape);
    memcpy(from.shape, shape, sizeof shape);
    memcpy(to.stride, strides, sizeof strides);
    from.stride[1] = 1;
    to.numel = from.numel = shape[0] * strides[0];
    to.data = y;
    from.data = const_cast<void *>(bias);
    return cuda_copy(call, &to, &from);
}

static weft_status by_library(const weft_call *call, dnn_part part, const conv *t, const void *a, const void *b, const void *bias,
                              void *out, bool *done) {
    const bool overlap = t->stride_h < t->kh || t->stride_w < t->kw, empty = t->batch * t->window * t->positions == 0;
    dnn_plan *p = overlap && !empty ? cuda_dnn_plan(call, part, t) : nullptr;
    *done = false;
    if (!p) return WEFT_OK;
    if (bias) TRY(spread_bias(call, t, bias, out));
    return cuda_dnn_run(call, p, a, b, out, bias != nullptr, done);
}

CUDA_KERNEL(conv2d) {
    const weft_view *x = call->in[0], *w = call->in[1], *bias = call->in[2], *y = call->out[0];
    const weft_attrs *at = call->at;
    if (y->numel == 0) return WEFT_OK;
    conv t = {};
    t.dtype = x->dtype;
    t.batch = x->shape[0], t.channels = w->shape[1], t.height = x->shape[2], t.width = x->shape[3];
    t.groups = at->AT(conv2d, groups);
    t.outputs = w->shape[0] / t.groups;
    t.kh = w->shape[2], t.kw = w->shape[3];
    t.out_h = y->shape[2], t.out_w = y->shape[3];
    t.stride_h = at->AT(conv2d, stride_h), t.stride_w = at->AT(conv2d, stride_w);
    t.pad_h = at->AT(conv2d, pad_h), t.pad_w = at->AT(conv2d, pad_w);
    TRY(plan(&t, bias != nullptr));
    bool done;
    TRY(by_library(call, DNN_FORWARD, &t, x->data, w->data, bias ? bias->data : nullptr, y->data, &done));
    return done ? WEFT_OK : forward(call, &t, x->data, w->data, bias ? bias->data : nullptr, y->data);
}

CUDA_KERNEL(conv2d_backward) {
    const weft_view *dy = call->in[0], *x = call->in[1], *w = call->in[2], *dx = call->out[0], *dw = call->out[1];
    const weft_attrs *at = call->at;
    conv t = {};
    t.dtype = dy->dtype;
    t.batch = dy->shape[0];
    t.groups = at->AT(conv2d_backward, groups);
    t.outputs = dy->shape[1] / t.groups;
    t.channels = x ? x->shape[1] / t.groups : w ? w->shape[1] : 0;
    t.kh = at->AT(conv2d_backward, kh), t.kw = at->AT(conv2d_backward, kw);
    t.height = at->AT(conv2d_backward, h), t.width = at->AT(conv2d_backward, w);
    t.out_h = dy->shape[2], t.out_w = dy->shape[3];
    t.stride_h = at->AT(conv2d_backward, stride_h), t.stride_w = at->AT(conv2d_backward, stride_w);
    t.pad_h = at->AT(conv2d_backward, pad_h), t.pad_w = at->AT(conv2d_backward, pad_w);
    if (dw->numel > 0 && t.batch == 0) return call->backend->fill(call->backend, dw, 0);
    if (dx->numel > 0) {
        bool done;
        TRY(plan(&t, false));
        TRY(by_library(call, DNN_BACKWARD_X, &t, dy->data, w->data, nullptr, dx->data, &done));
        if (!done) TRY(backward_x(call, &t, dy->data, w->data, dx->data));
    }
    if (dw->numel > 0) {
        bool done;
        TRY(plan(&t, false));
        TRY(by_library(call, DNN_BACKWARD_W, &t, dy->data, x->data, nullptr, dw->data, &done));
        if (!done) TRY(backward_w(call, &t, dy->data, x->data, dw->data));
    }
    return WEFT_OK;
}
