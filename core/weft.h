// weft.h: the only door into the core. C programs include it; LuaJIT reads it, preprocessed.
// Tensors are strided arrays of up to WEFT_MAX_DIMS dims; sizes and indices are int64_t.
// A function that returns a pointer returns NULL on failure, one that returns weft_status returns
// a code other than WEFT_OK; weft_error() then says what went wrong. Outputs are untouched then.
// Positions and dims count from 0 here, negative dims from the end.
#ifndef WEFT_H
#define WEFT_H

#include <stddef.h>
#include <stdint.h>
#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

#define WEFT_VERSION "0.1.0"
#define WEFT_MAX_DIMS 8

typedef enum weft_status {
    WEFT_OK = 0,
    WEFT_EINVAL = 1,       // a bad argument: shapes, dtypes, ranges
    WEFT_ENOMEM = 2,       // an allocation failed
    WEFT_EIO = 3,          // a file or device failed
    WEFT_EFORMAT = 4,      // a file does not hold what it should
    WEFT_EAUTOGRAD = 5,    // misuse of the tape
    WEFT_EUNSUPPORTED = 6, // no kernel for this dtype or device
    WEFT_EINTERRUPTED = 7  // weft_interrupt(1) was called
} weft_status;

typedef enum weft_dtype {
    WEFT_FLOAT32 = 0,
    WEFT_FLOAT64 = 1,
    WEFT_BFLOAT16 = 2,
    WEFT_FLOAT16 = 3,
    WEFT_INT32 = 4,
    WEFT_INT64 = 5,
    WEFT_UINT8 = 6,
    WEFT_BOOL = 7,
    WEFT_N_DTYPES = 8
} weft_dtype;

// Devices: the CPU, `meta` (shapes without data), `cuda-sim` (the GPU's kernels run on the CPU, for
// tests), and from WEFT_CUDA on one number a GPU.
typedef enum weft_device {
    WEFT_CPU = 0, WEFT_META = 1, WEFT_CUDA_SIM = 2, WEFT_CUDA = 16, WEFT_N_DEVICES = 32
} weft_device;

// What a kernel sees. Strides are in elements. data is NULL on meta.
typedef struct weft_view {
    void *data;
    int64_t numel;
    int32_t dtype, device, ndim, reserved;
    int64_t shape[WEFT_MAX_DIMS], stride[WEFT_MAX_DIMS];
} weft_view;

// A handle. Read its fields, never write them. A handle's memory stays valid for good; `gen`
// changes when it is freed, so that a stale handle can be told.
typedef struct weft_tensor {
    uint64_t gen;
    weft_view v;
    bool requires_grad, is_leaf;
} weft_tensor;

// Counters of one device, in bytes and calls. `pressure` grows with each allocation and is reset
// by whoever paces a garbage collector.
typedef struct weft_memory {
    int64_t live, peak, cached, system_calls, limit, pressure;
} weft_memory;

// What a device did so far. All of these are 0 for the CPU.
typedef struct weft_device_counters {
    int64_t launches, uploads, downloads, upload_bytes, download_bytes, synchronizations;
    int64_t graphs;        // launches of graphs; their kernels are not counted one by one
} weft_device_counters;

// State that a binding reads on every call.
typedef struct weft_state {
    int64_t scope_depth;   // scopes open now
    int64_t handles;       // handles alive
    int64_t nodes;         // tape nodes alive
    int64_t copies;        // copies that the dispatcher made because a kernel wants contiguous data
    int64_t calls;         // operator calls
    bool grad_enabled;
    volatile int interrupt;         // an operator fails at it, and sets it back
    volatile int interrupts;        // times that it was raised
    weft_memory cpu;
} weft_state;

weft_state *weft_get_state(void);
const char *weft_error(void);         // message of the last failure on this thread
weft_status weft_error_code(void);    // and its code
const char *weft_version(void);
void weft_interrupt(int flag);        // 1: the operator that runs, or the next one, fails with WEFT_EINTERRUPTED
weft_status weft_catch_interrupt(bool on);  // SIGINT calls weft_interrupt(1) and no longer ends the process

// --- dtypes and devices
const char *weft_dtype_name(int dtype);
int weft_dtype_of(const char *name);  // -1 when unknown
int64_t weft_dtype_size(int dtype);   // bytes
const char *weft_device_name(int device);
int weft_device_of(const char *name); // "cpu", "meta", "cuda" (cuda:0), "cuda:1"; -1 when unknown

