// loss_body.h: pieces of loss.c, once for each type.

ALWAYS_INLINE double FN(logsumexp_row)(const REAL *RESTRICT x, int64_t n) {
    const REAL m = FN(row_max)(x, n);
    return (double)m + log(FN(row_exp_sum)(x, n, m));
}

// What a row's gradient is multiplied by.
ALWAYS_INLINE REAL FN(weight_of)(const job *j, int64_t i, int64_t counted) {
    const REAL *dloss = j->dloss;
    if (j->reduction == NONE) return dloss[weft_row_at(&j->dloss_at, i)];
    return j->reduction == SUM ? dloss[0] : (REAL)((double)dloss[0] / (double)counted);
}

// (1 - s) (lse - x[t]) + s (lse - average of x)
static void FN(class_piece)(void *context, int64_t piece) {
    const job *j = context;
    const int64_t *target = j->target, n = j->classes, end = weft_piece_end(j->n, j->grain, piece);
    for (int64_t i = piece * j->grain; i < end; i++) {
        const REAL *x = (const REAL *)j->x + i * n;
        REAL *lse_out = (REAL *)j->lse + i;
        if (target[i] == j->ignore) {
            j->rows[i] = 0;
            *lse_out = 0;
            continue;
        }
        const double lse = FN(logsumexp_row)(x, n);
        double loss = lse - (double)x[target[i]];
        if (j->smoothing > 0)
            loss = (1 - j->smoothing) * loss + j->smoothing * (lse - FN(row_sum)(x, n) / (double)n);
        j->rows[i] = loss;
        *lse_out = (REAL)lse;
    }
}

static void FN(class_grad_row)(const REAL *RESTRICT x, REAL *RESTRICT dx, int64_t n, REAL lse, REAL weight,
                               REAL even) {
#pragma omp simd
    for (int64_t k = 0; k < n; k++) dx[k] = (MATH(exp)(x[k] - lse) - even) * weight;
}

static void FN(class_grad_piece)(void *context, int64_t piece) {
    const job *j = context;
    const int64_t *target = j->target, n = j->classes, end = weft_piece_end(j->n, j->grain, piece);
    const REAL even = (REAL)(j->smoothing / (double)n);
    for (int64_t i = piece * j->grain; i < end; i++) {
        REAL *dx = (REAL *)j->dx + i * n;
        if (target[i] == j->ignore) {
            for (int64_t k = 0; k < n; k++) dx[k] = 0;
            continue;
        }
        const REAL weight = FN(weight_of)(j, i, j->counted);
        FN(class_grad_row)((const REAL *)j->x + i * n, dx, n, ((const REAL *)j->lse_in)[i], weight, even);
        dx[target[i]] -= (REAL)(1 - j->smoothing) * weight;
    }
}

// Sums of t and of t * x over the columns that are there.
ALWAYS_INLINE void FN(soft_sums)(const REAL *RESTRICT x, const REAL *RESTRICT t, int64_t n, double *mass, double *dot) {
    *mass = *dot = 0;
    FOR_ROW_BLOCKS(b, e, n) {
        REAL s = 0, d = 0;
#pragma omp simd reduction(+ : s, d)
        for (int64_t k = b; k < e; k++) {
            const bool there = x[k] != -(REAL)INFINITY;
            s += there ? t[k] : 0;
            d += there ? t[k] * x[k] : 0;
        }
        *mass += (double)s;
        *dot += (double)d;
    }
}

static void FN(soft_piece)(void *context, int64_t piece) {
    const job *j = context;
    const int64_t n = j->classes, end = weft_piece_end(j->n, j->grain, piece);
    for (int64_t i = piece * j->grain; i < end; i++) {
        const REAL *x = (const REAL *)j->x + i * n;
        const double lse = FN(logsumexp_row)(x, n);
        double mass, dot;
        FN(soft_sums)(x, (const REAL *)j->target + i * n, n, &mass, &dot);
        j->rows[i] = lse * mass - dot;
        ((REAL *)j->lse)[i] = (REAL)lse;
    }
}

