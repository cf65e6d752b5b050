// blas.cu: matrix products through cuBLASLt. Descriptors and the algorithm for a shape are made once
// and kept; the algorithm comes from the library's heuristic, never from timing, and schemes whose
// sums have no fixed order are left out, so a product has the same bits on every run.
#include "cuda/blas.h"
#include <cublasLt.h>
#include <map>
#include <tuple>

#define WORKSPACE ((size_t)32 << 20)    // fixed, one for the device's only stream
#define MOST_PLANS 4096                 // then all are forgotten: shapes that never come back

struct product_plan {
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t a, b, c;
    cublasLtMatmulAlgo_t algorithm;
    bool possible;          // the library has an algorithm
};
typedef std::tuple<int, int, int, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                   int64_t, int> product_key;

struct cuda_blas {
    cublasLtHandle_t handle;
    void *workspace;
    std::map<product_key, product_plan> plans;
};

static weft_status blas_check(cublasStatus_t code, const char *what) {
    if (code == CUBLAS_STATUS_SUCCESS) return WEFT_OK;
    return weft_fail(WEFT_EIO, "cuBLASLt: %s: %s", what, cublasLtGetStatusString(code));
}

weft_status cuda_blas_open(cuda_device *d) {
    cuda_blas *b = new cuda_blas;
    d->blas = b;
    TRY(blas_check(cublasLtCreate(&b->handle), "opening"));
    return cuda_check(cudaMalloc(&b->workspace, WORKSPACE), "workspace of products");
}

static void forget(product_plan *p) {
    if (p->operation) cublasLtMatmulDescDestroy(p->operation);
    if (p->a) cublasLtMatrixLayoutDestroy(p->a);
    if (p->b) cublasLtMatrixLayoutDestroy(p->b);
    if (p->c) cublasLtMatrixLayoutDestroy(p->c);
    *p = {};
}

static cudaDataType_t type_of(int dtype) {
    return dtype == WEFT_FLOAT64 ? CUDA_R_64F : dtype == WEFT_BFLOAT16 ? CUDA_R_16BF : CUDA_R_32F;
}

#define SET(setter, on, attribute, value, what) \
    TRY(blas_check(setter(on, attribute, &(value), sizeof(value)), what))

static weft_status layout(cublasLtMatrixLayout_t *out, int dtype, int64_t rows, int64_t columns, int64_t ld,
                          int64_t batch, int64_t stride) {
    const int32_t count = (int32_t)batch;
    TRY(blas_check(cublasLtMatrixLayoutCreate(out, type_of(dtype), (uint64_t)rows, (uint64_t)columns, ld), "layout"));
    SET(cublasLtMatrixLayoutSetAttribute, *out, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, count, "layout");
    SET(cublasLtMatrixLayoutSetAttribute, *out, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, stride, "layout");
    return WEFT_OK;
}

// The library counts columns first: C^T = op(B)^T op(A)^T, so its first matrix is our second, and its
// bias, one number to a row, is ours, one to a column.
static weft_status describe(const cuda_gemm *g, product_plan *p) {
    const cublasComputeType_t compute = g->dtype == WEFT_FLOAT64 ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F;
    const cudaDataType_t scale = g->dtype == WEFT_FLOAT64 ? CUDA_R_64F : CUDA_R_32F, type = type_of(g->dtype);
    const cublasOperation_t op_a = g->trans_b ? CUBLAS_OP_T : CUBLAS_OP_N, op_b = g->trans_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    TRY(blas_check(cublasLtMatmulDescCreate(&p->operation, compute, scale), "operation"));
    SET(cublasLtMatmulDescSetAttribute, p->operation, CUBLASLT_MATMUL_DESC_TRANSA, op_a, "operation");
    SET(cublasLtMatmulDescSetAttribute, p->operation, CUBLASLT_MATMUL_DESC_TRANSB, op_b, "operation");
    if (g->bias) {
        const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
        SET(cublasLtMatmulDescSetAttribute, p->operation, CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue, "bias");
        SET(cublasLtMatmulDescSetAttribute, p->operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, type, "bias");
        SET(cublasLtMatmulDescSetAttribute, p->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, g->bias, "bias");
    }
    TRY(layout(&p->a, g->dtype, g->trans_b ? g->k : g->n, g->trans_b ? g->n : g->k, g->ldb, g->batch, g->stride_b));
    TRY(layout(&p->b, g->dtype, g->trans_a ? g->m : g->k, g->trans_a ? g->k : g->m, g->lda, g->batch, g->stride_a));
    return layout(&p->c, g->dtype, g->n, g->m, g->ldc, g->batch, g->stride_c);
}

