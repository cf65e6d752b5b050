// picture.cu: 8-bit pictures resized by taps in fixed point, horizontal first, each pass rounded to bytes,
// then cut, mirrored and put through a table: the bytes are those of the CPU.
#include "cuda/each.h"
#include "picture_plan.h"

struct picture_job {
    const uint8_t *bytes;
    const int64_t *plan;
    const int32_t *taps;
    uint8_t *middle;            // [n][rows][w][3]
    int64_t n_bytes, n_taps, h, w, rows;
    fault_sink faults;
    template <class V> void visit(V &v) { v(bytes), v(plan), v(taps), v(middle), faults.visit(v); }
};

// Whether all of the plan's places lie in its tensors.
DEVICE bool in_bounds(const picture_job &j, const int64_t *p) {
    const int64_t most = (int64_t)1 << 24;
    for (int k = PLAN_H; k <= PLAN_TO_W; k++)
        if (p[k] < 1 || p[k] > most) return false;
    if (p[PLAN_H] > j.rows || p[PLAN_BYTES] < 0 || p[PLAN_ACROSS_WIDEST] < 0 || p[PLAN_DOWN_WIDEST] < 0) return false;
    if (p[PLAN_ACROSS_WIDEST] > most || p[PLAN_DOWN_WIDEST] > most) return false;
    if (p[PLAN_ACROSS_WIDEST] == 0 && p[PLAN_W] != p[PLAN_TO_W]) return false;
    if (p[PLAN_DOWN_WIDEST] == 0 && p[PLAN_H] != p[PLAN_TO_H]) return false;
    if (p[PLAN_Y] < -most || p[PLAN_Y] > most || p[PLAN_X] < -most || p[PLAN_X] > most) return false;
    return p[PLAN_BYTES] + p[PLAN_H] * p[PLAN_W] * 3 <= j.n_bytes;
}
DEVICE const int32_t *taps_at(const picture_job &j, int64_t first, int64_t widest, int64_t at, int64_t size) {
    const int64_t place = first + at * TAPS_LINE(widest);
    if (place < 0 || place + TAPS_LINE(widest) > j.n_taps) return nullptr;
    const int32_t *t = j.taps + place;
    return t[0] >= 0 && t[1] >= 0 && t[1] <= widest && t[0] + (int64_t)t[1] <= size ? t : nullptr;
}
DEVICE void refuse(const picture_job &j, int64_t picture) { j.faults.complain(FAULT_PLAN, 0, 0, 0, picture); }

DEVICE uint8_t byte_of(int32_t sum) {
    const int32_t v = sum >> TAPS_BITS;
    return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}
DEVICE void weigh(const uint8_t *in, int64_t step, const int32_t *weight, int32_t n, uint8_t *to) {
    int32_t r = 1 << (TAPS_BITS - 1), g = r, b = r;
    for (int32_t j = 0; j < n; j++, in += step) {
        r += in[0] * weight[j];
        g += in[1] * weight[j];
        b += in[2] * weight[j];
    }
    to[0] = byte_of(r), to[1] = byte_of(g), to[2] = byte_of(b);
}

// A thread a pixel of the rows before they are resized; blockIdx.y: the picture.
static __global__ void __launch_bounds__(EACH_THREADS) across_kernel(const picture_job j) {
    const int64_t picture = blockIdx.y, *p = j.plan + picture * PLAN_SIZE;
    if (p[PLAN_H] == 0) return;
    if (!in_bounds(j, p)) {
        if (THREAD_INDEX == 0) refuse(j, picture);
        return;
    }
    const uint8_t *rgb = j.bytes + p[PLAN_BYTES];
    for (int64_t i = THREAD_INDEX; i < p[PLAN_H] * j.w; i += THREAD_COUNT) {
        const int64_t y = i / j.w, c = i - y * j.w, x = c + p[PLAN_X];
        if (x < 0 || x >= p[PLAN_TO_W]) continue;
        const uint8_t *row = rgb + y * p[PLAN_W] * 3;
        uint8_t *to = j.middle + ((picture * j.rows + y) * j.w + c) * 3;
        if (p[PLAN_ACROSS_WIDEST] == 0) {
            for (int k = 0; k < 3; k++) to[k] = row[x * 3 + k];
            continue;
        }
        const int32_t *t = taps_at(j, p[PLAN_ACROSS], p[PLAN_ACROSS_WIDEST], x, p[PLAN_W]);
        if (t) weigh(row + t[0] * 3, 3, t + 2, t[1], to);
        else refuse(j, picture);
    }
}

