// attention.cu: scaled dot-product attention and its gradient for every float dtype, and rotary
// positions. Queries and keys meet in tiles in shared memory; the matrix of scores never exists.
// bfloat16 with heads up to 128 goes to the tensor cores of attention_bf16.cu.
#include "cuda/attention.h"
#include "cuda/draws.h"
#include "cuda/block.h"
#include "cuda/each.h"

// A block is 16 x 16 threads over a tile of 16 R rows and 16 C columns of scores. Thread (x, y) has
// rows y + 16 r and columns x + 16 c, so a row lies in half a warp. The rows of accumulators
// [rows, D] are the same, their columns (16 k + x) * W .. + W. Queries, keys and so on lie in shared
// memory as rows of LD numbers, padded so that 16 bytes of 8 neighbouring rows fall on 32 banks, and
// with zeros beyond D and beyond the last row.
//
// Bound, float32 at D = 64: forward 4 N M D operations a head against (2 N + 2 M) D 4 bytes: at
// N = M = 257 that is 32 operations a byte, so arithmetic decides. Of shared memory a warp reads
// 12 wavefronts for 64 multiply-adds, three quarters of the time that those take.
// Shared memory: 50 KB forward (4 blocks to an H100, 3 to an A100), 85 KB backward (2 and 1).
#define ATTENTION_THREADS 256

template <class T_, int V_, int R_, int C_> struct tiling {
    typedef T_ T;
    typedef wide_t<T_> W;
    enum { V = V_, R = R_, C = C_, ROWS = 16 * R_, COLUMNS = 16 * C_, DP = 16 * V_, LD = DP + 4, LP = COLUMNS + 4,
           WIDTH = V_ < 4 ? V_ : 4, BLOCKS = V_ > 8 || sizeof(wide_t<T_>) > 4 ? 1 : 2 };
};

// rows [0, n) of D numbers, `step` and `inner` elements apart
template <class S, int ROWS>
DEVICE void load_tile(typename S::W *to, const typename S::T *from, int64_t step, int64_t inner, int64_t n, int64_t d) {
    for (int k = (int)threadIdx.x; k < ROWS * S::DP; k += ATTENTION_THREADS) {
        const int row = k / S::DP, c = k % S::DP;
        to[row * S::LD + c] = row < n && c < d ? widen<typename S::T>(from[row * step + c * inner]) : (typename S::W)0;
    }
}
template <class S, int ROWS>
DEVICE void load_rows(typename S::W *to, const attention_args &a, const head_view &v, int64_t head, int64_t first,
                      int64_t n) {
    load_tile<S, ROWS>(to, head_of<typename S::T>(a, v, head) + first * v.stride[2], v.stride[2], v.stride[3],
                       n - first, a.d);
}

// s[r][c] = row r of a times row c of b
template <class S> DEVICE void dot_rows(typename S::W (*s)[S::C], const typename S::W *a, const typename S::W *b, int d) {
    typedef pack<typename S::W, 4> four;
    const int x = threadIdx.x & 15, y = threadIdx.x >> 4;
    for (int r = 0; r < S::R; r++)
        for (int c = 0; c < S::C; c++) s[r][c] = 0;
    for (int p = 0; p < d; p += 4) {
        four u[S::R], v[S::C];
        for (int r = 0; r < S::R; r++) u[r] = *reinterpret_cast<const four *>(a + (y + 16 * r) * S::LD + p);
        for (int c = 0; c < S::C; c++) v[c] = *reinterpret_cast<const four *>(b + (x + 16 * c) * S::LD + p);
        for (int k = 0; k < 4; k++)
            for (int r = 0; r < S::R; r++)
                for (int c = 0; c < S::C; c++) s[r][c] += u[r].v[k] * v[c].v[k];
    }
}

