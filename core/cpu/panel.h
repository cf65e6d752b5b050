// panel.h: products of small matrices that stay in cache, on this thread. A template: included
// once for each REAL, with NAME(x) pasting a suffix. Each element of C is one chain of fused
// multiply-adds over k, so it does not depend on where its row or column lies.

#if defined(__AVX512F__)
#define PANEL_BYTES 64
#define PANEL_VECS 4
#elif defined(__AVX2__)
#define PANEL_BYTES 32
#define PANEL_VECS 2
#else
#define PANEL_BYTES 16
#define PANEL_VECS 2
#endif
#define PANEL_ROWS 6

typedef REAL NAME(vec) __attribute__((vector_size(PANEL_BYTES), aligned(sizeof(REAL)), may_alias));
#define LANES ((int64_t)(PANEL_BYTES / sizeof(REAL)))
// n rounded up to whole vectors
#define PADDED(n) (((n) + LANES - 1) / LANES * LANES)

ALWAYS_INLINE void NAME(block)(const int rows, const int vecs, int64_t k, const REAL *RESTRICT a,
                               int64_t a_row, int64_t a_col, const REAL *RESTRICT b, int64_t ldb,
                               REAL *RESTRICT c, int64_t ldc, REAL alpha, bool add) {
    NAME(vec) sum[PANEL_ROWS][PANEL_VECS];
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
        for (int j = 0; j < vecs; j++) sum[i][j] = (NAME(vec)){0};
    for (int64_t p = 0; p < k; p++) {
        NAME(vec) line[PANEL_VECS];
#pragma GCC unroll 8
        for (int j = 0; j < vecs; j++) line[j] = *(const NAME(vec) *)(b + p * ldb + j * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            const REAL value = a[i * a_row + p * a_col];
#pragma GCC unroll 8
            for (int j = 0; j < vecs; j++) sum[i][j] += line[j] * value;
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
        for (int j = 0; j < vecs; j++) {
            NAME(vec) *at = (NAME(vec) *)(c + i * ldc + j * LANES);
            *at = add ? *at + sum[i][j] * alpha : sum[i][j] * alpha;
        }
}

#define PANEL_CASE(r, v)                                                                          \
    case r * 8 + v:                                                                               \
        NAME(block)(r, v, k, a + i * a_row, a_row, a_col, b + j * LANES, ldb,                     \
                    c + i * ldc + j * LANES, ldc, alpha, add);                                    \
        break;
#define PANEL_CASES(v)                                                                            \
    PANEL_CASE(1, v)                                                                              \
    PANEL_CASE(2, v) PANEL_CASE(3, v) PANEL_CASE(4, v) PANEL_CASE(5, v) PANEL_CASE(6, v)

// C[m, n] = alpha A B, or C += alpha A B. A has any strides; B and C have rows of whole vectors:
// they are read and written up to PADDED(n).
static void NAME(panel)(int64_t m, int64_t n, int64_t k, const REAL *a, int64_t a_row,
                        int64_t a_col, const REAL *b, int64_t ldb, REAL *c, int64_t ldc,
                        REAL alpha, bool add) {
    const int64_t vecs = (n + LANES - 1) / LANES;
    for (int64_t j = 0; j < vecs; j += PANEL_VECS) {
        const int64_t wide = vecs - j < PANEL_VECS ? vecs - j : PANEL_VECS;
        for (int64_t i = 0; i < m; i += PANEL_ROWS) {
            const int64_t rows = m - i < PANEL_ROWS ? m - i : PANEL_ROWS;
            switch (rows * 8 + wide) {
                PANEL_CASES(1)
                PANEL_CASES(2)
#if PANEL_VECS == 4
                PANEL_CASES(3)
                PANEL_CASES(4)
#endif
            default: break;
            }
        }
    }
}

#undef PANEL_CASE
#undef PANEL_CASES

// x[i, :] for i < n into rows of `width`, zeros behind column d
static inline void NAME(pack_rows)(const REAL *RESTRICT x, int64_t row, int64_t col, int64_t n,
                                   int64_t d, REAL *RESTRICT to, int64_t width) {
    for (int64_t i = 0; i < n; i++) {
        if (col == 1)
            memcpy(to + i * width, x + i * row, sizeof(REAL) * (size_t)d);
        else
            for (int64_t p = 0; p < d; p++) to[i * width + p] = x[i * row + p * col];
        for (int64_t p = d; p < width; p++) to[i * width + p] = 0;
    }
}

// the same, transposed: [d, width], zeros behind column n
static inline void NAME(pack_columns)(const REAL *RESTRICT x, int64_t row, int64_t col, int64_t n,
                                      int64_t d, REAL *RESTRICT to, int64_t width) {
    for (int64_t p0 = 0; p0 < d; p0 += 16) {
        const int64_t p1 = p0 + 16 < d ? p0 + 16 : d;
        for (int64_t i = 0; i < n; i++)
            for (int64_t p = p0; p < p1; p++) to[p * width + i] = x[i * row + p * col];
    }
    for (int64_t p = 0; p < d; p++)
        for (int64_t i = n; i < width; i++) to[p * width + i] = 0;
}

static inline void NAME(unpack_rows)(const REAL *RESTRICT from, int64_t width, int64_t n,
                                     int64_t d, REAL *RESTRICT to, int64_t row, int64_t col) {
    for (int64_t i = 0; i < n; i++)
        for (int64_t p = 0; p < d; p++) to[i * row + p * col] = from[i * width + p];
}