static void FN(soft_grad_piece)(void *context, int64_t piece) {
    const job *j = context;
    const int64_t n = j->classes, end = weft_piece_end(j->n, j->grain, piece);
    for (int64_t i = piece * j->grain; i < end; i++) {
        const REAL *RESTRICT x = (const REAL *)j->x + i * n;
        const REAL lse = ((const REAL *)j->lse_in)[i], weight = FN(weight_of)(j, i, j->n);
        if (j->dx) {
            const REAL *RESTRICT t = (const REAL *)j->target + i * n;
            REAL *RESTRICT dx = (REAL *)j->dx + i * n;
            double mass, dot;
            FN(soft_sums)(x, t, n, &mass, &dot);
            const REAL m = (REAL)mass;
#pragma omp simd
            for (int64_t k = 0; k < n; k++) {
                REAL g = (MATH(exp)(x[k] - lse) * m - t[k]) * weight;
                dx[k] = x[k] == -(REAL)INFINITY ? 0 : g;
            }
        }
        if (j->dtarget) {
            REAL *RESTRICT dt = (REAL *)j->dtarget + i * n;
#pragma omp simd
            for (int64_t k = 0; k < n; k++) dt[k] = x[k] == -(REAL)INFINITY ? 0 : (lse - x[k]) * weight;
        }
    }
}

// max(x, 0) - x t + log(1 + exp(-|x|)); log1p keeps its digits by correcting for the rounding of 1 + e
ALWAYS_INLINE REAL FN(bce)(REAL x, REAL t) {
    const REAL e = MATH(exp_neg)(x < 0 ? x : -x), u = 1 + e;
    const REAL tail = u == 1 ? e : MATH(log)(u) + (e - (u - 1)) / u;
    return (x > 0 ? x : 0) - x * t + tail;
}

ALWAYS_INLINE REAL FN(huber)(REAL x, REAL t, REAL beta) {
    const REAL d = x - t, a = d < 0 ? -d : d;
    return a < beta ? d * d / (2 * beta) : a - beta / 2;
}

static void FN(pair_piece)(void *context, int64_t piece) {
    const job *j = context;
    const REAL *RESTRICT x = j->x, *RESTRICT t = j->target;
    const REAL beta = (REAL)j->beta;
    const int64_t begin = piece * j->grain, end = weft_piece_end(j->n, j->grain, piece);
    REAL buffer[WEFT_ROW_BLOCK];
    double total = 0;
    for (int64_t b = begin; b < end; b += WEFT_ROW_BLOCK) {
        const int64_t n = end - b < WEFT_ROW_BLOCK ? end - b : WEFT_ROW_BLOCK;
        REAL *RESTRICT y = j->loss ? (REAL *)j->loss + b : buffer;
        if (j->bce) {
#pragma omp simd
            for (int64_t k = 0; k < n; k++) y[k] = FN(bce)(x[b + k], t[b + k]);
        } else {
#pragma omp simd
            for (int64_t k = 0; k < n; k++) y[k] = FN(huber)(x[b + k], t[b + k], beta);
        }
        if (!j->loss) total += FN(row_sum)(y, n);
    }
    j->rows[piece] = total;
}

static void FN(pair_grad_piece)(void *context, int64_t piece) {
    const job *j = context;
    const REAL *RESTRICT x = j->x, *RESTRICT t = j->target, *RESTRICT dloss = j->dloss;
    REAL *RESTRICT dx = j->dx;
    const REAL beta = (REAL)j->beta, even = j->reduction == NONE ? 0 : FN(weight_of)(j, 0, j->n);
    const int64_t begin = piece * j->grain, end = weft_piece_end(j->n, j->grain, piece);
    const bool each = j->reduction == NONE;
    if (j->bce) {
#pragma omp simd
        for (int64_t k = begin; k < end; k++) dx[k] = (MATH(sigmoid)(x[k]) - t[k]) * (each ? dloss[k] : even);
    } else {
#pragma omp simd
        for (int64_t k = begin; k < end; k++) {
            const REAL d = x[k] - t[k], a = d < 0 ? -d : d;
            const REAL sign = d > 0 ? 1 : d < 0 ? -1 : d;
            dx[k] = (a < beta ? d / beta : sign) * (each ? dloss[k] : even);
        }
    }
}
