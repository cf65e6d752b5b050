// backend.cu: the library's one door, and each GPU behind it: its table of kernels, its stream, what
// is said when something fails.
#include "cuda/comm.h"
#include "cuda/memory.h"
#include "cuda/usable.h"
#include <cstdio>
#include <cstdlib>

const weft_host *cuda_host;

// --- the table of kernels: a row without one does not link
#define DECLARE_KERNEL(name) extern "C" weft_status weft_cuda_##name(const weft_call *);
#define DECLARE_STRIDED DECLARE_KERNEL
#define DECLARE_ELEMENTWISE DECLARE_KERNEL
#define DECLARE_INPLACE DECLARE_KERNEL
#define DECLARE_VIEW(name)
#define DECLARE_COMPOSITE(name)
#define OP(name, family, kind, ...) DECLARE_##kind(name)
#include "ops.def"
#undef OP

#define ENTRY_KERNEL(name) weft_cuda_##name,
#define ENTRY_STRIDED ENTRY_KERNEL
#define ENTRY_ELEMENTWISE ENTRY_KERNEL
#define ENTRY_INPLACE ENTRY_KERNEL
#define ENTRY_VIEW(name) nullptr,
#define ENTRY_COMPOSITE(name) nullptr,
static const weft_kernel kernels[WEFT_N_OPS] = {
#define OP(name, family, kind, ...) ENTRY_##kind(name)
#include "ops.def"
#undef OP
};

weft_status cuda_check(cudaError_t code, const char *what) {
    if (code == cudaSuccess) return WEFT_OK;
    cudaGetLastError();
    return weft_fail(code == cudaErrorMemoryAllocation ? WEFT_ENOMEM : WEFT_EIO, "CUDA: %s: %s (%s)", what,
                     cudaGetErrorString(code), cudaGetErrorName(code));
}

weft_status cuda_before_launch(const weft_call *call, const void *kernel, size_t shared) {
    cuda_device *d = device_of(call);
    d->counters.launches++;
    // more than 48 KB must be asked for
    if (shared <= 48 << 10) return WEFT_OK;
    return cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared),
                      "shared memory");
}

weft_status cuda_launched(const weft_call *call, const char *kernel) {
    (void)call;
    return cuda_check(cudaGetLastError(), kernel);
}

// What kernels complained of since the last time, as an error.
static weft_status complaints(cuda_device *d) {
    cuda_fault f = *d->fault_here;
    if (f.what == FAULT_NONE) return WEFT_OK;
    memset(d->fault_here, 0, sizeof f);
    const char *op = cuda_host->op_name(f.op);
    switch (f.what) {
    case FAULT_INDEX: {
        const bool target = f.op == OP_cross_entropy || f.op == OP_cross_entropy_backward;
        const char *what = f.op == OP_embedding || f.op == OP_embedding_backward ? "id" : target ? "target" : "index";
        const char *place = target ? "row" : "position";
        if (f.high < f.low)
            return weft_fail(WEFT_EINVAL, "%s: %s %lld, %s %lld: there is nothing to choose from, on %s", op, what,
                             (long long)f.value, place, (long long)f.position + 1, d->name);
        return weft_fail(WEFT_EINVAL, "%s: %s %lld outside %lld..%lld, %s %lld, on %s", op, what, (long long)f.value,
                         (long long)f.low, (long long)f.high, place, (long long)f.position + 1, d->name);
    }
    case FAULT_PROBABILITY:
        return weft_fail(WEFT_EINVAL, "%s: probability %g outside 0..1, position %lld, on %s", op, f.value,
                         (long long)f.position + 1, d->name);
    case FAULT_WEIGHT:
        return weft_fail(WEFT_EINVAL, "%s: weight %g in row %lld, position %lld: weights must be finite and not negative, "
                         "on %s", op, f.value, (long long)f.low + 1, (long long)f.position + 1, d->name);
    case FAULT_DRAWS:
        return weft_fail(WEFT_EINVAL, "%s: %lld draws without replacement from row %lld, which has %lld positive weights, "
                         "on %s", op, (long long)f.value, (long long)f.low + 1, (long long)f.high, d->name);
    case FAULT_DIVISION:
        return weft_fail(WEFT_EINVAL, "%s: integer division by zero: b holds a 0; put another value there or divide "
                         "in a float dtype, on %s", op, d->name);
    case FAULT_FINITE:
        return weft_fail(WEFT_EINVAL, "%s: NaN or infinity in the %s input, position %lld, on %s", op,
                         f.low == 0 ? "first" : "second", (long long)f.value + 1, d->name);
    case FAULT_SINGULAR:
        return weft_fail(WEFT_EINVAL, "%s: matrix %lld is singular (pivot %lld is 0), on %s", op, (long long)f.value,
                         (long long)f.low, d->name);
    case FAULT_INDEFINITE:
        return weft_fail(WEFT_EINVAL, "%s: matrix %lld is not positive definite (its leading %lld rows and columns are "
                         "not); add a little to its diagonal, on %s", op, (long long)f.value, (long long)f.low, d->name);
    case FAULT_PLAN:
        return weft_fail(WEFT_EINVAL, "%s: the plan of picture %lld leads outside its tensors, on %s", op,
                         (long long)f.position + 1, d->name);
    case FAULT_CONVERGENCE:
        return weft_fail(WEFT_EINVAL, "%s: matrix %lld: the singular values did not converge, on %s", op,
                         (long long)f.value, d->name);
    }
    return weft_fail(WEFT_EINVAL, "%s: fault %d on %s", op, f.what, d->name);
}

