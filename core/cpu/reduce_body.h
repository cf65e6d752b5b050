// reduce_body.h: the loops of reduce.c for one type: T elements, ACC sums.

ALWAYS_INLINE ACC FN(mapped)(map m, T x, ACC c, double p) {
#if FLOATING
    switch (m) {
    case SQUARE_DISTANCE: return ((ACC)x - c) * ((ACC)x - c);
    case SQUARE: return (ACC)x * (ACC)x;
    case ABS: case LARGEST_ABS: case SMALLEST_ABS: return x < 0 ? -(ACC)x : (ACC)x;
    case POWER: return pow(fabs((double)x), p);
    case NONZERO: return x != 0;
    case EXP: return (ACC)MATH(exp)(x - (T)c);
    default: return (ACC)x;
    }
#else
    (void)m; (void)c; (void)p;
    return (ACC)x;
#endif
}

// NaN, once met, stays.
ALWAYS_INLINE ACC FN(joined)(map m, ACC a, ACC v) {
#if FLOATING
    if (m == LARGEST || m == LARGEST_ABS) return v > a || IS_NAN(v) ? v : a;
    if (m == SMALLEST_ABS) return v < a || IS_NAN(v) ? v : a;
#endif
    (void)m;
    return a + v;
}

// The joined map of n elements, stride apart: any map, one element at a time.
static __attribute__((noinline)) ACC FN(run_any)(map m, const T *x, int64_t n, int64_t stride, ACC c, double p) {
    ACC a = (ACC)start_of(m);
    for (int64_t i = 0; i < n; i++) a = FN(joined)(m, a, FN(mapped)(m, x[i * stride], c, p));
    return a;
}

// The same in vectors, for maps known at compile time over contiguous elements.
ALWAYS_INLINE ACC FN(run)(map m, const T *RESTRICT x, int64_t n, ACC c, double p) {
    ACC a = 0;
#if FLOATING
    if (m == LARGEST) {
        T top = -(T)INFINITY;
        int64_t nan = 0;  // counted: a vector maximum would lose it
        for (int64_t b = 0; b < n; b += 4096) {
            int64_t e = b + 4096 < n ? b + 4096 : n;
            int32_t some = 0;
#pragma omp simd reduction(max : top) reduction(+ : some)
            for (int64_t i = b; i < e; i++) {
                top = x[i] > top ? x[i] : top;
                some += IS_NAN(x[i]);
            }
            nan += some;
        }
        return nan ? (ACC)NAN : (ACC)top;
    }
#endif
#pragma omp simd reduction(+ : a)
    for (int64_t i = 0; i < n; i++) a += FN(mapped)(m, x[i], c, p);
    return a;
}

// acc[o - begin] = reduced elements [first, end_red) of outputs [begin, end); c: constants or NULL.
ALWAYS_INLINE void FN(rows)(map m, bool vectors, const reduce_job *j, int64_t begin, int64_t end, int64_t first,
                            int64_t end_red, const ACC *c, ACC *acc) {
    const plan *p = &j->plan;
    const int64_t n = p->rshape[p->nr - 1], stride = p->rx[p->nr - 1];
    walk out;
    walk_start(&out, p->kshape, p->kx, p->nk, begin);
    for (int64_t o = begin; o < end; o++, walk_next(&out)) {
        const T *x = (const T *)j->x + out.offset;
        ACC a = (ACC)start_of(m);
        walk red;
        walk_start(&red, p->rshape, p->rx, p->nr - 1, first / n);
        for (int64_t i = first, at = first % n; i < end_red; at = 0, walk_next(&red)) {
            int64_t length = n - at < end_red - i ? n - at : end_red - i;
            const T *from = x + red.offset + at * stride;
            const ACC constant = c ? c[o - begin] : 0;
            a = FN(joined)(m, a, vectors && stride == 1 ? FN(run)(m, from, length, constant, j->p)
                                                        : FN(run_any)(m, from, length, stride, constant, j->p));
            i += length;
        }
        acc[o - begin] = a;
    }
}

// width accumulators over `rows` rows that are `step` apart: any map and stride
static __attribute__((noinline)) void FN(strip_any)(map m, const T *x, int64_t rows, int64_t step, int64_t width,
                                                    int64_t stride, const ACC *c, ACC *acc, double p) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t k = 0; k < width; k++)
            acc[k] = FN(joined)(m, acc[k], FN(mapped)(m, x[i * step + k * stride], c ? c[k] : 0, p));
}

