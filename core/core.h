// core.h: inside the core: handles, storage, tape nodes and the operator table. Not installed.
#ifndef WEFT_CORE_H
#define WEFT_CORE_H

#include "kernel.h"

// --- operators
typedef enum weft_op {
#define OP(name, ...) OP_##name,
#include "ops.def"
#undef OP
    WEFT_N_OPS
} weft_op;

typedef enum weft_kind { KERNEL, STRIDED, ELEMENTWISE, VIEW, INPLACE, COMPOSITE } weft_kind;

// What a shape rule sees and fills. Outputs start with the dtype and device of the first input.
typedef struct weft_shape_call {
    weft_op op;
    const weft_view *const *in;
    weft_view *out;               // shape, ndim, dtype; for VIEW rows stride too, and offset
    int n_in, n_out;
    const weft_attrs *at;
    int64_t offset;               // VIEW rows: elements from x's data to y's
    bool must_copy;               // VIEW rows: strides can't express it; the dispatcher copies x first
} weft_shape_call;
typedef weft_status (*weft_shape_fn)(weft_shape_call *call);

// What a gradient sees and fills. Saved handles and dy are borrowed; dx[i] is handed over.
// Temporaries made inside belong to a scope that the engine closes.
typedef struct weft_grad_call {
    const weft_attrs *at;
    weft_tensor *const *dy;       // by output; NULL where no gradient came
    weft_tensor *const *in;       // saved inputs, NULL where not saved
    weft_tensor *const *out;      // saved outputs, NULL where not saved
    const weft_view *in_view;     // shape and dtype of each input (no data)
    uint64_t needs;               // bit i: dx[i] is wanted
    int n_in, n_out;
    weft_tensor **dx;
    // The gradient that input i has so far, where it may be added to in place: dx[i] = onto[i] then
    // says that this was done, as the last thing that can fail. NULL where it may not.
    weft_tensor *const *onto;
} weft_grad_call;
typedef weft_status (*weft_grad_fn)(weft_grad_call *call);
#define NEEDS(call, i) (((call)->needs >> (i)) & 1)

typedef struct weft_save { uint8_t output, index; uint64_t mask; } weft_save;

typedef struct weft_op_info {
    const char *name, *family, *inputs, *outputs, *attrs, *dtypes, *doc;
    weft_kind kind;
    weft_shape_fn shape;
    weft_grad_fn grad;
    weft_save saves[8];
    // parsed at start
    uint32_t dtype_mask;
    int n_in, n_out, n_visible;   // n_in -1: any number, after n_fixed fixed ones
    int n_fixed;
    uint8_t optional[16], in_class[16];  // class: 0 row dtype, 1 index, 2 bool, 3 any
    uint8_t apart[16];            // 0: wanted contiguous; n: all but its last n - 1 dims may lie apart
    char in_name[16][16], out_name[8][16];
} weft_op_info;

extern weft_op_info weft_ops[WEFT_N_OPS];
weft_status weft_ops_init(void);

// Runs an operator: checks, shapes, memory, kernel, tape. out receives every visible output.
weft_status weft_dispatch(weft_op op, const weft_tensor *const *in, int n_in, const weft_attrs *at,
                          weft_tensor **out);
// As weft_dispatch, with the hidden outputs too (for gradients that call fused rows).
weft_status weft_dispatch_all(weft_op op, const weft_tensor *const *in, int n_in,
                              const weft_attrs *at, weft_tensor **out);

// Refuses a write in place that the tape or a second element at the same place would not survive.
// source: what is written, or NULL.
weft_status weft_may_write(const weft_tensor *t, const weft_tensor *source, const char *what);

// As weft_dispatch, into the memory of `onto` (contiguous, of the first output's shape and dtype)
// where that is not NULL.
weft_status weft_dispatch_onto(weft_op op, const weft_tensor *const *in, int n_in, const weft_attrs *at,
                               weft_tensor **out, const weft_tensor *onto);

// --- storage: bytes with a count of who holds them
typedef struct weft_storage {
    void *data;
    int64_t nbytes, refs;
    uint32_t version;
    int32_t device;
    int64_t capture;              // the last capture that made it or holds it
    void (*release)(void *);      // borrowed memory: called instead of freeing
    void *context;
} weft_storage;

weft_storage *weft_storage_new(int64_t nbytes, int device);
// While a graph is captured on a device: what its kernels read and write stays as long as the graph.
extern int64_t weft_capture;      // number of the capture under way; 0: none
weft_status weft_capture_holds(weft_storage *s);
static inline weft_status weft_capture_hold(weft_storage *s) {
    return weft_capture && s->capture != weft_capture ? weft_capture_holds(s) : WEFT_OK;
}
void weft_capture_made(weft_storage *s);
void weft_storage_retain(weft_storage *s);
void weft_storage_release(weft_storage *s);

