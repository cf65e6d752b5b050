// lora_body.h: the low-rank half of lora_linear for one REAL. r is small, so its products run over
// packed panels, and x is read where it lies.

// h[i0 .. i1) = dropout(x) A^T
static void NAME(down)(void *context, int64_t piece) {
    const lora *t = context;
    const int64_t i0 = piece * ROWS, rows = weft_piece_end(t->rows, ROWS, piece) - i0, r = t->r,
                  in = t->in;
    const int64_t width = PADDED(r);
    const REAL *x = (const REAL *)t->x + i0 * in;
    REAL *scratch = weft_slots_take(t->slots), *h = scratch, *dropped = h + ROWS * width;
    if (t->p > 0) {
        for (int64_t i = 0; i < rows; i++) {
            REAL *to = dropped + i * in;
            NAME(drop_mask)(t->at->rng_key, t->at->rng_counter, (uint64_t)((i0 + i) * in), in,
                            t->p, to);
#pragma omp simd
            for (int64_t j = 0; j < in; j++) to[j] = to[j] != 0 ? to[j] * x[i * in + j] : 0;
        }
        x = dropped;
    }
    NAME(panel)(rows, r, in, x, in, 1, t->a, width, h, width, 1, false);
    NAME(unpack_rows)(h, width, rows, r, (REAL *)t->h + i0 * r, r, 1);
    weft_slots_give(t->slots, scratch);
}

// The tile of y, which holds x W^T + b, gets + scale h B^T.
static void NAME(up)(void *context, int64_t batch, int64_t i0, int64_t i1, int64_t j0,
                     int64_t j1) {
    (void)batch;
    const lora *t = context;
    const REAL *h = (const REAL *)t->h + i0 * t->r;
    REAL *y = (REAL *)t->y + i0 * t->out + j0;
    const REAL *b = (const REAL *)t->b + j0;
    const int64_t n = j1 - j0, whole = n / LANES * LANES, wide = PADDED(t->out);
    NAME(panel)(i1 - i0, whole, t->r, h, t->r, 1, b, wide, y, t->out, (REAL)t->scale, true);
    // columns that are no whole vector, by the same chain of sums: no row's bits depend on others
    for (int64_t i = 0; whole < n && i < i1 - i0; i++)
        for (int64_t j = whole; j < n; j++) {
            REAL sum = 0;
            for (int64_t p = 0; p < t->r; p++) sum += h[i * t->r + p] * b[p * wide + j];
            y[i * t->out + j] += sum * (REAL)t->scale;
        }
}

// t[i0 .. i1) = scale dy B
static void NAME(gradient_down)(void *context, int64_t piece) {
    const lora *t = context;
    const int64_t i0 = piece * ROWS, rows = weft_piece_end(t->rows, ROWS, piece) - i0,
                  width = PADDED(t->r);
    NAME(panel)(rows, t->r, t->out, (const REAL *)t->y + i0 * t->out, t->out, 1, t->b, width,
                (REAL *)t->h + i0 * width, width, (REAL)t->scale, false);
}