// The largest power of two that an address is a multiple of, up to 256. The library takes 256 for
// granted unless told; leading dims and strides it sees itself.
static uint32_t alignment(const void *p) {
    const uintptr_t a = (uintptr_t)p | 256;
    return (uint32_t)(a & (0 - a));
}

static weft_status constrain(const cuda_gemm *g, cublasLtMatmulPreference_t preference) {
    const uint64_t workspace = WORKSPACE;
    // Parts of a sum go to the workspace in the type they are computed in and are added in a step of
    // their own; sums in place depend on timing, and those in the output's type lose bits.
    const uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    const uint32_t a = alignment(g->b), b = alignment(g->a), c = alignment(g->c);
    SET(cublasLtMatmulPreferenceSetAttribute, preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace, "preference");
    SET(cublasLtMatmulPreferenceSetAttribute, preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, schemes, "preference");
    SET(cublasLtMatmulPreferenceSetAttribute, preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, a, "preference");
    SET(cublasLtMatmulPreferenceSetAttribute, preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, b, "preference");
    SET(cublasLtMatmulPreferenceSetAttribute, preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c, "preference");
    SET(cublasLtMatmulPreferenceSetAttribute, preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, c, "preference");
    return WEFT_OK;
}

static weft_status choose(cuda_blas *blas, const cuda_gemm *g, product_plan *p) {
    cublasLtMatmulPreference_t preference;
    TRY(blas_check(cublasLtMatmulPreferenceCreate(&preference), "preference"));
    cublasLtMatmulHeuristicResult_t found = {};
    int n = 0;
    weft_status status = constrain(g, preference);
    if (status == WEFT_OK) {
        const cublasStatus_t code = cublasLtMatmulAlgoGetHeuristic(blas->handle, p->operation, p->a, p->b, p->c, p->c,
                                                                   preference, 1, &found, &n);
        // "not supported" and "invalid value" both mean that this product is not one of the library's
        if (code != CUBLAS_STATUS_NOT_SUPPORTED && code != CUBLAS_STATUS_INVALID_VALUE)
            status = blas_check(code, "choosing an algorithm");
        else n = 0;
    }
    cublasLtMatmulPreferenceDestroy(preference);
    p->possible = n > 0 && found.state == CUBLAS_STATUS_SUCCESS;
    p->algorithm = found.algo;
    return status;
}

static weft_status find_plan(cuda_blas *blas, const cuda_gemm *g, product_plan **out) {
    const int where = (int)(alignment(g->a) << 20 | alignment(g->b) << 10 | alignment(g->c));
    const product_key key(g->dtype, g->trans_a * 2 + g->trans_b, g->bias != nullptr, g->m, g->n, g->k, g->lda, g->ldb,
                          g->ldc, g->batch, g->stride_a, g->stride_b, g->stride_c, where);
    auto it = blas->plans.find(key);
    if (it == blas->plans.end()) {
        product_plan p = {};
        weft_status status = describe(g, &p);
        if (status == WEFT_OK) status = choose(blas, g, &p);
        if (status != WEFT_OK) {
            forget(&p);
            return status;
        }
        if (blas->plans.size() >= MOST_PLANS) {
            for (auto &old : blas->plans) forget(&old.second);
            blas->plans.clear();
        }
        it = blas->plans.emplace(key, p).first;
    }
    *out = &it->second;
    return WEFT_OK;
}

weft_status cuda_blas_product(const weft_call *call, const cuda_gemm *g, bool *done) {
    cuda_device *d = device_of(call);
    cuda_blas *blas = static_cast<cuda_blas *>(d->blas);
    product_plan *p;
    *done = false;
    TRY(find_plan(blas, g, &p));
    if (!p->possible) return WEFT_OK;
    if (g->bias) SET(cublasLtMatmulDescSetAttribute, p->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, g->bias, "bias");
    const float alpha32 = (float)g->alpha, beta32 = (float)g->beta;
    const bool wide = g->dtype == WEFT_FLOAT64;
    const void *alpha = wide ? (const void *)&g->alpha : &alpha32, *beta = wide ? (const void *)&g->beta : &beta32;
    const cublasStatus_t code = cublasLtMatmul(blas->handle, p->operation, alpha, g->b, p->a, g->a, p->b, beta, g->c,
                                               p->c, g->c, p->c, &p->algorithm, blas->workspace, WORKSPACE, d->stream);
    if (code == CUBLAS_STATUS_NOT_SUPPORTED || code == CUBLAS_STATUS_INVALID_VALUE) {   // said before anything starts
        p->possible = false;
        return WEFT_OK;
    }
    TRY(blas_check(code, "product"));
    d->counters.launches++;
    *done = true;
    return WEFT_OK;
}
