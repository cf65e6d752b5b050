// norm_body.h: pieces of norm.c, once for each type.

// y = (x - mean) * rstd * w + b
ALWAYS_INLINE void FN(scale_row)(const REAL *RESTRICT x, const REAL *RESTRICT w, const REAL *RESTRICT b,
                                 REAL *RESTRICT y, int64_t d, REAL mean, REAL rstd) {
    if (w && b) {
#pragma omp simd
        for (int64_t i = 0; i < d; i++) y[i] = (x[i] - mean) * rstd * w[i] + b[i];
    } else if (w) {
#pragma omp simd
        for (int64_t i = 0; i < d; i++) y[i] = (x[i] - mean) * rstd * w[i];
    } else {
#pragma omp simd
        for (int64_t i = 0; i < d; i++) y[i] = (x[i] - mean) * rstd;
        if (b)
            for (int64_t i = 0; i < d; i++) y[i] += b[i];
    }
}

// sum = x + m * scale
ALWAYS_INLINE void FN(add_row)(const REAL *RESTRICT x, const REAL *RESTRICT m, const REAL *RESTRICT scale,
                               REAL *RESTRICT sum, int64_t d) {
    if (scale) {
#pragma omp simd
        for (int64_t i = 0; i < d; i++) sum[i] = x[i] + m[i] * scale[i];
    } else {
#pragma omp simd
        for (int64_t i = 0; i < d; i++) sum[i] = x[i] + m[i];
    }
}

static void FN(forward_piece)(void *context, int64_t piece) {
    const rows *r = context;
    const int64_t d = r->d, end = weft_piece_end(r->n, r->grain, piece);
    for (int64_t i = piece * r->grain; i < end; i++) {
        const REAL *x = (const REAL *)r->x + i * d;
        if (r->added) {
            REAL *sum = (REAL *)r->sum + i * d;
            FN(add_row)(x, (const REAL *)r->added + i * d, r->scale, sum, d);
            x = sum;
        }
        REAL mean = r->center ? (REAL)(FN(row_sum)(x, d) / (double)d) : 0;
        double variance = FN(row_square_distance)(x, d, mean) / (double)d;
        REAL rstd = (REAL)(1.0 / sqrt(variance + r->eps));
        FN(scale_row)(x, r->weight, r->bias, (REAL *)r->y + i * d, d, mean, rstd);
        if (r->center) ((REAL *)r->mean_out)[i] = mean;
        ((REAL *)r->rstd_out)[i] = rstd;
    }
}

// With xh = (x - mean) * rstd and g = dy * w: dx = rstd * (g - avg(g) - xh * avg(g * xh)); without
// centring the avg(g) goes.
ALWAYS_INLINE void FN(grad_row)(const REAL *RESTRICT dy, const REAL *RESTRICT x, const REAL *RESTRICT w,
                                REAL *RESTRICT dx, int64_t d, REAL mean, REAL rstd, bool center) {
    double sum_g = 0, sum_gx = 0;
    FOR_ROW_BLOCKS(begin, end, d) {
        REAL s = 0, t = 0;
        if (w) {
#pragma omp simd reduction(+ : s, t)
            for (int64_t i = begin; i < end; i++) {
                REAL g = dy[i] * w[i];
                s += g;
                t += g * (x[i] - mean);
            }
        } else {
#pragma omp simd reduction(+ : s, t)
            for (int64_t i = begin; i < end; i++) {
                s += dy[i];
                t += dy[i] * (x[i] - mean);
            }
        }
        sum_g += (double)s;
        sum_gx += (double)t;
    }
    const REAL c1 = (REAL)(sum_gx / (double)d * (double)rstd * (double)rstd);
    const REAL c2 = center ? (REAL)(sum_g / (double)d) : 0;
    if (w) {
#pragma omp simd
        for (int64_t i = 0; i < d; i++) dx[i] = rstd * (dy[i] * w[i] - c2 - (x[i] - mean) * c1);
    } else {
#pragma omp simd
        for (int64_t i = 0; i < d; i++) dx[i] = rstd * (dy[i] - c2 - (x[i] - mean) * c1);
    }
}