// sum[r] += row r of the tile p times the rows of b
template <class S> DEVICE void add_product(typename S::W (*sum)[S::V], const typename S::W *p, const typename S::W *b) {
    typedef pack<typename S::W, 4> four;
    typedef pack<typename S::W, S::WIDTH> some;
    const int x = threadIdx.x & 15, y = threadIdx.x >> 4;
    for (int j = 0; j < S::COLUMNS; j += 4) {
        four u[S::R];
        for (int r = 0; r < S::R; r++) u[r] = *reinterpret_cast<const four *>(p + (y + 16 * r) * S::LP + j);
        for (int k = 0; k < 4; k++)
            for (int e = 0; e < S::V; e += S::WIDTH) {
                const some v = *reinterpret_cast<const some *>(b + (j + k) * S::LD + 16 * e + x * S::WIDTH);
                for (int r = 0; r < S::R; r++)
                    for (int w = 0; w < S::WIDTH; w++) sum[r][e + w] += u[r].v[k] * v.v[w];
            }
    }
}

template <class S> DEVICE void store_rows(const attention_args &a, const head_view &v, int64_t head, int64_t first,
                                          int64_t n, typename S::W (*sum)[S::V], const typename S::W *factor) {
    typedef typename S::T T;
    const int x = threadIdx.x & 15, y = threadIdx.x >> 4;
    T *to = head_of<T>(a, v, head);
    for (int r = 0; r < S::R; r++) {
        const int64_t i = first + y + 16 * r;
        for (int e = 0; e < S::V; e++) {
            const int64_t c = 16 * (e / S::WIDTH * S::WIDTH) + x * S::WIDTH + e % S::WIDTH;
            if (i < n && c < a.d) to[i * v.stride[2] + c * v.stride[3]] = narrow<T>(sum[r][e] * factor[r]);
        }
    }
}

// Writes dropout's factors into the tile: rows are queries from i0 and columns keys from j0. A warp
// writes only the rows that it reads.
template <class S> DEVICE void drop_rows(const attention_args &a, int64_t head, int64_t i0, int64_t j0, typename S::W *p) {
    const int x = threadIdx.x & 15, y = threadIdx.x >> 4;
    for (int r = 0; r < S::R; r++) {
        const uint64_t first = (uint64_t)((head * a.n + i0 + y + 16 * r) * a.m + j0);
        const int skip = (int)(first & 3);
        for (int b = x; b * 4 < S::COLUMNS + skip; b += 16) {
            const unsigned bits = kept_bits(a, (first >> 2) + (uint64_t)b);
            for (int e = 0; e < 4; e++) {
                const int c = b * 4 + e - skip;
                if (c >= 0 && c < S::COLUMNS)
                    p[(y + 16 * r) * S::LP + c] = bits >> e & 1 ? (typename S::W)a.keep : (typename S::W)0;
            }
        }
    }
    __syncwarp();
}
// The same for rows that are keys from j0 and columns that are queries from i0.
template <class S> DEVICE void drop_columns(const attention_args &a, int64_t head, int64_t i0, int64_t j0, typename S::W *p) {
    const int x = threadIdx.x & 15, y = threadIdx.x >> 4;
    for (int r = 0; r < S::R; r++)
        for (int c = 0; c < S::C; c++) {
            const uint64_t e = (uint64_t)((head * a.n + i0 + x + 16 * c) * a.m + j0 + y + 16 * r);
            p[(y + 16 * r) * S::LP + x + 16 * c] =
                kept_bits(a, e >> 2) >> (e & 3) & 1 ? (typename S::W)a.keep : (typename S::W)0;
        }
}

