// linalg.cu: decompositions and systems, a block to each matrix of the batch, all in double whatever
// the dtype. The svd is in svd.cu.
#include "cuda/block.h"
#include "cuda/linalg.h"

// --- qr by Householder's reflections. Scratch: x by columns, q by columns, tau. A warp to a column.
template <class T> __global__ void __launch_bounds__(MATRIX_THREADS) qr_kernel(const matrices t) {
    if (*t.found != NOTHING) return;
    const int64_t m = t.m, n = t.n, k = m < n ? m : n, i = t.first + blockIdx.x;
    const T *x = static_cast<const T *>(t.in[0]) + i * m * n;
    T *q_out = static_cast<T *>(t.out[0]) + i * m * k, *r_out = static_cast<T *>(t.out[1]) + i * k * n;
    double *a = t.work + (int64_t)blockIdx.x * t.stretch, *q = a + m * n, *tau = q + m * k;
    const double scale = scale_of(x, m * n);
    for (int64_t e = threadIdx.x; e < m * n; e += blockDim.x) a[e % n * m + e / n] = (double)x[e] * scale;
    for (int64_t e = threadIdx.x; e < m * k; e += blockDim.x) q[e] = e % m == e / m;
    __syncthreads();
    for (int64_t j = 0; j < k; j++) {
        double *v = a + j * m, part = 0;
        const double alpha = v[j];
        for (int64_t r = j + 1 + threadIdx.x; r < m; r += blockDim.x) part += v[r] * v[r];
        const double rest = block_sum(part);
        __syncthreads();            // alpha is read
        if (rest > 0) {
            const double beta = -copysign(sqrt(alpha * alpha + rest), alpha);
            for (int64_t r = j + 1 + threadIdx.x; r < m; r += blockDim.x) v[r] /= alpha - beta;
            if (threadIdx.x == 0) {
                v[j] = beta;
                tau[j] = (beta - alpha) / beta;
            }
        } else if (threadIdx.x == 0) tau[j] = 0;
        __syncthreads();
        for (int64_t c = j + 1 + WARP; c < n; c += WARPS) reflect(v, tau[j], j, m, a + c * m);
        __syncthreads();
    }
    for (int64_t c = WARP; c < k; c += WARPS)
        for (int64_t j = c; j >= 0; j--) reflect(a + j * m, tau[j], j, m, q + c * m);
    __syncthreads();
    for (int64_t e = threadIdx.x; e < k * n; e += blockDim.x) {
        const int64_t row = e / n, c = e - row * n;
        const double v = c < row ? 0 : a[c * m + row] / scale;
        r_out[e] = (T)(c >= row && a[row * m + row] < 0 ? -v : v);
    }
    for (int64_t e = threadIdx.x; e < m * k; e += blockDim.x) {
        const int64_t row = e / k, c = e - row * k;
        q_out[e] = (T)(a[c * m + c] < 0 ? -q[c * m + row] : q[c * m + row]);
    }
}

// --- cholesky. Scratch: the factor, and its column of the moment. A warp to a row.
template <class T> __global__ void __launch_bounds__(MATRIX_THREADS) cholesky_kernel(const matrices t) {
    if (*t.found != NOTHING) return;
    const int64_t n = t.n, i = t.first + blockIdx.x;
    const T *x = static_cast<const T *>(t.in[0]) + i * n * n;
    T *y = static_cast<T *>(t.out[0]) + i * n * n;
    double *a = t.work + (int64_t)blockIdx.x * t.stretch, *column = a + n * n;
    for (int64_t e = threadIdx.x; e < n * n; e += blockDim.x) a[e] = 0.5 * ((double)x[e] + (double)x[e % n * n + e / n]);
    __syncthreads();
    for (int64_t j = 0; j < n; j++) {
        const double d = a[j * n + j];
        if (!(d > 0)) {
            if (threadIdx.x == 0) fails(t, i, j + 1);
            return;
        }
        const double root = sqrt(d);
        for (int64_t r = j + 1 + threadIdx.x; r < n; r += blockDim.x) column[r] = a[r * n + j] / root;
        __syncthreads();
        if (threadIdx.x == 0) a[j * n + j] = root;
        for (int64_t r = j + 1 + WARP; r < n; r += WARPS) {
            const double f = column[r];
            if (LANE == 0) a[r * n + j] = f;
            for (int64_t c = j + 1 + LANE; c <= r; c += 32) a[r * n + c] -= f * column[c];
        }
        __syncthreads();
    }
    for (int64_t e = threadIdx.x; e < n * n; e += blockDim.x) y[e] = (T)(e % n > e / n ? 0 : a[e]);
}

