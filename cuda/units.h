// units.h: what moves stretches of bytes does so in units of the largest size, up to 16 bytes, that
// divides every length and address.
#ifndef WEFT_CUDA_UNITS_H
#define WEFT_CUDA_UNITS_H

#include "cuda/device.h"

struct alignas(16) unit16 { uint64_t v[2]; };

// bits: all lengths, offsets and addresses in bytes, or-ed together.
static inline int64_t unit_of(uint64_t bits) {
    const uint64_t lowest = bits & (0 - bits);
    return lowest == 0 || lowest > 16 ? 16 : (int64_t)lowest;
}

template <class F> weft_status with_unit(int64_t unit, F f) {
    switch (unit) {
    case 16: return f(type_tag<unit16>{});
    case 8: return f(type_tag<uint64_t>{});
    case 4: return f(type_tag<uint32_t>{});
    case 2: return f(type_tag<uint16_t>{});
    default: return f(type_tag<uint8_t>{});
    }
}

// i / n and i % n; 32-bit division is several times cheaper.
DEVICE int64_t divided(int64_t i, int64_t n, int64_t *rest) {
    if (((uint64_t)i | (uint64_t)n) >> 32 == 0) {
        const uint32_t q = (uint32_t)i / (uint32_t)n;
        *rest = (uint32_t)i - q * (uint32_t)n;
        return q;
    }
    const int64_t q = i / n;
    *rest = i - q * n;
    return q;
}

#endif
