// softmax_body.h: pieces of softmax.c, once for each type.

static void FN(softmax_row)(const REAL *RESTRICT x, REAL *RESTRICT y, int64_t n, bool log_form) {
    const REAL m = FN(row_max)(x, n);
    if (log_form) {
        const REAL s = (REAL)log(FN(row_exp_sum)(x, n, m));
#pragma omp simd
        for (int64_t i = 0; i < n; i++) y[i] = x[i] - m - s;
    } else {
        const REAL scale = (REAL)(1.0 / FN(row_exp)(y, x, n, m));
#pragma omp simd
        for (int64_t i = 0; i < n; i++) y[i] *= scale;
    }
}

// width columns of [n, inner]
static void FN(softmax_tile)(const REAL *RESTRICT x, REAL *RESTRICT y, int64_t n, int64_t inner, int64_t width,
                             bool log_form) {
    REAL m[TILE], s[TILE];
    for (int64_t j = 0; j < width; j++) { m[j] = -(REAL)INFINITY; s[j] = 0; }
    for (int64_t i = 0; i < n; i++) {
        const REAL *row = x + i * inner;
#pragma omp simd
        for (int64_t j = 0; j < width; j++) m[j] = row[j] > m[j] ? row[j] : m[j];
    }
    double total[TILE] = { 0 };
    for (int64_t i = 0; i < n; i++) {
        const REAL *row = x + i * inner;
        REAL *out = y + i * inner;
#pragma omp simd
        for (int64_t j = 0; j < width; j++) {
            REAL v = MATH(exp_neg)(row[j] - m[j]);
            s[j] += v;
            out[j] = v;
        }
        if ((i & 63) == 63 || i == n - 1)
            for (int64_t j = 0; j < width; j++) { total[j] += (double)s[j]; s[j] = 0; }
    }
    for (int64_t j = 0; j < width; j++) s[j] = (REAL)(log_form ? log(total[j]) : 1.0 / total[j]);
    for (int64_t i = 0; i < n; i++) {
        const REAL *row = x + i * inner;
        REAL *out = y + i * inner;
        if (log_form) {
#pragma omp simd
            for (int64_t j = 0; j < width; j++) out[j] = row[j] - m[j] - s[j];
        } else {
#pragma omp simd
            for (int64_t j = 0; j < width; j++) out[j] *= s[j];
        }
    }
}

static void FN(forward_piece)(void *context, int64_t piece) {
    const job *j = context;
    int64_t end = weft_piece_end(j->outer * j->tiles, j->grain, piece);
    for (int64_t i = piece * j->grain; i < end; i++) {
        int64_t column = i % j->tiles * TILE, offset = i / j->tiles * j->n * j->inner + column;
        const REAL *x = (const REAL *)j->a + offset;
        REAL *y = (REAL *)j->out + offset;
        if (j->inner == 1) FN(softmax_row)(x, y, j->n, j->log);
        else FN(softmax_tile)(x, y, j->n, j->inner, j->inner - column < TILE ? j->inner - column : TILE, j->log);
    }
}

static void FN(backward_row)(const REAL *RESTRICT dy, const REAL *RESTRICT y, REAL *RESTRICT dx, int64_t n,
                             bool log_form) {
    if (log_form) {
        const REAL s = (REAL)FN(row_sum)(dy, n);
#pragma omp simd
        for (int64_t i = 0; i < n; i++) dx[i] = dy[i] - MATH(exp)(y[i]) * s;
    } else {
        const REAL s = (REAL)FN(row_dot)(dy, y, n);
#pragma omp simd
        for (int64_t i = 0; i < n; i++) dx[i] = y[i] * (dy[i] - s);
    }
}

static void FN(backward_tile)(const REAL *RESTRICT dy, const REAL *RESTRICT y, REAL *RESTRICT dx, int64_t n,
                              int64_t inner, int64_t width, bool log_form) {
    double total[TILE] = { 0 };
    REAL s[TILE];
    for (int64_t i = 0; i < n; i++) {
        const REAL *g = dy + i * inner, *p = y + i * inner;
#pragma omp simd
        for (int64_t j = 0; j < width; j++) total[j] += (double)(log_form ? g[j] : g[j] * p[j]);
    }
    for (int64_t j = 0; j < width; j++) s[j] = (REAL)total[j];
    for (int64_t i = 0; i < n; i++) {
        const REAL *g = dy + i * inner, *p = y + i * inner;
        REAL *out = dx + i * inner;
        if (log_form) {
#pragma omp simd
            for (int64_t j = 0; j < width; j++) out[j] = g[j] - MATH(exp)(p[j]) * s[j];
        } else {
#pragma omp simd
            for (int64_t j = 0; j < width; j++) out[j] = p[j] * (g[j] - s[j]);
        }
    }
}

static void FN(backward_piece)(void *context, int64_t piece) {
    const job *j = context;
    int64_t end = weft_piece_end(j->outer * j->tiles, j->grain, piece);
    for (int64_t i = piece * j->grain; i < end; i++) {
        int64_t column = i % j->tiles * TILE, offset = i / j->tiles * j->n * j->inner + column;
        const REAL *dy = (const REAL *)j->a + offset, *y = (const REAL *)j->b + offset;
        REAL *dx = (REAL *)j->out + offset;
        if (j->inner == 1) FN(backward_row)(dy, y, dx, j->n, j->log);
        else FN(backward_tile)(dy, y, dx, j->n, j->inner, j->inner - column < TILE ? j->inner - column : TILE, j->log);
    }
}