// y = softmax(q k^T) v with the sum of each row kept beside its maximum, both corrected as larger
// scores come. A block has ROWS queries of one head.
template <class S> __global__ void __launch_bounds__(ATTENTION_THREADS) attention_forward(const attention_args a) {
    typedef typename S::W W;
    DYNAMIC_SHARED(W, memory);
    W *const queries = memory, *const keys = queries + S::ROWS * S::LD, *const p = keys + S::COLUMNS * S::LD;
    const int x = threadIdx.x & 15, y = threadIdx.x >> 4, d4 = ((int)a.d + 3) & ~3;
    const int64_t tiles = (a.n + S::ROWS - 1) / S::ROWS, head = blockIdx.x / tiles;
    const int64_t i0 = blockIdx.x % tiles * S::ROWS, end = visible_end(a, i0 + S::ROWS);
    W sum[S::R][S::V], top[S::R], total[S::R];
    int64_t mine[S::R];
    for (int r = 0; r < S::R; r++) {
        top[r] = -(W)INFINITY;
        total[r] = 0;
        mine[r] = visible_keys(a, i0 + y + 16 * r);
        for (int e = 0; e < S::V; e++) sum[r][e] = 0;
    }
    load_rows<S, S::ROWS>(queries, a, a.q, head, i0, a.n);
    for (int64_t j0 = 0; j0 < end; j0 += S::COLUMNS) {
        W s[S::R][S::C];
        __syncthreads();
        load_rows<S, S::COLUMNS>(keys, a, a.k, head, j0, a.m);
        __syncthreads();
        dot_rows<S>(s, queries, keys, d4);
        if (a.drop) drop_rows<S>(a, head, i0, j0, p);
        for (int r = 0; r < S::R; r++) {
            W best = top[r];
            for (int c = 0; c < S::C; c++) {
                const int64_t j = j0 + x + 16 * c;
                s[r][c] = j < mine[r] ? masked<typename S::T>(a, head, i0 + y + 16 * r, j, s[r][c] * (W)a.scale)
                                      : -(W)INFINITY;
                best = s[r][c] > best ? s[r][c] : best;
            }
            for (int step = 8; step > 0; step >>= 1) {
                const W other = __shfl_xor_sync(FULL_WARP, best, step);
                best = other > best ? other : best;
            }
            // while nothing is seen, all is 0 but NaN, which must not be hidden
            const bool none = best == -(W)INFINITY;
            const W fade = none ? (W)1 : exp(top[r] - best);
            top[r] = best;
            total[r] *= fade;
            for (int e = 0; e < S::V; e++) sum[r][e] *= fade;
            for (int c = 0; c < S::C; c++) {
                const W e = none ? (s[r][c] != s[r][c] ? s[r][c] : (W)0) : exp(s[r][c] - best);
                W *const to = p + (y + 16 * r) * S::LP + x + 16 * c;
                total[r] += e;
                *to = a.drop ? e * *to : e;
            }
        }
        __syncthreads();
        load_rows<S, S::COLUMNS>(keys, a, a.v, head, j0, a.m);
        __syncthreads();
        add_product<S>(sum, p, keys);
    }
    W inverse[S::R];
    for (int r = 0; r < S::R; r++) {
        const int64_t i = i0 + y + 16 * r;
        for (int step = 8; step > 0; step >>= 1) total[r] += __shfl_xor_sync(FULL_WARP, total[r], step);
        inverse[r] = total[r] == 0 ? (W)0 : 1 / total[r];
        // +inf where nothing is seen: exp(s - lse) is then 0 in the gradient too
        if (x == 0 && i < a.n)
            static_cast<W *>(a.lse.data)[head * a.n + i] = total[r] == 0 ? (W)INFINITY : top[r] + log(total[r]);
    }
    store_rows<S>(a, a.y, head, i0, a.n, sum, inverse);
}

// delta of a row: a warp each
template <class T> __global__ void __launch_bounds__(ATTENTION_THREADS) attention_delta(const attention_args a, int64_t rows) {
    typedef wide_t<T> W;
    const int lane = threadIdx.x & 31;
    const int64_t row = THREAD_INDEX >> 5;
    if (row >= rows) return;
    const int64_t head = row / a.n, i = row % a.n;
    const T *y = head_of<T>(a, a.y, head) + i * a.y.stride[2], *dy = head_of<T>(a, a.dy, head) + i * a.dy.stride[2];
    W sum = 0;
    for (int64_t c = lane; c < a.d; c += 32) sum += widen<T>(y[c * a.y.stride[3]]) * widen<T>(dy[c * a.dy.stride[3]]);
    sum = warp_sum(sum);
    if (lane == 0) static_cast<W *>(a.delta)[row] = sum;
}

