// block.h: what the threads of a warp or of a block work out together. The order of every sum is
// fixed, so results have the same bits on every run. All threads of the block must take part.
#ifndef WEFT_CUDA_BLOCK_H
#define WEFT_CUDA_BLOCK_H

#include "cuda/device.h"

#define FULL_WARP 0xffffffffu

struct add_op { template <class T> DEVICE T operator()(T a, T b) const { return a + b; } };
struct max_op { template <class T> DEVICE T operator()(T a, T b) const { return a < b || b != b ? b : a; } };  // NaN wins

// Every lane gets the result.
template <class T, class Op> DEVICE T warp_reduce(T v, Op op) {
    for (int d = 16; d > 0; d >>= 1) v = op(v, __shfl_xor_sync(FULL_WARP, v, d));
    return v;
}
template <class T> DEVICE T warp_sum(T v) { return warp_reduce(v, add_op()); }
template <class T> DEVICE T warp_max(T v) { return warp_reduce(v, max_op()); }

// Every thread gets the result. blockDim.x * blockDim.y * blockDim.z is a multiple of 32. `none` is
// what op leaves alone.
template <class T, class Op> DEVICE T block_reduce(T v, Op op, T none) {
    SHARED(T, part, [32]);
    const int thread = (int)(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
    const int lane = thread & 31, warp = thread >> 5;
    const int warps = (int)(blockDim.x * blockDim.y * blockDim.z) >> 5;
    v = warp_reduce(v, op);
    if (warps == 1) return v;
    __syncthreads();              // an earlier call's results are read
    if (lane == 0) part[warp] = v;
    __syncthreads();
    v = lane < warps ? part[lane] : none;
    return warp_reduce(v, op);
}
template <class T> DEVICE T block_sum(T v) { return block_reduce(v, add_op(), (T)0); }
template <class T> DEVICE T block_max(T v) { return block_reduce(v, max_op(), (T)-INFINITY); }

#endif
