// linalg.c: decompositions and systems through LAPACK, one matrix on one thread. LAPACK runs
// single-threaded, so that results do not depend on the number of threads.
#include "cpu.h"
#include <lapacke.h>
#include <math.h>
#include <string.h>

#define PIECES 64   // at most so many matrices at a time

extern void openblas_set_num_threads(int) __attribute__((weak));

typedef struct matrix_job matrix_job;
typedef lapack_int (*matrix_fn)(const matrix_job *j, int64_t i, char *scratch);
struct matrix_job {
    matrix_fn fn;
    const void *in[2];
    void *out[3];
    int64_t m, n, count, grain, lwork;
    char *scratch;            // `stretch` bytes a piece
    int64_t stretch;
    int64_t *failed;          // by piece: matrix and LAPACK's code, or -1
};

#define REAL float
#define FABS fabsf
#define JOIN(name) name##_float
#define LAPACK(name) LAPACKE_s##name
#include "linalg_body.h"
#undef REAL
#undef FABS
#undef JOIN
#undef LAPACK
#define REAL double
#define FABS fabs
#define JOIN(name) name##_double
#define LAPACK(name) LAPACKE_d##name
#include "linalg_body.h"

static void run_piece(void *context, int64_t piece) {
    const matrix_job *j = context;
    int64_t end = weft_piece_end(j->count, j->grain, piece);
    for (int64_t i = piece * j->grain; i < end; i++) {
        lapack_int info = j->fn(j, i, j->scratch + piece * j->stretch);
        if (info == 0) continue;
        j->failed[2 * piece] = i;
        j->failed[2 * piece + 1] = info;
        return;
    }
}

// Runs fn over all matrices; `failed`: the first that LAPACK refused (or -1), and its code.
static weft_status run(const weft_call *call, matrix_job *j, int64_t elements, int64_t ints,
                       int64_t failed[2]) {
    const int64_t size = weft_dtype_size(call->in[0]->dtype);
    for (int i = 0; i < call->n_in; i++) {
        int64_t at = 0;
        const weft_view *x = call->in[i];
        if (!(size == 4 ? finite_float(x, &at) : finite_double(x, &at)))
            return weft_fail(WEFT_EINVAL, "NaN or infinity in the %s input, position %lld",
                             i == 0 ? "first" : "second", (long long)at + 1);
        j->in[i] = x->data;
    }
    for (int i = 0; i < call->n_out; i++) j->out[i] = call->out[i]->data;
    failed[0] = -1;
    if (j->m > INT32_MAX / 8 || j->n > INT32_MAX / 8)
        return weft_fail(WEFT_EUNSUPPORTED, "matrices of %lld by %lld are too large for LAPACK",
                         (long long)j->m, (long long)j->n);
    j->count = weft_span(call->in[0], 0, call->in[0]->ndim - 2);
    if (j->count == 0 || call->out[0]->numel == 0) return WEFT_OK;
    if (openblas_set_num_threads) openblas_set_num_threads(1);
    j->grain = (j->count + PIECES - 1) / PIECES;
    const int64_t pieces = weft_pieces(j->count, j->grain);
    j->stretch = (elements * size + ints * (int64_t)sizeof(lapack_int) + 63) / 64 * 64;
    const int64_t nbytes = pieces * (j->stretch + 2 * (int64_t)sizeof(int64_t));
    j->scratch = weft_workspace(call->backend, nbytes);
    if (!j->scratch) return WEFT_ENOMEM;
    j->failed = (int64_t *)(void *)(j->scratch + pieces * j->stretch);
    for (int64_t p = 0; p < pieces; p++) j->failed[2 * p] = -1;
    weft_parallel(pieces, run_piece, j);
    for (int64_t p = 0; p < pieces && failed[0] < 0; p++) {
        failed[0] = j->failed[2 * p];
        failed[1] = j->failed[2 * p + 1];
    }
    weft_workspace_free(call->backend, j->scratch, nbytes);
    return WEFT_OK;
}

static void last_two(const weft_view *x, matrix_job *j) {
    j->m = x->shape[x->ndim - 2];
    j->n = x->shape[x->ndim - 1];
}

static bool single(const weft_call *call) { return call->in[0]->dtype == WEFT_FLOAT32; }

CPU_KERNEL(svd) {
    matrix_job j = { .fn = single(call) ? svd_one_float : svd_one_double };
    int64_t failed[2];
    last_two(call->in[0], &j);
    const int64_t k = j.m < j.n ? j.m : j.n;
    if (k > 0) j.lwork = single(call) ? svd_work_float(j.m, j.n) : svd_work_double(j.m, j.n);
    weft_status code = run(call, &j, j.m * j.n + j.lwork, 8 * k, failed);
    if (code != WEFT_OK || failed[0] < 0) return code;
    return weft_fail(WEFT_EINVAL, "matrix %lld: the singular values did not converge",
                     (long long)failed[0]);
}

CPU_KERNEL(qr) {
    matrix_job j = { .fn = single(call) ? qr_one_float : qr_one_double };
    int64_t failed[2];
    last_two(call->in[0], &j);
    const int64_t k = j.m < j.n ? j.m : j.n;
    if (k > 0) j.lwork = single(call) ? qr_work_float(j.m, j.n) : qr_work_double(j.m, j.n);
    weft_status code = run(call, &j, j.m * j.n + k + j.lwork, 0, failed);
    if (code != WEFT_OK || failed[0] < 0) return code;
    return weft_fail(WEFT_EINVAL, "matrix %lld: LAPACK answers %lld", (long long)failed[0],
                     (long long)failed[1]);
}

CPU_KERNEL(cholesky) {
    matrix_job j = { .fn = single(call) ? cholesky_one_float : cholesky_one_double };
    int64_t failed[2];
    last_two(call->in[0], &j);
    weft_status code = run(call, &j, 0, 0, failed);
    if (code != WEFT_OK || failed[0] < 0) return code;
    return weft_fail(WEFT_EINVAL, "matrix %lld is not positive definite (its leading %lld rows and "
                     "columns are not); add a little to its diagonal", (long long)failed[0],
                     (long long)failed[1]);
}

CPU_KERNEL(solve) {
    matrix_job j = { .fn = single(call) ? solve_one_float : solve_one_double };
    int64_t failed[2];
    last_two(call->in[1], &j);
    weft_status code = run(call, &j, j.m * j.m + j.m * j.n, j.m, failed);
    if (code != WEFT_OK || failed[0] < 0) return code;
    return weft_fail(WEFT_EINVAL, "matrix %lld is singular (pivot %lld is 0)", (long long)failed[0],
                     (long long)failed[1]);
}
