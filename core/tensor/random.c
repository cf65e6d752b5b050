// random.c: the generator's raw words, for bindings and tests.
#include "core.h"
#include "tensor/random.h"

void weft_philox_words(const uint32_t key[2], const uint32_t counter[4], uint32_t out[4]) {
    weft_philox4 w = weft_philox((uint64_t)key[1] << 32 | key[0],
                                 (uint64_t)counter[3] << 32 | counter[2],
                                 (uint64_t)counter[1] << 32 | counter[0]);
    for (int i = 0; i < 4; i++) out[i] = w.v[i];
}
