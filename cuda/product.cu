// product.cu: cuda_product. Products that are empty or beyond a library's limits, and a plain kernel
// for those that it has no algorithm for.
#include "cuda/blas.h"
#include "cuda/calls.h"

#define TILE 64
#define DEPTH 16
#define ROWS_AT_ONCE ((int64_t)1 << 20)     // libraries count rows and products in 16-bit grids
#define BATCH_AT_ONCE 65535

struct plain_product {
    const void *a, *b, *bias;
    void *c;
    int64_t m, n, k, a_row, a_column, b_row, b_column, ldc, batch, stride_a, stride_b, stride_c;
    double alpha, beta;
    template <class V> void visit(V &v) {
        v(a), v(b), v(bias);
        if (beta != 0) v.adds_to(c);
        else v(c);
    }
};

// A tile of C to a block, 4 x 4 numbers to a thread.
template <class T> __global__ void __launch_bounds__(256) plain_kernel(const plain_product p) {
    typedef wide_t<T> W;
    SHARED(W, left, [DEPTH][TILE + 1]);
    SHARED(W, right, [DEPTH][TILE + 1]);
    const int64_t across = (p.n + TILE - 1) / TILE, tiles = across * ((p.m + TILE - 1) / TILE);
    const int x = (int)threadIdx.x & 15, y = (int)threadIdx.x >> 4;
    for (int64_t at = blockIdx.x; at < tiles * p.batch; at += gridDim.x) {
        const int64_t product = at / tiles, tile = at - product * tiles;
        const int64_t i0 = tile / across * TILE, j0 = tile % across * TILE;
        const T *a = static_cast<const T *>(p.a) + product * p.stride_a;
        const T *b = static_cast<const T *>(p.b) + product * p.stride_b;
        W sum[4][4];
        for (int r = 0; r < 4; r++)
            for (int s = 0; s < 4; s++) sum[r][s] = 0;
        for (int64_t k0 = 0; k0 < p.k; k0 += DEPTH) {
            __syncthreads();
            for (int e = (int)threadIdx.x; e < TILE * DEPTH; e += 256) {    // neighbours read neighbours
                int i = e % TILE, k = e / TILE;
                if (p.a_column == 1) i = e / DEPTH, k = e % DEPTH;
                left[k][i] = i0 + i < p.m && k0 + k < p.k ? widen<T>(a[(i0 + i) * p.a_row + (k0 + k) * p.a_column]) : (W)0;
                int j = e % TILE, l = e / TILE;
                if (p.b_column != 1) j = e / DEPTH, l = e % DEPTH;
                right[l][j] = j0 + j < p.n && k0 + l < p.k ? widen<T>(b[(k0 + l) * p.b_row + (j0 + j) * p.b_column]) : (W)0;
            }
            __syncthreads();
            for (int k = 0; k < DEPTH; k++)
                for (int r = 0; r < 4; r++)
                    for (int s = 0; s < 4; s++) sum[r][s] += left[k][y + 16 * r] * right[k][x + 16 * s];
        }
        for (int r = 0; r < 4; r++)
            for (int s = 0; s < 4; s++) {
                const int64_t i = i0 + y + 16 * r, j = j0 + x + 16 * s;
                if (i >= p.m || j >= p.n) continue;
                T *c = static_cast<T *>(p.c) + product * p.stride_c + i * p.ldc + j;
                W v = (W)p.alpha * sum[r][s];
                if (p.beta != 0) v += (W)p.beta * widen<T>(*c);
                if (p.bias) v += widen<T>(static_cast<const T *>(p.bias)[j]);
                *c = narrow<T>(v);
            }
    }
}

