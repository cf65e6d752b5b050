// attention_body.h: attention for one REAL. Scores of a block of queries live in scratch memory;
// keys and values of one head are packed there too, so inputs may have any strides.

// scores s of query i: mask added, or -inf where it forbids
static void NAME(apply_mask)(const attention *t, int64_t b, int64_t h, int64_t i, int64_t n,
                             REAL *RESTRICT s) {
    const int64_t at = b * t->mask_stride[0] + h * t->mask_stride[1] + i * t->mask_stride[2];
    const int64_t step = t->mask_stride[3];
    if (t->mask->dtype == WEFT_BOOL || t->mask->dtype == WEFT_UINT8) {
        const uint8_t *m = (const uint8_t *)t->mask->data + at;
        if (step == 1) {
#pragma omp simd
            for (int64_t j = 0; j < n; j++) s[j] = m[j] ? s[j] : -(REAL)INFINITY;
        } else {
            for (int64_t j = 0; j < n; j++) s[j] = m[j * step] ? s[j] : -(REAL)INFINITY;
        }
    } else {
        const REAL *m = (const REAL *)t->mask->data + at;
        for (int64_t j = 0; j < n; j++) s[j] += m[j * step];
    }
}

// s becomes exp(s - max); the sum is returned, 0 for a row that sees nothing.
static REAL NAME(exponents)(REAL *RESTRICT s, int64_t n, REAL *max_out) {
    REAL max = -(REAL)INFINITY, sum = 0;
#pragma omp simd reduction(max : max)
    for (int64_t j = 0; j < n; j++) max = s[j] > max ? s[j] : max;
    *max_out = max;
    if (max == -(REAL)INFINITY) {
        // nothing to see, or nothing but NaN, which must not be hidden
        for (int64_t j = 0; j < n; j++) {
            if (s[j] != s[j])
                sum = s[j];
            else
                s[j] = 0;
        }
        return sum;
    }
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; j++) {
        const REAL e = EXP_NEG(s[j] - max);
        s[j] = e;
        sum += e;
    }
    return sum;
}

// Forward: one head, queries [begin, end).
static void NAME(forward)(void *context, int64_t piece) {
    attention *t = context;
    const weft_view *q = t->call->in[0], *k = t->call->in[1], *v = t->call->in[2];
    const weft_view *y = t->call->out[0], *l = t->call->out[1];
    const int64_t chunk = piece % t->chunks, head = piece / t->chunks, b = head / t->heads,
                  h = head % t->heads;
    const int64_t begin = chunk * t->chunk,
                  end = begin + t->chunk < t->n ? begin + t->chunk : t->n;
    const int64_t d = t->d, m = t->m, dp = PADDED(d), mp = PADDED(m);
    REAL *scratch = weft_slots_take(&t->slots);
    REAL *keys = scratch, *values = keys + d * mp, *scores = values + m * dp;
    REAL *sums = scores + t->rows * mp, *factors = sums + t->rows * dp;
    const REAL *qd = (const REAL *)q->data + b * q->stride[0] + h * q->stride[1];
    REAL *yd = (REAL *)y->data + b * y->stride[0] + h * y->stride[1];
    REAL *lse = (REAL *)l->data + head * t->n;
    NAME(pack_columns)((const REAL *)k->data + b * k->stride[0] + h * k->stride[1], k->stride[2],
                       k->stride[3], m, d, keys, mp);
    NAME(pack_rows)((const REAL *)v->data + b * v->stride[0] + h * v->stride[1], v->stride[2],
                    v->stride[3], m, d, values, dp);
    for (int64_t i0 = begin; i0 < end; i0 += t->rows) {
        const int64_t rows = end - i0 < t->rows ? end - i0 : t->rows,
                      seen = visible(t, i0 + rows - 1);
        NAME(panel)(rows, seen, d, qd + i0 * q->stride[2], q->stride[2], q->stride[3], keys, mp,
                    scores, mp, (REAL)t->scale, false);
        REAL inverse[MAX_ROWS];
        for (int64_t i = 0; i < rows; i++) {
            REAL *s = scores + i * mp, max;
            const int64_t mine = visible(t, i0 + i);
            if (t->mask) NAME(apply_mask)(t, b, h, i0 + i, mine, s);
            const REAL sum = NAME(exponents)(s, mine, &max);
            for (int64_t j = mine; j < seen; j++) s[j] = 0;
            // +inf for a row that sees nothing: exp(s - lse) is then 0 in the gradient too
            lse[i0 + i] = sum == 0 ? (REAL)INFINITY : max + LOG(sum);
            inverse[i] = sum == 0 ? 0 : 1 / sum;
            if (t->p > 0) {
                const uint64_t first = (uint64_t)((head * t->n + i0 + i) * m);
                NAME(drop_mask)(t->call->at->rng_key, t->call->at->rng_counter, first, mine, t->p,
                                factors);
#pragma omp simd
                for (int64_t j = 0; j < mine; j++) s[j] *= factors[j];
            }
        }
        NAME(panel)(rows, d, seen, scores, mp, 1, values, dp, sums, dp, 1, false);
        for (int64_t i = 0; i < rows; i++) {
            REAL *to = yd + (i0 + i) * y->stride[2];
            for (int64_t p = 0; p < d; p++) to[p * y->stride[3]] = sums[i * dp + p] * inverse[i];
        }
    }
    weft_slots_give(&t->slots, scratch);
}

