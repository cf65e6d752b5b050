// blas.cpp: products for the simulated GPU, by the definition, summed in double. WEFT_SIM_REFUSE=all
// (or =bias): it takes none of them (none with a bias), as happens with cuBLASLt, and cuda/product.cu
// has to do without.
#include "cuda/blas.h"
#include <cstdlib>
#include <cstring>
#include <vector>

weft_status cuda_blas_open(cuda_device *d) {
    d->blas = nullptr;
    sim::watch_allocations(&d->base);
    return WEFT_OK;
}

template <class T> static void product(const cuda_gemm *g, const T *a, const T *b, const T *bias, T *c) {
    std::vector<double> row((size_t)g->n);
    for (int64_t i = 0; i < g->m; i++) {
        for (int64_t j = 0; j < g->n; j++) row[(size_t)j] = 0;
        for (int64_t l = 0; l < g->k; l++) {
            const double x = (double)widen<T>(g->trans_a ? a[l * g->lda + i] : a[i * g->lda + l]);
            if (g->trans_b)
                for (int64_t j = 0; j < g->n; j++) row[(size_t)j] += x * (double)widen<T>(b[j * g->ldb + l]);
            else
                for (int64_t j = 0; j < g->n; j++) row[(size_t)j] += x * (double)widen<T>(b[l * g->ldb + j]);
        }
        for (int64_t j = 0; j < g->n; j++) {
            double v = g->alpha * row[(size_t)j];
            if (g->beta != 0) v += g->beta * (double)widen<T>(c[i * g->ldc + j]);
            if (bias) v += (double)widen<T>(bias[j]);
            c[i * g->ldc + j] = narrow<T>((wide_t<T>)v);
        }
    }
}

weft_status cuda_blas_product(const weft_call *call, const cuda_gemm *g, bool *done) {
    const char *refuse = std::getenv("WEFT_SIM_REFUSE");
    *done = !(refuse && (!std::strcmp(refuse, "all") || (!std::strcmp(refuse, "bias") && g->bias)));
    if (!*done) return WEFT_OK;
    if (g->m < 1 || g->n < 1 || g->k < 1 || g->batch < 1 || g->batch > 65535 || g->m > 1 << 20)
        sim::fail("a product of %lld x %lld x %lld, %lld times, is not for the library", (long long)g->m, (long long)g->n,
                  (long long)g->k, (long long)g->batch);
    if (g->lda < (g->trans_a ? g->m : g->k) || g->ldb < (g->trans_b ? g->k : g->n) || g->ldc < g->n)
        sim::fail("rows of a product overlap: %lld, %lld, %lld", (long long)g->lda, (long long)g->ldb, (long long)g->ldc);
    if ((uintptr_t)g->bias % 16) sim::fail("a product's bias is not aligned");
    device_of(call)->counters.launches++;
    return with_float(g->dtype, [&](auto tag) -> weft_status {
        using T = TYPE_OF(tag);
        const int64_t of_a = g->m * g->k * (g->stride_a ? g->batch : 1), of_b = g->k * g->n * (g->stride_b ? g->batch : 1);
        const int64_t of_c = g->m * g->n * g->batch, size = (int64_t)sizeof(T);
        const T *a = (const T *)sim::to_host(g->a, "product"), *b = (const T *)sim::to_host(g->b, "product");
        T *c = (T *)sim::to_host(g->c, "product");
        const T *bias = (const T *)sim::to_host(g->bias, "product");
        sim::in_stream([=, g = *g]() {
            sim::launched("product", size * (of_a + of_b + (g.beta != 0 ? of_c : 0) + (g.bias ? g.n : 0)), size * of_c);
            for (int64_t i = 0; !sim::dry && i < g.batch; i++)
                product<T>(&g, a + i * g.stride_a, b + i * g.stride_b, bias, c + i * g.stride_c);
        });
        return WEFT_OK;
    });
}