// dx += dsum; dm = dx * scale
ALWAYS_INLINE void FN(spread_row)(REAL *RESTRICT dx, const REAL *RESTRICT dsum, const REAL *RESTRICT scale,
                                  REAL *RESTRICT dm, int64_t d) {
    if (dsum) {
#pragma omp simd
        for (int64_t i = 0; i < d; i++) dx[i] += dsum[i];
    }
    if (dm && scale) {
#pragma omp simd
        for (int64_t i = 0; i < d; i++) dm[i] = dx[i] * scale[i];
    } else if (dm) memcpy(dm, dx, (size_t)d * sizeof(REAL));
}

static void FN(flush)(double *RESTRICT sums, REAL *RESTRICT local, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        sums[i] += (double)local[i];
        local[i] = 0;
    }
}

static void FN(backward_piece)(void *context, int64_t piece) {
    const rows *r = context;
    const int64_t d = r->d, begin = piece * r->grain, end = weft_piece_end(r->n, r->grain, piece);
    const bool sum = r->want_weight || r->want_bias;
    double *sums = sum ? r->sums + piece * 2 * d : NULL;
    REAL *local = sum ? (REAL *)r->local + piece * 2 * d : NULL;
    for (int64_t i = 0; sum && i < 2 * d; i++) { sums[i] = 0; local[i] = 0; }
    for (int64_t i = begin; i < end; i++) {
        const REAL *RESTRICT dy = (const REAL *)r->dy + weft_row_at(&r->dy_rows, i);
        const REAL *RESTRICT x = (const REAL *)r->x + i * d;
        const REAL rstd = ((const REAL *)r->rstd)[i], mean = r->center ? ((const REAL *)r->mean)[i] : 0;
        if (r->dx) {
            REAL *dx = (REAL *)r->dx + i * d;
            FN(grad_row)(dy, x, r->weight, dx, d, mean, rstd, r->center);
            if (r->dsum || r->dm)
                FN(spread_row)(dx, r->dsum ? (const REAL *)r->dsum + i * d : NULL, r->scale,
                               r->dm ? (REAL *)r->dm + i * d : NULL, d);
        }
        if (!sum) continue;
        REAL *RESTRICT dw = local, *RESTRICT db = local + d;
        if (r->want_weight && r->want_bias) {
#pragma omp simd
            for (int64_t k = 0; k < d; k++) {
                dw[k] += dy[k] * ((x[k] - mean) * rstd);
                db[k] += dy[k];
            }
        } else if (r->want_weight) {
#pragma omp simd
            for (int64_t k = 0; k < d; k++) dw[k] += dy[k] * ((x[k] - mean) * rstd);
        } else {
#pragma omp simd
            for (int64_t k = 0; k < d; k++) db[k] += dy[k];
        }
        if ((i - begin) % FLUSH == FLUSH - 1 || i == end - 1) FN(flush)(sums, local, 2 * d);
    }
}

static void FN(combine_piece)(void *context, int64_t piece) {
    const rows *r = context;
    const int64_t d = r->d, begin = piece * TILE, width = weft_piece_end(d, TILE, piece) - begin;
    for (int half = 0; half < 2; half++) {
        REAL *out = half == 0 ? (r->want_weight ? r->dweight : NULL) : (r->want_bias ? r->dbias : NULL);
        if (!out) continue;
        double total[TILE] = { 0 };
        for (int64_t p = 0; p < r->pieces; p++) {
            const double *sums = r->sums + (p * 2 + half) * d + begin;
            for (int64_t k = 0; k < width; k++) total[k] += sums[k];
        }
        for (int64_t k = 0; k < width; k++) out[begin + k] = (REAL)total[k];
    }
}

