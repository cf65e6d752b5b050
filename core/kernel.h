// kernel.h: what a kernel sees, on any device. Kernels know views and attributes, no handles, no tape.
#ifndef WEFT_KERNEL_H
#define WEFT_KERNEL_H

#include "weft.h"

#define WEFT_LIST 16

// Attributes of a call. Slots are named by AT(op, name); see the generated ops_attrs.h.
typedef struct weft_attrs {
    int64_t i[12];
    double f[8];
    int64_t list[WEFT_LIST];
    int32_t n_list;
    uint64_t rng_key, rng_counter;
} weft_attrs;

#include "ops_attrs.h"
#define AT(op, name) AT_##op##_##name

typedef struct weft_call {
    const weft_view *const *in;   // NULL where an optional input is absent
    weft_view *const *out;
    int n_in, n_out;
    const weft_attrs *at;
    struct weft_backend *backend;
} weft_call;

typedef weft_status (*weft_kernel)(const weft_call *call);

// One device kind. The CPU's is core/cpu/backend.c; a GPU's comes from a library of its own.
typedef struct weft_backend {
    const char *name;
    const weft_kernel *kernels;                     // by operator; NULL: no kernel
    void *(*allocate)(struct weft_backend *, int64_t nbytes);   // 64-byte aligned, not cleared
    void (*release)(struct weft_backend *, void *data, int64_t nbytes);
    void (*trim)(struct weft_backend *);            // hand cached blocks back to the system
    void *(*workspace)(struct weft_backend *, int64_t nbytes);  // see weft_workspace
    weft_memory *memory;                            // its counters
} weft_backend;

// Scratch memory for the length of one kernel. Pair each with weft_workspace_free, last taken first.
void *weft_workspace(weft_backend *backend, int64_t nbytes);
void weft_workspace_free(weft_backend *backend, void *data, int64_t nbytes);

// Sets the message and returns code, so that `return weft_fail(WEFT_EINVAL, ...)` reads well.
weft_status weft_fail(weft_status code, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static inline bool weft_view_contiguous(const weft_view *v) {
    int64_t expect = 1;
    for (int d = v->ndim - 1; d >= 0; d--) {
        if (v->shape[d] != 1 && v->stride[d] != expect) return v->numel == 0;
        expect *= v->shape[d];
    }
    return true;
}

// product of shape[from .. to - 1]
static inline int64_t weft_span(const weft_view *v, int from, int to) {
    int64_t n = 1;
    for (int d = from; d < to; d++) n *= v->shape[d];
    return n;
}

#endif