// dq: a block has ROWS queries and walks the keys.
template <class S> __global__ void __launch_bounds__(ATTENTION_THREADS) attention_dq(const attention_args a) {
    typedef typename S::W W;
    DYNAMIC_SHARED(W, memory);
    W *const queries = memory, *const grads = queries + S::ROWS * S::LD, *const keys = grads + S::ROWS * S::LD;
    W *const values = keys + S::COLUMNS * S::LD, *const p = values + S::COLUMNS * S::LD;
    const int x = threadIdx.x & 15, y = threadIdx.x >> 4, d4 = ((int)a.d + 3) & ~3;
    const int64_t tiles = (a.n + S::ROWS - 1) / S::ROWS, head = blockIdx.x / tiles;
    const int64_t i0 = blockIdx.x % tiles * S::ROWS, end = visible_end(a, i0 + S::ROWS);
    W sum[S::R][S::V], lse[S::R], delta[S::R], scale[S::R];
    int64_t mine[S::R];
    for (int r = 0; r < S::R; r++) {
        const int64_t i = i0 + y + 16 * r;
        const bool there = i < a.n;
        lse[r] = there ? head_of<W>(a, a.lse, head)[i * a.lse.stride[2]] : (W)INFINITY;
        delta[r] = there ? static_cast<const W *>(a.delta)[head * a.n + i] : (W)0;
        scale[r] = (W)a.scale;
        mine[r] = visible_keys(a, i);
        for (int e = 0; e < S::V; e++) sum[r][e] = 0;
    }
    load_rows<S, S::ROWS>(queries, a, a.q, head, i0, a.n);
    load_rows<S, S::ROWS>(grads, a, a.dy, head, i0, a.n);
    for (int64_t j0 = 0; j0 < end; j0 += S::COLUMNS) {
        W s[S::R][S::C], dp[S::R][S::C];
        __syncthreads();
        load_rows<S, S::COLUMNS>(keys, a, a.k, head, j0, a.m);
        load_rows<S, S::COLUMNS>(values, a, a.v, head, j0, a.m);
        __syncthreads();
        dot_rows<S>(s, queries, keys, d4);
        dot_rows<S>(dp, grads, values, d4);
        if (a.drop) drop_rows<S>(a, head, i0, j0, p);
        for (int r = 0; r < S::R; r++)
            for (int c = 0; c < S::C; c++) {
                const int64_t j = j0 + x + 16 * c;
                W *const to = p + (y + 16 * r) * S::LP + x + 16 * c;
                W ds = 0;
                if (j < mine[r]) {
                    const W t = masked<typename S::T>(a, head, i0 + y + 16 * r, j, s[r][c] * (W)a.scale);
                    ds = exp(t - lse[r]) * ((a.drop ? dp[r][c] * *to : dp[r][c]) - delta[r]);
                }
                *to = ds;
            }
        __syncwarp();
        add_product<S>(sum, p, keys);
    }
    store_rows<S>(a, a.dq, head, i0, a.n, sum, scale);
}

