// interpolate.cu: bicubic resizing and its transpose. An axis is a sparse matrix of taps, computed in
// double; pictures go through one axis, then the other, and each number is a sum in a fixed order.
#include "cuda/device.h"

// Row i of an axis: weights of source positions first[i] .. first[i] + count[i] - 1. Position s is
// read by rows begin[s] .. end[s] - 1.
struct axis {
    int64_t from, to, most;         // sizes, and taps a row at most
    int64_t *first, *count;         // [to]
    int64_t *begin, *end;           // [from]
    double *weight;                 // [to, most]
    template <class V> void visit(V &v) { v(first), v(count), v(begin), v(end), v(weight); }
};

DEVICE double cubic(double x, double a) {
    x = fabs(x);
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
    return 0;
}

DEVICE int64_t cut(int64_t i, int64_t low, int64_t high) { return i < low ? low : i > high ? high : i; }

// Taps outside fall on the edge.
DEVICE void set_plain(const axis &s, int64_t i, double step) {
    const double center = ((double)i + 0.5) * step - 0.5;
    const int64_t base = (int64_t)floor(center), low = cut(base - 1, 0, s.from - 1), high = cut(base + 2, 0, s.from - 1);
    const double t = center - (double)base;
    double *w = s.weight + i * s.most;
    s.first[i] = low;
    s.count[i] = high - low + 1;
    for (int64_t k = 0; k <= high - low; k++) w[k] = 0;
    for (int64_t k = -1; k <= 2; k++) w[cut(base + k, 0, s.from - 1) - low] += cubic(t - (double)k, -0.75);
}

// The kernel is widened where the picture shrinks; taps outside are dropped, the rest sum to 1.
DEVICE void set_antialias(const axis &s, int64_t i, double step) {
    const double factor = step > 1 ? step : 1, center = ((double)i + 0.5) * step;
    int64_t low = (int64_t)floor(center - 2 * factor + 0.5), high = (int64_t)floor(center + 2 * factor + 0.5);
    low = low < 0 ? 0 : low;
    high = high > s.from ? s.from : high;
    if (low >= s.from) low = s.from - 1;    // a given scale may point past the edge
    if (high <= low) high = low + 1;
    double *w = s.weight + i * s.most, sum = 0;
    s.first[i] = low;
    s.count[i] = high - low;
    for (int64_t j = low; j < high; j++) {
        w[j - low] = cubic(((double)j + 0.5 - center) / factor, -0.5);
        sum += w[j - low];
    }
    for (int64_t j = low; j < high; j++) w[j - low] = sum != 0 ? w[j - low] / sum : 1;
}

__global__ void __launch_bounds__(256) taps_kernel(const axis s, const double step, const bool antialias) {
    for (int64_t i = THREAD_INDEX; i < s.to; i += THREAD_COUNT)
        if (antialias) set_antialias(s, i, step);
        else set_plain(s, i, step);
}

// The way back: first and first + count never fall, so that the rows that read a position are a run.
__global__ void __launch_bounds__(256) readers_kernel(const axis s) {
    for (int64_t p = THREAD_INDEX; p < s.from; p += THREAD_COUNT) {
        int64_t low = 0, high = s.to;
        while (low < high) {
            const int64_t middle = (low + high) / 2;
            if (s.first[middle] + s.count[middle] > p) high = middle;
            else low = middle + 1;
        }
        s.begin[p] = low;
        high = s.to;
        while (low < high) {
            const int64_t middle = (low + high) / 2;
            if (s.first[middle] > p) high = middle;
            else low = middle + 1;
        }
        s.end[p] = low;
    }
}

// y [outer, to, inner] from x [outer, from, inner]; BACK: the other way round.
template <class In, class Out, bool BACK>
__global__ void __launch_bounds__(256) axis_kernel(const axis s, const In *x, Out *y, const int64_t outer, const int64_t inner) {
    typedef wide_t<Out> W;
    const int64_t lines = BACK ? s.from : s.to, others = BACK ? s.to : s.from;
    for (int64_t e = THREAD_INDEX; e < outer * lines * inner; e += THREAD_COUNT) {
        const int64_t line = e / inner, j = e - line * inner, o = line / lines, i = line - o * lines;
        const In *from = x + o * others * inner + j;
        const int64_t begin = BACK ? s.begin[i] : s.first[i], end = BACK ? s.end[i] : begin + s.count[i];
        W sum = 0;
        for (int64_t k = begin; k < end; k++)
            sum += (W)s.weight[BACK ? k * s.most + i - s.first[k] : i * s.most + k - begin] * widen<In>(from[k * inner]);
        y[e] = narrow<Out>(sum);
    }
}

