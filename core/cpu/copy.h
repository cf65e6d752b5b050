// copy.h: copies of strided views, run by run, or by blocks where the dims of the two are
// exchanged; and each_call, which elementwise kernels end in.
#ifndef WEFT_CPU_COPY_H
#define WEFT_CPU_COPY_H

#include "each.h"

static inline void copy_span(const void *context, int64_t n, void *const *p) {
    memcpy(p[0], p[1], (size_t)(n * *(const int *)context));
}

// --- transposed copies: out steps by 1 in the last dim, in by 1 in dim `across`. A block of
// COPY_BLOCK x COPY_BLOCK elements is read line by line and written line by line, whatever cache
// sets the lines fall in; a band is COPY_BAND rows of out, so that pages of in are met again soon.
#define COPY_BLOCK 16
#define COPY_BAND 64
typedef struct transposed { each e; int across; int64_t bands, total, per_piece; } transposed;

#define COPY_BLOCKS(T) \
    static inline void copy_block_##T(T *out, const T *in, int64_t rows, int64_t n, \
                                      int64_t out_step, int64_t in_step) { \
        T block[COPY_BLOCK][COPY_BLOCK]; \
        if (rows == COPY_BLOCK && n == COPY_BLOCK) { \
            for (int64_t i = 0; i < COPY_BLOCK; i++) \
                memcpy(block[i], in + i * in_step, sizeof block[i]); \
            for (int64_t r = 0; r < COPY_BLOCK; r++) \
                for (int64_t i = 0; i < COPY_BLOCK; i++) out[r * out_step + i] = block[i][r]; \
            return; \
        } \
        for (int64_t r = 0; r < rows; r++) \
            for (int64_t i = 0; i < n; i++) out[r * out_step + i] = in[r + i * in_step]; \
    } \
    static inline void copy_band_##T(T *out, const T *in, int64_t rows, int64_t n, \
                                     int64_t out_step, int64_t in_step) { \
        for (int64_t i = 0; i < n; i += COPY_BLOCK) \
            for (int64_t r = 0; r < rows; r += COPY_BLOCK) \
                copy_block_##T(out + r * out_step + i, in + r + i * in_step, \
                               rows - r < COPY_BLOCK ? rows - r : COPY_BLOCK, \
                               n - i < COPY_BLOCK ? n - i : COPY_BLOCK, out_step, in_step); \
    }
COPY_BLOCKS(each_uint8_t)
COPY_BLOCKS(each_uint16_t)
COPY_BLOCKS(each_uint32_t)
COPY_BLOCKS(each_uint64_t)

// Band b: rows along `across` at one place in the other outer dims.
static inline void copy_band(const transposed *t, int64_t b) {
    const each *e = &t->e;
    int inner = e->ndim - 1;
    int64_t size = e->size[0], first = b % t->bands * COPY_BAND, rest = b / t->bands;
    int64_t rows = e->shape[t->across] - first;
    if (rows > COPY_BAND) rows = COPY_BAND;
    char *out = e->data[0] + first * e->stride[0][t->across] * size;
    const char *in = e->data[1] + first * size;
    for (int d = inner - 1; d >= 0; d--) {
        if (d == t->across) continue;
        out += rest % e->shape[d] * e->stride[0][d] * size;
        in += rest % e->shape[d] * e->stride[1][d] * size;
        rest /= e->shape[d];
    }
    int64_t n = e->shape[inner], to = e->stride[0][t->across], from = e->stride[1][inner];
    switch (size) {
    case 1: copy_band_each_uint8_t((void *)out, (const void *)in, rows, n, to, from); break;
    case 2: copy_band_each_uint16_t((void *)out, (const void *)in, rows, n, to, from); break;
    case 4: copy_band_each_uint32_t((void *)out, (const void *)in, rows, n, to, from); break;
    default: copy_band_each_uint64_t((void *)out, (const void *)in, rows, n, to, from); break;
    }
}