// dk and dv: a block has ROWS keys and walks the queries.
template <class S> __global__ void __launch_bounds__(ATTENTION_THREADS, S::BLOCKS) attention_dkv(const attention_args a, int needs) {
    typedef typename S::W W;
    DYNAMIC_SHARED(W, memory);
    W *const keys = memory, *const values = keys + S::ROWS * S::LD, *const queries = values + S::ROWS * S::LD;
    W *const grads = queries + S::COLUMNS * S::LD, *const p = grads + S::COLUMNS * S::LD;
    const int x = threadIdx.x & 15, y = threadIdx.x >> 4, d4 = ((int)a.d + 3) & ~3;
    const int64_t tiles = (a.m + S::ROWS - 1) / S::ROWS, head = blockIdx.x / tiles;
    const int64_t j0 = blockIdx.x % tiles * S::ROWS;
    W dk[S::R][S::V], dv[S::R][S::V], scale[S::R], one[S::R];
    for (int r = 0; r < S::R; r++) {
        scale[r] = (W)a.scale;
        one[r] = 1;
        for (int e = 0; e < S::V; e++) dk[r][e] = dv[r][e] = 0;
    }
    load_rows<S, S::ROWS>(keys, a, a.k, head, j0, a.m);
    load_rows<S, S::ROWS>(values, a, a.v, head, j0, a.m);
    for (int64_t i0 = first_query(a, j0) / S::COLUMNS * S::COLUMNS; i0 < a.n; i0 += S::COLUMNS) {
        W s[S::R][S::C], dp[S::R][S::C];
        __syncthreads();
        load_rows<S, S::COLUMNS>(queries, a, a.q, head, i0, a.n);
        load_rows<S, S::COLUMNS>(grads, a, a.dy, head, i0, a.n);
        __syncthreads();
        dot_rows<S>(s, keys, queries, d4);
        dot_rows<S>(dp, values, grads, d4);
        if (a.drop) drop_columns<S>(a, head, i0, j0, p);
        for (int c = 0; c < S::C; c++) {
            const int64_t i = i0 + x + 16 * c, seen = visible_keys(a, i);
            const W lse = i < a.n ? head_of<W>(a, a.lse, head)[i * a.lse.stride[2]] : (W)INFINITY;
            const W delta = i < a.n ? static_cast<const W *>(a.delta)[head * a.n + i] : (W)0;
            for (int r = 0; r < S::R; r++) {
                const int64_t j = j0 + y + 16 * r;
                W *const to = p + (y + 16 * r) * S::LP + x + 16 * c;
                const W factor = a.drop ? *to : (W)1;
                W e = 0, ds = 0;
                if (j < seen) {
                    e = exp(masked<typename S::T>(a, head, i, j, s[r][c] * (W)a.scale) - lse);
                    ds = e * (dp[r][c] * factor - delta);
                }
                *to = e * factor;
                s[r][c] = ds;
            }
        }
        __syncwarp();
        if (needs & 4) add_product<S>(dv, p, grads);
        __syncwarp();
        if (needs & 2) {
            for (int r = 0; r < S::R; r++)
                for (int c = 0; c < S::C; c++) p[(y + 16 * r) * S::LP + x + 16 * c] = s[r][c];
            __syncwarp();
            add_product<S>(dk, p, queries);
        }
    }
    if (needs & 2) store_rows<S>(a, a.dk, head, j0, a.m, dk, scale);
    if (needs & 4) store_rows<S>(a, a.dv, head, j0, a.m, dv, one);
}

// --- which tiles. float64 takes twice the room of float32, so its tiles are smaller.
template <class S> static size_t shared_bytes(int row_tiles, int column_tiles) {
    return sizeof(typename S::W) * (size_t)(row_tiles * S::ROWS * S::LD + column_tiles * S::COLUMNS * S::LD + S::ROWS * S::LP);
}
static weft_status check_shared(const weft_call *call, size_t bytes) {
    if (bytes <= (size_t)device_of(call)->shared_limit) return WEFT_OK;
    return weft_fail(WEFT_EUNSUPPORTED, "a head this large needs %zu KB of shared memory on a GPU and this one has %d",
                     bytes >> 10, device_of(call)->shared_limit >> 10);
}

template <class S> static weft_status run_forward(const weft_call *call, const attention_args &a, int64_t heads) {
    const size_t bytes = shared_bytes<S>(1, 1);
    TRY(check_shared(call, bytes));
    return LAUNCH(call, (attention_forward<S>), (unsigned)(ceil_div(a.n, S::ROWS) * heads), ATTENTION_THREADS, bytes, a);
}
template <class S> static weft_status run_backward(const weft_call *call, const attention_args &a, int64_t heads, int64_t needs) {
    const size_t bytes = shared_bytes<S>(2, 2);
    TRY(check_shared(call, bytes));
    if (needs & 1 && a.n > 0)
        TRY(LAUNCH(call, (attention_dq<S>), (unsigned)(ceil_div(a.n, S::ROWS) * heads), ATTENTION_THREADS, bytes, of_queries(a)));
    if (needs & 6 && a.m > 0)
        TRY(LAUNCH(call, (attention_dkv<S>), (unsigned)(ceil_div(a.m, S::ROWS) * heads), ATTENTION_THREADS, bytes,
                   of_keys(a), (int)needs));
    return WEFT_OK;
}

template <class S> struct tag_of { typedef S type; };
// f(tag_of<tiling<...>>) for a head size; backward keeps twice the tiles.
template <class T, bool BACKWARD, class F> static weft_status with_tiling(int64_t d, F f) {
    constexpr int wide = sizeof(wide_t<T>) == 8, most = 4 >> wide, middle = BACKWARD ? most / 2 : most,
                  least = wide ? 1 : BACKWARD ? 1 : 2;
    if constexpr (!std::is_same<T, bf16>::value) {      // whose smaller heads go to tensor cores
        if (d <= 32) return f(tag_of<tiling<T, 2, most, most>>{});
        if (d <= 64) return f(tag_of<tiling<T, 4, most, most>>{});
        if (d <= 128) return f(tag_of<tiling<T, 8, middle, middle>>{});
    }
    return f(tag_of<tiling<T, 16, least, least>>{});
}

