// usable.cu: which GPUs can be used, and why not: the driver, their age, and whether a first kernel gives
// what it must.
#include "cuda/usable.h"
#include "cuda/comm.h"
#include "cuda/dnn.h"
#include <cstdio>

#define OLDEST 8        // compute capability 8.0: bfloat16 products, and what SASS and PTX are made for
#ifndef WEFT_CUDA_BUILT_FOR
#define WEFT_CUDA_BUILT_FOR "the CPU"
#endif

static const char *driver_missing(char *text, size_t size) {
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (driver == 0) return "no NVIDIA driver was found (libcuda.so.1); install one";
    snprintf(text, size, "the NVIDIA driver is too old: it speaks CUDA %d.%d, and this library wants %d.%d; install a newer driver",
             driver / 1000, driver / 10 % 100, runtime / 1000, runtime / 10 % 100);
    return text;
}

int cuda_count(char *why, int64_t size) {
    char text[256];
    int n = 0, usable = 0;
    const cudaError_t code = cudaGetDeviceCount(&n);
    if (code != cudaSuccess) {
        cudaGetLastError();
        if (code == cudaErrorInsufficientDriver) snprintf(why, (size_t)size, "%s", driver_missing(text, sizeof text));
        else if (code == cudaErrorNoDevice) snprintf(why, (size_t)size, "the NVIDIA driver sees no GPU (is CUDA_VISIBLE_DEVICES empty?)");
        else snprintf(why, (size_t)size, "%s (%s)", cudaGetErrorString(code), cudaGetErrorName(code));
        return 0;
    }
    if (n == 0) snprintf(why, (size_t)size, "the NVIDIA driver sees no GPU");
    for (int i = 0; i < n; i++) {
        cudaDeviceProp p;
        const weft_status status = cuda_check(cudaGetDeviceProperties(&p, i), "asking for the device");
        if (status == WEFT_OK && cuda_new_enough(&p) == WEFT_OK) usable++;
        else snprintf(why, (size_t)size, "%s", cuda_host->error());
    }
    return usable ? n : 0;
}

weft_status cuda_new_enough(const cudaDeviceProp *p) {
    if (p->major >= OLDEST) return WEFT_OK;
    return weft_fail(WEFT_EUNSUPPORTED, "%s is too old: it has compute capability %d.%d, and kernels are compiled for 8.0 and later",
                     p->name, p->major, p->minor);
}

weft_status cuda_describe(int index, char *text, int64_t size) {
    cudaDeviceProp p;
    TRY(cuda_check(cudaGetDeviceProperties(&p, index), "asking for the device"));
    snprintf(text, (size_t)size, "%s, %.0f GiB, compute capability %d.%d, %d multiprocessors", p.name,
             (double)p.totalGlobalMem / (1 << 30), p.major, p.minor, p.multiProcessorCount);
    return WEFT_OK;
}

void cuda_about(char *text, int64_t size) {
    char speaks[48] = "there is no driver", dnn[400], comm[400];
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    cuda_dnn_about(dnn, sizeof dnn);
    cuda_comm_about(comm, sizeof comm);
    if (driver) snprintf(speaks, sizeof speaks, "the driver speaks %d.%d", driver / 1000, driver / 10 % 100);
    snprintf(text, (size_t)size, "built for %s with CUDA %d.%d; %s; %s; %s", WEFT_CUDA_BUILT_FOR, runtime / 1000, runtime / 10 % 100,
             speaks, dnn, comm);
}

// --- the first kernel: squares, back to front through shared memory
#define PROBE 1024

__global__ void __launch_bounds__(256) probe_kernel(float *y) {
    SHARED(float, squares, [256]);
    const int t = (int)threadIdx.x, at = (int)blockIdx.x * 256;
    squares[t] = (float)(at + t) * (float)(at + t);
    __syncthreads();
    y[at + t] = squares[255 - t];
}

static weft_status probe(cuda_device *d, const weft_call *call) {
    float got[PROBE];
    scratch y(call, sizeof got);
    if (!y.data) return WEFT_ENOMEM;
    TRY(LAUNCH(call, probe_kernel, PROBE / 256, 256, 0, y.as<float>()));
    TRY(d->base.download(&d->base, got, y.data, sizeof got));
    for (int i = 0; i < PROBE && COMPUTES; i++) {
        const int from = i / 256 * 256 + 255 - i % 256;
        if (got[i] != (float)(from * from))
            return weft_fail(WEFT_EIO, "its first kernel gave a wrong result (number %d is %g and not %d): look at nvidia-smi -q and the "
                             "system's log, and try another GPU", i, (double)got[i], from * from);
    }
    return WEFT_OK;
}

weft_status cuda_first_kernel(cuda_device *d) {
    weft_call call = {};
    call.backend = &d->base;
    const weft_status status = probe(d, &call);
    d->counters = {};           // what is counted is what the program asks for
    return status;
}