static __attribute__((noinline)) void FN(strip_sum)(const T *RESTRICT x, int64_t rows, int64_t step, int64_t width,
                                                    int64_t stride, ACC *RESTRICT acc) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t k = 0; k < width; k++) acc[k] += (ACC)x[i * step + k * stride];
}

// The same in vectors over contiguous columns.
ALWAYS_INLINE void FN(strip)(map m, const T *RESTRICT x, int64_t rows, int64_t step, int64_t width,
                             const ACC *RESTRICT c, ACC *RESTRICT acc, double p) {
    int64_t i = 0;
    for (; (m == SUM || m == SQUARE_DISTANCE) && i + 4 <= rows; i += 4) {
        const T *RESTRICT a = x + i * step, *RESTRICT b = a + step, *RESTRICT d = b + step, *RESTRICT e = d + step;
#pragma omp simd
        for (int64_t k = 0; k < width; k++) {
            ACC v = c ? c[k] : 0;
            acc[k] += (FN(mapped)(m, a[k], v, p) + FN(mapped)(m, b[k], v, p)) +
                      (FN(mapped)(m, d[k], v, p) + FN(mapped)(m, e[k], v, p));
        }
    }
    for (; i < rows; i++) {
        const T *RESTRICT a = x + i * step;
#pragma omp simd
        for (int64_t k = 0; k < width; k++)
            acc[k] = FN(joined)(m, acc[k], FN(mapped)(m, a[k], c ? c[k] : 0, p));
    }
}

ALWAYS_INLINE void FN(columns)(map m, bool vectors, const reduce_job *j, int64_t begin, int64_t end, int64_t first,
                               int64_t end_red, const ACC *c, ACC *acc) {
    const plan *p = &j->plan;
    const int64_t n_k = p->kshape[p->nk - 1], stride = p->kx[p->nk - 1];
    const int64_t n_r = p->rshape[p->nr - 1], step = p->rx[p->nr - 1];
    for (int64_t o = begin; o < end;) {
        int64_t at_k = o % n_k, width = n_k - at_k < end - o ? n_k - at_k : end - o;
        walk out, red;
        walk_start(&out, p->kshape, p->kx, p->nk - 1, o / n_k);
        const T *x = (const T *)j->x + out.offset + at_k * stride;
        ACC *a = acc + (o - begin);
        const ACC *constants = c ? c + (o - begin) : NULL;
        for (int64_t k = 0; k < width; k++) a[k] = (ACC)start_of(m);
        walk_start(&red, p->rshape, p->rx, p->nr - 1, first / n_r);
        for (int64_t i = first, at = first % n_r; i < end_red; at = 0, walk_next(&red)) {
            int64_t rows = n_r - at < end_red - i ? n_r - at : end_red - i;
            const T *from = x + red.offset + at * step;
            if (vectors && stride == 1) FN(strip)(m, from, rows, step, width, constants, a, j->p);
            else if (m == SUM && vectors) FN(strip_sum)(from, rows, step, width, stride, a);
            else FN(strip_any)(m, from, rows, step, width, stride, constants, a, j->p);
            i += rows;
        }
        o += width;
    }
}

ALWAYS_INLINE void FN(chunk_of)(map m, bool vectors, const reduce_job *j, int64_t begin, int64_t end, int64_t first,
                                int64_t end_red, const ACC *c, ACC *acc) {
    if (j->plan.column) FN(columns)(m, vectors, j, begin, end, first, end_red, c, acc);
    else FN(rows)(m, vectors, j, begin, end, first, end_red, c, acc);
}

// One function a map: the compiler is quicker on many small ones.
#define CHUNK(name, m, vectors) \
    static __attribute__((noinline)) void FN(name)(map any, const reduce_job *j, int64_t begin, int64_t end, \
                                                   int64_t first, int64_t end_red, const ACC *c, ACC *acc) { \
        (void)any; \
        FN(chunk_of)(m, vectors, j, begin, end, first, end_red, c, acc); \
    }
