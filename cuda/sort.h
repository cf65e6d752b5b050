// sort.h: what is sorted in sort.cu: a value as an unsigned key whose order is the wanted one, with
// its index. No two entries of a list are equal, so that there is one sorted order, in which equal
// values stay as they were.
#ifndef WEFT_CUDA_SORT_H
#define WEFT_CUDA_SORT_H

#include "cuda/device.h"

// Of 32-bit keys. Bytes are counted from the highest: those of the key, then those of the index.
struct entry32 {
    uint64_t v;
    static constexpr int KEY_BYTES = 4, BYTES = 8;
    DEVICE bool before(const entry32 &o) const { return v < o.v; }
    DEVICE uint32_t index() const { return (uint32_t)v; }
    DEVICE int byte(int b) const { return (int)(v >> 8 * (7 - b) & 255); }
    DEVICE void put_byte(int b, int value) { v |= (uint64_t)value << 8 * (7 - b); }
    DEVICE bool same_head(const entry32 &o, int bytes) const { return bytes == 0 || (v ^ o.v) >> 8 * (8 - bytes) == 0; }
};
struct alignas(16) entry64 {
    uint64_t key, at;
    static constexpr int KEY_BYTES = 8, BYTES = 12;
    DEVICE bool before(const entry64 &o) const { return key < o.key || (key == o.key && at < o.at); }
    DEVICE uint32_t index() const { return (uint32_t)at; }
    DEVICE int byte(int b) const { return (int)((b < 8 ? key >> 8 * (7 - b) : at >> 8 * (11 - b)) & 255); }
    DEVICE void put_byte(int b, int value) {
        if (b < 8) key |= (uint64_t)value << 8 * (7 - b);
        else at |= (uint64_t)value << 8 * (11 - b);
    }
    DEVICE bool same_head(const entry64 &o, int bytes) const {
        if (bytes < 8) return bytes == 0 || (key ^ o.key) >> 8 * (8 - bytes) == 0;
        return key == o.key && (bytes == 8 || (at ^ o.at) >> 8 * (12 - bytes) == 0);
    }
};

// Keys that grow with the value; NaN is one largest key, -0 equals 0.
DEVICE uint32_t key_of(float v) {
    v += 0.0f;
    const uint32_t b = __float_as_uint(v);
    return v != v ? 0xffffffffu : b >> 31 ? ~b : b | 0x80000000u;
}
DEVICE uint32_t key_of(bf16 v) { return key_of(widen<bf16>(v)); }
DEVICE uint32_t key_of(int32_t v) { return (uint32_t)v ^ 0x80000000u; }
DEVICE uint64_t key_of(double v) {
    v += 0.0;
    uint64_t b;
    memcpy(&b, &v, sizeof b);
    return v != v ? UINT64_MAX : b >> 63 ? ~b : b | 0x8000000000000000u;
}
DEVICE uint64_t key_of(int64_t v) { return (uint64_t)v ^ 0x8000000000000000u; }

template <class T> using entry_of = std::conditional_t<sizeof(T) == 8, entry64, entry32>;

DEVICE void make_entry(entry32 *e, uint32_t key, uint32_t index, bool descending) {
    e->v = (uint64_t)(descending ? ~key : key) << 32 | index;
}
DEVICE void make_entry(entry64 *e, uint64_t key, uint32_t index, bool descending) {
    e->key = descending ? ~key : key;
    e->at = index;
}
// Comes after every entry.
DEVICE void no_entry(entry32 *e) { e->v = UINT64_MAX; }
DEVICE void no_entry(entry64 *e) { e->key = e->at = UINT64_MAX; }

// Batcher's bitonic network over `size` entries, a power of two, in shared memory, by the threads of
// one threadIdx.y. All threads of the block take part, with the same size.
template <class E> DEVICE void sort_shared(E *list, int size) {
    for (int run = 2; run <= size; run *= 2)
        for (int step = run / 2; step > 0; step /= 2) {
            __syncthreads();
            for (int i = (int)threadIdx.x; i < size / 2; i += (int)blockDim.x) {
                const int a = 2 * i - (i & (step - 1)), b = a + step;
                const E x = list[a], y = list[b];
                if (y.before(x) == ((a & run) == 0)) {
                    list[a] = y;
                    list[b] = x;
                }
            }
        }
    __syncthreads();
}

#endif