// --- the rows of the operator table
static head_view heads_of(const weft_view *v) {
    head_view h = {};
    h.data = v->data;
    h.pieces = v->dtype == WEFT_BFLOAT16 && v->ndim == 4 && v->shape[3] % 8 == 0 && v->stride[3] == 1 &&
               (uintptr_t)v->data % 16 == 0;
    for (int i = 0; i < 4 && i < v->ndim; i++) {
        h.stride[i] = v->stride[i];
        h.pieces = h.pieces && (i == 3 || v->shape[i] == 1 || v->stride[i] % 8 == 0);
    }
    return h;
}

static void set_mask(attention_args *a, const weft_view *mask) {
    if (!mask) return;
    a->mask = mask->data;
    a->mask_bytes = mask->dtype == WEFT_BOOL || mask->dtype == WEFT_UINT8;
    for (int i = 0; i < 4; i++) {
        const int dim = mask->ndim - 4 + i;
        a->mask_stride[i] = dim >= 0 && mask->shape[dim] != 1 ? mask->stride[dim] : 0;
    }
}

// The rule of weft_kept, compared as integers: word >> 8 < 2^24 p.
static weft_status set_dropout(attention_args *a, double p, const weft_call *call) {
    a->drop = p > 0;
    a->drop_below = (uint32_t)std::ceil(p * 0x1p24);
    a->keep = p < 1 ? 1 / (1 - p) : 0;
    a->key = call->at->rng_key;
    a->counter = call->at->rng_counter;
    a->clock = device_of(call)->clock;
    return p > 0 ? named_draw(call) : WEFT_OK;
}

static attention_args common_args(const weft_view *q, const weft_view *k, const weft_view *v, double scale) {
    attention_args a = {};
    a.q = heads_of(q);
    a.k = heads_of(k);
    a.v = heads_of(v);
    a.heads = q->shape[1];
    a.n = q->shape[2];
    a.m = k->shape[2];
    a.d = q->shape[3];
    a.scale = scale != 0 ? scale : 1 / std::sqrt((double)a.d);
    return a;
}

CUDA_KERNEL(scaled_dot_product_attention) {
    const weft_view *q = call->in[0];
    const weft_attrs *at = call->at;
    if (q->numel == 0) return WEFT_OK;
    attention_args a = common_args(q, call->in[1], call->in[2], at->AT(scaled_dot_product_attention, scale));
    a.y = heads_of(call->out[0]);
    a.lse = heads_of(call->out[1]);
    a.causal = at->AT(scaled_dot_product_attention, causal) != 0;
    set_mask(&a, call->in[3]);
    TRY(set_dropout(&a, at->AT(scaled_dot_product_attention, p), call));
    const int64_t heads = q->shape[0] * a.heads;
    return with_float(q->dtype, [&](auto tag) {
        using T = TYPE_OF(tag);
        if (std::is_same<T, bf16>::value && a.d <= ATTENTION_BF16_HEAD) return attention_bf16_forward(call, a, heads);
        return with_tiling<T, false>(a.d, [&](auto s) { return run_forward<TYPE_OF(s)>(call, a, heads); });
    });
}

