// extreme_body.h: extremes and running sums along one dim, for one type: T elements, ACC sums.

ALWAYS_INLINE bool FN(better)(T a, T b, bool smallest) { return smallest ? a < b : a > b; }
// NaN beats all; the first of equals stays.
ALWAYS_INLINE bool FN(wins)(T v, T best, bool smallest) {
    return FN(better)(v, best, smallest) | (IS_NAN(v) & !IS_NAN(best));
}

// Index of the extreme of n contiguous elements: the best block by vector maxima, then a look into it.
ALWAYS_INLINE int64_t FN(extreme_row)(const T *RESTRICT x, int64_t n, bool smallest) {
    T best = x[0];
    int64_t from = 0;
    for (int64_t b = 0; b < n; b += 1024) {
        int64_t e = b + 1024 < n ? b + 1024 : n;
        T top = x[b];
        int32_t nan = 0;
        if (smallest) {
#pragma omp simd reduction(min : top) reduction(+ : nan)
            for (int64_t i = b; i < e; i++) { top = x[i] < top ? x[i] : top; nan += IS_NAN(x[i]); }
        } else {
#pragma omp simd reduction(max : top) reduction(+ : nan)
            for (int64_t i = b; i < e; i++) { top = x[i] > top ? x[i] : top; nan += IS_NAN(x[i]); }
        }
        if (nan) {
            while (!IS_NAN(x[b])) b++;
            return b;
        }
        if (b == 0 || FN(better)(top, best, smallest)) { best = top; from = b; }
    }
    while (x[from] != best) from++;
    return from;
}

// One more row of candidates, number i, for width columns.
ALWAYS_INLINE void FN(extreme_step)(const T *RESTRICT row, int64_t width, PLACE i, T *RESTRICT top,
                                    PLACE *RESTRICT at, bool smallest) {
#pragma omp simd
    for (int64_t k = 0; k < width; k++) {
        const T v = row[k], old = top[k];
        const bool win = FN(wins)(v, old, smallest);
        top[k] = win ? v : old;
        at[k] = win ? i : at[k];
    }
}
static __attribute__((noinline)) void FN(extreme_step_strided)(const T *row, int64_t stride, int64_t width, PLACE i,
                                                               T *top, PLACE *at, bool smallest) {
    for (int64_t k = 0; k < width; k++) {
        if (!FN(wins)(row[k * stride], top[k], smallest)) continue;
        top[k] = row[k * stride];
        at[k] = i;
    }
}

ALWAYS_INLINE void FN(extremes)(const along_job *j, int64_t begin, int64_t end, bool smallest) {
    const plan *p = &j->plan;
    const int64_t n = p->rshape[0], step = p->rx[0];
    T best[OUTPUTS];
    int64_t index[OUTPUTS];
    PLACE place[OUTPUTS];
    if (!p->column) {
        walk out;
        walk_start(&out, p->kshape, p->kx, p->nk, begin);
        for (int64_t o = begin; o < end; o++, walk_next(&out)) {
            const T *x = (const T *)j->x + out.offset;
            int64_t at = 0;
            if (step == 1) at = FN(extreme_row)(x, n, smallest);
            else
                for (int64_t i = 1; i < n; i++)
                    if (FN(wins)(x[i * step], x[at * step], smallest)) at = i;
            best[o - begin] = x[at * step];
            index[o - begin] = at;
        }
    } else {
        const int64_t n_k = p->kshape[p->nk - 1], stride = p->kx[p->nk - 1];
        for (int64_t o = begin; o < end;) {
            int64_t at_k = o % n_k, width = n_k - at_k < end - o ? n_k - at_k : end - o;
            walk out;
            walk_start(&out, p->kshape, p->kx, p->nk - 1, o / n_k);
            const T *RESTRICT x = (const T *)j->x + out.offset + at_k * stride;
            T *RESTRICT top = best + (o - begin);
            PLACE *RESTRICT at = place + (o - begin);
            for (int64_t k = 0; k < width; k++) { top[k] = x[k * stride]; at[k] = 0; }
            for (int64_t i = 1; i < n; i++) {
                const T *RESTRICT row = x + i * step;
                if (stride == 1) FN(extreme_step)(row, width, (PLACE)i, top, at, smallest);
                else FN(extreme_step_strided)(row, stride, width, (PLACE)i, top, at, smallest);
            }
            for (int64_t k = 0; k < width; k++) index[o - begin + k] = at[k];
            o += width;
        }
    }
    walk y;
    walk_start(&y, p->kshape, p->ky, p->nk, begin);
    for (int64_t o = begin; o < end; o++, walk_next(&y)) {
        if (j->values) ((T *)j->values)[y.offset] = best[o - begin];
        j->indices[y.offset] = index[o - begin];
    }
}

static void FN(extreme_piece)(void *context, int64_t piece) {
    const along_job *j = context;
    int64_t begin = piece * j->block, end = weft_piece_end(j->plan.n_out, j->block, piece);
    if (j->smallest) FN(extremes)(j, begin, end, true);
    else FN(extremes)(j, begin, end, false);
}

static void FN(cumsum_piece)(void *context, int64_t piece) {
    const along_job *j = context;
    const plan *p = &j->plan;
    const int64_t n = p->rshape[0], step = p->rx[0], step_y = p->ry[0];
    int64_t begin = piece * j->block, end = weft_piece_end(p->n_out, j->block, piece);
    if (!p->column) {
        walk in, out;
        walk_start(&in, p->kshape, p->kx, p->nk, begin);
        walk_start(&out, p->kshape, p->ky, p->nk, begin);
        for (int64_t o = begin; o < end; o++, walk_next(&in), walk_next(&out)) {
            const T *x = (const T *)j->x + in.offset;
            T *y = (T *)j->values + out.offset;
            ACC a = 0;
            for (int64_t i = 0; i < n; i++) y[i * step_y] = (T)(a += (ACC)x[i * step]);
        }
        return;
    }
    const int64_t n_k = p->kshape[p->nk - 1], sx = p->kx[p->nk - 1], sy = p->ky[p->nk - 1];
    ACC a[OUTPUTS];
    for (int64_t o = begin; o < end;) {
        int64_t at_k = o % n_k, width = n_k - at_k < end - o ? n_k - at_k : end - o;
        walk in, out;
        walk_start(&in, p->kshape, p->kx, p->nk - 1, o / n_k);
        walk_start(&out, p->kshape, p->ky, p->nk - 1, o / n_k);
        const T *RESTRICT x = (const T *)j->x + in.offset + at_k * sx;
        T *RESTRICT y = (T *)j->values + out.offset + at_k * sy;
        for (int64_t k = 0; k < width; k++) a[k] = 0;
        for (int64_t i = 0; i < n; i++) {
            const T *RESTRICT from = x + i * step;
            T *RESTRICT to = y + i * step_y;
            if (sx == 1 && sy == 1) {
                for (int64_t k = 0; k < width; k++) to[k] = (T)(a[k] += (ACC)from[k]);
            } else {
                for (int64_t k = 0; k < width; k++) to[k * sy] = (T)(a[k] += (ACC)from[k * sx]);
            }
        }
        o += width;
    }
}