CHUNK(chunk_sum, SUM, true)
#if FLOATING
CHUNK(chunk_square_distance, SQUARE_DISTANCE, true)
CHUNK(chunk_square, SQUARE, true)
CHUNK(chunk_largest, LARGEST, true)
CHUNK(chunk_exp, EXP, true)
CHUNK(chunk_any, any, false)
#endif
#undef CHUNK

static void FN(chunk)(map m, const reduce_job *j, int64_t begin, int64_t end, int64_t first, int64_t end_red,
                      const ACC *c, ACC *acc) {
#if FLOATING
    switch (m) {
    case SUM: FN(chunk_sum)(m, j, begin, end, first, end_red, c, acc); break;
    case SQUARE_DISTANCE: FN(chunk_square_distance)(m, j, begin, end, first, end_red, c, acc); break;
    case SQUARE: FN(chunk_square)(m, j, begin, end, first, end_red, c, acc); break;
    case LARGEST: FN(chunk_largest)(m, j, begin, end, first, end_red, c, acc); break;
    case EXP: FN(chunk_exp)(m, j, begin, end, first, end_red, c, acc); break;
    default: FN(chunk_any)(m, j, begin, end, first, end_red, c, acc); break;
    }
#else
    FN(chunk_sum)(m, j, begin, end, first, end_red, c, acc);
#endif
}

// Writes outputs [begin, end). Integer sums are int64.
static void FN(write)(const reduce_job *j, int64_t begin, int64_t end, const ACC *acc, const ACC *c) {
    const plan *p = &j->plan;
    walk out;
    walk_start(&out, p->kshape, p->ky, p->nk, begin);
    for (int64_t o = begin; o < end; o++, walk_next(&out)) {
#if FLOATING
        ((T *)j->y)[out.offset] = (T)finish(j, acc[o - begin], c ? c[o - begin] : 0);
#else
        (void)c;
        ((int64_t *)j->y)[out.offset] = acc[o - begin];
#endif
    }
}

// Outputs of one block from start to end.
static void FN(whole_piece)(void *context, int64_t piece) {
    const reduce_job *j = context;
    ACC acc[OUTPUTS], c[OUTPUTS];
    int64_t begin = piece * j->block, end = weft_piece_end(j->plan.n_out, j->block, piece);
    FN(chunk)(j->first, j, begin, end, 0, j->plan.n_red, NULL, acc);
    if (j->twice) {
        for (int64_t k = 0; k < end - begin; k++) c[k] = (ACC)constant_of(j, (double)acc[k]);
        FN(chunk)(j->second, j, begin, end, 0, j->plan.n_red, c, acc);
    }
    FN(write)(j, begin, end, acc, j->twice ? c : NULL);
}

// One chunk of the reduced elements of one block.
static void FN(part_piece)(void *context, int64_t piece) {
    const reduce_job *j = context;
    int64_t block = piece / j->chunks, chunk = piece % j->chunks;
    int64_t begin = block * j->block, end = weft_piece_end(j->plan.n_out, j->block, block);
    FN(chunk)(j->stage ? j->second : j->first, j, begin, end, chunk * j->chunk,
              weft_piece_end(j->plan.n_red, j->chunk, chunk), j->stage ? (const ACC *)j->constant + begin : NULL,
              (ACC *)j->partial + chunk * j->plan.n_out + begin);
}

// Chunks joined in order, into the constants or into y.
static void FN(join_piece)(void *context, int64_t piece) {
    const reduce_job *j = context;
    ACC acc[OUTPUTS];
    ACC *c = j->constant;
    const int64_t n_out = j->plan.n_out, begin = piece * OUTPUTS, end = weft_piece_end(n_out, OUTPUTS, piece);
    const map m = j->stage ? j->second : j->first;
    for (int64_t o = begin; o < end; o++) acc[o - begin] = (ACC)start_of(m);
    for (int64_t k = 0; k < j->chunks; k++) {
        const ACC *part = (const ACC *)j->partial + k * n_out;
        for (int64_t o = begin; o < end; o++) acc[o - begin] = FN(joined)(m, acc[o - begin], part[o]);
    }
    if (j->twice && j->stage == 0) {
        for (int64_t o = begin; o < end; o++) c[o] = (ACC)constant_of(j, (double)acc[o - begin]);
        return;
    }
    FN(write)(j, begin, end, acc, j->twice ? c + begin : NULL);
}
