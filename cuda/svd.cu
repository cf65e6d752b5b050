// svd.cu: singular value decomposition by one-sided Jacobi rotations, a block to each matrix: pairs of
// columns are turned until all are orthogonal; their lengths are the singular values.
#include "cuda/linalg.h"

#define SWEEPS 60
#define EPSILON 2.220446049250313e-16

// The tall one of x and its transpose is factored: rows >= columns. By columns, as all of these.
struct factors {
    int64_t rows, columns;
    double *left, *right;       // [columns, rows], [columns, columns]
    double *size;               // [columns] lengths
    int64_t *order;             // [columns] which column comes at a place, largest first
    double least;               // lengths below are rounding errors
};

// A warp turns columns p and q of both sides; false where they are orthogonal already.
DEVICE bool turn(const factors &f, int64_t p, int64_t q) {
    double *a = f.left + p * f.rows, *b = f.left + q * f.rows, *v = f.right + p * f.columns, *w = f.right + q * f.columns;
    double aa = 0, bb = 0, ab = 0;
    for (int64_t r = LANE; r < f.rows; r += 32) {
        aa += a[r] * a[r];
        bb += b[r] * b[r];
        ab += a[r] * b[r];
    }
    aa = warp_sum(aa);
    bb = warp_sum(bb);
    ab = warp_sum(ab);
    const double least = f.least * f.least;
    if (aa <= least || bb <= least || fabs(ab) <= EPSILON * sqrt((double)f.rows) * sqrt(aa) * sqrt(bb)) return false;
    const double zeta = (bb - aa) / (2 * ab), t = (zeta >= 0 ? 1 : -1) / (fabs(zeta) + sqrt(1 + zeta * zeta));
    const double c = 1 / sqrt(1 + t * t), s = c * t;
    for (int64_t r = LANE; r < f.rows; r += 32) {
        const double x = a[r], y = b[r];
        a[r] = c * x - s * y;
        b[r] = s * x + c * y;
    }
    for (int64_t r = LANE; r < f.columns; r += 32) {
        const double x = v[r], y = w[r];
        v[r] = c * x - s * y;
        w[r] = s * x + c * y;
    }
    return true;
}

// Every pair once, in rounds of a tournament so that the pairs of a round share no column.
DEVICE bool sweep(const factors &f) {
    SHARED(int, turned, [1]);
    const int64_t players = f.columns + (f.columns & 1), others = players - 1;
    __syncthreads();
    if (threadIdx.x == 0) turned[0] = 0;
    __syncthreads();
    for (int64_t round = 0; round < others; round++) {
        for (int64_t i = WARP; i < players / 2; i += WARPS) {
            const int64_t p = i == 0 ? others : (round + i) % others, q = (round + others - i) % others;
            if (p >= f.columns || q >= f.columns) continue;
            if (turn(f, p < q ? p : q, p < q ? q : p) && LANE == 0) turned[0] = 1;
        }
        __syncthreads();
    }
    return turned[0] != 0;
}

DEVICE void measure(const factors &f) {
    for (int64_t c = WARP; c < f.columns; c += WARPS) {
        const double *a = f.left + c * f.rows;
        double sum = 0;
        for (int64_t r = LANE; r < f.rows; r += 32) sum += a[r] * a[r];
        sum = sqrt(warp_sum(sum));
        if (LANE == 0) f.size[c] = sum;
    }
    __syncthreads();
    for (int64_t c = threadIdx.x; c < f.columns; c += blockDim.x) {
        int64_t place = 0;
        for (int64_t k = 0; k < f.columns; k++) place += f.size[k] > f.size[c] || (f.size[k] == f.size[c] && k < c);
        f.order[place] = c;
    }
    for (int64_t c = WARP; c < f.columns; c += WARPS)
        if (f.size[c] > f.least)
            for (int64_t r = LANE; r < f.rows; r += 32) f.left[c * f.rows + r] /= f.size[c];
    __syncthreads();
}

struct lower_op { DEVICE int64_t operator()(int64_t a, int64_t b) const { return a < b ? a : b; } };

