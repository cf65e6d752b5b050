// picture.c: 8-bit pictures resized by taps in fixed point, horizontal first, each pass rounded to bytes,
// then cut, mirrored and put through a table. A piece is a picture.
#include "cpu.h"
#include "../picture_plan.h"
#include <string.h>

typedef struct job {
    const weft_call *call;
    int64_t h, w, rows;
    unsigned char *middle;      // [n][rows][w][3]
    int64_t *bad;               // by picture: 1 where the plan leads out of its tensors
} job;

static int byte_of(int32_t sum) {
    const int32_t v = sum >> TAPS_BITS;
    return v < 0 ? 0 : v > 255 ? 255 : v;
}

// Three channels, `step` bytes from one input to the next.
ALWAYS_INLINE void weigh(const unsigned char *in, int64_t step, const int32_t *weight, int32_t n, unsigned char *to) {
    int32_t sum[3] = { 1 << (TAPS_BITS - 1), 1 << (TAPS_BITS - 1), 1 << (TAPS_BITS - 1) };
    for (int32_t j = 0; j < n; j++, in += step)
        for (int c = 0; c < 3; c++) sum[c] += in[c] * weight[j];
    for (int c = 0; c < 3; c++) to[c] = (unsigned char)byte_of(sum[c]);
}

// The taps of one position; NULL where they lead outside `size` inputs.
static const int32_t *taps_at(const job *j, int64_t first, int64_t widest, int64_t at, int64_t size) {
    const weft_view *taps = j->call->in[2];
    const int64_t place = first + at * TAPS_LINE(widest);
    if (place < 0 || place + TAPS_LINE(widest) > taps->numel) return NULL;
    const int32_t *t = (const int32_t *)taps->data + place;
    return t[0] >= 0 && t[1] >= 0 && t[1] <= widest && t[0] + (int64_t)t[1] <= size ? t : NULL;
}

static bool across(const job *j, const int64_t *p, const unsigned char *rgb, unsigned char *middle) {
    for (int64_t c = 0; c < j->w; c++) {
        const int64_t x = c + p[PLAN_X];
        if (x < 0 || x >= p[PLAN_TO_W]) continue;
        const int32_t *t = NULL;
        if (p[PLAN_ACROSS_WIDEST] && !(t = taps_at(j, p[PLAN_ACROSS], p[PLAN_ACROSS_WIDEST], x, p[PLAN_W]))) return false;
        for (int64_t y = 0; y < p[PLAN_H]; y++) {
            const unsigned char *row = rgb + y * p[PLAN_W] * 3;
            unsigned char *to = middle + (y * j->w + c) * 3;
            if (t) weigh(row + t[0] * 3, 3, t + 2, t[1], to);
            else memcpy(to, row + x * 3, 3);
        }
    }
    return true;
}

#define DOWN(T, s) \
    static bool down_##s(const job *j, const int64_t *p, const unsigned char *middle, T *y) { \
        const T *table = j->call->in[3]->data; \
        const int64_t plane = j->h * j->w; \
        for (int64_t i = 0; i < j->h; i++) { \
            const int64_t row = i + p[PLAN_Y]; \
            const bool there = row >= 0 && row < p[PLAN_TO_H]; \
            const int32_t *t = NULL; \
            if (there && p[PLAN_DOWN_WIDEST] && \
                !(t = taps_at(j, p[PLAN_DOWN], p[PLAN_DOWN_WIDEST], row, p[PLAN_H]))) return false; \
            for (int64_t c = 0; c < j->w; c++) { \
                const int64_t x = c + p[PLAN_X], at = i * j->w + (p[PLAN_FLIP] ? j->w - 1 - c : c); \
                unsigned char v[3] = { 0, 0, 0 }; \
                if (there && x >= 0 && x < p[PLAN_TO_W]) { \
                    if (t) weigh(middle + (t[0] * j->w + c) * 3, j->w * 3, t + 2, t[1], v); \
                    else memcpy(v, middle + (row * j->w + c) * 3, 3); \
                } \
                for (int k = 0; k < 3; k++) y[k * plane + at] = table[k * 256 + v[k]]; \
            } \
        } \
        return true; \
    }
DOWN(float, f32)
DOWN(double, f64)

static bool in_bounds(const job *j, const int64_t *p) {
    const int64_t most = (int64_t)1 << 24;
    for (int k = PLAN_H; k <= PLAN_TO_W; k++)
        if (p[k] < 1 || p[k] > most) return false;
    if (p[PLAN_H] > j->rows || p[PLAN_BYTES] < 0 || p[PLAN_ACROSS_WIDEST] < 0 || p[PLAN_DOWN_WIDEST] < 0) return false;
    if (p[PLAN_ACROSS_WIDEST] > most || p[PLAN_DOWN_WIDEST] > most) return false;
    if (p[PLAN_ACROSS_WIDEST] == 0 && p[PLAN_W] != p[PLAN_TO_W]) return false;
    if (p[PLAN_DOWN_WIDEST] == 0 && p[PLAN_H] != p[PLAN_TO_H]) return false;
    if (p[PLAN_Y] < -most || p[PLAN_Y] > most || p[PLAN_X] < -most || p[PLAN_X] > most) return false;
    return p[PLAN_BYTES] + p[PLAN_H] * p[PLAN_W] * 3 <= j->call->in[0]->numel;
}

static void picture_piece(void *context, int64_t i) {
    const job *j = context;
    const int64_t *p = (const int64_t *)j->call->in[1]->data + i * PLAN_SIZE, size = 3 * j->h * j->w;
    const bool f32 = j->call->out[0]->dtype == WEFT_FLOAT32;
    char *y = (char *)j->call->out[0]->data + i * size * (f32 ? 4 : 8);
    if (p[PLAN_H] == 0) {
        memset(y, 0, (size_t)size * (f32 ? 4 : 8));
        return;
    }
    unsigned char *middle = j->middle + i * j->rows * j->w * 3;
    bool ok = in_bounds(j, p) && across(j, p, (const unsigned char *)j->call->in[0]->data + p[PLAN_BYTES], middle);
    ok = ok && (f32 ? down_f32(j, p, middle, (float *)y) : down_f64(j, p, middle, (double *)y));
    j->bad[i] = !ok;
}

CPU_KERNEL(pictures) {
    const int64_t n = call->in[1]->shape[0];
    job j = { .call = call, .h = call->at->AT(pictures, height), .w = call->at->AT(pictures, width),
              .rows = call->at->AT(pictures, rows) };
    const int64_t flags = n * (int64_t)sizeof(int64_t), nbytes = flags + n * j.rows * j.w * 3;
    if (n == 0) return WEFT_OK;
    j.bad = weft_workspace(call->backend, nbytes);
    if (!j.bad) return WEFT_ENOMEM;
    memset(j.bad, 0, (size_t)flags);
    j.middle = (unsigned char *)j.bad + flags;
    weft_parallel(n, picture_piece, &j);
    weft_status status = WEFT_OK;
    for (int64_t i = 0; i < n && status == WEFT_OK; i++)
        if (j.bad[i]) status = weft_fail(WEFT_EINVAL, "the plan of picture %lld leads outside its tensors", (long long)i + 1);
    weft_workspace_free(call->backend, j.bad, nbytes);
    return status;
}