// The tile of dx, which holds dy W, gets the low-rank part t A, through the mask.
static void NAME(gradient_up)(void *context, int64_t batch, int64_t i0, int64_t i1, int64_t j0,
                              int64_t j1) {
    (void)batch;
    const lora *t = context;
    const int64_t width = PADDED(t->r), n = j1 - j0;
    const REAL *h = (const REAL *)t->h + i0 * width;
    const REAL *a = (const REAL *)t->a + j0;
    REAL *dx = (REAL *)t->x + i0 * t->in + j0;
    if (t->p == 0 && n % LANES == 0) {
        NAME(panel)(i1 - i0, n, t->r, h, width, 1, a, PADDED(t->in), dx, t->in, 1, true);
        return;
    }
    REAL *part = weft_slots_take(t->slots), *mask = part + ROWS * WEFT_TILE_N;
    for (int64_t i = 0; i < i1 - i0; i += ROWS) {
        const int64_t rows = i1 - i0 - i < ROWS ? i1 - i0 - i : ROWS;
        // a tile begins at a whole vector, and A's rows end in zeros: reading past n is safe
        NAME(panel)(rows, n, t->r, h + i * width, width, 1, a, PADDED(t->in), part, PADDED(n), 1,
                    false);
        for (int64_t k = 0; k < rows; k++) {
            REAL *to = dx + (i + k) * t->in;
            const REAL *from = part + k * PADDED(n);
            if (t->p > 0) {
                const uint64_t first = (uint64_t)((i0 + i + k) * t->in + j0);
                NAME(drop_mask)(t->at->rng_key, t->at->rng_counter, first, n, t->p, mask);
#pragma omp simd
                for (int64_t j = 0; j < n; j++) to[j] += mask[j] != 0 ? from[j] * mask[j] : 0;
            } else {
                for (int64_t j = 0; j < n; j++) to[j] += from[j];
            }
        }
    }
    weft_slots_give(t->slots, part);
}

// Columns [j0, j1) of dA = t^T dropout(x), all rows
static void NAME(gradient_a)(void *context, int64_t piece) {
    const lora *t = context;
    const int64_t j0 = piece * COLUMNS, n = weft_piece_end(t->in, COLUMNS, piece) - j0,
                  width = PADDED(t->r);
    REAL *sum = weft_slots_take(t->slots), *dropped = sum + t->r * COLUMNS;
    memset(sum, 0, sizeof(REAL) * (size_t)(t->r * COLUMNS));
    for (int64_t i0 = 0; i0 < t->rows; i0 += ROWS) {
        const int64_t rows = t->rows - i0 < ROWS ? t->rows - i0 : ROWS;
        for (int64_t i = 0; i < rows; i++) {
            REAL *to = dropped + i * COLUMNS;
            const int64_t first = (i0 + i) * t->in + j0;
            const REAL *x = (const REAL *)t->x + first;
            if (t->p > 0) {
                NAME(drop_mask)(t->at->rng_key, t->at->rng_counter, (uint64_t)first, n, t->p, to);
#pragma omp simd
                for (int64_t j = 0; j < n; j++) to[j] = to[j] != 0 ? to[j] * x[j] : 0;
            } else
                memcpy(to, x, sizeof(REAL) * (size_t)n);
            for (int64_t j = n; j < COLUMNS; j++) to[j] = 0;
        }
        NAME(panel)(t->r, COLUMNS, rows, (const REAL *)t->h + i0 * width, 1, width, dropped,
                    COLUMNS, sum, COLUMNS, 1, true);
    }
    NAME(unpack_rows)(sum, COLUMNS, t->r, n, (REAL *)t->da + j0, t->in, 1);
    weft_slots_give(t->slots, sum);
}

// db = sums of dy's columns: runs of rows in REAL, the runs in double
static void NAME(gradient_bias)(void *context, int64_t piece) {
    const lora *t = context;
    const int64_t j0 = piece * COLUMNS, n = weft_piece_end(t->out, COLUMNS, piece) - j0;
    double total[COLUMNS] = {0};
    for (int64_t i0 = 0; i0 < t->rows; i0 += ROWS) {
        const int64_t end = i0 + ROWS < t->rows ? i0 + ROWS : t->rows;
        REAL part[COLUMNS] = {0};
        for (int64_t i = i0; i < end; i++) {
            const REAL *dy = (const REAL *)t->y + i * t->out + j0;
            for (int64_t j = 0; j < n; j++) part[j] += dy[j];
        }
        for (int64_t j = 0; j < n; j++) total[j] += (double)part[j];
    }
    for (int64_t j = 0; j < n; j++) ((REAL *)t->dbias)[j0 + j] = (REAL)total[j];
}

