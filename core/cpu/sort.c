// sort.c: sort and topk along a dim. A value becomes an unsigned key whose order is the wanted one,
// so that floats and integers, up and down, take one way; NaN counts as the largest value.
#include <string.h>
#include "math.h"

#define GRAIN 16384
#define INSERTION 24
#define RADIX_FROM 32    // elements for each byte of a key from which counting beats merging
#define KEEP 64          // largest k that is kept by insertion while a row streams by
#define BLOCK 64
#define STRETCH 4194304  // elements between two looks at whether to stop

typedef struct pair { uint64_t key; int64_t index; } pair;

typedef struct job {
    const void *x;
    void *values;
    int64_t *indices;
    int64_t outer, n, inner, k, grain;
    bool descending;
    pair *space;          // [pieces][2][n]
} job;

// Keys that grow with the value; NaN is one largest key, -0 equals 0.
ALWAYS_INLINE uint64_t key_f32(float v) {
    uint32_t b;
    v += 0.0f;
    memcpy(&b, &v, sizeof b);
    b = b >> 31 ? ~b : b | 0x80000000u;
    return v != v ? 0xFFFFFFFFu : b;
}
ALWAYS_INLINE uint64_t key_f64(double v) {
    uint64_t b;
    v += 0.0;
    memcpy(&b, &v, sizeof b);
    b = b >> 63 ? ~b : b | 0x8000000000000000u;
    return v != v ? UINT64_MAX : b;
}
ALWAYS_INLINE uint64_t key_i32(int32_t v) { return (uint32_t)v ^ 0x80000000u; }
ALWAYS_INLINE uint64_t key_i64(int64_t v) { return (uint64_t)v ^ 0x8000000000000000u; }

static void insertion(pair *a, int64_t n) {
    for (int64_t i = 1; i < n; i++) {
        pair p = a[i];
        int64_t at = i;
        for (; at > 0 && a[at - 1].key > p.key; at--) a[at] = a[at - 1];
        a[at] = p;
    }
}

// Stable; the result is in a or in b, and returned.
static pair *merge_sort(pair *a, pair *b, int64_t n) {
    for (int64_t i = 0; i < n; i += INSERTION) insertion(a + i, n - i < INSERTION ? n - i : INSERTION);
    for (int64_t run = INSERTION; run < n; run *= 2) {
        for (int64_t i = 0; i < n; i += 2 * run) {
            int64_t left = i, middle = i + run < n ? i + run : n, right = middle;
            int64_t end = middle + run < n ? middle + run : n, to = i;
            while (left < middle && right < end) b[to++] = a[right].key < a[left].key ? a[right++] : a[left++];
            while (left < middle) b[to++] = a[left++];
            while (right < end) b[to++] = a[right++];
        }
        pair *t = a; a = b; b = t;
    }
    return a;
}

// Byte by byte from the lowest; bytes that are equal everywhere are passed over. Stopped by an interrupt,
// it returns what the last whole pass made.
static pair *radix_sort(pair *a, pair *b, int64_t n, int bytes) {
    for (int byte = 0; byte < bytes; byte++) {
        int64_t count[257] = { 0 };
        const int shift = 8 * byte;
        for (int64_t i = 0, to = 0; i < n; i = to) {
            if (weft_stopped()) return a;
            for (to = n - i < STRETCH ? n : i + STRETCH; i < to; i++) count[(a[i].key >> shift & 255) + 1]++;
        }
        if (count[(a[0].key >> shift & 255) + 1] == n) continue;
        for (int i = 0; i < 256; i++) count[i + 1] += count[i];
        for (int64_t i = 0, to = 0; i < n; i = to) {
            if (weft_stopped()) return a;
            for (to = n - i < STRETCH ? n : i + STRETCH; i < to; i++) b[count[a[i].key >> shift & 255]++] = a[i];
        }
        pair *t = a; a = b; b = t;
    }
    return a;
}

#define T float
#define FN(name) name##_f32
#include "sort_body.h"
#undef T
#undef FN
#define T double
#define FN(name) name##_f64
#include "sort_body.h"
#undef T
#undef FN
#define T int32_t
#define FN(name) name##_i32
#include "sort_body.h"
#undef T
#undef FN
#define T int64_t
#define FN(name) name##_i64
#include "sort_body.h"

static weft_status run(const weft_call *call, int64_t dim, int64_t k, bool descending) {
    const weft_view *x = call->in[0];
    if (call->out[0]->numel == 0) return WEFT_OK;
    if (dim < 0) dim += x->ndim;
    job j = { .x = x->data, .values = call->out[0]->data, .indices = call->out[1]->data, .k = k,
              .outer = weft_span(x, 0, (int)dim), .n = x->shape[dim],
              .inner = weft_span(x, (int)dim + 1, x->ndim), .descending = descending };
    int64_t rows = j.outer * j.inner;
    j.grain = j.n >= GRAIN ? 1 : GRAIN / j.n;
    if (weft_pieces(rows, j.grain) > 64) j.grain = weft_pieces(rows, 64);
    int64_t pieces = weft_pieces(rows, j.grain);
    int64_t bytes = pieces * 2 * j.n * (int64_t)sizeof(pair);
    bool stream = k <= KEEP && k < j.n / 2;
    if (!stream) {
        j.space = weft_workspace(call->backend, bytes);
        if (!j.space) return WEFT_ENOMEM;
    }
    weft_piece_fn fn;
    switch (x->dtype) {
    case WEFT_FLOAT32: fn = stream ? stream_piece_f32 : sort_piece_f32; break;
    case WEFT_FLOAT64: fn = stream ? stream_piece_f64 : sort_piece_f64; break;
    case WEFT_INT32: fn = stream ? stream_piece_i32 : sort_piece_i32; break;
    default: fn = stream ? stream_piece_i64 : sort_piece_i64; break;
    }
    weft_parallel(pieces, fn, &j);
    if (!stream) weft_workspace_free(call->backend, j.space, bytes);
    return WEFT_OK;
}

CPU_KERNEL(topk) {
    return run(call, call->at->AT(topk, dim), call->at->AT(topk, k), call->at->AT(topk, largest));
}

CPU_KERNEL(sort) {
    const weft_view *x = call->in[0];
    int64_t dim = call->at->AT(sort, dim);
    return run(call, dim, x->shape[dim < 0 ? dim + x->ndim : dim], call->at->AT(sort, descending));
}
