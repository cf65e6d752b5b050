// cast.cu: the kernels of cast and contiguous: every dtype to every other, any strides on both sides.
#include "cuda/cast.h"
#include "cuda/each.h"
#include "cuda/units.h"

template <class To, class From> struct cast_fn {
    DEVICE To operator()(From x) const { return converted<To>(x); }
};
template <class T> struct same_fn {
    DEVICE T operator()(T x) const { return x; }
};

template <class F> static weft_status with_any(int dtype, F f) {
    switch (dtype) {
    case WEFT_FLOAT32: return f(type_tag<float>{});
    case WEFT_FLOAT64: return f(type_tag<double>{});
    case WEFT_BFLOAT16: return f(type_tag<bf16>{});
    case WEFT_FLOAT16: return f(type_tag<half_t>{});
    case WEFT_INT32: return f(type_tag<int32_t>{});
    case WEFT_INT64: return f(type_tag<int64_t>{});
    case WEFT_UINT8: return f(type_tag<uint8_t>{});
    default: return f(type_tag<truth>{});
    }
}

// --- copies whose innermost dims are exchanged: the output steps by 1 in the last dim, the input in
// dim `across`. A tile goes through shared memory, so that both sides are met line by line. Elements
// below 4 bytes are moved in pairs where both sides allow it.
#define TILE 32
#define TILE_ROWS 8

struct turned {
    void *out, *in;
    int64_t rows, columns, out_step, in_step;    // rows: along `across`; columns: along the last dim
    int64_t row_tiles, column_tiles;
    int64_t shape[WEFT_MAX_DIMS], out_stride[WEFT_MAX_DIMS], in_stride[WEFT_MAX_DIMS];   // other dims
    int32_t ndim;
    template <class V> void visit(V &v) { v(out); v(in); }
};

template <class T, int PAIR> __global__ void __launch_bounds__(TILE *TILE_ROWS) turn_kernel(const turned t) {
    constexpr int SIDE = TILE * PAIR;
    typedef pack<T, PAIR> unit;
    SHARED(T, tile, [SIDE][SIDE + PAIR]);       // tile[column][row]
    int64_t row, column, rest = divided((int64_t)blockIdx.x, t.row_tiles, &row), out_at = 0, in_at = 0;
    rest = divided(rest, t.column_tiles, &column);
    for (int d = t.ndim - 1; d >= 0; d--) {
        int64_t c;
        rest = divided(rest, t.shape[d], &c);
        out_at += c * t.out_stride[d];
        in_at += c * t.in_stride[d];
    }
    row *= SIDE;
    column *= SIDE;
    const int x = (int)threadIdx.x * PAIR, y = (int)threadIdx.y;
    const T *in = static_cast<const T *>(t.in) + in_at + row + x;
    for (int k = y; k < SIDE; k += TILE_ROWS)
        if (row + x < t.rows && column + k < t.columns)
            *reinterpret_cast<unit *>(&tile[k][x]) = *reinterpret_cast<const unit *>(in + (column + k) * t.in_step);
    __syncthreads();
    T *out = static_cast<T *>(t.out) + out_at + column + x;
    for (int k = y; k < SIDE; k += TILE_ROWS)
        if (row + k < t.rows && column + x < t.columns) {
            unit u;
            for (int j = 0; j < PAIR; j++) u.v[j] = tile[x + j][k];
            *reinterpret_cast<unit *>(out + (row + k) * t.out_step) = u;
        }
}

// False where the dims are not exchanged, or the copy is too small to gain by it.
static bool turns(const weft_view *const *views, turned *t) {
    each_walk e;
    each_prepare(&e, views, 2);
    const int inner = e.ndim - 1;
    int across = -1;
    if (e.stride[0][inner] != 1 || e.stride[1][inner] == 1 || e.shape[inner] < 8) return false;
    for (int d = 0; d < inner; d++)
        if (e.stride[1][d] == 1 && e.shape[d] >= 8) across = d;
    if (across < 0) return false;
    memset(t, 0, sizeof *t);
    t->out = e.data[0];
    t->in = e.data[1];
    t->rows = e.shape[across];
    t->columns = e.shape[inner];
    t->out_step = e.stride[0][across];
    t->in_step = e.stride[1][inner];
    for (int d = 0; d < inner; d++) {
        if (d == across) continue;
        t->shape[t->ndim] = e.shape[d];
        t->out_stride[t->ndim] = e.stride[0][d];
        t->in_stride[t->ndim++] = e.stride[1][d];
    }
    return true;
}

template <class T, int PAIR> static weft_status turn(const weft_call *call, turned *t) {
    t->row_tiles = ceil_div(t->rows, TILE * PAIR);
    t->column_tiles = ceil_div(t->columns, TILE * PAIR);
    int64_t tiles = t->row_tiles * t->column_tiles;
    for (int d = 0; d < t->ndim; d++) tiles *= t->shape[d];
    return LAUNCH(call, (turn_kernel<T, PAIR>), (unsigned)tiles, dim3(TILE, TILE_ROWS), 0, *t);
}

// The input to the output, of one size of element.
template <class T> static weft_status move(const weft_call *call) {
    const weft_view *views[2] = { call->out[0], call->in[0] };
    turned t;
    if (call->out[0]->numel == 0) return WEFT_OK;
    if (!turns(views, &t)) return each1<T, T>(call, same_fn<T>{});
    if constexpr (sizeof(T) < 4) {
        int64_t odd = t.rows | t.columns | t.out_step | t.in_step;
        for (int d = 0; d < t.ndim; d++) odd |= t.out_stride[d] | t.in_stride[d];
        if (odd % 2 == 0 && ((uintptr_t)t.out | (uintptr_t)t.in) % (2 * sizeof(T)) == 0) return turn<T, 2>(call, &t);
    }
    return turn<T, 1>(call, &t);
}

CUDA_KERNEL(cast) {
    const int from = call->in[0]->dtype, to = call->out[0]->dtype;
    if (from == to || (to == WEFT_UINT8 && from == WEFT_BOOL))
        return with_size(to, [&](auto tag) { return move<TYPE_OF(tag)>(call); });
    return with_any(from, [&](auto from_tag) {
        using From = TYPE_OF(from_tag);
        return with_any(to, [&](auto to_tag) {
            using To = TYPE_OF(to_tag);
            return each1<To, From>(call, cast_fn<To, From>{});
        });
    });
}

CUDA_KERNEL(contiguous) {
    return with_size(call->out[0]->dtype, [&](auto tag) { return move<TYPE_OF(tag)>(call); });
}
