// attention.c: scaled dot-product attention, its gradient, and rotary positions. The arithmetic is
// in attention_body.h, once for float32 and once for float64.
#include "math.h"
#include "slots.h"
#include "../tensor/random.h"
#include <string.h>

#define MAX_ROWS 48

typedef struct attention {
    const weft_call *call;
    const weft_view *mask; // NULL: none
    int64_t mask_stride[4];
    int64_t heads, n, m, d;
    int64_t rows;          // queries a block
    int64_t chunk, chunks; // queries a piece, pieces a head
    double scale, p;
    bool causal;
    int64_t needs;
    void *partial; // dk and dv by piece, where a head has several
    weft_slots slots;
} attention;

typedef struct rotary {
    const weft_call *call;
    bool inverse;
    int64_t rows, grain;
} rotary;

// keys that query i may see, not counting the mask
static int64_t visible(const attention *t, int64_t i) {
    if (!t->causal) return t->m;
    const int64_t n = i + t->m - t->n + 1;
    return n < 0 ? 0 : n < t->m ? n : t->m;
}

#define REAL float
#define NAME(x) x##_f32
#define EXP_NEG weft_exp_negf
#define LOG weft_logf
#include "panel.h"
#include "dropmask.h"
#include "attention_body.h"
#undef REAL
#undef NAME
#undef EXP_NEG
#undef LOG
#define REAL double
#define NAME(x) x##_f64
#define EXP_NEG exp
#define LOG log
#include "panel.h"
#include "dropmask.h"
#include "attention_body.h"

static void set_mask(attention *t, const weft_view *mask) {
    t->mask = mask;
    if (!mask) return;
    for (int i = 0; i < 4; i++) {
        const int dim = mask->ndim - 4 + i;
        t->mask_stride[i] = dim >= 0 && mask->shape[dim] != 1 ? mask->stride[dim] : 0;
    }
}

// Heads are cut into chunks of queries where there are few of them.
static void set_chunks(attention *t, int64_t heads, int64_t pieces) {
    const int64_t want = heads > 0 && heads < pieces ? (pieces + heads - 1) / heads : 1,
                  most = t->n / 96;
    const int64_t chunks = want < most ? want : most > 1 ? most : 1;
    t->rows = t->m > 4096 ? 12 : t->m > 1024 ? 24 : MAX_ROWS;
    t->chunk = ((t->n + chunks - 1) / chunks + t->rows - 1) / t->rows * t->rows;
    t->chunks = (t->n + t->chunk - 1) / t->chunk;
}

CPU_KERNEL(scaled_dot_product_attention) {
    const weft_view *q = call->in[0], *k = call->in[1];
    const weft_attrs *at = call->at;
    attention t = {
        .call = call, .heads = q->shape[1], .n = q->shape[2], .m = k->shape[2], .d = q->shape[3]};
    if (q->numel == 0) return WEFT_OK;
    set_mask(&t, call->in[3]);
    t.scale = at->AT(scaled_dot_product_attention, scale);
    if (t.scale == 0) t.scale = 1 / sqrt((double)t.d);
    t.p = at->AT(scaled_dot_product_attention, p);
    t.causal = at->AT(scaled_dot_product_attention, causal) != 0;
    const int64_t heads = q->shape[0] * t.heads;
    set_chunks(&t, heads, 32);
    const bool single = q->dtype == WEFT_FLOAT32;
    weft_status status = weft_slots_open(&t.slots, call->backend, heads * t.chunks,
                                         single ? forward_size_f32(&t) : forward_size_f64(&t));
    if (status != WEFT_OK) return status;
    weft_parallel(heads * t.chunks, single ? forward_f32 : forward_f64, &t);
    weft_slots_close(&t.slots);
    return WEFT_OK;
}

CPU_KERNEL(attention_backward) {
    const weft_view *q = call->in[1], *k = call->in[2];
    const weft_attrs *at = call->at;
    attention t = {
        .call = call, .heads = q->shape[1], .n = q->shape[2], .m = k->shape[2], .d = q->shape[3]};
    const bool single = q->dtype == WEFT_FLOAT32;
    const int64_t heads = q->shape[0] * t.heads, size = single ? 4 : 8;
    if (heads == 0) return WEFT_OK;
    if (t.n == 0) { // no query looks at the keys
        for (int i = 1; i <= 2; i++)
            if (call->out[i]->numel)
                memset(call->out[i]->data, 0, (size_t)(call->out[i]->numel * size));
        return WEFT_OK;
    }
    set_mask(&t, call->in[4]);
    t.scale = at->AT(attention_backward, scale);
    if (t.scale == 0) t.scale = 1 / sqrt((double)t.d);
    t.p = at->AT(attention_backward, p);
    t.causal = at->AT(attention_backward, causal) != 0;
    t.needs = at->AT(attention_backward, needs);
    set_chunks(&t, heads, 16);
    const int64_t partial = t.chunks > 1 ? heads * t.chunks * 2 * t.m * (t.d + 16) * size : 0;
    if (partial && !(t.partial = weft_workspace(call->backend, partial))) return WEFT_ENOMEM;
    weft_status status = weft_slots_open(&t.slots, call->backend, heads * t.chunks,
                                         single ? backward_size_f32(&t) : backward_size_f64(&t));
    if (status == WEFT_OK) {
        weft_parallel(heads * t.chunks, single ? backward_f32 : backward_f64, &t);
        weft_slots_close(&t.slots);
        if (partial) weft_parallel(heads, single ? collect_f32 : collect_f64, &t);
    }
    if (partial) weft_workspace_free(call->backend, t.partial, partial);
    return status;
}

static void rotate_piece(void *context, int64_t piece) {
    const rotary *t = context;
    const int64_t end = weft_piece_end(t->rows, t->grain, piece);
    for (int64_t row = piece * t->grain; row < end; row++) {
        if (t->call->in[0]->dtype == WEFT_FLOAT32)
            rotate_f32(t, row);
        else
            rotate_f64(t, row);
    }
}

CPU_KERNEL(rotary) {
    const weft_view *x = call->in[0];
    if (x->numel == 0) return WEFT_OK;
    rotary t = {.call = call, .inverse = call->at->AT(rotary, inverse) != 0, .grain = 256};
    t.rows = x->numel / x->shape[x->ndim - 1];
    weft_parallel(weft_pieces(t.rows, t.grain), rotate_piece, &t);
    return WEFT_OK;
}
