// dropmask.h: the factors of dropout for a run of elements: 0 where dropped, 1 / (1 - p) where
// kept. A template over REAL as panel.h. The rule is that of weft_kept in random.h, compared as
// integers.

#define DROP_LANES 16

// Words of DROP_LANES blocks of four from `block` on.
static void NAME(drop_words)(uint64_t key, uint64_t counter, uint64_t block, uint32_t *words) {
#pragma omp simd
    for (int i = 0; i < DROP_LANES; i++) {
        weft_philox4 w = weft_philox(key, counter, block + (uint64_t)i);
        words[4 * i] = w.v[0];
        words[4 * i + 1] = w.v[1];
        words[4 * i + 2] = w.v[2];
        words[4 * i + 3] = w.v[3];
    }
}

// out[i] is the factor of element first + i.
static void NAME(drop_mask)(uint64_t key, uint64_t counter, uint64_t first, int64_t n, double p,
                            REAL *out) {
    // word >> 8 < 2^24 p, that is, below the next integer
    double scaled = p * 0x1p24;
    uint32_t limit = (uint32_t)scaled;
    limit += (double)limit < scaled;
    const REAL keep = p < 1 ? (REAL)(1 / (1 - p)) : 0;
    uint32_t words[4 * DROP_LANES];
    for (int64_t i = 0; i < n;) {
        uint64_t element = first + (uint64_t)i;
        int64_t skip = (int64_t)(element & 3), count = 4 * DROP_LANES - skip;
        if (count > n - i) count = n - i;
        NAME(drop_words)(key, counter, element >> 2, words);
#pragma omp simd
        for (int64_t j = 0; j < count; j++) out[i + j] = words[skip + j] >> 8 >= limit ? keep : 0;
        i += count;
    }
}