// --- GPUs. The library that knows them is loaded on first use.
int weft_cuda_count(void);            // GPUs that can be used; where 0, weft_error() says why
const char *weft_cuda_describe(int device);  // "NVIDIA H200, ..."; NULL when there is none
const char *weft_cuda_about(void);    // "built for ...": their library; NULL when it can't be loaded
weft_status weft_synchronize(int device);    // waits until the device has done all it was given
weft_device_counters *weft_counters_of(int device);  // NULL when there is no such device

// --- graphs: what a GPU is given between begin and end is not run but kept, and launched as one, as often
// as wanted. Reading a value, waiting, and data that comes from the host are refused in between: a graph
// computes anew from what its inputs hold. It keeps their memory, and that of its results.
typedef struct weft_graph weft_graph;
weft_graph *weft_graph_begin(int device);               // NULL and the reason where there are none
// From here on draws add clock (one int64) to their counters, and AdamW and EMA take rates (four float64)
// in place of their attributes: those of weft_adamw_rates or 1 - decay, and last whether to move at all
// (above 0). Both lie on the device and are read at each launch. NULL: what the call says.
weft_status weft_graph_bind(weft_graph *g, const weft_tensor *clock, const weft_tensor *rates);
weft_status weft_graph_end(weft_graph *g);              // g is to be freed where this fails
weft_status weft_graph_launch(weft_graph *g);
int64_t weft_graph_kernels(const weft_graph *g);
int64_t weft_graph_bytes(const weft_graph *g);          // memory that is its own
void weft_graph_free(weft_graph *g);                    // also in the midst of a capture
void weft_adamw_rates(double lr, double beta1, double beta2, double weight_decay, int64_t step, double out[3]);

// --- making and freeing tensors
weft_tensor *weft_empty(const int64_t *shape, int n_shape, int dtype, int device);
weft_tensor *weft_zeros(const int64_t *shape, int n_shape, int dtype, int device);
weft_tensor *weft_full(const int64_t *shape, int n_shape, double value, int dtype, int device);
weft_tensor *weft_arange(double start, double stop, double step, int dtype, int device);
weft_tensor *weft_from(const void *data, const int64_t *shape, int n_shape, int dtype);  // copies
weft_tensor *weft_wrap(void *data, int64_t nbytes, const int64_t *shape, int n_shape, int dtype,
                       void (*release)(void *), void *context);  // borrows until release(context)
weft_tensor *weft_alias(const weft_tensor *t);   // a second handle on the same data and history
weft_tensor *weft_detach(const weft_tensor *t);  // the same data, no history
weft_tensor *weft_strided(const weft_tensor *t, const int64_t *shape, const int64_t *stride, int n,
                          int64_t offset);       // any view inside t's storage; no gradient
void weft_free(weft_tensor *t);                  // NULL is allowed
bool weft_is_contiguous(const weft_tensor *t);
double weft_item(const weft_tensor *t);          // one element; NaN and weft_error() on failure; waits for a GPU
weft_status weft_read(const weft_tensor *t, double *out, int64_t n);    // first n elements, row-major
weft_status weft_write(weft_tensor *t, const double *in, int64_t n);
uint32_t weft_version_of(const weft_tensor *t);  // writes to its storage so far
int64_t weft_storage_refs(const weft_tensor *t);
bool weft_same_storage(const weft_tensor *a, const weft_tensor *b);

// --- in-place arithmetic (bumps the storage's version; refused where the tape needs the value)
weft_status weft_copy_(weft_tensor *dst, const weft_tensor *src);  // converts and broadcasts
weft_status weft_fill_(weft_tensor *t, double value);
weft_status weft_inplace(const char *op, weft_tensor *a, const weft_tensor *b);  // a = op(a, b)
weft_status weft_affine_(weft_tensor *t, double mul, double add);  // t = t * mul + add

// --- scopes: a handle made while a scope is open belongs to the innermost one and dies with it
int64_t weft_scope_begin(void);                 // id of the new scope, 0 on failure
weft_status weft_scope_end(int64_t id);
weft_status weft_scope_escape(weft_tensor *t);  // to the enclosing scope, or to nobody
weft_status weft_keep(weft_tensor *t);          // out of all scopes: the caller frees it

// --- autograd
weft_status weft_requires_grad_(weft_tensor *t, bool flag);
bool weft_set_grad_enabled(bool on);            // returns what it was
weft_tensor *weft_grad(const weft_tensor *t);   // a new handle on the gradient; NULL when none
weft_status weft_set_grad(weft_tensor *t, const weft_tensor *grad);  // NULL clears
weft_status weft_retain_grad(weft_tensor *t);   // keep the gradient of a result that is no leaf
const char *weft_grad_op(const weft_tensor *t); // operator that made t, "leaf", or NULL
weft_status weft_backward(weft_tensor *loss);   // d loss / d leaves into their gradients; loss has 1 element

