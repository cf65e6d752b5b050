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
        const pair *sorted = j->n < RADIX_FROM * (int64_t)sizeof(T) ? merge_sort(a, b, j->n) : radix_sort(a, b, j->n, (int)sizeof(T));
        if (!weft_stopped()) FN(put)(j, row, sorted);
    }
}

// Few of many: a row streams past a sorted list of the best. A block without a better one is
// passed over whole; what NaN does is left to the keys.
ALWAYS_INLINE void FN(stream_row)(const T *RESTRICT x, int64_t n, int64_t stride, int64_t k, bool descending,
                                  pair *RESTRICT best) {
    const uint64_t flip = FN(flip_of)(descending);
    for (int64_t i = 0; i < k; i++) best[i] = (pair){ FN(ordered)(x[i * stride], flip), i };
    insertion(best, k);
    T bar = x[best[k - 1].index * stride];
    for (int64_t b = k; b < n; b += BLOCK) {
        const int64_t end = n - b < BLOCK ? n : b + BLOCK;
        int32_t found = 0;
        for (int64_t i = b; i < end; i++) found += descending ? !(x[i * stride] <= bar) : !(x[i * stride] >= bar);
        for (int64_t i = b; found && i < end; i++) {
            const T v = x[i * stride];
            if (descending ? v <= bar : v >= bar) continue;
            const uint64_t key = FN(ordered)(v, flip);
            if (key >= best[k - 1].key) continue;
            int64_t at = k - 1;
            for (; at > 0 && best[at - 1].key > key; at--) best[at] = best[at - 1];
            best[at] = (pair){ key, i };
            bar = x[best[k - 1].index * stride];
        }
    }
}

static void FN(stream_piece)(void *context, int64_t piece) {
    const job *j = context;
    const int64_t rows = j->outer * j->inner, end = weft_piece_end(rows, j->grain, piece), k = j->k;
    pair best[KEEP];
    for (int64_t row = piece * j->grain; row < end; row++) {
        const T *x = (const T *)j->x + row / j->inner * j->n * j->inner + row % j->inner;
        if (j->inner > 1) FN(stream_row)(x, j->n, j->inner, k, j->descending, best);
        else if (j->descending) FN(stream_row)(x, j->n, 1, k, true, best);
        else FN(stream_row)(x, j->n, 1, k, false, best);
        FN(put)(j, row, best);
    }
}