static int64_t NAME(forward_size)(const attention *t) {
    const int64_t dp = PADDED(t->d), mp = PADDED(t->m);
    return (int64_t)sizeof(REAL) * (t->d * mp + t->m * dp + t->rows * (mp + dp) + mp);
}

// Backward: one head, queries [begin, end). dk and dv are collected in rows of dp.
static void NAME(backward)(void *context, int64_t piece) {
    attention *t = context;
    const weft_view *const *in = t->call->in;
    const weft_view *dy = in[0], *q = in[1], *k = in[2], *v = in[3], *y = in[5], *l = in[6];
    const int64_t chunk = piece % t->chunks, head = piece / t->chunks, b = head / t->heads,
                  h = head % t->heads;
    const int64_t begin = chunk * t->chunk,
                  end = begin + t->chunk < t->n ? begin + t->chunk : t->n;
    const int64_t d = t->d, m = t->m, dp = PADDED(d), mp = PADDED(m);
    const bool want_q = t->needs & 1, want_k = t->needs & 2, want_v = t->needs & 4;
#define HEAD(x) ((REAL *)(x)->data + b * (x)->stride[0] + h * (x)->stride[1])
    REAL *scratch = weft_slots_take(&t->slots);
    REAL *key_columns = scratch, *value_columns = key_columns + d * mp,
         *keys = value_columns + d * mp;
    REAL *queries = keys + m * dp, *grads = queries + t->rows * dp, *out = grads + t->rows * dp;
    REAL *weights = out + t->rows * dp, *dweights = weights + t->rows * mp,
         *factors = dweights + t->rows * mp;
    REAL *dk = t->partial ? (REAL *)t->partial + piece * 2 * m * dp : factors + mp,
         *dv = dk + m * dp;
    NAME(pack_columns)(HEAD(k), k->stride[2], k->stride[3], m, d, key_columns, mp);
    NAME(pack_columns)(HEAD(v), v->stride[2], v->stride[3], m, d, value_columns, mp);
    if (want_q) NAME(pack_rows)(HEAD(k), k->stride[2], k->stride[3], m, d, keys, dp);
    memset(dk, 0, sizeof(REAL) * (size_t)(2 * m * dp));
    for (int64_t i0 = begin; i0 < end; i0 += t->rows) {
        const int64_t rows = end - i0 < t->rows ? end - i0 : t->rows,
                      seen = visible(t, i0 + rows - 1);
        NAME(pack_rows)(HEAD(q) + i0 * q->stride[2], q->stride[2], q->stride[3], rows, d, queries,
                        dp);
        NAME(pack_rows)(HEAD(dy) + i0 * dy->stride[2], dy->stride[2], dy->stride[3], rows, d,
                        grads, dp);
        NAME(panel)(rows, seen, d, queries, dp, 1, key_columns, mp, weights, mp, (REAL)t->scale,
                    false);
        if (want_q || want_k)
            NAME(panel)(rows, seen, d, grads, dp, 1, value_columns, mp, dweights, mp, 1, false);
        for (int64_t i = 0; i < rows; i++) {
            REAL *w = weights + i * mp, *dw = dweights + i * mp, delta = 0;
            const int64_t mine = visible(t, i0 + i);
            const REAL *yi = HEAD(y) + (i0 + i) * y->stride[2], *gi = grads + i * dp;
            for (int64_t p = 0; p < d; p++) delta += gi[p] * yi[p * y->stride[3]];
            if (t->mask) NAME(apply_mask)(t, b, h, i0 + i, mine, w);
            const REAL lse =
                ((const REAL *)
                     l->data)[b * l->stride[0] + h * l->stride[1] + (i0 + i) * l->stride[2]];
            if (t->p > 0) {
                const uint64_t first = (uint64_t)((head * t->n + i0 + i) * m);
                NAME(drop_mask)(t->call->at->rng_key, t->call->at->rng_counter, first, mine, t->p,
                                factors);
#pragma omp simd
                for (int64_t j = 0; j < mine; j++) {
                    const REAL e = EXP_NEG(w[j] - lse);
                    dw[j] = e * (dw[j] * factors[j] - delta);
                    w[j] = e * factors[j];
                }
            } else {
#pragma omp simd
                for (int64_t j = 0; j < mine; j++) {
                    const REAL e = EXP_NEG(w[j] - lse);
                    dw[j] = e * (dw[j] - delta);
                    w[j] = e;
                }
            }
            for (int64_t j = mine; j < seen; j++) w[j] = dw[j] = 0;
        }
        if (want_v) NAME(panel)(seen, d, rows, weights, 1, mp, grads, dp, dv, dp, 1, true);
        if (want_k)
            NAME(panel)(seen, d, rows, dweights, 1, mp, queries, dp, dk, dp, (REAL)t->scale, true);
        if (want_q) {
            const weft_view *to = t->call->out[0];
            NAME(panel)(rows, d, seen, dweights, mp, 1, keys, dp, out, dp, (REAL)t->scale, false);
            NAME(unpack_rows)(out, dp, rows, d, HEAD(to) + i0 * to->stride[2], to->stride[2],
                              to->stride[3]);
        }
    }
    if (!t->partial) {
        const weft_view *to_k = t->call->out[1], *to_v = t->call->out[2];
        if (want_k) NAME(unpack_rows)(dk, dp, m, d, HEAD(to_k), to_k->stride[2], to_k->stride[3]);
        if (want_v) NAME(unpack_rows)(dv, dp, m, d, HEAD(to_v), to_v->stride[2], to_v->stride[3]);
    }
    weft_slots_give(&t->slots, scratch);
}

