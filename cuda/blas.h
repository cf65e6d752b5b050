// blas.h: matrix products, the one provider that other kernel files call. cuBLASLt on a GPU
// (blas.cu); a plain loop in tests (tests/cuda_on_cpu/blas.cpp).
#ifndef WEFT_CUDA_BLAS_H
#define WEFT_CUDA_BLAS_H

#include "cuda/device.h"

// C = alpha op(A) op(B) + beta C (+ bias), row-major, `batch` times; op transposes where asked.
// A is [m, k] ([k, m] when trans_a), B [k, n] ([n, k] when trans_b), C [m, n], bias [n] or NULL.
// lda, ldb, ldc are elements from row to row; strides elements from product to product, 0 to use
// one matrix again. float32 is computed in float32 (no tf32), bfloat16 adds up in float32.
struct cuda_gemm {
    int32_t dtype;
    bool trans_a, trans_b;
    int64_t m, n, k, lda, ldb, ldc, batch, stride_a, stride_b, stride_c;
    double alpha, beta;
    const void *a, *b, *bias;
    void *c;
};
weft_status cuda_product(const weft_call *call, const cuda_gemm *g);
weft_status cuda_blas_open(cuda_device *d);

#endif