// A thread a pixel of the result.
template <class T>
__global__ void __launch_bounds__(EACH_THREADS) down_kernel(const picture_job j, const T *table, T *y) {
    const int64_t picture = blockIdx.y, *p = j.plan + picture * PLAN_SIZE, plane = j.h * j.w;
    const bool there = p[PLAN_H] != 0 && in_bounds(j, p);
    y += picture * 3 * plane;
    for (int64_t i = THREAD_INDEX; i < plane; i += THREAD_COUNT) {
        const int64_t line = i / j.w, c = i - line * j.w;
        if (!there) {
            for (int k = 0; k < 3; k++) y[k * plane + i] = narrow<T>((wide_t<T>)0);
            continue;
        }
        const int64_t row = line + p[PLAN_Y], x = c + p[PLAN_X], at = line * j.w + (p[PLAN_FLIP] ? j.w - 1 - c : c);
        const uint8_t *in = j.middle + (picture * j.rows * j.w + c) * 3;
        uint8_t v[3] = { 0, 0, 0 };
        if (row >= 0 && row < p[PLAN_TO_H] && x >= 0 && x < p[PLAN_TO_W]) {
            if (p[PLAN_DOWN_WIDEST] == 0) {
                for (int k = 0; k < 3; k++) v[k] = in[row * j.w * 3 + k];
            } else {
                const int32_t *t = taps_at(j, p[PLAN_DOWN], p[PLAN_DOWN_WIDEST], row, p[PLAN_H]);
                if (t) weigh(in + t[0] * j.w * 3, j.w * 3, t + 2, t[1], v);
                else refuse(j, picture);
            }
        }
        for (int k = 0; k < 3; k++) y[k * plane + at] = table[k * 256 + v[k]];
    }
}

CUDA_KERNEL(pictures) {
    const weft_view *bytes = call->in[0], *plan = call->in[1], *taps = call->in[2], *y = call->out[0];
    const int64_t n = plan->shape[0];
    picture_job j = {};
    j.h = call->at->AT(pictures, height), j.w = call->at->AT(pictures, width), j.rows = call->at->AT(pictures, rows);
    if (n == 0) return WEFT_OK;
    if (n > 65535) return weft_fail(WEFT_EUNSUPPORTED, "%lld pictures at once; a GPU takes 65535", (long long)n);
    scratch middle(call, n * j.rows * j.w * 3);
    if (!middle.data) return WEFT_ENOMEM;
    j.bytes = static_cast<const uint8_t *>(bytes->data);
    j.plan = static_cast<const int64_t *>(plan->data);
    j.taps = static_cast<const int32_t *>(taps->data);
    j.middle = middle.as<uint8_t>();
    j.n_bytes = bytes->numel, j.n_taps = taps->numel;
    j.faults = faults(call, OP_pictures);
    if (j.rows > 0)
        TRY(LAUNCH(call, across_kernel, dim3(blocks_for(j.rows * j.w, EACH_THREADS), (unsigned)n), EACH_THREADS, 0, j));
    return with_float(y->dtype, [&](auto tag) {
        using T = TYPE_OF(tag);
        return LAUNCH(call, down_kernel<T>, dim3(blocks_for(j.h * j.w, EACH_THREADS), (unsigned)n), EACH_THREADS, 0, j,
                      static_cast<const T *>(call->in[3]->data), static_cast<T *>(y->data));
    });
}