weft_status cuda_not_captured(cuda_device *d, const char *what) {
    if (!d->capturing) return WEFT_OK;
    return weft_fail(WEFT_EUNSUPPORTED, "%s while a graph is captured on %s, and nothing has run", what, d->name);
}

static weft_status synchronize(weft_backend *b) {
    cuda_device *d = reinterpret_cast<cuda_device *>(b);
    TRY(cuda_not_captured(d, "the device is waited for"));
    d->counters.synchronizations++;
    TRY(cuda_check(cudaStreamSynchronize(d->stream), "waiting for the device"));
    return complaints(d);
}

// WEFT_CUDA_BLOCKING=1: errors of a kernel are raised by the operator that made them.
static weft_status after(weft_backend *b, int op) {
    cuda_device *d = reinterpret_cast<cuda_device *>(b);
    (void)op;
    return d->blocking && !d->capturing ? synchronize(b) : WEFT_OK;
}

weft_status cuda_fill(weft_backend *b, const weft_view *y, double value);     // elementwise.cu
weft_status cuda_blas_open(cuda_device *d);                                    // blas.cu

static weft_status prepare(cuda_device *d) {
    cudaDeviceProp p;
    TRY(cuda_check(cudaSetDevice(d->index), "choosing the device"));
    TRY(cuda_check(cudaGetDeviceProperties(&p, d->index), "asking for the device"));
    TRY(cuda_new_enough(&p));
    d->multiprocessors = p.multiProcessorCount;
    d->shared_limit = (int)p.sharedMemPerBlockOptin;
    TRY(cuda_check(cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking), "a stream"));
    TRY(cuda_check(cudaHostAlloc((void **)&d->fault_here, sizeof(cuda_fault), cudaHostAllocMapped), "pinned memory"));
    memset(d->fault_here, 0, sizeof(cuda_fault));
    TRY(cuda_check(cudaMalloc((void **)&d->still, sizeof(uint64_t)), "memory of the device"));
    TRY(cuda_check(cudaMemsetAsync((void *)d->still, 0, sizeof(uint64_t), d->stream), "memory of the device"));
    d->clock = d->still;
    TRY(cuda_check(cudaHostGetDevicePointer((void **)&d->fault, d->fault_here, 0), "pinned memory"));
    TRY(cuda_memory_open(d));
    TRY(cuda_blas_open(d));
    return cuda_first_kernel(d);
}

static weft_backend *open_device(int index, int32_t device) {
    cuda_device *d = static_cast<cuda_device *>(calloc(1, sizeof *d));
    if (!d) {
        weft_fail(WEFT_ENOMEM, "no memory for a device");
        return nullptr;
    }
    const char *blocking = getenv("WEFT_CUDA_BLOCKING");
    d->index = index;
    d->blocking = blocking && *blocking == '1';
    if (device == WEFT_CUDA_SIM) snprintf(d->name, sizeof d->name, "cuda-sim");
    else snprintf(d->name, sizeof d->name, "cuda:%d", index);
    d->base.name = d->name;
    d->base.device = device;
    d->base.kernels = kernels;
    d->base.allocate = cuda_allocate;
    d->base.release = cuda_release;
    d->base.trim = cuda_trim;
    d->base.memory = &d->memory;
    d->base.upload = cuda_upload;
    d->base.download = cuda_download;
    d->base.fill = cuda_fill;
    d->base.synchronize = synchronize;
    d->base.after = after;
    d->base.counters = &d->counters;
    d->base.collectives = &cuda_collectives;
    d->base.capture_begin = cuda_capture_begin;
    d->base.capture_bind = cuda_capture_bind;
    d->base.capture_end = cuda_capture_end;
    d->base.graph_launch = cuda_graph_launch;
    d->base.graph_free = cuda_graph_free;
    d->base.graph_size = cuda_graph_size;
    if (prepare(d) == WEFT_OK) return &d->base;
    free(d);
    return nullptr;
}

// FNV-1a over every row, as the core counts it.
static uint64_t ops_hash() {
    static const char *const rows[][5] = {
#define OP(name, family, kind, inputs, outputs, attrs, dtypes, ...) { #name, inputs, outputs, attrs, dtypes },
#include "ops.def"
#undef OP
    };
    uint64_t h = 1469598103934665603u;
    for (auto &row : rows)
        for (const char *p : row)
            for (;; p++) {
                h = (h ^ (uint8_t)*p) * 1099511628211u;
                if (!*p) break;
            }
    return h;
}

extern "C" __attribute__((visibility("default"))) const weft_device_library *weft_device_entry(const weft_host *host) {
    static weft_device_library door;
    cuda_host = host;
    door.abi = WEFT_DEVICE_ABI;
    door.ops_hash = ops_hash();
    door.count = cuda_count;
    door.describe = cuda_describe;
    door.about = cuda_about;
    door.open = open_device;
    return &door;
}