// --- solve by elimination with partial pivoting. Scratch: a, b, the factors of a step. A warp to a row.
struct first_op { DEVICE int64_t operator()(int64_t a, int64_t b) const { return a < b ? a : b; } };

template <class T> __global__ void __launch_bounds__(MATRIX_THREADS) solve_kernel(const matrices t) {
    if (*t.found != NOTHING) return;
    const int64_t n = t.m, k = t.n, i = t.first + blockIdx.x;
    const T *from_a = static_cast<const T *>(t.in[0]) + i * n * n, *from_b = static_cast<const T *>(t.in[1]) + i * n * k;
    T *x = static_cast<T *>(t.out[0]) + i * n * k;
    double *a = t.work + (int64_t)blockIdx.x * t.stretch, *b = a + n * n, *factor = b + n * k;
    for (int64_t e = threadIdx.x; e < n * n; e += blockDim.x) a[e] = (double)from_a[e];
    for (int64_t e = threadIdx.x; e < n * k; e += blockDim.x) b[e] = (double)from_b[e];
    __syncthreads();
    for (int64_t p = 0; p < n; p++) {
        double largest = 0;
        int64_t pivot = n;
        for (int64_t r = p + threadIdx.x; r < n; r += blockDim.x) {
            const double v = fabs(a[r * n + p]);
            if (v > largest || v != v) largest = v, pivot = r;
        }
        const double most = block_max(largest);
        pivot = block_reduce(largest == most ? pivot : n, first_op(), n);
        if (!(most > 0) || pivot == n) {
            if (threadIdx.x == 0) fails(t, i, p + 1);
            return;
        }
        __syncthreads();
        if (pivot != p) {
            for (int64_t c = p + threadIdx.x; c < n; c += blockDim.x) {
                const double v = a[p * n + c];
                a[p * n + c] = a[pivot * n + c];
                a[pivot * n + c] = v;
            }
            for (int64_t c = threadIdx.x; c < k; c += blockDim.x) {
                const double v = b[p * k + c];
                b[p * k + c] = b[pivot * k + c];
                b[pivot * k + c] = v;
            }
        }
        __syncthreads();
        for (int64_t r = p + 1 + threadIdx.x; r < n; r += blockDim.x) factor[r] = a[r * n + p] / a[p * n + p];
        __syncthreads();
        for (int64_t r = p + 1 + WARP; r < n; r += WARPS) {
            const double f = factor[r];
            for (int64_t c = p + 1 + LANE; c < n; c += 32) a[r * n + c] -= f * a[p * n + c];
            for (int64_t c = LANE; c < k; c += 32) b[r * k + c] -= f * b[p * k + c];
        }
        __syncthreads();
    }
    for (int64_t p = n - 1; p >= 0; p--) {
        for (int64_t c = threadIdx.x; c < k; c += blockDim.x) b[p * k + c] /= a[p * n + p];
        __syncthreads();
        for (int64_t e = threadIdx.x; e < p * k; e += blockDim.x) b[e] -= a[e / k * n + p] * b[p * k + e % k];
        __syncthreads();
    }
    for (int64_t e = threadIdx.x; e < n * k; e += blockDim.x) x[e] = (T)b[e];
}

CUDA_KERNEL(qr) {
    const weft_view *x = call->in[0];
    const int64_t m = x->shape[x->ndim - 2], n = x->shape[x->ndim - 1], k = m < n ? m : n;
    return decompose(call, OP_qr, FAULT_CONVERGENCE, m, n, m * n + m * k + k, [&](auto tag, const matrices &t, unsigned blocks) {
        return LAUNCH(call, qr_kernel<TYPE_OF(tag)>, blocks, threads_for(m, n), 0, t);
    });
}

CUDA_KERNEL(cholesky) {
    const weft_view *x = call->in[0];
    const int64_t n = x->shape[x->ndim - 1];
    return decompose(call, OP_cholesky, FAULT_INDEFINITE, n, n, n * n + n, [&](auto tag, const matrices &t, unsigned blocks) {
        return LAUNCH(call, cholesky_kernel<TYPE_OF(tag)>, blocks, threads_for(n, n), 0, t);
    });
}

CUDA_KERNEL(solve) {
    const weft_view *b = call->in[1];
    const int64_t n = b->shape[b->ndim - 2], k = b->shape[b->ndim - 1];
    return decompose(call, OP_solve, FAULT_SINGULAR, n, k, n * n + n * k + n, [&](auto tag, const matrices &t, unsigned blocks) {
        return LAUNCH(call, solve_kernel<TYPE_OF(tag)>, blocks, threads_for(n, n), 0, t);
    });
}