// Columns of no length become unit vectors orthogonal to all before them: what is left of the axis
// that lies furthest out of their span.
DEVICE void complete(const factors &f) {
    for (int64_t place = 0; place < f.columns; place++) {
        double *x = f.left + f.order[place] * f.rows;
        if (f.size[f.order[place]] > f.least) continue;
        double far = -1;
        int64_t axis = f.rows;
        for (int64_t r = threadIdx.x; r < f.rows; r += blockDim.x) {
            double out = 1;
            for (int64_t k = 0; k < place; k++) {
                const double v = f.left[f.order[k] * f.rows + r];
                out -= v * v;
            }
            if (out > far) far = out, axis = r;
        }
        const double furthest = block_max(far);
        axis = block_reduce(far == furthest ? axis : f.rows, lower_op(), f.rows);
        __syncthreads();
        for (int64_t r = threadIdx.x; r < f.rows; r += blockDim.x) x[r] = r == axis;
        for (int again = 0; again < 2; again++)
            for (int64_t k = 0; k < place; k++) {
                const double *v = f.left + f.order[k] * f.rows;
                double dot = 0;
                for (int64_t r = threadIdx.x; r < f.rows; r += blockDim.x) dot += v[r] * x[r];
                dot = block_sum(dot);
                for (int64_t r = threadIdx.x; r < f.rows; r += blockDim.x) x[r] -= dot * v[r];
            }
        double sum = 0;
        for (int64_t r = threadIdx.x; r < f.rows; r += blockDim.x) sum += x[r] * x[r];
        sum = sqrt(block_sum(sum));
        for (int64_t r = threadIdx.x; r < f.rows; r += blockDim.x) x[r] /= sum;
        __syncthreads();
    }
}

// -1 where the largest entry of x (the first of equals) is negative, for a warp
DEVICE double sign_of(const double *x, int64_t n) {
    double most = -1;
    int64_t where = n;
    for (int64_t r = LANE; r < n; r += 32)
        if (fabs(x[r]) > most) most = fabs(x[r]), where = r;
    const double largest = warp_max(most);
    where = warp_reduce(most == largest ? where : n, lower_op());
    return where < n && x[where] < 0 ? -1 : 1;
}

template <class T> __global__ void __launch_bounds__(MATRIX_THREADS) svd_kernel(const matrices t) {
    if (*t.found != NOTHING) return;
    const int64_t m = t.m, n = t.n, k = m < n ? m : n, i = t.first + blockIdx.x;
    const bool wide = m < n;
    const T *x = static_cast<const T *>(t.in[0]) + i * m * n;
    T *u = static_cast<T *>(t.out[0]) + i * m * k, *s = static_cast<T *>(t.out[1]) + i * k, *vh = static_cast<T *>(t.out[2]) + i * k * n;
    factors f;
    f.rows = wide ? n : m, f.columns = k;
    f.left = t.work + (int64_t)blockIdx.x * t.stretch;
    f.right = f.left + f.rows * k;
    f.size = f.right + k * k;
    f.order = reinterpret_cast<int64_t *>(f.size + k);
    const double scale = scale_of(x, m * n);
    double sum = 0;
    for (int64_t e = threadIdx.x; e < m * n; e += blockDim.x) {
        const double v = (double)x[e] * scale;
        f.left[wide ? e : e % n * m + e / n] = v;
        sum += v * v;
    }
    f.least = EPSILON * sqrt(block_sum(sum));
    for (int64_t e = threadIdx.x; e < k * k; e += blockDim.x) f.right[e] = e / k == e % k;
    __syncthreads();
    int sweeps = 0;
    while (sweep(f))
        if (++sweeps == SWEEPS) {
            if (threadIdx.x == 0) fails(t, i, 0);
            return;
        }
    measure(f);
    complete(f);
    for (int64_t place = WARP; place < k; place += WARPS) {
        const int64_t c = f.order[place];
        const double *left = f.left + c * f.rows, *right = f.right + c * k;
        const double sign = wide ? sign_of(right, k) : sign_of(left, f.rows);
        for (int64_t r = LANE; r < f.rows; r += 32) {
            const T v = (T)(sign * left[r]);
            if (wide) vh[place * n + r] = v;
            else u[r * k + place] = v;
        }
        for (int64_t r = LANE; r < k; r += 32) {
            const T v = (T)(sign * right[r]);
            if (wide) u[r * k + place] = v;
            else vh[place * n + r] = v;
        }
        if (LANE == 0) s[place] = (T)(f.size[c] / scale);
    }
}

CUDA_KERNEL(svd) {
    const weft_view *x = call->in[0];
    const int64_t m = x->shape[x->ndim - 2], n = x->shape[x->ndim - 1], k = m < n ? m : n;
    return decompose(call, OP_svd, FAULT_CONVERGENCE, m, n, (m + n) * k + 2 * k, [&](auto tag, const matrices &t, unsigned blocks) {
        return LAUNCH(call, svd_kernel<TYPE_OF(tag)>, blocks, threads_for(m < n ? n : m, k), 0, t);
    });
}