CUDA_KERNEL(attention_backward) {
    const weft_view *q = call->in[1];
    const weft_attrs *at = call->at;
    attention_args a = common_args(q, call->in[2], call->in[3], at->AT(attention_backward, scale));
    const int64_t heads = q->shape[0] * a.heads, needs = at->AT(attention_backward, needs);
    a.dy = heads_of(call->in[0]);
    a.y = heads_of(call->in[5]);
    a.lse = heads_of(call->in[6]);
    a.dq = heads_of(call->out[0]);
    a.dk = heads_of(call->out[1]);
    a.dv = heads_of(call->out[2]);
    a.causal = at->AT(attention_backward, causal) != 0;
    set_mask(&a, call->in[4]);
    TRY(set_dropout(&a, at->AT(attention_backward, p), call));
    if (heads == 0 || (a.n == 0 && a.m == 0)) return WEFT_OK;
    return with_float(q->dtype, [&](auto tag) {
        using T = TYPE_OF(tag);
        scratch delta(call, heads * a.n * (int64_t)sizeof(wide_t<T>));
        if (!delta.data) return WEFT_ENOMEM;
        a.delta = delta.data;
        const bool tensor_cores = std::is_same<T, bf16>::value && a.d <= ATTENTION_BF16_HEAD;
        if (a.n > 0 && !(tensor_cores && needs & 1))
            TRY(LAUNCH(call, (attention_delta<T>), (unsigned)ceil_div(heads * a.n, ATTENTION_THREADS / 32),
                       ATTENTION_THREADS, 0, of_rows(a), heads * a.n));
        if (tensor_cores) return attention_bf16_backward(call, a, heads, needs);
        return with_tiling<T, true>(a.d, [&](auto s) { return run_backward<TYPE_OF(s)>(call, a, heads, needs); });
    });
}

// --- rotary positions: pairs (i, i + D/2) of each row. The walk goes over the first halves.
template <class T, int VEC>
__global__ void __launch_bounds__(EACH_THREADS) rotary_kernel(const each_walk e, int64_t half_y, int64_t half_x, wide_t<T> sign) {
    typedef wide_t<T> W;
    for (int64_t i = THREAD_INDEX * VEC; i < e.numel; i += THREAD_COUNT * VEC) {
        int64_t at[EACH_MAX];
        each_offsets(e, i, at);
        T u[VEC], w[VEC], c[VEC], s[VEC];
        each_load<T, VEC>(e, 1, at[1], u);
        each_load<T, VEC>(e, 1, at[1] + half_x, w);
        each_load<T, VEC>(e, 2, at[2], c);
        each_load<T, VEC>(e, 3, at[3], s);
        pack<T, VEC> y0, y1;
        for (int k = 0; k < VEC; k++) {
            const W a = widen<T>(u[k]), b = widen<T>(w[k]), cosine = widen<T>(c[k]), sine = sign * widen<T>(s[k]);
            y0.v[k] = narrow<T>(a * cosine - b * sine);
            y1.v[k] = narrow<T>(b * cosine + a * sine);
        }
        T *to = static_cast<T *>(e.data[0]) + at[0];
        *reinterpret_cast<pack<T, VEC> *>(to) = y0;
        *reinterpret_cast<pack<T, VEC> *>(to + half_y) = y1;
    }
}

CUDA_KERNEL(rotary) {
    weft_view y = *call->out[0], x = *call->in[0];
    if (x.numel == 0) return WEFT_OK;
    const int last = x.ndim - 1;
    const int64_t half = x.shape[last] / 2, half_y = half * y.stride[last], half_x = half * x.stride[last];
    for (weft_view *v : { &y, &x }) {
        v->shape[last] = half;
        v->numel /= 2;
    }
    const weft_view *views[EACH_MAX] = { &y, &x, call->in[1], call->in[2] };
    each_walk e;
    each_prepare(&e, views, EACH_MAX);
    const bool inverse = call->at->AT(rotary, inverse) != 0;
    return with_float(x.dtype, [&](auto tag) {
        using T = TYPE_OF(tag);
        const wide_t<T> sign = inverse ? -1 : 1;
        constexpr int size = sizeof(T), WIDE = 16 / size;
        const int sizes[EACH_MAX] = { size, size, size, size };
        if (each_width(&e, sizes, WIDE) == WIDE && half_y % WIDE == 0 && half_x % WIDE == 0)
            return LAUNCH(call, (rotary_kernel<T, WIDE>), blocks_for(ceil_div(e.numel, WIDE), EACH_THREADS), EACH_THREADS,
                          0, e, half_y, half_x, sign);
        return LAUNCH(call, (rotary_kernel<T, 1>), blocks_for(e.numel, EACH_THREADS), EACH_THREADS, 0, e, half_y, half_x,
                      sign);
    });
}