static inline void copy_bands(void *context, int64_t piece) {
    const transposed *t = context;
    int64_t end = weft_piece_end(t->total, t->per_piece, piece);
    for (int64_t b = piece * t->per_piece; b < end; b++) copy_band(t, b);
}

static inline void copy_strided(void *context, int64_t piece) {
    const each *e = context;
    int64_t begin = piece * e->grain, end = weft_piece_end(e->numel, e->grain, piece);
    if (e->flat[0]) each_move(e, 1, begin, end - begin, e->data[0] + begin * e->size[0], true);
    else each_blocks(e, begin, end);
}

// Copies `in` to `out`, of one shape and element size. `out` may have any strides too.
static inline void copy_view(const weft_view *out, const weft_view *in) {
    const weft_view *views[2] = { out, in };
    transposed t = { .across = -1 };
    each *e = &t.e;
    int size = each_dtype_size(out->dtype);
    if (out->numel == 0) return;
    each_prepare(e, views, 2);
    e->fn = copy_span;
    e->context = &size;
    e->grain = EACH_CHEAP;
    int inner = e->ndim - 1;
    if (e->stride[0][inner] == 1 && e->stride[1][inner] > 1)
        for (int d = 0; d < inner; d++)
            if (e->stride[1][d] == 1 && e->shape[d] > 1) t.across = d;
    weft_piece_fn fn = e->long_rows ? each_piece : copy_strided;
    int64_t pieces = weft_pieces(e->numel, e->grain);
    void *context = e;
    if (t.across >= 0) {
        t.bands = weft_pieces(e->shape[t.across], COPY_BAND);
        t.total = e->numel / e->shape[inner] / e->shape[t.across] * t.bands;
        t.per_piece = weft_pieces(EACH_CHEAP, COPY_BAND * e->shape[inner]);
        pieces = weft_pieces(t.total, t.per_piece);
        fn = copy_bands;
        context = &t;
    }
    if (e->numel > EACH_CHEAP) weft_parallel(pieces, fn, context);
    else for (int64_t i = 0; i < pieces; i++) fn(context, i);
}

// Whether v is large and its rows run across out's, so that a walk in out's order would touch a
// line of memory for each element.
static inline bool copy_pays(const weft_view *v, const weft_view *out) {
    if (v->numel < 8 * EACH_BLOCK || v->numel != out->numel) return false;
    int inner = v->ndim - 1, across = -1;
    while (inner > 0 && v->shape[inner] == 1) inner--;
    for (int d = 0; d < inner; d++)
        if (v->stride[d] == 1 && v->shape[d] >= COPY_BLOCK) across = d;
    return across >= 0 && v->stride[inner] >= COPY_BLOCK;
}

// Runs fn over the call's output and inputs; inputs that lie across the output are turned first.
static inline weft_status each_call(const weft_call *call, each_fn fn, const void *context,
                                    int64_t grain) {
    const weft_view *views[EACH_MAX] = { call->out[0] };
    weft_view turned[EACH_MAX];
    int64_t bytes[EACH_MAX];
    weft_status code = WEFT_OK;
    int n_turned = 0;
    for (int i = 0; i < call->n_in && code == WEFT_OK; i++) {
        views[i + 1] = call->in[i];
        if (!copy_pays(call->in[i], call->out[0])) continue;
        weft_view *v = &turned[n_turned];
        *v = *call->in[i];
        int64_t step = 1;
        for (int d = v->ndim - 1; d >= 0; step *= v->shape[d--]) v->stride[d] = step;
        bytes[n_turned] = v->numel * each_dtype_size(v->dtype);
        v->data = weft_workspace(call->backend, bytes[n_turned]);
        if (!v->data) code = WEFT_ENOMEM;
        else {
            copy_view(v, call->in[i]);
            views[i + 1] = v;
            n_turned++;
        }
    }
    if (code == WEFT_OK) code = each_run(views, call->n_in + 1, fn, context, grain);
    while (n_turned-- > 0)
        weft_workspace_free(call->backend, turned[n_turned].data, bytes[n_turned]);
    return code;
}

#endif
