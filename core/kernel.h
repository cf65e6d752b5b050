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

// Collective operations: what ranks compute together, each on a device of its own. Every rank calls the
// same ones in the same order; they are ordered with the kernels and return at once. n: elements of one
// rank's part. Where a device's library is missing, identify and join say so.
#define WEFT_GROUP_ID 128
typedef struct weft_collectives {
    weft_status (*identify)(char id[WEFT_GROUP_ID]);            // of a new group: one rank asks, all join with it
    void *(*join)(struct weft_backend *, const char id[WEFT_GROUP_ID], int rank, int size);     // waits for the others
    void (*leave)(void *group);                                 // not from a finalizer: it may wait
    weft_status (*all_reduce)(void *group, void *data, int64_t n, int dtype, int reduction);    // in place
    weft_status (*all_gather)(void *group, void *to, const void *from, int64_t n, int dtype);   // to: size * n
    weft_status (*reduce_scatter)(void *group, void *to, const void *from, int64_t n, int dtype, int reduction);
    weft_status (*broadcast)(void *group, void *data, int64_t n, int dtype, int root);          // in place
} weft_collectives;

// One device. The CPU's is in core/tensor/memory.c; a GPU's comes from a library of its own.
typedef struct weft_backend {
    const char *name;                               // "cpu", "cuda:0"
    int32_t device;                                 // its number
    const weft_kernel *kernels;                     // by operator; NULL: no kernel
    void *(*allocate)(struct weft_backend *, int64_t nbytes);   // 64-byte aligned, not cleared
    void (*release)(struct weft_backend *, void *data, int64_t nbytes);
    void (*trim)(struct weft_backend *);            // hand cached blocks back to the system
    weft_memory *memory;                            // its counters
    // Where the host can't reach the memory; NULL where it can. All but download return at once
    // and are ordered with the kernels.
    weft_status (*upload)(struct weft_backend *, void *to, const void *from, int64_t nbytes);
    weft_status (*download)(struct weft_backend *, void *to, const void *from, int64_t nbytes);
    weft_status (*fill)(struct weft_backend *, const weft_view *y, double value);
    weft_status (*synchronize)(struct weft_backend *);  // waits, and tells what kernels complained of
    weft_status (*after)(struct weft_backend *, int op);    // after each kernel, where asked for
    weft_device_counters *counters;
    const weft_collectives *collectives;            // NULL: the device has none
    // Graphs; NULL where a device has none. From begin to end nothing is run: it is kept, to be launched
    // as one, and what would have to run at once (copies from and to the host, waiting) is refused.
    weft_status (*capture_begin)(struct weft_backend *);
    // What draws add to their counters, and what AdamW and EMA take as rates, from here on in the
    // capture: addresses on the device, read at each launch; NULL: what the call says.
    void (*capture_bind)(struct weft_backend *, const void *clock, const void *rates);
    weft_status (*capture_end)(struct weft_backend *, void **graph);   // graph NULL: it is dropped
    weft_status (*graph_launch)(struct weft_backend *, void *graph);
    void (*graph_free)(struct weft_backend *, void *graph);
    void (*graph_size)(void *graph, int64_t *kernels, int64_t *nbytes);
} weft_backend;

// --- a device library's one door
#define WEFT_DEVICE_ABI 2
typedef struct weft_host {                          // what the core lends it
    weft_status (*fail)(weft_status code, const char *format, ...);
    const char *(*error)(void);
    bool (*must_fail)(void);                        // testing: this allocation is to fail
    int64_t (*dtype_size)(int dtype);
    const char *(*op_name)(int op);
} weft_host;
typedef struct weft_device_library {
    uint32_t abi;
    uint64_t ops_hash;                              // of the operator table it was built from
    int (*count)(char *why, int64_t size);          // devices; 0 where none can be used, and why
    weft_status (*describe)(int index, char *text, int64_t size);   // "NVIDIA H200, 139 GiB, sm_90"
    void (*about)(char *text, int64_t size);        // what it was built for, versions found
    weft_backend *(*open)(int index, int32_t device);               // NULL and an error
} weft_device_library;
#define WEFT_DEVICE_ENTRY "weft_device_entry"
typedef const weft_device_library *(*weft_device_entry_fn)(const weft_host *host);

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

// x as [..., rows, columns]: a vector becomes a row (of the left side) or a column (of the right).
static inline weft_view weft_as_matrix(const weft_view *x, bool left) {
    weft_view y = *x;
    if (x->ndim >= 2) return y;
    y.ndim = 2;
    y.shape[0] = left ? 1 : x->shape[0];
    y.shape[1] = left ? x->shape[0] : 1;
    y.stride[0] = left ? x->shape[0] : x->stride[0];
    y.stride[1] = left ? x->stride[0] : 1;
    return y;
}

// How rows lie, each the last `whole` dims of a view: `outer` blocks of `inner` rows.
typedef struct weft_rows {
    int64_t outer, inner, block, row;  // elements from one block to the next, from one row to the next
} weft_rows;

// false where rows are not contiguous each, or lie in more than two even steps.
static inline bool weft_rows_of(const weft_view *v, int whole, weft_rows *r) {
    int64_t size[2] = {1, 1}, step[2] = {0, 0}, expect = 1;
    int runs = 0, d = v->ndim - 1;
    for (; d >= 0 && d >= v->ndim - whole; d--) {
        if (v->shape[d] != 1 && v->stride[d] != expect) return false;
        expect *= v->shape[d];
    }
    for (; d >= 0; d--) {
        if (v->shape[d] == 1) continue;
        if (runs && v->stride[d] == step[runs - 1] * size[runs - 1]) {
            size[runs - 1] *= v->shape[d];
            continue;
        }
        if (runs == 2) return false;
        size[runs] = v->shape[d];
        step[runs++] = v->stride[d];
    }
    *r = (weft_rows){size[1], size[0], step[1], step[0]};
    return true;
}
static inline int64_t weft_row_at(const weft_rows *r, int64_t i) {
    return r->outer == 1 ? i * r->row : i / r->inner * r->block + i % r->inner * r->row;
}

// product of shape[from .. to - 1]
static inline int64_t weft_span(const weft_view *v, int from, int to) {
    int64_t n = 1;
    for (int d = from; d < to; d++) n *= v->shape[d];
    return n;
}

// Whether an interrupt asks the kernel that runs to leave out what is left of it; on any thread.
bool weft_stopped(void);

#endif