// Adds up the parts that the chunks of one head left behind, first chunk first.
static void NAME(collect)(void *context, int64_t head) {
    attention *t = context;
    const int64_t b = head / t->heads, h = head % t->heads, m = t->m, dp = PADDED(t->d),
                  size = 2 * m * dp;
    REAL *total = (REAL *)t->partial + head * t->chunks * size;
    for (int64_t c = 1; c < t->chunks; c++)
        for (int64_t i = 0; i < size; i++) total[i] += total[c * size + i];
    for (int which = 1; which <= 2; which++) {
        const weft_view *to = t->call->out[which];
        if (t->needs >> which & 1)
            NAME(unpack_rows)(total + (which - 1) * m * dp, dp, m, t->d, HEAD(to), to->stride[2],
                              to->stride[3]);
    }
}
#undef HEAD

static int64_t NAME(backward_size)(const attention *t) {
    const int64_t dp = PADDED(t->d), mp = PADDED(t->m);
    return (int64_t)sizeof(REAL) *
           (2 * t->d * mp + 3 * t->m * dp + t->rows * (3 * dp + 2 * mp) + mp);
}

// y = x rotated; one row of x [..., N, D] an item
static void NAME(rotate)(const rotary *t, int64_t row) {
    const weft_view *x = t->call->in[0], *cosines = t->call->in[1], *sines = t->call->in[2],
                    *y = t->call->out[0];
    const int64_t half = x->shape[x->ndim - 1] / 2;
    int64_t from = 0, to = 0, rest = row;
    const int64_t n = row % x->shape[x->ndim - 2];
    for (int dim = x->ndim - 2; dim >= 0; dim--) {
        const int64_t i = rest % x->shape[dim];
        rest /= x->shape[dim];
        from += i * x->stride[dim];
        to += i * y->stride[dim];
    }
    const int64_t xs = x->stride[x->ndim - 1], ys = y->stride[y->ndim - 1];
    const REAL *a = (const REAL *)x->data + from,
               *c = (const REAL *)cosines->data + n * cosines->stride[0];
    const REAL *s = (const REAL *)sines->data + n * sines->stride[0], sign = t->inverse ? -1 : 1;
    REAL *out = (REAL *)y->data + to;
    for (int64_t i = 0; i < half; i++) {
        const REAL u = a[i * xs], w = a[(i + half) * xs];
        const REAL cosine = c[i * cosines->stride[1]], sine = sign * s[i * sines->stride[1]];
        out[i * ys] = u * cosine - w * sine;
        out[(i + half) * ys] = w * cosine + u * sine;
    }
}