static weft_status plain(const weft_call *call, const cuda_gemm *g) {
    plain_product p = {};
    p.a = g->a, p.b = g->b, p.bias = g->bias, p.c = g->c;
    p.m = g->m, p.n = g->n, p.k = g->k, p.ldc = g->ldc;
    p.a_row = g->trans_a ? 1 : g->lda, p.a_column = g->trans_a ? g->lda : 1;
    p.b_row = g->trans_b ? 1 : g->ldb, p.b_column = g->trans_b ? g->ldb : 1;
    p.batch = g->batch, p.stride_a = g->stride_a, p.stride_b = g->stride_b, p.stride_c = g->stride_c;
    p.alpha = g->alpha, p.beta = g->beta;
    const int64_t blocks = ceil_div(g->m, TILE) * ceil_div(g->n, TILE) * g->batch;
    return with_float(g->dtype, [&](auto tag) {
        return LAUNCH(call, plain_kernel<TYPE_OF(tag)>, blocks_for(blocks, 1), 256, 0, p);
    });
}

static const void *moved(const void *p, int64_t elements, int64_t size) {
    return static_cast<const char *>(p) + elements * size;
}

// The bias in every row of C
static weft_status spread_bias(const weft_call *call, const cuda_gemm *g) {
    const int64_t shape[3] = { g->batch, g->m, g->n }, strides[3] = { g->stride_c, g->ldc, 1 };
    weft_view c = {}, bias = {};
    c.dtype = bias.dtype = g->dtype;
    c.ndim = bias.ndim = 3;
    c.numel = bias.numel = g->batch * g->m * g->n;
    for (int d = 0; d < 3; d++) {
        c.shape[d] = bias.shape[d] = shape[d];
        c.stride[d] = strides[d];
    }
    bias.stride[2] = 1;
    c.data = g->c;
    bias.data = const_cast<void *>(g->bias);
    return cuda_copy(call, &c, &bias);
}

static weft_status within_limits(const weft_call *call, const cuda_gemm *g) {
    bool done = false;
    if (g->k == 0) return plain(call, g);
    TRY(cuda_blas_product(call, g, &done));
    if (done) return WEFT_OK;
    if (g->bias && g->beta == 0) {      // libraries know fewer products with a bias than without
        cuda_gemm onto = *g;
        TRY(spread_bias(call, g));
        onto.bias = nullptr;
        onto.beta = 1;
        return within_limits(call, &onto);
    }
    return plain(call, g);
}

static weft_status in_pieces(const weft_call *call, const cuda_gemm *g) {
    const int64_t size = cuda_host->dtype_size(g->dtype);
    cuda_gemm part = *g;
    for (int64_t first = 0; first < g->batch; first += BATCH_AT_ONCE) {
        part.batch = g->batch - first < BATCH_AT_ONCE ? g->batch - first : BATCH_AT_ONCE;
        for (int64_t row = 0; row < g->m; row += ROWS_AT_ONCE) {
            part.m = g->m - row < ROWS_AT_ONCE ? g->m - row : ROWS_AT_ONCE;
            part.a = moved(g->a, first * g->stride_a + (g->trans_a ? row : row * g->lda), size);
            part.b = moved(g->b, first * g->stride_b, size);
            part.c = const_cast<void *>(moved(g->c, first * g->stride_c + row * g->ldc, size));
            TRY(within_limits(call, &part));
        }
    }
    return WEFT_OK;
}

weft_status cuda_product(const weft_call *call, const cuda_gemm *g) {
    if (g->m == 0 || g->n == 0 || g->batch == 0) return WEFT_OK;
    if (!g->bias || (uintptr_t)g->bias % 16 == 0) return in_pieces(call, g);
    // libraries load a bias 16 bytes at a time and do not look first
    const int64_t nbytes = g->n * cuda_host->dtype_size(g->dtype);
    scratch aligned(call, nbytes);
    if (!aligned.data) return WEFT_ENOMEM;
    TRY(cuda_check(cudaMemcpyAsync(aligned.data, g->bias, (size_t)nbytes, cudaMemcpyDeviceToDevice, stream_of(call)), "bias"));
    cuda_gemm with = *g;
    with.bias = aligned.data;
    return in_pieces(call, &with);
}
