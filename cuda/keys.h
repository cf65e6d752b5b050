// keys.h: sorting 64-bit keys that are all different, by Batcher's bitonic network: the result is the
// one sorted order, whatever the order of threads. Up to KEYS_LOCAL keys take one launch.
#ifndef WEFT_CUDA_KEYS_H
#define WEFT_CUDA_KEYS_H

#include "cuda/device.h"

#define KEYS_LOCAL 8192
#define KEYS_THREADS 1024
#define KEY_NONE UINT64_MAX     // sorts last

static inline int64_t keys_padded(int64_t n) {
    int64_t padded = 64;
    while (padded < n) padded *= 2;
    return padded;
}

DEVICE void keys_exchange(uint64_t *keys, int64_t a, int64_t b, bool ascending) {
    const uint64_t x = keys[a], y = keys[b];
    if ((x > y) == ascending) {
        keys[a] = y;
        keys[b] = x;
    }
}

// Each block: `local` keys, from source(i) on the first pass (span 0), into sorted runs that rise and
// fall in turn; later passes finish a merge of runs of `span`.
template <class Source>
__global__ void __launch_bounds__(KEYS_THREADS) keys_local(const Source source, uint64_t *keys, const int64_t n,
                                                           const int local, const int64_t span) {
    DYNAMIC_SHARED(uint64_t, part);
    const int64_t base = (int64_t)blockIdx.x * local;
    for (int i = (int)threadIdx.x; i < local; i += (int)blockDim.x)
        part[i] = span ? keys[base + i] : base + i < n ? source(base + i) : KEY_NONE;
    __syncthreads();
    for (int64_t run = span ? span : 2; span ? run == span : run <= local; run *= 2)
        for (int step = run > local ? local / 2 : (int)(run / 2); step > 0; step /= 2) {
            for (int i = (int)threadIdx.x; i < local / 2; i += (int)blockDim.x) {
                const int a = 2 * i - (i & (step - 1));
                keys_exchange(part, a, a + step, ((base + a) & run) == 0);
            }
            __syncthreads();
        }
    for (int i = (int)threadIdx.x; i < local; i += (int)blockDim.x) keys[base + i] = part[i];
}

static __global__ void __launch_bounds__(256) keys_global(uint64_t *keys, const int64_t pairs, const int64_t span,
                                                          const int64_t step) {
    for (int64_t i = THREAD_INDEX; i < pairs; i += THREAD_COUNT) {
        const int64_t a = 2 * i - (i & (step - 1));
        keys_exchange(keys, a, a + step, (a & span) == 0);
    }
}

// keys: room for keys_padded(n). source(i) is called on the device for i < n, maybe more than once.
template <class Source>
weft_status keys_sort(const weft_call *call, const Source &source, uint64_t *keys, int64_t n) {
    const int64_t padded = keys_padded(n);
    const int local = (int)(padded < KEYS_LOCAL ? padded : KEYS_LOCAL);
    const unsigned blocks = (unsigned)(padded / local), threads = local / 2 < KEYS_THREADS ? local / 2 : KEYS_THREADS;
    const size_t shared = (size_t)local * sizeof(uint64_t);
    TRY(LAUNCH(call, (keys_local<Source>), blocks, threads, shared, source, keys, n, local, (int64_t)0));
    for (int64_t span = 2 * (int64_t)local; span <= padded; span *= 2) {
        for (int64_t step = span / 2; step >= local; step /= 2)
            TRY(LAUNCH(call, keys_global, blocks_for(padded / 2, 256), 256, 0, keys, padded / 2, span, step));
        TRY(LAUNCH(call, (keys_local<Source>), blocks, threads, shared, source, keys, n, local, span));
    }
    return WEFT_OK;
}

#endif
