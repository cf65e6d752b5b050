// gemm.c: products. A product is cut into tiles by its shape alone, so that results do not depend
// on the number of threads. A float32 tile is made by product.c where vectors are wide, any other
// by one single-threaded BLAS call.
#include "../core.h"
#include "slots.h"
#include <cblas.h>
#include <stdatomic.h>
#include <string.h>

#define TILE_M 512
#define MIN_TILES 16 // a product of some size is cut into about as many
#define SMALL_N 64   // but not into narrower tiles, nor other than multiples of this

extern void openblas_set_num_threads(int) __attribute__((weak));
extern char *openblas_get_config(void) __attribute__((weak));

const char *weft_blas_name(void) {
    return openblas_get_config ? openblas_get_config() : "CBLAS";
}

static void blas_single_thread(void) {
    static atomic_bool done;
    if (!atomic_load(&done) && openblas_set_num_threads) openblas_set_num_threads(1);
    atomic_store(&done, true);
}

// A row or a column of C: BLAS would pack the matrix to use it once.
static void vector_product(const weft_gemm *g, int64_t m, int64_t n, const void *a, const void *b,
                           double beta, void *c) {
    const bool row = m == 1;
    const void *matrix = row ? b : a, *x = row ? a : b;
    // the matrix as stored, and whether BLAS is to transpose it
    const bool stored_t = row ? g->trans_b : !g->trans_a;
    const int64_t length = row ? n : m, rows = stored_t ? length : g->k,
                  columns = stored_t ? g->k : length;
    const int64_t ld = row ? g->ldb : g->lda, step = row          ? (g->trans_a ? g->lda : 1)
                                                     : g->trans_b ? 1
                                                                  : g->ldb;
    const int64_t out_step = row ? 1 : g->ldc;
    const CBLAS_TRANSPOSE t = stored_t ? CblasNoTrans : CblasTrans;
    if (g->dtype == WEFT_FLOAT32)
        cblas_sgemv(CblasRowMajor, t, (int)rows, (int)columns, (float)g->alpha, matrix, (int)ld, x,
                    (int)step, (float)beta, c, (int)out_step);
    else
        cblas_dgemv(CblasRowMajor, t, (int)rows, (int)columns, g->alpha, matrix, (int)ld, x,
                    (int)step, beta, c, (int)out_step);
}

// The bias goes in first (on what beta leaves of C), the product is added to it.
static void set_bias(const weft_gemm *g, char *c, int64_t m, int64_t j0, int64_t n) {
    for (int64_t i = 0; i < m; i++) {
        if (g->dtype == WEFT_FLOAT32) {
            const float *bias = (const float *)g->bias + j0;
            float *row = (float *)(void *)c + i * g->ldc;
            for (int64_t j = 0; j < n; j++)
                row[j] = bias[j] + (g->beta != 0 ? (float)g->beta * row[j] : 0);
        } else {
            const double *bias = (const double *)g->bias + j0;
            double *row = (double *)(void *)c + i * g->ldc;
            for (int64_t j = 0; j < n; j++)
                row[j] = bias[j] + (g->beta != 0 ? g->beta * row[j] : 0);
        }
    }
}

