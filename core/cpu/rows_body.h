// rows_body.h: one contiguous row at a time: its maximum, its sums. Sums run over blocks in REAL
// and from block to block in double, so that a long row costs no accuracy.

#ifndef WEFT_ROW_BLOCK
#define WEFT_ROW_BLOCK 512
#define FOR_ROW_BLOCKS(b, e, n) \
    for (int64_t b = 0, e = (n) < WEFT_ROW_BLOCK ? (n) : WEFT_ROW_BLOCK; b < (n); \
         b = e, e = e + WEFT_ROW_BLOCK < (n) ? e + WEFT_ROW_BLOCK : (n))
#endif

// Largest element; NaN is passed over, an empty row gives -inf.
ALWAYS_INLINE REAL FN(row_max)(const REAL *RESTRICT x, int64_t n) {
    REAL m = -(REAL)INFINITY;
#pragma omp simd reduction(max : m)
    for (int64_t i = 0; i < n; i++) m = x[i] > m ? x[i] : m;
    return m;
}

ALWAYS_INLINE double FN(row_sum)(const REAL *RESTRICT x, int64_t n) {
    double total = 0;
    FOR_ROW_BLOCKS(b, e, n) {
        REAL s = 0;
#pragma omp simd reduction(+ : s)
        for (int64_t i = b; i < e; i++) s += x[i];
        total += (double)s;
    }
    return total;
}

ALWAYS_INLINE double FN(row_dot)(const REAL *RESTRICT x, const REAL *RESTRICT y, int64_t n) {
    double total = 0;
    FOR_ROW_BLOCKS(b, e, n) {
        REAL s = 0;
#pragma omp simd reduction(+ : s)
        for (int64_t i = b; i < e; i++) s += x[i] * y[i];
        total += (double)s;
    }
    return total;
}

// sum of (x - c)^2
ALWAYS_INLINE double FN(row_square_distance)(const REAL *RESTRICT x, int64_t n, REAL c) {
    double total = 0;
    FOR_ROW_BLOCKS(b, e, n) {
        REAL s = 0;
#pragma omp simd reduction(+ : s)
        for (int64_t i = b; i < e; i++) s += (x[i] - c) * (x[i] - c);
        total += (double)s;
    }
    return total;
}

// sum of exp(x - m) for m >= every x
ALWAYS_INLINE double FN(row_exp_sum)(const REAL *RESTRICT x, int64_t n, REAL m) {
    double total = 0;
    FOR_ROW_BLOCKS(b, e, n) {
        REAL s = 0;
#pragma omp simd reduction(+ : s)
        for (int64_t i = b; i < e; i++) s += MATH(exp_neg)(x[i] - m);
        total += (double)s;
    }
    return total;
}

// as row_exp_sum, and y = exp(x - m)
ALWAYS_INLINE double FN(row_exp)(REAL *RESTRICT y, const REAL *RESTRICT x, int64_t n, REAL m) {
    double total = 0;
    FOR_ROW_BLOCKS(b, e, n) {
        REAL s = 0;
#pragma omp simd reduction(+ : s)
        for (int64_t i = b; i < e; i++) {
            REAL v = MATH(exp_neg)(x[i] - m);
            y[i] = v;
            s += v;
        }
        total += (double)s;
    }
    return total;
}