// Backward with nodes and hooks that the caller runs. weft_run_step returns what happened last.
typedef struct weft_run weft_run;
typedef enum weft_pause { WEFT_DONE = 0, WEFT_NODE = 1, WEFT_HOOK = 2, WEFT_FAILED = 3 } weft_pause;
weft_run *weft_run_new(weft_tensor *const *roots, weft_tensor *const *grads, int n, bool retain);
int weft_run_step(weft_run *run);               // a weft_pause; once more after WEFT_FAILED tries again where memory ran out
int64_t weft_run_id(const weft_run *run);       // id of the node or hook that waits
uint64_t weft_run_node_needs(const weft_run *run);   // bit i: input i wants a gradient
int weft_run_node_outputs(const weft_run *run);
weft_tensor *weft_run_grad(weft_run *run, int i);     // gradient of output i (NULL: zero), or the hook's
weft_tensor *weft_run_saved(weft_run *run, int i);    // tensor saved with the node
weft_status weft_run_give(weft_run *run, int i, const weft_tensor *grad);  // gradient of input i, or the hook's result
void weft_run_free(weft_run *run);

// A node whose gradient the caller computes. outputs are results made without the tape; they are
// given history. id comes back in weft_run_id; released ids are handed out by weft_next_released.
weft_status weft_custom_node(int64_t id, weft_tensor *const *inputs, int n_in,
                             weft_tensor *const *outputs, int n_out,
                             weft_tensor *const *saved, int n_saved);
weft_status weft_add_hook(weft_tensor *t, int64_t id);
weft_status weft_remove_hook(weft_tensor *t, int64_t id);
int64_t weft_next_released(void);               // id of a custom node or hook that died; 0 when none

// --- memory
weft_memory *weft_memory_of(int device);        // NULL when the device has none
void weft_empty_cache(int device);              // -1: of every device in use
void weft_reset_peak(int device);
void weft_fail_allocation(int64_t nth);         // testing: the nth allocation from now and all after it fail; 0 = off
int64_t weft_tape_bytes(void);                  // bytes that tape nodes hold saved now

// --- CPU
int weft_threads(void);
weft_status weft_set_threads(int n);
const char *weft_cpu_path(void);                // "avx512", "avx2" or "plain": the kernels in use
const char *weft_blas_name(void);

// --- groups of ranks: programs that compute together, each on a device of its own. Every rank calls the
// same operations in the same order, with tensors of one shape and dtype. Ranks count from 0. Provider
// "self" is one rank, on any device, and never communicates; "nccl" is a GPU's. Results have no history.
typedef struct weft_group weft_group;
typedef enum weft_reduction { WEFT_SUM = 0, WEFT_MEAN = 1, WEFT_MAX = 2 } weft_reduction;
// Waits until all `size` ranks have joined. They meet at a file, which must not be there before: rank 0
// writes it and removes it; the others wait for it up to `timeout` seconds. One rank needs none (NULL).
weft_group *weft_group_join(const char *provider, int device, int rank, int size, const char *meeting, double timeout);
void weft_group_leave(weft_group *g);                // NULL is allowed; it may wait for the others
int weft_group_rank(const weft_group *g);
int weft_group_size(const weft_group *g);
weft_status weft_all_reduce_(weft_group *g, weft_tensor *t, int reduction);  // t: of all ranks, the same everywhere
weft_tensor *weft_all_gather(weft_group *g, const weft_tensor *t);           // [n, ...] -> [size * n, ...], by rank
weft_tensor *weft_reduce_scatter(weft_group *g, const weft_tensor *t, int reduction);  // [size * n, ...] -> [n, ...]
weft_status weft_broadcast_(weft_group *g, weft_tensor *t, int root);        // t: root's, everywhere
weft_status weft_barrier(weft_group *g);             // until all ranks are here and their devices have done all

// --- random numbers: Philox4x32-10's four words for a key and a counter, lowest words first
void weft_philox_words(const uint32_t key[2], const uint32_t counter[4], uint32_t out[4]);

// --- the operator table, for tools and tests
int weft_n_ops(void);
const char *weft_op_field(int op, const char *field);  // name kind inputs outputs attrs dtypes family doc
uint64_t weft_ops_hash(void);
int64_t weft_op_calls(int op);                  // calls of one operator since the start

#include "weft_ops.h"
#include "weft_io.h"

#ifdef __cplusplus
}
#endif
#endif
