// blas.h: matrix products, the one door that other kernel files go through: cuda_product
// (product.cu). Behind it are cuBLASLt on a GPU (blas.cu), plain loops in tests
// (tests/cuda_on_cpu/blas.cpp), and a kernel of our own for what neither takes.
#ifndef WEFT_CUDA_BLAS_H
#define WEFT_CUDA_BLAS_H

#include "cuda/device.h"

// C = alpha op(A) op(B) + beta C (+ bias), row-major, `batch` times; op transposes where asked.
// A is [m, k] ([k, m] when trans_a), B [k, n] ([n, k] when trans_b), C [m, n], bias [n] or NULL.
// lda, ldb, ldc are elements from row to row, at least a row's length; strides elements from product
// to product, 0 to use one matrix again (not C). Any size may be 0; with beta 0 C is not read.
// float32 is computed in float32 (no tf32), bfloat16 adds up in float32.
struct cuda_gemm {
    int32_t dtype;
    bool trans_a, trans_b;
    int64_t m, n, k, lda, ldb, ldc, batch, stride_a, stride_b, stride_c;
    double alpha, beta;
    const void *a, *b, *bias;
    void *c;
};
weft_status cuda_product(const weft_call *call, const cuda_gemm *g);

// --- the provider
// No size is 0, m and batch fit its limits, bias is aligned to 16 bytes. *done: false where it has
// no algorithm for this product, and nothing was started.
weft_status cuda_blas_product(const weft_call *call, const cuda_gemm *g, bool *done);
weft_status cuda_blas_open(cuda_device *d);

#endif
