// gemm.c: products over BLAS. A product is cut into tiles by its shape alone; each tile is one
// single-threaded call, so that results do not depend on the number of threads.
#include "cpu.h"
#include <cblas.h>

#define TILE_N 768
#define TILE_M 512

extern void openblas_set_num_threads(int) __attribute__((weak));
extern char *openblas_get_config(void) __attribute__((weak));

const char *weft_blas_name(void) { return openblas_get_config ? openblas_get_config() : "CBLAS"; }

static void blas_single_thread(void) {
    static bool done;
    if (!done && openblas_set_num_threads) openblas_set_num_threads(1);
    done = true;
}

// tile_a: op(A)[i0.., :], tile_b: op(B)[:, j0..]
static void product(const weft_gemm *g, int64_t batch, int64_t i0, int64_t m, int64_t j0, int64_t n) {
    const int64_t size = weft_dtype_size(g->dtype);
    const char *a = (const char *)g->a + (batch * g->stride_a + i0 * (g->trans_a ? 1 : g->lda)) * size;
    const char *b = (const char *)g->b + (batch * g->stride_b + j0 * (g->trans_b ? g->ldb : 1)) * size;
    char *c = (char *)g->c + (batch * g->stride_c + i0 * g->ldc + j0) * size;
    double beta = g->beta;
    if (g->bias) {  // the bias goes in first, the product is added to it
        for (int64_t i = 0; i < m; i++) {
            if (g->dtype == WEFT_FLOAT32) {
                const float *bias = (const float *)g->bias + j0;
                float *row = (float *)c + i * g->ldc;
                for (int64_t j = 0; j < n; j++) row[j] = bias[j] + (beta != 0 ? (float)beta * row[j] : 0);
            } else {
                const double *bias = (const double *)g->bias + j0;
                double *row = (double *)c + i * g->ldc;
                for (int64_t j = 0; j < n; j++) row[j] = bias[j] + (beta != 0 ? beta * row[j] : 0);
            }
        }
        beta = 1;
    }
    CBLAS_TRANSPOSE ta = g->trans_a ? CblasTrans : CblasNoTrans;
    CBLAS_TRANSPOSE tb = g->trans_b ? CblasTrans : CblasNoTrans;
    if (g->dtype == WEFT_FLOAT32)
        cblas_sgemm(CblasRowMajor, ta, tb, (int)m, (int)n, (int)g->k, (float)g->alpha, (const float *)a,
                    (int)g->lda, (const float *)b, (int)g->ldb, (float)beta, (float *)c, (int)g->ldc);
    else
        cblas_dgemm(CblasRowMajor, ta, tb, (int)m, (int)n, (int)g->k, g->alpha, (const double *)a,
                    (int)g->lda, (const double *)b, (int)g->ldb, beta, (double *)c, (int)g->ldc);
}

void weft_gemm_here(const weft_gemm *g) {
    blas_single_thread();
    int64_t batches = g->batch > 1 ? g->batch : 1;
    if (g->m <= 0 || g->n <= 0) return;
    for (int64_t b = 0; b < batches; b++) product(g, b, 0, g->m, 0, g->n);
}

typedef struct grid {
    const weft_gemm *g;
    int64_t tile_m, tile_n, rows, columns, group, groups;
} grid;

static void tile(void *context, int64_t piece) {
    const grid *t = context;
    const weft_gemm *g = t->g;
    int64_t column = piece % t->columns, row = piece / t->columns % t->rows;
    int64_t group = piece / t->columns / t->rows % t->groups;
    int64_t batch = piece / t->columns / t->rows / t->groups;
    int64_t group_begin = group * t->group, group_end = group_begin + t->group;
    if (group_end > g->m) group_end = g->m;
    int64_t i0 = group_begin + row * t->tile_m, i1 = i0 + t->tile_m;
    if (i1 > group_end) i1 = group_end;
    int64_t j0 = column * t->tile_n, j1 = j0 + t->tile_n;
    if (j1 > g->n) j1 = g->n;
    if (i0 < i1 && j0 < j1) product(g, batch, i0, i1 - i0, j0, j1 - j0);
}

weft_status weft_gemm_run(const weft_gemm *g) {
    const int64_t limit = INT32_MAX;
    if (g->m > limit || g->n > limit || g->k > limit || g->lda > limit || g->ldb > limit || g->ldc > limit)
        return weft_fail(WEFT_EINVAL, "a product of [%lld,%lld] x [%lld,%lld] is past BLAS' 32-bit sizes",
                         (long long)g->m, (long long)g->k, (long long)g->k, (long long)g->n);
    blas_single_thread();
    if (g->m <= 0 || g->n <= 0) return WEFT_OK;
    grid t = { .g = g };
    int64_t batches = g->batch > 1 ? g->batch : 1;
    t.group = g->row_group > 0 && g->row_group < g->m ? g->row_group : g->m;
    t.groups = (g->m + t.group - 1) / t.group;
    t.tile_m = t.group <= TILE_M ? t.group : TILE_M;
    t.rows = (t.group + t.tile_m - 1) / t.tile_m;
    t.tile_n = g->n <= TILE_N ? g->n : TILE_N;
    // a narrow or single product is cut further, so that more than one thread finds work
    if (batches * t.groups * t.rows * ((g->n + t.tile_n - 1) / t.tile_n) < 8 && g->m * g->n * g->k > 1 << 18) {
        if (g->n >= g->m) { int64_t want = (g->n / 8 + 15) / 16 * 16; t.tile_n = want < 64 ? 64 : want; }
        else if (!g->row_group) { int64_t want = (g->m / 8 + 15) / 16 * 16; t.tile_m = want < 64 ? 64 : want; }
        if (t.tile_n > g->n) t.tile_n = g->n;
        if (t.tile_m > t.group) t.tile_m = t.group;
        t.rows = (t.group + t.tile_m - 1) / t.tile_m;
    }
    t.columns = (g->n + t.tile_n - 1) / t.tile_n;
    weft_parallel(batches * t.groups * t.rows * t.columns, tile, &t);
    return WEFT_OK;
}