// One tile over BLAS: op(A)[i0.., :] times op(B)[:, j0..]
static void product(const weft_gemm *g, int64_t batch, int64_t i0, int64_t m, int64_t j0,
                    int64_t n) {
    const int64_t size = weft_dtype_size(g->dtype);
    const char *a =
        (const char *)g->a + (batch * g->stride_a + i0 * (g->trans_a ? 1 : g->lda)) * size;
    const char *b =
        (const char *)g->b + (batch * g->stride_b + j0 * (g->trans_b ? g->ldb : 1)) * size;
    char *c = (char *)g->c + (batch * g->stride_c + i0 * g->ldc + j0) * size;
    const double beta = g->bias ? 1 : g->beta;
    if (g->k_group > 0 && g->k_group < g->k) { // one call a group of positions
        weft_gemm part = *g;
        part.k_group = 0;
        for (int64_t p = 0; p < g->k; p += g->k_group) {
            const int64_t group = p / g->k_group;
            part.k = g->k - p < g->k_group ? g->k - p : g->k_group;
            part.a = (const char *)g->a + (p * g->lda + group * g->k_gap_a) * size;
            part.b = (const char *)g->b + (p * g->ldb + group * g->k_gap_b) * size;
            product(&part, batch, i0, m, j0, n);
            part.beta = 1;
            part.bias = NULL;
        }
        return;
    }
    if (g->bias) set_bias(g, c, m, j0, n);
    if (g->k <= 0) { // an empty sum
        for (int64_t i = 0; i < m && beta == 0; i++)
            memset(c + i * g->ldc * size, 0, (size_t)(n * size));
        return;
    }
    if (m == 1 || n == 1) {
        vector_product(g, m, n, a, b, beta, c);
        return;
    }
    CBLAS_TRANSPOSE ta = g->trans_a ? CblasTrans : CblasNoTrans;
    CBLAS_TRANSPOSE tb = g->trans_b ? CblasTrans : CblasNoTrans;
    if (g->dtype == WEFT_FLOAT32)
        cblas_sgemm(CblasRowMajor, ta, tb, (int)m, (int)n, (int)g->k, (float)g->alpha,
                    (const float *)a, (int)g->lda, (const float *)b, (int)g->ldb, (float)beta,
                    (float *)c, (int)g->ldc);
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

// product.c on one path of the CPU
typedef struct own_product {
    void (*product)(const weft_gemm *g, const float *a, const float *b, const float *packed, float *c,
                    int64_t i0, int64_t i1, int64_t j0, int64_t j1, bool add, float *scratch);
    void (*pack)(const weft_gemm *g, const float *b, int64_t p0, int64_t j0, int64_t j1, float *packed);
} own_product;
#define SCRATCH                                                                                    \
    ((int64_t)sizeof(float) *                                                                      \
     (WEFT_PRODUCT_DEPTH * (WEFT_TILE_N + WEFT_PRODUCT_ROWS) + WEFT_PRODUCT_ROWS * SMALL_N))
#define OWN_PRODUCT(path)                                                                          \
    void weft_cpu_##path##_product(const weft_gemm *, const float *, const float *, const float *, \
                                   float *, int64_t, int64_t, int64_t, int64_t, bool, float *);    \
    void weft_cpu_##path##_product_pack(const weft_gemm *, const float *, int64_t, int64_t,        \
                                        int64_t, float *);                                         \
    static const own_product path = {weft_cpu_##path##_product, weft_cpu_##path##_product_pack};
#ifdef WEFT_HAVE_AVX2
OWN_PRODUCT(avx2)
#endif
#ifdef WEFT_HAVE_AVX512
OWN_PRODUCT(avx512)
#endif

// product.c's tile for this machine, or NULL where BLAS is to make it. Rows in groups must not see how
// many there are in all: few of them are no reason for BLAS then.
static const own_product *own_for(const weft_gemm *g) {
    if (g->dtype != WEFT_FLOAT32 || (g->m < 16 && !g->row_group) || g->n < 16 || g->k < 16 ||
        (g->beta != 0 && g->beta != 1))
        return NULL;
    const char *path = weft_cpu_path();
#ifdef WEFT_HAVE_AVX512
    if (strcmp(path, "avx512") == 0) return &avx512;
#endif
#ifdef WEFT_HAVE_AVX2
    if (strcmp(path, "avx2") == 0) return &avx2;
#endif
    (void)path;
    return NULL;
}

int64_t weft_product_workspace(int64_t k, int64_t n, int64_t *packed) {
    const weft_gemm some = {.dtype = WEFT_FLOAT32, .m = 64, .n = 64, .k = 64};
    *packed = 0;
    if (!own_for(&some)) return 0;
    *packed = (int64_t)sizeof(float) * weft_pieces(k, WEFT_PRODUCT_DEPTH) * WEFT_PRODUCT_DEPTH * weft_product_width(n);
    return weft_threads() * ((SCRATCH + 127) / 64 * 64);
}

typedef struct grid {
    const weft_gemm *g;
    int64_t tile_m, tile_n, rows, columns, group, groups;
    const own_product *own;
    float *packed; // all of op(B), where several rows of tiles read it
    int64_t packed_bytes;
    weft_slots slots;
} grid;

static void tile(void *context, int64_t piece) {
    grid *t = context;
    weft_gemm shifted;
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
    if (i0 >= i1 || j0 >= j1) return;
    if (g->gap_a) {
        shifted = *g;
        shifted.a = (const char *)g->a + group * g->gap_a * weft_dtype_size(g->dtype);
        g = &shifted;
    }
    if (t->own) {
        float *scratch = weft_slots_take(&t->slots), *c = (float *)g->c + batch * g->stride_c;
        if (g->bias) set_bias(g, (char *)(c + i0 * g->ldc + j0), i1 - i0, j0, j1 - j0);
        t->own->product(g, (const float *)g->a + batch * g->stride_a,
                        (const float *)g->b + batch * g->stride_b, t->packed, c, i0, i1, j0, j1,
                        g->bias || g->beta != 0, scratch);
        weft_slots_give(&t->slots, scratch);
    } else {
        product(g, batch, i0, i1 - i0, j0, j1 - j0);
    }
    if (g->after) g->after(g->context, batch, i0, i1, j0, j1);
}

// The grid follows from the shape of one product, or one group of its rows: how many there are in a
// batch does not matter.
static void cut(grid *t, const weft_gemm *g) {
    // bits of product.c's tiles do not depend on how rows are cut
    t->group = (!t->own || g->gap_a) && g->row_group > 0 && g->row_group < g->m ? g->row_group : g->m;
    t->groups = (g->m + t->group - 1) / t->group;
    t->tile_n = g->n < WEFT_TILE_N ? g->n : WEFT_TILE_N;
    int64_t parts = (t->group + TILE_M - 1) / TILE_M;
    const int64_t columns = (g->n + t->tile_n - 1) / t->tile_n;
    // too few tiles to keep several threads busy, and enough work to be worth it
    if (parts * columns < MIN_TILES && t->group * g->n * g->k > 1 << 18) {
        if (g->n >= t->group) {
            const int64_t want = (g->n * parts / MIN_TILES + SMALL_N - 1) / SMALL_N * SMALL_N;
            t->tile_n = want < SMALL_N ? SMALL_N : want;
            if (t->tile_n > g->n) t->tile_n = g->n;
        } else {
            const int64_t want = MIN_TILES / columns, most = t->group / SMALL_N;
            parts = want < most ? want : most > parts ? most : parts;
        }
    }
    t->tile_m = ((t->group + parts - 1) / parts + 15) / 16 * 16;
    if (t->tile_m > t->group) t->tile_m = t->group;
    t->rows = (t->group + t->tile_m - 1) / t->tile_m;
    t->columns = (g->n + t->tile_n - 1) / t->tile_n;
}

static void pack(void *context, int64_t piece) {
    const grid *t = context;
    const int64_t j0 = piece % t->columns * t->tile_n, j1 = j0 + t->tile_n;
    t->own->pack(t->g, t->g->b, piece / t->columns * WEFT_PRODUCT_DEPTH, j0,
                 j1 < t->g->n ? j1 : t->g->n, t->packed);
}

// Scratch memory for product.c, and the right side packed once where each row of tiles would do it again.
static weft_status prepare(grid *t, int64_t pieces) {
    const weft_gemm *g = t->g;
    weft_backend *cpu = weft_backend_of(WEFT_CPU);
    const int64_t depths = weft_pieces(g->k, WEFT_PRODUCT_DEPTH);
    weft_status status = weft_slots_open(&t->slots, cpu, pieces, SCRATCH);
    if (status != WEFT_OK || g->batch > 1 || pieces <= t->columns) return status;
    t->packed_bytes = (int64_t)sizeof(float) * depths * WEFT_PRODUCT_DEPTH * weft_product_width(g->n);
    t->packed = weft_workspace(cpu, t->packed_bytes);
    if (!t->packed) {
        weft_slots_close(&t->slots);
        return WEFT_ENOMEM;
    }
    weft_parallel(depths * t->columns, pack, t);
    return WEFT_OK;
}

weft_status weft_gemm_run(const weft_gemm *g) {
    const int64_t limit = INT32_MAX;
    if (g->m > limit || g->n > limit || g->k > limit || g->lda > limit || g->ldb > limit ||
        g->ldc > limit)
        return weft_fail(WEFT_EINVAL,
                         "a product of [%lld,%lld] x [%lld,%lld] is past BLAS' 32-bit sizes",
                         (long long)g->m, (long long)g->k, (long long)g->k, (long long)g->n);
    blas_single_thread();
    if (g->m <= 0 || g->n <= 0) return WEFT_OK;
    grid t = {.g = g, .own = own_for(g)};
    cut(&t, g);
    const int64_t batches = g->batch > 1 ? g->batch : 1;
    const int64_t pieces = batches * t.groups * t.rows * t.columns;
    if (t.own) {
        weft_status status = prepare(&t, pieces);
        if (status != WEFT_OK) return status;
    }
    weft_parallel(pieces, tile, &t);
    if (t.packed) weft_workspace_free(weft_backend_of(WEFT_CPU), t.packed, t.packed_bytes);
    if (t.own) weft_slots_close(&t.slots);
    return WEFT_OK;
}
