// blas.cu: matrix products through cuBLASLt. Descriptors and the algorithm for a shape are made once
// and kept; the algorithm comes from the library's heuristic, never from timing, and schemes whose
// sums have no fixed order are left out, so a product has the same bits on every run.
#include "cuda/blas.h"
#include <cublasLt.h>
#include <map>
#include <tuple>

#define WORKSPACE ((size_t)32 << 20)    // fixed, one for the device's only stream

struct product_plan {
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t a, b, c;
    cublasLtMatmulAlgo_t algorithm;
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

static cudaDataType_t type_of(int dtype) {
    return dtype == WEFT_FLOAT64 ? CUDA_R_64F : dtype == WEFT_BFLOAT16 ? CUDA_R_16BF : CUDA_R_32F;
}

static weft_status layout(cublasLtMatrixLayout_t *out, int dtype, int64_t rows, int64_t columns, int64_t ld,
                          int64_t batch, int64_t stride) {
    const int32_t count = (int32_t)batch;
    TRY(blas_check(cublasLtMatrixLayoutCreate(out, type_of(dtype), (uint64_t)rows, (uint64_t)columns, ld), "layout"));
    TRY(blas_check(cublasLtMatrixLayoutSetAttribute(*out, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count), "layout"));
    return blas_check(cublasLtMatrixLayoutSetAttribute(*out, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, sizeof stride), "layout");
}

// The library counts columns first: C^T = op(B)^T op(A)^T, so its first matrix is our second.
static weft_status make_plan(cuda_blas *blas, const cuda_gemm *g, product_plan *p) {
    const cublasComputeType_t compute = g->dtype == WEFT_FLOAT64 ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F;
    const cudaDataType_t scale = g->dtype == WEFT_FLOAT64 ? CUDA_R_64F : CUDA_R_32F;
    const cublasOperation_t op_a = g->trans_b ? CUBLAS_OP_T : CUBLAS_OP_N, op_b = g->trans_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    TRY(blas_check(cublasLtMatmulDescCreate(&p->operation, compute, scale), "operation"));
    TRY(blas_check(cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_TRANSA, &op_a, sizeof op_a), "operation"));
    TRY(blas_check(cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_TRANSB, &op_b, sizeof op_b), "operation"));
    if (g->bias) {
        const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
        const cudaDataType_t type = type_of(g->dtype);
        TRY(blas_check(cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue), "bias"));
        TRY(blas_check(cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &type, sizeof type), "bias"));
        TRY(blas_check(cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &g->bias, sizeof g->bias), "bias"));
    }
    TRY(layout(&p->a, g->dtype, g->trans_b ? g->k : g->n, g->trans_b ? g->n : g->k, g->ldb, g->batch, g->stride_b));
    TRY(layout(&p->b, g->dtype, g->trans_a ? g->m : g->k, g->trans_a ? g->k : g->m, g->lda, g->batch, g->stride_a));
    TRY(layout(&p->c, g->dtype, g->n, g->m, g->ldc, g->batch, g->stride_c));
    cublasLtMatmulPreference_t preference;
    const size_t workspace = WORKSPACE;
    // sums in place or in the workspace, combined in a fixed order; atomics have none
    const uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_MASK & ~(uint32_t)CUBLASLT_REDUCTION_SCHEME_INPLACE;
    TRY(blas_check(cublasLtMatmulPreferenceCreate(&preference), "preference"));
    TRY(blas_check(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace), "preference"));
    TRY(blas_check(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes, sizeof schemes), "preference"));
    cublasLtMatmulHeuristicResult_t found;
    int n = 0;
    cublasStatus_t code = cublasLtMatmulAlgoGetHeuristic(blas->handle, p->operation, p->a, p->b, p->c, p->c, preference, 1, &found, &n);
    cublasLtMatmulPreferenceDestroy(preference);
    TRY(blas_check(code, "choosing an algorithm"));
    if (n == 0)
        return weft_fail(WEFT_EUNSUPPORTED, "cuBLASLt has no algorithm for a product of %lld x %lld x %lld",
                         (long long)g->m, (long long)g->n, (long long)g->k);
    p->algorithm = found.algo;
    return WEFT_OK;
}

// Bits that tell how a pointer is aligned, which the algorithm may depend on.
static int alignment(const cuda_gemm *g) {
    return (int)(((uintptr_t)g->a | (uintptr_t)g->b | (uintptr_t)g->c | (uintptr_t)g->bias) & 15);
}

weft_status cuda_product(const weft_call *call, const cuda_gemm *g) {
    cuda_device *d = device_of(call);
    cuda_blas *blas = static_cast<cuda_blas *>(d->blas);
    const product_key key(g->dtype, g->trans_a * 2 + g->trans_b, (g->bias != nullptr) + (g->beta != 0) * 2, g->m, g->n,
                          g->k, g->lda, g->ldb, g->ldc, g->batch, g->stride_a, g->stride_b, g->stride_c, alignment(g));
    auto it = blas->plans.find(key);
    if (it == blas->plans.end()) {
        product_plan p = {};
        TRY(make_plan(blas, g, &p));
        it = blas->plans.emplace(key, p).first;
    }
    const product_plan &p = it->second;
    if (g->bias)
        TRY(blas_check(cublasLtMatmulDescSetAttribute(p.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &g->bias, sizeof g->bias), "bias"));
    const float alpha32 = (float)g->alpha, beta32 = (float)g->beta;
    const bool wide = g->dtype == WEFT_FLOAT64;
    const void *alpha = wide ? (const void *)&g->alpha : &alpha32, *beta = wide ? (const void *)&g->beta : &beta32;
    d->counters.launches++;
    return blas_check(cublasLtMatmul(blas->handle, p.operation, alpha, g->b, p.a, g->a, p.b, beta, g->c, p.c, g->c,
                                     p.c, &p.algorithm, blas->workspace, WORKSPACE, d->stream), "product");
}
