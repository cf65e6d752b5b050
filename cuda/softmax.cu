// softmax.cu: softmax and log_softmax along any dim, and their gradients. A row whose largest
// element is -inf or +inf, or that holds NaN, comes out as NaN.
#include "cuda/online.h"

struct softmax_job {
    const void *a, *b;      // x; or dy and y
    void *out;
    column_shape c;
    template <class V> void visit(V &v) { v(a); v(b); v(out); }
};

// From what was found of a list to what each element becomes.
template <class T, bool LOG> struct softmax_scale {
    typedef wide_t<T> W;
    W max, scale;
    DEVICE softmax_scale(const exp_sum<W> &e) : max(e.max), scale((W)(LOG ? log((W)e.sum) : 1 / (W)e.sum)) {}
    DEVICE T operator()(T stored) const {
        const W x = widen<T>(stored) - max;
        return narrow<T>(LOG ? x - scale : exp_for<T>(x) * scale);
    }
};

template <class T, int VEC, int PER, bool LOG>
__global__ void __launch_bounds__(ROW_THREADS) softmax_rows(const softmax_job j) {
    const int64_t d = j.c.n, packs = d / VEC;
    FOR_ROWS(row, j.c.outer) {
        const row_part<T, VEC, PER> x(static_cast<const T *>(j.a) + row * d, row < j.c.outer ? packs : 0);
        const softmax_scale<T, LOG> f(row_exp_sum<T, VEC, PER>(x));
        T *const out = static_cast<T *>(j.out) + row * d;
        each_pack<PER>(x.packs, [&](int i, auto k) {
            pack<T, VEC> p = x.at(i, k);
            for (int c = 0; c < VEC; c++) p.v[c] = f(p.v[c]);
            write_pack<T, VEC>(out, k, p);
        });
    }
}

template <class T, bool LOG>
__global__ void __launch_bounds__(COLUMN_WIDTH * COLUMN_DEPTH) softmax_columns(const softmax_job j) {
    typedef wide_t<T> W;
    const int64_t n = j.c.n, inner = j.c.inner;
    FOR_TILES(j.c) {
        const column_at at(j.c, tile);
        const T *const x = static_cast<const T *>(j.a) + at.base;
        exp_sum<W> e;
        for (int64_t i = threadIdx.y; at.live && i < n; i += COLUMN_DEPTH)
            add_pack<T, 1>(e, pack<T, 1>{ { x[i * inner] } });
        const softmax_scale<T, LOG> f(column_exp_sum(e));
        T *const out = static_cast<T *>(j.out) + at.base;
        for (int64_t i = threadIdx.y; at.live && i < n; i += COLUMN_DEPTH)
            out[i * inner] = f(x[i * inner]);
    }
}

template <bool LOG> static weft_status forward(const weft_call *call, int64_t dim) {
    if (call->out[0]->numel == 0) return WEFT_OK;
    softmax_job j = { call->in[0]->data, nullptr, call->out[0]->data, columns_of(call->in[0], dim) };
    return with_float(call->out[0]->dtype, [&](auto tag) -> weft_status {
        using T = TYPE_OF(tag);
        if (j.c.inner > 1) return LAUNCH(call, (softmax_columns<T, LOG>), column_blocks(j.c), column_block, 0, j);
        const row_grid g = row_grid_of<T>(j.c.outer, j.c.n, address(j.a) | address(j.out), 8);
        return with_row_grid<T, 8>(g, [&](auto vec, auto per) {
            return LAUNCH(call, (softmax_rows<T, COUNT_OF(vec), COUNT_OF(per), LOG>), g.blocks, g.block, 0, j);
        });
    });
}

CUDA_KERNEL(softmax) { return forward<false>(call, call->at->AT(softmax, dim)); }
CUDA_KERNEL(log_softmax) { return forward<true>(call, call->at->AT(log_softmax, dim)); }