// total[j] += a[j] * b[j] down n rows of a tile, in double: squares of large float32 do not overflow.
ALWAYS_INLINE void FN(tile_dot)(const REAL *RESTRICT a, const REAL *RESTRICT b, double *RESTRICT total,
                                int64_t n, int64_t inner, int64_t width) {
    if (inner == 1) {
        double s = 0;
#pragma omp simd reduction(+ : s)
        for (int64_t i = 0; i < n; i++) s += (double)a[i] * (double)b[i];
        total[0] = s;
        return;
    }
    for (int64_t j = 0; j < width; j++) total[j] = 0;
    for (int64_t i = 0; i < n; i++) {
        const REAL *p = a + i * inner, *q = b + i * inner;
#pragma omp simd
        for (int64_t j = 0; j < width; j++) total[j] += (double)p[j] * (double)q[j];
    }
}

static void FN(normalize_piece)(void *context, int64_t piece) {
    const columns *c = context;
    const int64_t end = weft_piece_end(c->outer * c->tiles, c->grain, piece), inner = c->inner;
    for (int64_t t = piece * c->grain; t < end; t++) {
        const int64_t row = t / c->tiles, column = t % c->tiles * TILE;
        const int64_t width = inner - column < TILE ? inner - column : TILE;
        const REAL *RESTRICT x = (const REAL *)c->a + row * c->n * inner + column;
        REAL *RESTRICT y = (REAL *)c->out + row * c->n * inner + column;
        REAL *norm = (REAL *)c->norm_out + row * inner + column;
        double total[TILE] = { 0 };
        REAL scale[TILE] = { 0 };
        FN(tile_dot)(x, x, total, c->n, inner, width);
        for (int64_t j = 0; j < width; j++) {
            double size = sqrt(total[j]);
            norm[j] = (REAL)size;
            scale[j] = (REAL)(size < c->eps ? c->eps : size);
        }
        if (inner == 1) {
            const REAL s = scale[0];
#pragma omp simd
            for (int64_t i = 0; i < c->n; i++) y[i] = x[i] / s;
            continue;
        }
        for (int64_t i = 0; i < c->n; i++) {
#pragma omp simd
            for (int64_t j = 0; j < width; j++) y[i * inner + j] = x[i * inner + j] / scale[j];
        }
    }
}

// dx = (dy - y * sum(dy * y)) / norm where the norm counts, dy / eps below eps
static void FN(normalize_grad_piece)(void *context, int64_t piece) {
    const columns *c = context;
    const int64_t end = weft_piece_end(c->outer * c->tiles, c->grain, piece), inner = c->inner;
    for (int64_t t = piece * c->grain; t < end; t++) {
        const int64_t row = t / c->tiles, column = t % c->tiles * TILE;
        const int64_t width = inner - column < TILE ? inner - column : TILE;
        const int64_t offset = row * c->n * inner + column;
        const REAL *RESTRICT dy = (const REAL *)c->a + offset, *RESTRICT y = (const REAL *)c->b + offset;
        const REAL *norm = (const REAL *)c->norm + row * inner + column;
        REAL *RESTRICT dx = (REAL *)c->out + offset;
        double total[TILE] = { 0 };
        REAL scale[TILE] = { 0 }, dot[TILE] = { 0 };
        FN(tile_dot)(dy, y, total, c->n, inner, width);
        for (int64_t j = 0; j < width; j++) {
            bool below = (double)norm[j] < c->eps;
            dot[j] = below ? 0 : (REAL)total[j];
            scale[j] = below ? (REAL)c->eps : norm[j];
        }
        if (inner == 1) {
            const REAL s = scale[0], p = dot[0];
#pragma omp simd
            for (int64_t i = 0; i < c->n; i++) dx[i] = (dy[i] - y[i] * p) / s;
            continue;
        }
        for (int64_t i = 0; i < c->n; i++) {
#pragma omp simd
            for (int64_t j = 0; j < width; j++)
                dx[i * inner + j] = (dy[i * inner + j] - y[i * inner + j] * dot[j]) / scale[j];
        }
    }
}