static double step_of(int64_t from, int64_t to, double scale) { return scale > 0 ? 1 / scale : (double)from / (double)to; }

static int64_t taps(int64_t from, int64_t to, double scale, bool antialias) {
    const double step = step_of(from, to, scale), most = antialias && step > 1 ? 4 * step + 3 : 7;
    return most < (double)from ? (int64_t)most : from;
}

static int64_t axis_bytes(const axis *s) { return 16 * (s->to + s->from) + 8 * s->to * s->most; }

static weft_status set_axis(const weft_call *call, axis *s, void *memory, double scale, bool antialias, bool back) {
    s->first = static_cast<int64_t *>(memory);
    s->count = s->first + s->to;
    s->begin = s->count + s->to;
    s->end = s->begin + s->from;
    s->weight = reinterpret_cast<double *>(s->end + s->from);
    TRY(LAUNCH(call, taps_kernel, blocks_for(s->to, 256), 256, 0, *s, step_of(s->from, s->to, scale), antialias));
    return back ? LAUNCH(call, readers_kernel, blocks_for(s->from, 256), 256, 0, *s) : WEFT_OK;
}

template <class In, class Out, bool BACK>
static weft_status along(const weft_call *call, const axis *s, const In *x, Out *y, int64_t outer, int64_t inner) {
    const int64_t n = outer * (BACK ? s->from : s->to) * inner;
    return LAUNCH(call, (axis_kernel<In, Out, BACK>), blocks_for(n, 256), 256, 0, *s, x, y, outer, inner);
}

// source: the picture that taps point into; result: the one they make
template <bool BACK>
static weft_status resize(const weft_call *call, const weft_view *source, const weft_view *result, double scale_h,
                          double scale_w, bool antialias) {
    const int64_t planes = source->shape[0] * source->shape[1];
    if (planes == 0) return WEFT_OK;
    axis rows = {}, columns = {};
    rows.from = source->shape[2], rows.to = result->shape[2];
    columns.from = source->shape[3], columns.to = result->shape[3];
    rows.most = taps(rows.from, rows.to, scale_h, antialias);
    columns.most = taps(columns.from, columns.to, scale_w, antialias);
    const int64_t first = axis_bytes(&rows);
    scratch tables(call, first + axis_bytes(&columns));
    if (!tables.data) return WEFT_ENOMEM;
    TRY(set_axis(call, &rows, tables.data, scale_h, antialias, BACK));
    TRY(set_axis(call, &columns, tables.as<char>() + first, scale_w, antialias, BACK));
    return with_float(source->dtype, [&](auto tag) -> weft_status {
        using T = TYPE_OF(tag);
        typedef wide_t<T> W;
        scratch memory(call, planes * rows.from * columns.to * (int64_t)sizeof(W));
        if (!memory.data) return WEFT_ENOMEM;
        W *part = memory.as<W>();
        const T *x = static_cast<const T *>(call->in[0]->data);
        T *y = static_cast<T *>(call->out[0]->data);
        if constexpr (BACK) {
            TRY((along<T, W, true>(call, &rows, x, part, planes, columns.to)));
            return along<W, T, true>(call, &columns, part, y, planes * rows.from, 1);
        } else {
            TRY((along<T, W, false>(call, &columns, x, part, planes * rows.from, 1)));
            return along<W, T, false>(call, &rows, part, y, planes, columns.to);
        }
    });
}

CUDA_KERNEL(interpolate) {
    const weft_attrs *at = call->at;
    return resize<false>(call, call->in[0], call->out[0], at->AT(interpolate, scale_h), at->AT(interpolate, scale_w),
                         at->AT(interpolate, antialias) != 0);
}

CUDA_KERNEL(interpolate_backward) {
    const weft_attrs *at = call->at;
    return resize<true>(call, call->out[0], call->in[0], at->AT(interpolate_backward, scale_h),
                        at->AT(interpolate_backward, scale_w), at->AT(interpolate_backward, antialias) != 0);
}