// --- backward: softmax's y * (dy - sum(dy * y)); log_softmax's dy - exp(y) * sum(dy)
template <class W, bool LOG> DEVICE W summed(W dy, W y) { return LOG ? dy : dy * y; }
template <class T, bool LOG> DEVICE T gradient(T stored_dy, T stored_y, wide_t<T> sum) {
    const wide_t<T> dy = widen<T>(stored_dy), y = widen<T>(stored_y);
    return narrow<T>(LOG ? dy - exp_for<T>(y) * sum : y * (dy - sum));
}

template <class T, int VEC, int PER, bool LOG>
__global__ void __launch_bounds__(ROW_THREADS) softmax_grad_rows(const softmax_job j) {
    typedef wide_t<T> W;
    const int64_t d = j.c.n, packs = d / VEC;
    FOR_ROWS(row, j.c.outer) {
        const int64_t mine = row < j.c.outer ? packs : 0;
        const row_part<T, VEC, PER> dy(static_cast<const T *>(j.a) + row * d, mine);
        const row_part<T, VEC, PER> y(static_cast<const T *>(j.b) + row * d, mine);
        row_sum_t<T, PER> total = 0;
        each_pack<PER>(mine, [&](int i, auto k) {
            const pack<T, VEC> p = dy.at(i, k), q = y.at(i, k);
            W s = 0;
            for (int c = 0; c < VEC; c++) s += summed<W, LOG>(widen<T>(p.v[c]), widen<T>(q.v[c]));
            total += s;
        });
        const W sum = (W)row_sum(total);
        T *const out = static_cast<T *>(j.out) + row * d;
        each_pack<PER>(mine, [&](int i, auto k) {
            pack<T, VEC> p = dy.at(i, k);
            const pack<T, VEC> q = y.at(i, k);
            for (int c = 0; c < VEC; c++) p.v[c] = gradient<T, LOG>(p.v[c], q.v[c], sum);
            write_pack<T, VEC>(out, k, p);
        });
    }
}

template <class T, bool LOG>
__global__ void __launch_bounds__(COLUMN_WIDTH * COLUMN_DEPTH) softmax_grad_columns(const softmax_job j) {
    typedef wide_t<T> W;
    const int64_t n = j.c.n, inner = j.c.inner;
    FOR_TILES(j.c) {
        const column_at at(j.c, tile);
        const T *const dy = static_cast<const T *>(j.a) + at.base, *const y = static_cast<const T *>(j.b) + at.base;
        double total = 0;
        for (int64_t i = threadIdx.y; at.live && i < n; i += COLUMN_DEPTH)
            total += (double)summed<W, LOG>(widen<T>(dy[i * inner]), widen<T>(y[i * inner]));
        const W sum = (W)column_reduce(total, add_op());
        T *const out = static_cast<T *>(j.out) + at.base;
        for (int64_t i = threadIdx.y; at.live && i < n; i += COLUMN_DEPTH)
            out[i * inner] = gradient<T, LOG>(dy[i * inner], y[i * inner], sum);
    }
}

template <bool LOG> static weft_status backward(const weft_call *call, int64_t dim) {
    if (call->out[0]->numel == 0) return WEFT_OK;
    softmax_job j = { call->in[0]->data, call->in[1]->data, call->out[0]->data, columns_of(call->in[0], dim) };
    return with_float(call->out[0]->dtype, [&](auto tag) -> weft_status {
        using T = TYPE_OF(tag);
        if (j.c.inner > 1) return LAUNCH(call, (softmax_grad_columns<T, LOG>), column_blocks(j.c), column_block, 0, j);
        const row_grid g = row_grid_of<T>(j.c.outer, j.c.n, address(j.a) | address(j.b) | address(j.out), 4);
        return with_row_grid<T, 4>(g, [&](auto vec, auto per) {
            return LAUNCH(call, (softmax_grad_rows<T, COUNT_OF(vec), COUNT_OF(per), LOG>), g.blocks, g.block, 0, j);
        });
    });
}

CUDA_KERNEL(softmax_backward) { return backward<false>(call, call->at->AT(softmax_backward, dim)); }
CUDA_KERNEL(log_softmax_backward) { return backward<true>(call, call->at->AT(log_softmax_backward, dim)); }
