// slots.h: scratch memory for the pieces of one kernel: one slot a thread, taken at the start of a
// piece and given back at its end. Which slot a piece gets must not matter to its result.
#ifndef WEFT_SLOTS_H
#define WEFT_SLOTS_H

#include "cpu.h"
#include <stdatomic.h>

#define WEFT_MAX_SLOTS 256

typedef struct weft_slots {
    weft_backend *backend;
    char *data;
    int64_t size, nbytes;
    int n;
    atomic_char busy[WEFT_MAX_SLOTS];
} weft_slots;

// size: bytes a piece needs. A failure leaves nothing to free.
static inline weft_status weft_slots_open(weft_slots *s, weft_backend *backend, int64_t pieces,
                                          int64_t size) {
    int threads = weft_threads() < WEFT_MAX_SLOTS ? weft_threads() : WEFT_MAX_SLOTS;
    s->n = pieces < threads ? (pieces > 0 ? (int)pieces : 1) : threads;
    s->size = (size + 127) / 64 * 64;
    s->nbytes = s->size * s->n;
    s->backend = backend;
    for (int i = 0; i < s->n; i++) atomic_init(&s->busy[i], 0);
    s->data = weft_workspace(backend, s->nbytes);
    return s->data ? WEFT_OK : WEFT_ENOMEM;
}

static inline void *weft_slots_take(weft_slots *s) {
    for (int i = 0;; i = (i + 1) % s->n)
        if (!atomic_exchange(&s->busy[i], 1)) return s->data + i * s->size;
}

static inline void weft_slots_give(weft_slots *s, void *slot) {
    atomic_store(&s->busy[((char *)slot - s->data) / s->size], 0);
}

static inline void weft_slots_close(weft_slots *s) {
    weft_workspace_free(s->backend, s->data, s->nbytes);
}

#endif
