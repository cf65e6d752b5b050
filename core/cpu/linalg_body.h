// linalg_body.h: the decompositions for one REAL; LAPACK(name) is LAPACKE's function for it.
// LAPACK wants columns in a row. A row-major matrix is the transpose of what it sees, so each
// function asks for the mirrored decomposition and nothing is moved.

// x^T = v s u^T. scratch: x, then LAPACK's; u and vh come out in place.
static lapack_int JOIN(svd_one)(const matrix_job *j, int64_t i, char *scratch) {
    const lapack_int m = (lapack_int)j->m, n = (lapack_int)j->n, k = m < n ? m : n;
    REAL *a = (REAL *)(void *)scratch, *work = a + j->m * j->n;
    lapack_int *iwork = (lapack_int *)(void *)(work + j->lwork);
    REAL *u = (REAL *)j->out[0] + i * m * k, *vh = (REAL *)j->out[2] + i * k * n;
    memcpy(a, (const REAL *)j->in[0] + i * j->m * j->n, (size_t)(j->m * j->n) * sizeof *a);
    lapack_int info = LAPACK(gesdd_work)(LAPACK_COL_MAJOR, 'S', n, m, a, n,
                                         (REAL *)j->out[1] + i * k, vh, n, u, k, work,
                                         (lapack_int)j->lwork, iwork);
    for (lapack_int c = 0; info == 0 && c < k; c++) {
        lapack_int largest = 0;
        for (lapack_int r = 1; r < m; r++)
            if (FABS(u[r * k + c]) > FABS(u[largest * k + c])) largest = r;
        if (u[largest * k + c] >= 0) continue;
        for (lapack_int r = 0; r < m; r++) u[r * k + c] = -u[r * k + c];
        for (lapack_int r = 0; r < n; r++) vh[c * n + r] = -vh[c * n + r];
    }
    return info;
}

static int64_t JOIN(svd_work)(int64_t m, int64_t n) {
    REAL size = 0, none = 0;
    lapack_int iwork = 0, k = (lapack_int)(m < n ? m : n);
    LAPACK(gesdd_work)(LAPACK_COL_MAJOR, 'S', (lapack_int)n, (lapack_int)m, &none, (lapack_int)n,
                       &none, &none, (lapack_int)n, &none, k, &size, -1, &iwork);
    return (int64_t)((double)size * 1.000001) + 16;   // float32 rounds large sizes
}

// x^T = r^T q^T, a product of lower and orthonormal. scratch: x, tau, LAPACK's.
static lapack_int JOIN(qr_one)(const matrix_job *j, int64_t i, char *scratch) {
    const lapack_int m = (lapack_int)j->m, n = (lapack_int)j->n, k = m < n ? m : n;
    REAL *a = (REAL *)(void *)scratch, *tau = a + j->m * j->n, *work = tau + k;
    REAL *q = (REAL *)j->out[0] + i * m * k, *r = (REAL *)j->out[1] + i * k * n;
    memcpy(a, (const REAL *)j->in[0] + i * j->m * j->n, (size_t)(j->m * j->n) * sizeof *a);
    lapack_int info = LAPACK(gelqf_work)(LAPACK_COL_MAJOR, n, m, a, n, tau, work,
                                         (lapack_int)j->lwork);
    if (info != 0) return info;
    for (lapack_int row = 0; row < k; row++)
        for (lapack_int c = 0; c < n; c++) r[row * n + c] = c < row ? 0 : a[row * n + c];
    info = LAPACK(orglq_work)(LAPACK_COL_MAJOR, k, m, k, a, n, tau, work, (lapack_int)j->lwork);
    for (lapack_int row = 0; row < m; row++)
        for (lapack_int c = 0; c < k; c++)
            q[row * k + c] = r[c * n + c] < 0 ? -a[row * n + c] : a[row * n + c];
    for (lapack_int row = 0; row < k; row++)
        if (r[row * n + row] < 0)
            for (lapack_int c = row; c < n; c++) r[row * n + c] = -r[row * n + c];
    return info;
}

static int64_t JOIN(qr_work)(int64_t m, int64_t n) {
    REAL one = 0, two = 0, none = 0;
    lapack_int k = (lapack_int)(m < n ? m : n);
    LAPACK(gelqf_work)(LAPACK_COL_MAJOR, (lapack_int)n, (lapack_int)m, &none, (lapack_int)n, &none,
                       &one, -1);
    LAPACK(orglq_work)(LAPACK_COL_MAJOR, k, (lapack_int)m, k, &none, (lapack_int)n, &none, &two,
                       -1);
    return (int64_t)((double)(one > two ? one : two) * 1.000001) + 16;
}

static lapack_int JOIN(cholesky_one)(const matrix_job *j, int64_t i, char *scratch) {
    const int64_t n = j->n;
    const REAL *x = (const REAL *)j->in[0] + i * n * n;
    REAL *y = (REAL *)j->out[0] + i * n * n;
    (void)scratch;
    for (int64_t r = 0; r < n; r++)
        for (int64_t c = 0; c < n; c++) y[r * n + c] = (REAL)0.5 * (x[r * n + c] + x[c * n + r]);
    lapack_int info = LAPACK(potrf_work)(LAPACK_COL_MAJOR, 'U', (lapack_int)n, y, (lapack_int)n);
    for (int64_t r = 0; r < n; r++)
        for (int64_t c = r + 1; c < n; c++) y[r * n + c] = 0;
    return info;
}

// scratch: a, then b by columns, then the pivots.
static lapack_int JOIN(solve_one)(const matrix_job *j, int64_t i, char *scratch) {
    const int64_t n = j->m, k = j->n;
    REAL *a = (REAL *)(void *)scratch, *columns = a + n * n;
    lapack_int *pivots = (lapack_int *)(void *)(columns + n * k);
    const REAL *b = (const REAL *)j->in[1] + i * n * k;
    REAL *x = (REAL *)j->out[0] + i * n * k;
    memcpy(a, (const REAL *)j->in[0] + i * n * n, (size_t)(n * n) * sizeof *a);
    for (int64_t r = 0; r < n; r++)
        for (int64_t c = 0; c < k; c++) columns[c * n + r] = b[r * k + c];
    lapack_int info = LAPACK(getrf_work)(LAPACK_COL_MAJOR, (lapack_int)n, (lapack_int)n, a,
                                         (lapack_int)n, pivots);
    if (info != 0) return info;
    info = LAPACK(getrs_work)(LAPACK_COL_MAJOR, 'T', (lapack_int)n, (lapack_int)k, a,
                              (lapack_int)n, pivots, columns, (lapack_int)n);
    for (int64_t r = 0; r < n; r++)
        for (int64_t c = 0; c < k; c++) x[r * k + c] = columns[c * n + r];
    return info;
}

static bool JOIN(finite)(const weft_view *x, int64_t *where) {
    const REAL *data = x->data;
    for (int64_t i = 0; i < x->numel; i++)
        if (!(FABS(data[i]) < (REAL)INFINITY)) {
            *where = i;
            return false;
        }
    return true;
}
