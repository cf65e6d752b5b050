// random.h: Philox4x32-10 and what is drawn from it; the same values on every device.
// Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011). Shared with device code:
// no library calls, and to be compiled without contraction so that bits agree.
#ifndef WEFT_RANDOM_H
#define WEFT_RANDOM_H

#include <stdint.h>

#ifndef WEFT_FN
#define WEFT_FN static inline
#endif

typedef struct weft_philox4 { uint32_t v[4]; } weft_philox4;

// key: 64 bits; block: which group of four words; counter: which call.
WEFT_FN weft_philox4 weft_philox(uint64_t key, uint64_t counter, uint64_t block) {
    uint32_t c0 = (uint32_t)block, c1 = (uint32_t)(block >> 32);
    uint32_t c2 = (uint32_t)counter, c3 = (uint32_t)(counter >> 32);
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xD2511F53u * c0, b = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(b >> 32) ^ c1 ^ k0, n2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)b;
        c3 = (uint32_t)a;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    weft_philox4 out = {{c0, c1, c2, c3}};
    return out;
}

// Word number `element` of the stream (key, counter).
WEFT_FN uint32_t weft_random_word(uint64_t key, uint64_t counter, uint64_t element) {
    return weft_philox(key, counter, element >> 2).v[element & 3];
}

// [0, 1) with 24 bits: exact in float32.
WEFT_FN float weft_uniform32(uint32_t word) { return (float)(word >> 8) * 0x1p-24f; }

#endif
