// sort_body.h: rows of sort.c for one type T.

// The smallest key comes first; -1 turns the order round and leaves equals where they were.
ALWAYS_INLINE uint64_t FN(ordered)(T v, uint64_t flip) { return FN(key)(v) ^ flip; }

static uint64_t FN(flip_of)(bool descending) {
    return !descending ? 0 : sizeof(T) == 4 ? 0xFFFFFFFFu : UINT64_MAX;
}

static void FN(put)(const job *j, int64_t row, const pair *sorted) {
    const int64_t outer = row / j->inner, column = row % j->inner;
    const T *x = (const T *)j->x + outer * j->n * j->inner + column;
    T *values = (T *)j->values + outer * j->k * j->inner + column;
    int64_t *indices = j->indices + outer * j->k * j->inner + column;
    for (int64_t i = 0; i < j->k; i++) {
        values[i * j->inner] = x[sorted[i].index * j->inner];
        indices[i * j->inner] = sorted[i].index;
    }
}

static void FN(sort_piece)(void *context, int64_t piece) {
    const job *j = context;
    const uint64_t flip = FN(flip_of)(j->descending);
    const int64_t rows = j->outer * j->inner, end = weft_piece_end(rows, j->grain, piece);
    pair *a = j->space + piece * 2 * j->n, *b = a + j->n;
    for (int64_t row = piece * j->grain; row < end; row++) {
        const T *x = (const T *)j->x + row / j->inner * j->n * j->inner + row % j->inner;
        for (int64_t i = 0; i < j->n; i++) a[i] = (pair){ FN(ordered)(x[i * j->inner], flip), i };
        FN(put)(j, row, j->n < RADIX_FROM * (int64_t)sizeof(T) ? merge_sort(a, b, j->n) : radix_sort(a, b, j->n, (int)sizeof(T)));
    }
}

// Few of many: a row streams past a sorted list of the best. A block without a better one is
// passed over whole.
static void FN(stream_piece)(void *context, int64_t piece) {
    const job *j = context;
    const uint64_t flip = FN(flip_of)(j->descending);
    const int64_t rows = j->outer * j->inner, end = weft_piece_end(rows, j->grain, piece), k = j->k;
    pair best[KEEP + 1];
    for (int64_t row = piece * j->grain; row < end; row++) {
        const T *x = (const T *)j->x + row / j->inner * j->n * j->inner + row % j->inner;
        for (int64_t i = 0; i < k; i++) best[i] = (pair){ FN(ordered)(x[i * j->inner], flip), i };
        insertion(best, k);
        for (int64_t b = k; b < j->n; b += BLOCK) {
            const int64_t width = j->n - b < BLOCK ? j->n - b : BLOCK;
            const T bar = x[best[k - 1].index * j->inner];
            int32_t found = 0;  // may count what is not better: NaN is left to the keys
            if (j->inner == 1 && j->descending) {
                for (int64_t i = 0; i < width; i++) found += !(x[b + i] <= bar);
            } else if (j->inner == 1) {
                for (int64_t i = 0; i < width; i++) found += !(x[b + i] >= bar);
            } else found = 1;
            for (int64_t i = 0; found && i < width; i++) {
                const uint64_t key = FN(ordered)(x[(b + i) * j->inner], flip);
                if (key >= best[k - 1].key) continue;
                int64_t at = k - 1;
                for (; at > 0 && best[at - 1].key > key; at--) best[at] = best[at - 1];
                best[at] = (pair){ key, b + i };
            }
        }
        FN(put)(j, row, best);
    }
}
