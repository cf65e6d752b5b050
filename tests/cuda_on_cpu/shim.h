// shim.h: enough of CUDA C++ to compile cuda/*.cu with g++ and run it on the CPU, for tests. Threads
// of a block are fibers that run one at a time, in an order drawn from a seed, and give way at
// barriers. Device addresses are marked, so that the host cannot follow them and a kernel is told of
// any address that is not the device's. Shared memory starts as NaN.
#ifndef WEFT_CUDA_ON_CPU_SHIM_H
#define WEFT_CUDA_ON_CPU_SHIM_H

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>
#include <typeinfo>
#include <utility>
#include "count.h"

using std::isfinite;
using std::isinf;
using std::isnan;

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __restrict__ __restrict
#define __constant__ static

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace sim {
struct thread { dim3 index; int linear; };
extern thread *now;                    // the thread that runs
extern dim3 block_index, block_size, grid_size;
void barrier();                        // of the block
void warp_barrier();
int lane();
void *warp_slots();                    // 32 places of 64 bytes that the lanes exchange through
void *shared(const void *site, size_t bytes, size_t align);
void *dynamic_shared();
void check_mask(unsigned mask);
[[noreturn]] void fail(const char *format, ...);

// --- marked addresses
constexpr uintptr_t MARK = (uintptr_t)1 << 62;
void *to_device(void *host);           // marks what the allocator gave
void *to_host(const void *device, const char *who);   // checks and unmarks; NULL stays

extern int64_t conv_chunk;             // bytes of windows that a convolution lays out at once
void touched(const void *host);        // a block that the next launch may write
struct unmark {
    const char *kernel;
    template <class T> void operator()(T *&p) const { check(p, false); }
    template <class T> void adds_to(T *&p) const { check(p, true); }
    template <class T> void check(T *&p, bool added_to) const {
        operand((const void *)p, !std::is_const_v<T>, added_to);
        p = (T *)to_host((const void *)p, kernel);
        touched(p);
    }
};
template <class T, class = void> struct has_visit : std::false_type {};
template <class T> struct has_visit<T, std::void_t<decltype(std::declval<T &>().visit(std::declval<unmark &>()))>> : std::true_type {};

template <class T> T argument(T v, const char *kernel) {
    unmark u{ kernel };
    if constexpr (std::is_pointer_v<T>) u(v);
    else if constexpr (has_visit<T>::value) v.visit(u);
    return v;
}

// --- graphs: while the stream is captured nothing runs
bool capturing();
void record(std::function<void()> work);
// Work of the stream: at once, or each time the graph is launched.
template <class F> void in_stream(F work) {
    if (capturing()) record(work);
    else work();
}

typedef void (*body)(void *context);
int run(const char *kernel, dim3 grid, dim3 block, size_t shared, body fn, void *context);

template <class... P, class... A>
int launch(const weft_call *call, const char *name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, A... args) {
    struct context { void (*kernel)(P...); std::tuple<std::remove_const_t<P>...> args; };
    auto bound = [=]() {
        return context{ kernel, { argument<std::remove_const_t<P>>(static_cast<std::remove_const_t<P>>(args), name)... } };
    };
    auto start = [=](context &c, const traffic &t) {
        launched(t.kernel.c_str(), t.bytes_read, t.bytes_written);
        return run(name, grid, block, shared, [](void *p) {
            context *k = static_cast<context *>(p);
            std::apply(k->kernel, k->args);
        }, &c);
    };
    context c = bound();
    const traffic t = measured(name, typeid(std::tuple_element_t<sizeof...(P) - 1, std::tuple<P...>>).name(), call);
    if (!capturing()) return start(c, t);
    record([=]() {
        context again = bound();
        start(again, t);
    });
    return 0;
}
}  // namespace sim

#define threadIdx (sim::now->index)
#define blockIdx (sim::block_index)
#define blockDim (sim::block_size)
#define gridDim (sim::grid_size)
#define warpSize 32