// --- handles
typedef struct weft_node weft_node;
typedef struct weft_handle {
    weft_tensor t;                // first: weft_tensor * and weft_handle * are the same address
    weft_storage *storage;
    weft_node *node;              // history (or leaf), NULL when no gradient is wanted
    int32_t out_index;
    int64_t scope;                // id of the owning scope, 0 when none
    struct weft_handle *prev, *next;
} weft_handle;
static inline weft_handle *H(const weft_tensor *t) { return (weft_handle *)(uintptr_t)t; }

weft_tensor *weft_handle_new(const weft_view *v, weft_storage *storage);  // retains storage
void weft_make_contiguous_strides(weft_view *v);
weft_status weft_set_shape(weft_view *v, const int64_t *shape, int n);    // shape, numel, strides

// --- tape
// A result of a kernel before it has a handle: what the tape may keep without one.
typedef struct weft_result { weft_view view; weft_storage *storage; } weft_result;
typedef struct weft_edge { weft_node *node; int32_t out_index; } weft_edge;
// slot: input i, or n_in + j for output j; for custom nodes the position in what the caller saved.
typedef struct weft_saved { weft_storage *storage; weft_view view; uint32_t version; int32_t slot; } weft_saved;
// id 0: removed while a backward ran, which may stand at it; freed once none does.
typedef struct weft_hook { struct weft_hook *next; int64_t id; int32_t out_index; } weft_hook;
#define NODE_LEAF (-1)
#define NODE_CUSTOM (-2)
struct weft_node {
    int64_t refs, seq, custom_id, visit;
    weft_node *next_dead;
    int32_t op, n_in, n_out, n_saved;
    uint64_t needs;
    bool released;
    uint64_t retain;              // bit j: output j's gradient is kept in grad[j]
    weft_hook *hooks;
    weft_attrs *at;
    weft_edge *edges;             // [n_in]
    weft_view *in_view;           // [n_in] shape and dtype
    weft_view *out_view;          // [n_out]
    weft_tensor **pending;        // [n_out] gradients that arrived in the running backward
    weft_tensor **grad;           // [n_out] of a leaf, or retained: what the user sees
    weft_saved *saved;            // [n_saved]
    int64_t nbytes;               // of this node's block
};
weft_node *weft_node_new(int op, int n_in, int n_out, int n_saved);
void weft_node_retain(weft_node *n);
void weft_node_release(weft_node *n);  // iterative: a long graph needs no stack
void weft_node_drop_saved(weft_node *n);
// Records a call. handles[j] is NULL for hidden outputs.
weft_status weft_record(weft_op op, const weft_tensor *const *in, int n_in, const weft_attrs *at,
                        const weft_result *results, weft_tensor *const *handles, int n_out);
bool weft_any_needs_grad(const weft_tensor *const *in, int n_in);
void weft_node_sweep_hooks(weft_node *n);  // frees those that were removed
extern int64_t weft_runs;              // backward passes under way

// --- pools and system memory, all counted, all made to fail by weft_fail_allocation
void *weft_pool_alloc(int64_t nbytes);           // small blocks: nodes, lists
void weft_pool_free(void *p, int64_t nbytes);
void *weft_system_alloc(int64_t nbytes, weft_memory *m);
void weft_system_free(void *p);
bool weft_must_fail(void);                       // asked at each allocation
weft_backend *weft_backend_of(int device);       // NULL and an error when there is none
weft_backend *weft_device_open(int device);      // those that come from a library of their own
void weft_device_trim_all(void);                 // caches of all that are open
static inline bool weft_host_reaches(const weft_view *v) { return v->device == WEFT_CPU; }

// Makes a negative dim count from the end; refuses one outside [-ndim, ndim).
weft_status weft_fix_dim(int64_t *dim, int ndim);
// Row-major broadcast of two shapes into out (shape and strides), or a refusal that says where.
weft_status weft_broadcast_shapes(weft_view *out, const weft_view *a, const weft_view *b);

// --- helpers for gradients: all return new handles, or NULL and an error
weft_tensor *weft_sum_to(const weft_tensor *t, const weft_view *shape);   // undo a broadcast
weft_tensor *weft_zeros_as(const weft_view *v);
// What statistics and losses of a dtype are kept in: float32 for the 16-bit ones.
static inline int weft_wide_dtype(int dtype) {
    return dtype == WEFT_BFLOAT16 || dtype == WEFT_FLOAT16 ? WEFT_FLOAT32 : dtype;
}
weft_status weft_describe(char *buffer, size_t size, const weft_view *v); // "[2,3] float32"

// `a` or fail: for gradients and composites.
#define TRY(expr) do { weft_status status_ = (expr); if (status_ != WEFT_OK) return status_; } while (0)
#define HAVE(ptr) do { if (!(ptr)) return WEFT_EINVAL; } while (0)

extern weft_state weft_the_state;

// gemm.c: bytes that a product packs operands into, and those of its right side [k, n], packed once.
int64_t weft_product_workspace(int64_t k, int64_t n, int64_t *packed);

// interrupt.c. Between weft_may_stop(true) and weft_was_stopped, a kernel's pieces are left out once
// there is an interrupt; what they would have written is undefined then.
void weft_may_stop(bool on);
bool weft_was_stopped(void);  // were any? Then the interrupt is answered, and weft_error() says so.


#endif