static weft_status NAME(forward)(lora *t, const weft_call *call, const weft_gemm *base) {
    const int64_t width = PADDED(t->r), wide = PADDED(t->out), size = (int64_t)sizeof(REAL);
    const int64_t nbytes = size * (t->in * width + t->r * wide);
    REAL *packed = weft_workspace(call->backend, nbytes);
    if (!packed) return WEFT_ENOMEM;
    NAME(pack_columns)(call->in[3]->data, t->in, 1, t->r, t->in, packed, width);
    NAME(pack_columns)(call->in[4]->data, t->r, 1, t->out, t->r, packed + t->in * width, wide);
    t->a = packed;
    t->b = packed + t->in * width;
    const int64_t pieces = weft_pieces(t->rows, ROWS);
    weft_status status = weft_slots_open(t->slots, call->backend, pieces,
                                         size * ROWS * (width + (t->p > 0 ? t->in : 0)));
    if (status == WEFT_OK) {
        weft_parallel(pieces, NAME(down), t);
        weft_slots_close(t->slots);
        weft_gemm g = *base;
        g.after = NAME(up);
        g.context = t;
        status = weft_gemm_run(&g);
    }
    weft_workspace_free(call->backend, packed, nbytes);
    return status;
}

static weft_status NAME(backward)(lora *t, const weft_call *call, int64_t needs) {
    const int64_t width = PADDED(t->r), wide = PADDED(t->in), size = (int64_t)sizeof(REAL);
    const bool low = needs & (NEED_DX | NEED_DA);
    const int64_t nbytes = size * (low ? t->out * width + t->rows * width + t->r * wide : 0);
    REAL *packed = nbytes ? weft_workspace(call->backend, nbytes) : NULL;
    if (nbytes && !packed) return WEFT_ENOMEM;
    weft_status status = WEFT_OK;
    if (low) {
        NAME(pack_rows)(call->in[4]->data, t->r, 1, t->out, t->r, packed, width);
        t->b = packed;
        t->h = packed + t->out * width;
        weft_parallel(weft_pieces(t->rows, ROWS), NAME(gradient_down), t);
    }
    if (status == WEFT_OK && (needs & NEED_DA)) {
        t->x = call->in[1]->data;
        t->da = call->out[3]->data;
        const int64_t pieces = weft_pieces(t->in, COLUMNS);
        status = weft_slots_open(t->slots, call->backend, pieces, size * COLUMNS * (t->r + ROWS));
        if (status == WEFT_OK) {
            weft_parallel(pieces, NAME(gradient_a), t);
            weft_slots_close(t->slots);
        }
    }
    if (needs & NEED_DBIAS) {
        t->dbias = call->out[2]->data;
        weft_parallel(weft_pieces(t->out, COLUMNS), NAME(gradient_bias), t);
    }
    if (status == WEFT_OK && (needs & NEED_DX)) {     // last: it may be added to what is there
        REAL *a = packed + t->out * width + t->rows * width;
        NAME(pack_rows)(call->in[3]->data, t->in, 1, t->r, t->in, a, wide);
        t->a = a;
        t->x = call->out[0]->data;
        status =
            weft_slots_open(t->slots, call->backend, INT64_MAX, size * (ROWS + 1) * WEFT_TILE_N);
        if (status == WEFT_OK) {
            status = weft_gemm_run(&(weft_gemm){.dtype = t->dtype,
                                                .m = t->rows,
                                                .n = t->in,
                                                .k = t->out,
                                                .lda = t->out,
                                                .ldb = t->in,
                                                .ldc = t->in,
                                                .alpha = 1,
                                                .beta = call->at->AT(lora_linear_backward, onto) ? 1 : 0,
                                                .a = t->y,
                                                .b = call->in[2]->data,
                                                .c = t->x,
                                                .after = NAME(gradient_up),
                                                .context = t});
            weft_slots_close(t->slots);
        }
    }
    if (packed) weft_workspace_free(call->backend, packed, nbytes);
    return status;
}