#define SHARED(type, name, size) \
    typedef type name##_shared_type size; \
    static const char name##_site = 0; \
    name##_shared_type &name = *static_cast<name##_shared_type *>( \
        sim::shared(&name##_site, sizeof(name##_shared_type), alignof(name##_shared_type)))
#define DYNAMIC_SHARED(type, name) type *const name = static_cast<type *>(sim::dynamic_shared())
#define COMPUTES (!sim::dry)
#define LAUNCH(call, kernel, grid, block, shared, ...) \
    ([&]() -> weft_status { \
        weft_status ready_ = cuda_before_launch(call, nullptr, (shared)); \
        if (ready_ != WEFT_OK) return ready_; \
        sim::launch(call, #kernel, kernel, grid, block, (shared), __VA_ARGS__); \
        return cuda_launched(call, #kernel); \
    }())

inline void __syncthreads() { sim::barrier(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { sim::check_mask(mask); sim::warp_barrier(); }
inline void __threadfence() {}
inline void __threadfence_block() {}

// --- warps: each lane puts its value down, all wait, each reads, all wait
template <class T> T sim_exchange(unsigned mask, T v, int from) {
    static_assert(sizeof(T) <= 64, "too large to exchange");
    char *slots = static_cast<char *>(sim::warp_slots());
    sim::check_mask(mask);
    std::memcpy(slots + 64 * sim::lane(), &v, sizeof(T));
    sim::warp_barrier();
    T out = v;
    if (from >= 0 && from < 32) std::memcpy(&out, slots + 64 * from, sizeof(T));
    sim::warp_barrier();
    return out;
}
template <class T> T __shfl_sync(unsigned mask, T v, int from, int width = 32) {
    int base = sim::lane() / width * width;
    return sim_exchange(mask, v, base + (from & (width - 1)));
}
template <class T> T __shfl_xor_sync(unsigned mask, T v, int d, int width = 32) {
    int to = sim::lane() ^ d;
    return sim_exchange(mask, v, to / width == sim::lane() / width ? to : sim::lane());
}
template <class T> T __shfl_up_sync(unsigned mask, T v, int d, int width = 32) {
    int in = sim::lane() % width;
    return sim_exchange(mask, v, in >= d ? sim::lane() - d : sim::lane());
}
template <class T> T __shfl_down_sync(unsigned mask, T v, int d, int width = 32) {
    int in = sim::lane() % width;
    return sim_exchange(mask, v, in + d < width ? sim::lane() + d : sim::lane());
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
    unsigned *slots = static_cast<unsigned *>(sim::warp_slots());
    sim::check_mask(mask);
    slots[16 * sim::lane()] = predicate ? 1 : 0;
    sim::warp_barrier();
    unsigned out = 0;
    for (int i = 0; i < 32; i++) out |= (slots[16 * i] & 1u) << i;
    sim::warp_barrier();
    return out;
}
inline int __any_sync(unsigned mask, int p) { return __ballot_sync(mask, p) != 0; }
inline int __all_sync(unsigned mask, int p) { return __ballot_sync(mask, p) == 0xffffffffu; }

// --- one thread runs at a time, so these are plain
template <class T> T atomicCAS(T *p, T expect, T v) { T old = *p; if (old == expect) *p = v; return old; }
template <class T> T atomicAdd(T *p, T v) { T old = *p; *p = old + v; return old; }
template <class T> T atomicMax(T *p, T v) { T old = *p; if (v > old) *p = v; return old; }
template <class T> T atomicMin(T *p, T v) { T old = *p; if (v < old) *p = v; return old; }
template <class T> T atomicExch(T *p, T v) { T old = *p; *p = v; return old; }
template <class T> T atomicOr(T *p, T v) { T old = *p; *p = old | v; return old; }

template <class T> T __ldg(const T *p) { return *p; }
inline uint32_t __float_as_uint(float v) { uint32_t u; std::memcpy(&u, &v, 4); return u; }
inline int32_t __float_as_int(float v) { int32_t u; std::memcpy(&u, &v, 4); return u; }
inline float __uint_as_float(uint32_t u) { float v; std::memcpy(&v, &u, 4); return v; }
inline float __int_as_float(int32_t u) { float v; std::memcpy(&v, &u, 4); return v; }
inline uint64_t __umul64hi(uint64_t a, uint64_t b) { return (uint64_t)((unsigned __int128)a * b >> 64); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __clz(unsigned v) { return v ? __builtin_clz(v) : 32; }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline double __dsqrt_rn(double x) { return std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float exp2f_approx(float x) { return std::exp2(x); }
inline double normcdf(double x) { return 0.5 * std::erfc(-x * 0.70710678118654752440); }
inline float normcdff(float x) { return (float)normcdf((double)x); }
template <class T> T min(T a, T b) { return a < b ? a : b; }
template <class T> T max(T a, T b) { return a > b ? a : b; }

// --- 16-bit floats
struct bf16 { uint16_t bits; };
struct half_t { uint16_t bits; };
inline float __bfloat162float(bf16 v) { return __uint_as_float((uint32_t)v.bits << 16); }
inline bf16 __float2bfloat16(float f) {
    uint32_t u = __float_as_uint(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return bf16{ 0x7fff };
    return bf16{ (uint16_t)((u + 0x7fffu + (u >> 16 & 1)) >> 16) };
}
float __half2float(half_t v);
half_t __float2half(float f);

// --- the part of the runtime that weft calls
typedef enum cudaError {
    cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2, cudaErrorInsufficientDriver = 35, cudaErrorNoDevice = 100,
    cudaErrorStreamCaptureUnsupported = 900
} cudaError_t;
typedef struct sim_stream *cudaStream_t;
typedef struct sim_event *cudaEvent_t;
enum cudaMemcpyKind { cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice, cudaMemcpyDefault };
struct cudaDeviceProp { char name[256]; size_t totalGlobalMem, sharedMemPerBlockOptin; int major, minor, multiProcessorCount; };
enum { cudaEventDisableTiming = 2, cudaStreamNonBlocking = 1, cudaHostAllocMapped = 2 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
cudaError_t cudaMalloc(void **p, size_t n);
cudaError_t cudaFree(void *p);
cudaError_t cudaMallocHost(void **p, size_t n);
cudaError_t cudaHostAlloc(void **p, size_t n, unsigned flags);
cudaError_t cudaHostGetDevicePointer(void **device, void *host, unsigned flags);
cudaError_t cudaFreeHost(void *p);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void *p, int value, size_t n, cudaStream_t stream);
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
typedef struct sim_graph *cudaGraph_t;
typedef struct sim_graph *cudaGraphExec_t;
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal, cudaStreamCaptureModeRelaxed };
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaGetDeviceCount(int *n);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaRuntimeGetVersion(int *version);
cudaError_t cudaSetDevice(int i);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int i);
cudaError_t cudaGetLastError();
const char *cudaGetErrorString(cudaError_t e);
const char *cudaGetErrorName(cudaError_t e);
cudaError_t cudaFuncSetAttribute(const void *fn, cudaFuncAttribute attribute, int value);

#endif
