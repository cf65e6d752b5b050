// device.h: what every kernel file of the GPU begins with: CUDA itself (or what stands in for it in
// tests/cuda_on_cpu), the launch macro, shared memory, dtypes, and the device behind a call.
#ifndef WEFT_CUDA_DEVICE_H
#define WEFT_CUDA_DEVICE_H

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#ifdef WEFT_CUDA_ON_CPU
#include "shim.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
typedef __nv_bfloat16 bf16;
typedef __half half_t;
// SHARED(float, tile, [32][33]) declares shared memory; DYNAMIC_SHARED(float, rows) is what the
// launch asked for. Both are per block.
#define SHARED(type, name, size) __shared__ type name size
#define DYNAMIC_SHARED(type, name) \
    extern __shared__ __align__(128) unsigned char dynamic_shared_memory[]; \
    type *const name = reinterpret_cast<type *>(dynamic_shared_memory)
#define COMPUTES true       // where the simulated device leaves the arithmetic out, it does not
// One way to start a kernel. Grid and block are dim3 or numbers; a kernel with commas in its name
// goes in parentheses. The value is a weft_status.
#define LAUNCH(call, kernel, grid, block, shared, ...) \
    ([&]() -> weft_status { \
        auto *kernel_ = kernel; \
        weft_status ready_ = cuda_before_launch(call, (const void *)kernel_, (shared)); \
        if (ready_ != WEFT_OK) return ready_; \
        kernel_<<<grid, block, shared, stream_of(call)>>>(__VA_ARGS__); \
        return cuda_launched(call, #kernel); \
    }())
#endif

// Device functions that the host may call too.
#define HD __host__ __device__ __forceinline__
#define DEVICE __device__ __forceinline__

extern "C" {
#include "kernel.h"
}
typedef enum cuda_op {  // the rows of the operator table, by the numbers that the core gives them
#define OP(name, ...) OP_##name,
#include "ops.def"
#undef OP
    WEFT_N_OPS
} cuda_op;

extern const weft_host *cuda_host;   // the core's functions
#define weft_fail(...) (cuda_host->fail(__VA_ARGS__))

// One GPU. The backend comes first: a weft_backend * is a cuda_device *.
struct cuda_device {
    weft_backend base;
    int index;
    cudaStream_t stream;       // all kernels and copies, in order
    void *blas;                // of blas.cu
    void *dnn;                 // of dnn.cu, once it is asked
    struct cuda_blocks *blocks;      // of memory.cu
    struct cuda_fault *fault, *fault_here;   // what a kernel complained of: the device's address and ours
    char *staging;             // pinned, for uploads
    int64_t staging_size, staging_at;
    cudaEvent_t staged[2];     // the last copy out of each half
    bool capturing;            // a graph: nothing runs now
    const uint64_t *clock;     // what draws add to their counters: the capture's, else still
    const uint64_t *still;     // a clock that stays at 0
    const double *rates;       // of the capture: what AdamW and EMA move by
    bool blocking;             // WEFT_CUDA_BLOCKING: wait and check after each operator
    weft_memory memory;
    weft_device_counters counters;
    char name[16];
    int multiprocessors, shared_limit;
};

// A visitor of a kernel's argument is told by this which of its untyped addresses are only read.
template <class T> const T *&only_read(T *&p) { return const_cast<const T *&>(p); }

static inline cuda_device *device_of(const weft_call *call) {
    return reinterpret_cast<cuda_device *>(call->backend);
}
static inline cudaStream_t stream_of(const weft_call *call) { return device_of(call)->stream; }

// Refuses, while a graph is captured, what would have to run at once.
weft_status cuda_not_captured(cuda_device *d, const char *what);
weft_status cuda_check(cudaError_t code, const char *what);   // WEFT_EIO with CUDA's own words
weft_status cuda_before_launch(const weft_call *call, const void *kernel, size_t shared);
weft_status cuda_launched(const weft_call *call, const char *kernel);

// A kernel of the operator table.
#define CUDA_KERNEL(op) extern "C" weft_status weft_cuda_##op(const weft_call *call)

#define TRY(expr) do { weft_status status_ = (expr); if (status_ != WEFT_OK) return status_; } while (0)

// Scratch memory that goes when the kernel function returns (the stream keeps the order).
struct scratch {
    weft_backend *backend;
    void *data;
    int64_t nbytes;
    scratch(const weft_call *call, int64_t n) : backend(call->backend), data(nullptr), nbytes(n) {
        data = backend->allocate(backend, n > 0 ? n : 1);
    }
    ~scratch() { if (data) backend->release(backend, data, nbytes > 0 ? nbytes : 1); }
    scratch(const scratch &) = delete;
    scratch &operator=(const scratch &) = delete;
    template <class T> T *as() const { return static_cast<T *>(data); }
};

// --- what a kernel can't do with its data (an index out of range): the first complaint is kept and
// raised when the host next waits for the device.
enum cuda_complaint {
    FAULT_NONE, FAULT_INDEX, FAULT_PROBABILITY, FAULT_WEIGHT, FAULT_DRAWS, FAULT_DIVISION,
    FAULT_FINITE, FAULT_SINGULAR, FAULT_INDEFINITE, FAULT_CONVERGENCE, FAULT_PLAN
};
struct cuda_fault {
    int32_t what, op;
    double value, low, high;
    int64_t position;       // of what was complained of, from 0
};
struct fault_sink {     // pass it to a kernel by value
    cuda_fault *at;
    int32_t op;
    template <class V> void visit(V &v) { v(at); }
    DEVICE void complain(int what, double value, double low, double high, int64_t position = 0) const {
        if (atomicCAS(&at->what, 0, what) != 0) return;
        at->op = op;
        at->value = value;
        at->low = low;
        at->high = high;
        at->position = position;
    }
};
static inline fault_sink faults(const weft_call *call, int op) {
    return fault_sink{ device_of(call)->fault, op };
}

// --- rows that lie apart (weft_rows in kernel.h): where row i begins
DEVICE int64_t row_at(const weft_rows &r, int64_t i) {
    return r.outer == 1 ? i * r.row : i / r.inner * r.block + i % r.inner * r.row;
}
// Whether all of them begin at a multiple of `elements`.
static inline bool rows_aligned(const weft_rows &r, int64_t elements) {
    return (r.inner == 1 || r.row % elements == 0) && (r.outer == 1 || r.block % elements == 0);
}

// --- draws. A graph's kernels keep the counter that they were captured with; its clock moves all on. There is
// always one: a test for it would take registers that kernels don't have.
DEVICE uint64_t counter_now(uint64_t counter, const uint64_t *clock) {
    return counter + __ldg(reinterpret_cast<const unsigned long long *>(clock));
}

// --- dtypes. A kernel is a template over its storage type T and computes in wide_t<T>.
template <class T> struct wide { typedef T type; };
template <> struct wide<bf16> { typedef float type; };
template <> struct wide<half_t> { typedef float type; };
template <class T> using wide_t = typename wide<T>::type;

template <class T> HD wide_t<T> widen(T v) { return v; }
template <> HD float widen<bf16>(bf16 v) { return __bfloat162float(v); }
template <> HD float widen<half_t>(half_t v) { return __half2float(v); }
template <class T> HD T narrow(wide_t<T> v) { return v; }
template <> HD bf16 narrow<bf16>(float v) { return __float2bfloat16(v); }
template <> HD half_t narrow<half_t>(float v) { return __float2half(v); }

template <class T> struct type_tag { typedef T type; };
#define TYPE_OF(tag) typename decltype(tag)::type

// f(type_tag<T>{}) for a computing float; refuses others by name.
template <class F> weft_status with_float(int dtype, F f) {
    switch (dtype) {
    case WEFT_FLOAT32: return f(type_tag<float>{});
    case WEFT_FLOAT64: return f(type_tag<double>{});
    case WEFT_BFLOAT16: return f(type_tag<bf16>{});
    default: return weft_fail(WEFT_EUNSUPPORTED, "no kernel for dtype number %d on a GPU", dtype);
    }
}
// Floats and int32, int64.
template <class F> weft_status with_number(int dtype, F f) {
    switch (dtype) {
    case WEFT_INT32: return f(type_tag<int32_t>{});
    case WEFT_INT64: return f(type_tag<int64_t>{});
    default: return with_float(dtype, f);
    }
}
// By size alone, for what only moves elements.
template <class F> weft_status with_size(int dtype, F f) {
    switch (cuda_host->dtype_size(dtype)) {
    case 1: return f(type_tag<uint8_t>{});
    case 2: return f(type_tag<uint16_t>{});
    case 4: return f(type_tag<uint32_t>{});
    default: return f(type_tag<uint64_t>{});
    }
}

// --- grids
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
#define GRID_LIMIT 2147483647
// Blocks for n items of `each` to a block; kernels walk with a stride of the grid, so it may be cut.
static inline unsigned blocks_for(int64_t n, int64_t each, int64_t most = 1 << 20) {
    int64_t blocks = ceil_div(n, each);
    return (unsigned)(blocks < 1 ? 1 : blocks > most ? most : blocks);
}
#define THREAD_INDEX ((int64_t)blockIdx.x * blockDim.x + threadIdx.x)
#define THREAD_COUNT ((int64_t)gridDim.x * blockDim.x)

#endif
