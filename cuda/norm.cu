// norm.cu: layer_norm and rms_norm, also of a sum that is made on the way, and normalize, with their
// fused gradients. Gradients of weight and bias are summed by groups of threads over rows that depend
// on shapes alone, then over groups in order.
#include "cuda/rows.h"

#define PARTS 512       // groups at most in a backward that sums over rows
#define LEAST_ROWS 8    // rows that make a group worth its sums

static const void *data_of(const weft_view *v) { return v ? v->data : nullptr; }

struct norm_job {
    const void *dy, *x, *weight, *bias, *mean, *rstd;
    void *y, *mean_out, *rstd_out;      // y: dx in a backward
    const void *added, *scale, *dsum;   // x + added * scale is the row, kept in sum; dsum: its gradient
    void *sum, *dm;
    void *sums;                         // [groups][2][d]: dweight, dbias
    weft_rows dy_rows;
    int64_t n, d;
    double eps;
    template <class V> void visit(V &v) {
        v(dy); v(x); v(weight); v(bias); v(mean); v(rstd); v(y); v(mean_out); v(rstd_out); v(sums);
        v(added); v(scale); v(dsum); v(sum); v(dm);
    }
};

static void set_rows(norm_job *j, const weft_view *x) {
    j->x = x->data;
    j->d = x->shape[x->ndim - 1];
    j->n = weft_span(x, 0, x->ndim - 1);
}

// --- forward: y = (x - mean) * rstd * w + b; rms_norm's mean is 0
template <class T, int VEC, int PER, bool CENTER>
__global__ void __launch_bounds__(ROW_THREADS) norm_forward(const norm_job j) {
    typedef wide_t<T> W;
    typedef row_sum_t<T, PER> S;
    const int64_t packs = j.d / VEC;
    const T *const w = static_cast<const T *>(j.weight), *const b = static_cast<const T *>(j.bias);
    FOR_ROWS(row, j.n) {
        const bool live = row < j.n;
        row_part<T, VEC, PER> x(static_cast<const T *>(j.x) + row * j.d, live ? packs : 0);
        T *const y = static_cast<T *>(j.y) + row * j.d;
        if (j.added) {      // the statistics are those of the sum as it is kept
            const T *const m = static_cast<const T *>(j.added) + row * j.d, *const scale = static_cast<const T *>(j.scale);
            T *const sum = static_cast<T *>(j.sum) + row * j.d;
            each_pack<PER>(x.packs, [&](int i, auto k) {
                pack<T, VEC> p = x.at(i, k), pm = read_pack<T, VEC>(m, k), ps;
                if (scale) ps = read_pack<T, VEC>(scale, k);
                for (int c = 0; c < VEC; c++) {
                    const W v = widen<T>(pm.v[c]);
                    p.v[c] = narrow<T>(widen<T>(p.v[c]) + (scale ? v * widen<T>(ps.v[c]) : v));
                }
                write_pack<T, VEC>(sum, k, p);
                if constexpr (PER > 0) x.kept[i] = p;
            });
            x.x = sum;
        }
        W mean = 0;
        if (CENTER) {
            S sum = 0;
            each_pack<PER>(x.packs, [&](int i, auto k) {
                const pack<T, VEC> p = x.at(i, k);
                W s = 0;
                for (int c = 0; c < VEC; c++) s += widen<T>(p.v[c]);
                sum += s;
            });
            mean = (W)(row_sum(sum) / (S)j.d);
        }
        S square = 0;
        each_pack<PER>(x.packs, [&](int i, auto k) {
            const pack<T, VEC> p = x.at(i, k);
            W s = 0;
            for (int c = 0; c < VEC; c++) {
                const W v = widen<T>(p.v[c]) - mean;
                s += v * v;
            }
            square += s;
        });
        const W rstd = (W)((S)1 / sqrt(row_sum(square) / (S)j.d + (S)j.eps));
        each_pack<PER>(x.packs, [&](int i, auto k) {
            const pack<T, VEC> p = x.at(i, k);
            pack<T, VEC> pw, pb, out;
            if (w) pw = read_pack<T, VEC>(w, k);
            if (b) pb = read_pack<T, VEC>(b, k);
            for (int c = 0; c < VEC; c++) {
                W v = (widen<T>(p.v[c]) - mean) * rstd;
                if (w) v *= widen<T>(pw.v[c]);
                if (b) v += widen<T>(pb.v[c]);
                out.v[c] = narrow<T>(v);
            }
            write_pack<T, VEC>(y, k, out);
        });
        if (live && threadIdx.x == 0) {
            if (CENTER) static_cast<W *>(j.mean_out)[row] = mean;
            static_cast<W *>(j.rstd_out)[row] = rstd;
        }
    }
}

template <bool CENTER> static weft_status forward(const weft_call *call, norm_job j) {
    set_rows(&j, call->in[0]);
    if (j.n == 0) return WEFT_OK;
    return with_float(call->out[0]->dtype, [&](auto tag) {
        using T = TYPE_OF(tag);
        const uintptr_t all = address(j.x) | address(j.y) | address(j.weight) | address(j.bias) | address(j.added) |
                              address(j.scale) | address(j.sum);
        const row_grid g = row_grid_of<T>(j.n, j.d, all, 8);
        return with_row_grid<T, 8>(g, [&](auto vec, auto per) {
            return LAUNCH(call, (norm_forward<T, COUNT_OF(vec), COUNT_OF(per), CENTER>), g.blocks, g.block, 0, j);
        });
    });
}

CUDA_KERNEL(layer_norm) {
    norm_job j = {};
    j.weight = data_of(call->in[1]);
    j.bias = data_of(call->in[2]);
    j.y = call->out[0]->data;
    j.mean_out = call->out[1]->data;
    j.rstd_out = call->out[2]->data;
    j.eps = call->at->AT(layer_norm, eps);
    return forward<true>(call, j);
}

CUDA_KERNEL(add_layer_norm) {
    norm_job j = {};
    j.added = call->in[1]->data;
    j.scale = data_of(call->in[2]);
    j.weight = data_of(call->in[3]);
    j.bias = data_of(call->in[4]);
    j.sum = call->out[0]->data;
    j.y = call->out[1]->data;
    j.mean_out = call->out[2]->data;
    j.rstd_out = call->out[3]->data;
    j.eps = call->at->AT(add_layer_norm, eps);
    return forward<true>(call, j);
}

CUDA_KERNEL(add_rms_norm) {
    norm_job j = {};
    j.added = call->in[1]->data;
    j.weight = data_of(call->in[2]);
    j.sum = call->out[0]->data;
    j.y = call->out[1]->data;
    j.rstd_out = call->out[2]->data;
    j.eps = call->at->AT(add_rms_norm, eps);
    return forward<false>(call, j);
}

CUDA_KERNEL(rms_norm) {
    norm_job j = {};
    j.weight = data_of(call->in[1]);
    j.y = call->out[0]->data;
    j.rstd_out = call->out[1]->data;
    j.eps = call->at->AT(rms_norm, eps);
    return forward<false>(call, j);
}

// --- backward: with xh = (x - mean) * rstd and g = dy * w: dx = rstd * (g - avg(g) - xh * avg(g * xh));
// without centring the avg(g) goes. SUMS: each thread sums dy * xh and dy of its columns over the
// group's rows, in registers, or with PER 0 in the group's own row of `sums`.
template <class T, int VEC, int PER, bool SUMS>
__global__ void __launch_bounds__(ROW_THREADS) norm_backward(const norm_job j) {
    typedef wide_t<T> W;
    typedef row_sum_t<T, PER> S;
    constexpr int KEPT = SUMS && PER > 0 ? PER : 1;
    const int64_t packs = j.d / VEC, group = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    const T *const w = static_cast<const T *>(j.weight);
    W *const dw_out = SUMS ? static_cast<W *>(j.sums) + group * 2 * j.d : nullptr, *const db_out = dw_out + j.d;
    W dw[KEPT][VEC], db[KEPT][VEC];
    if constexpr (SUMS && PER > 0)
        for (int i = 0; i < KEPT; i++)
            for (int c = 0; c < VEC; c++) dw[i][c] = db[i][c] = 0;
    if constexpr (SUMS && PER == 0)
        each_pack<0>(packs, [&](int, auto k) {
            for (int c = 0; c < VEC; c++) dw_out[k * VEC + c] = db_out[k * VEC + c] = 0;
        });
    FOR_ROWS(row, j.n) {
        const bool live = row < j.n;
        const row_part<T, VEC, PER> x(static_cast<const T *>(j.x) + row * j.d, live ? packs : 0);
        const row_part<T, VEC, PER> dy(static_cast<const T *>(j.dy) + (live ? row_at(j.dy_rows, row) : 0), live ? packs : 0);
        const W mean = live && j.mean ? static_cast<const W *>(j.mean)[row] : (W)0;
        const W rstd = live ? static_cast<const W *>(j.rstd)[row] : (W)0;
        S sum_g = 0, sum_gx = 0;
        each_pack<PER>(x.packs, [&](int i, auto k) {
            const pack<T, VEC> px = x.at(i, k), pd = dy.at(i, k);
            pack<T, VEC> pw;
            if (w) pw = read_pack<T, VEC>(w, k);
            W s = 0, t = 0;
            for (int c = 0; c < VEC; c++) {
                const W d = widen<T>(pd.v[c]), v = widen<T>(px.v[c]) - mean, g = w ? d * widen<T>(pw.v[c]) : d;
                s += g;
                t += g * v;
                if constexpr (SUMS && PER > 0) {
                    dw[i][c] += d * (v * rstd);
                    db[i][c] += d;
                }
                if constexpr (SUMS && PER == 0) {
                    dw_out[k * VEC + c] += d * (v * rstd);
                    db_out[k * VEC + c] += d;
                }
            }
            sum_g += s;
            sum_gx += t;
        });
        if (!j.y) continue;
        row_sum2(sum_g, sum_gx);
        const W c1 = (W)(sum_gx / (S)j.d * (S)rstd * (S)rstd), c2 = j.mean ? (W)(sum_g / (S)j.d) : (W)0;
        T *const dx = static_cast<T *>(j.y) + row * j.d, *const dm = static_cast<T *>(j.dm) + row * j.d;
        const T *const dsum = static_cast<const T *>(j.dsum) + row * j.d, *const scale = static_cast<const T *>(j.scale);
        each_pack<PER>(x.packs, [&](int i, auto k) {
            const pack<T, VEC> px = x.at(i, k), pd = dy.at(i, k);
            pack<T, VEC> pw, ps, pt, out, out_m;
            if (w) pw = read_pack<T, VEC>(w, k);
            if (j.dsum) ps = read_pack<T, VEC>(dsum, k);
            if (j.scale) pt = read_pack<T, VEC>(scale, k);
            for (int c = 0; c < VEC; c++) {
                const W d = widen<T>(pd.v[c]), g = w ? d * widen<T>(pw.v[c]) : d;
                W v = rstd * (g - c2 - (widen<T>(px.v[c]) - mean) * c1);
                if (j.dsum) v += widen<T>(ps.v[c]);
                out.v[c] = narrow<T>(v);
                out_m.v[c] = narrow<T>(j.scale ? v * widen<T>(pt.v[c]) : v);
            }
            write_pack<T, VEC>(dx, k, out);
            if (j.dm) write_pack<T, VEC>(dm, k, out_m);
        });
    }
    if constexpr (SUMS && PER > 0)
        each_pack<PER>(packs, [&](int i, auto k) {
            for (int c = 0; c < VEC; c++) {
                dw_out[k * VEC + c] = dw[i][c];
                db_out[k * VEC + c] = db[i][c];
            }
        });
}

// Sums the groups' rows, [groups][2][d], in a fixed order; which: 0 for dweight, 1 for dbias.
template <class T>
__global__ void __launch_bounds__(256) norm_combine(const wide_t<T> *sums, T *dweight, T *dbias, const int64_t groups,
                                                    const int64_t d) {
    const int64_t column = (int64_t)blockIdx.x * COLUMN_WIDTH + threadIdx.x;
    for (int half = 0; half < 2; half++) {
        T *const out = half == 0 ? dweight : dbias;
        if (!out) continue;
        double total = 0;
        if (column < d)
            for (int64_t g = threadIdx.y; g < groups; g += COLUMN_DEPTH) total += (double)sums[(g * 2 + half) * d + column];
        total = column_reduce(total, add_op());
        if (column < d && threadIdx.y == 0) out[column] = narrow<T>((wide_t<T>)total);
    }
}

static weft_status backward(const weft_call *call, norm_job j, const weft_view *dy, const weft_view *x, void *dweight,
                            void *dbias) {
    set_rows(&j, x);
    j.dy = dy->data;
    weft_rows_of(dy, 1, &j.dy_rows);
    if (j.d == 0 || (j.n == 0 && !dweight && !dbias)) return WEFT_OK;
    return with_float(x->dtype, [&](auto tag) -> weft_status {
        using T = TYPE_OF(tag);
        const uintptr_t all = address(j.x) | address(j.dy) | address(j.y) | address(j.weight) | address(j.dsum) |
                              address(j.scale) | address(j.dm) | (rows_aligned(j.dy_rows, 16 / sizeof(T)) ? 0 : 1);
        if (!dweight && !dbias) {
            const row_grid g = row_grid_of<T>(j.n, j.d, all, 4);
            return with_row_grid<T, 4>(g, [&](auto vec, auto per) {
                return LAUNCH(call, (norm_backward<T, COUNT_OF(vec), COUNT_OF(per), false>), g.blocks, g.block, 0, j);
            });
        }
        row_grid g = row_grid_of<T>(j.n, j.d, all, 2);
        const int64_t most = ceil_div(PARTS, g.block.y), some = ceil_div(j.n, (int64_t)g.block.y * LEAST_ROWS);
        g.blocks = (unsigned)(some < most ? some : most);
        const int64_t groups = (int64_t)g.blocks * g.block.y;
        scratch space(call, groups * 2 * j.d * (int64_t)sizeof(wide_t<T>));
        if (!space.data) return WEFT_ENOMEM;
        j.sums = space.data;
        if (groups > 0)
            TRY((with_row_grid<T, 2>(g, [&](auto vec, auto per) {
                return LAUNCH(call, (norm_backward<T, COUNT_OF(vec), COUNT_OF(per), true>), g.blocks, g.block, 0, j);
            })));
        return LAUNCH(call, norm_combine<T>, blocks_for(j.d, COLUMN_WIDTH, GRID_LIMIT), column_block, 0,
                      static_cast<const wide_t<T> *>(j.sums), static_cast<T *>(dweight), static_cast<T *>(dbias), groups, j.d);
    });
}

CUDA_KERNEL(layer_norm_backward) {
    const int64_t needs = call->at->AT(layer_norm_backward, needs);
    norm_job j = {};
    j.weight = data_of(call->in[2]);
    j.mean = call->in[3]->data;
    j.rstd = call->in[4]->data;
    j.y = needs & 1 ? call->out[0]->data : nullptr;
    return backward(call, j, call->in[0], call->in[1], needs & 2 ? call->out[1]->data : nullptr, needs & 4 ? call->out[2]->data : nullptr);
}

CUDA_KERNEL(add_layer_norm_backward) {
    const int64_t needs = call->at->AT(add_layer_norm_backward, needs);
    norm_job j = {};
    j.dsum = data_of(call->in[0]);
    j.scale = data_of(call->in[3]);
    j.weight = data_of(call->in[4]);
    j.mean = call->in[5]->data;
    j.rstd = call->in[6]->data;
    j.y = needs & 1 ? call->out[0]->data : nullptr;
    j.dm = needs & 2 ? call->out[1]->data : nullptr;
    return backward(call, j, call->in[1], call->in[2], needs & 4 ? call->out[2]->data : nullptr, needs & 8 ? call->out[3]->data : nullptr);
}

CUDA_KERNEL(add_rms_norm_backward) {
    const int64_t needs = call->at->AT(add_rms_norm_backward, needs);
    norm_job j = {};
    j.dsum = data_of(call->in[0]);
    j.weight = data_of(call->in[3]);
    j.rstd = call->in[4]->data;
    j.y = needs & 1 ? call->out[0]->data : nullptr;
    return backward(call, j, call->in[1], call->in[2], needs & 2 ? call->out[1]->data : nullptr, nullptr);
}

CUDA_KERNEL(rms_norm_backward) {
    const int64_t needs = call->at->AT(rms_norm_backward, needs);
    norm_job j = {};
    j.weight = data_of(call->in[2]);
    j.rstd = call->in[3]->data;
    j.y = needs & 1 ? call->out[0]->data : nullptr;
    return backward(call, j, call->in[0], call->in[1], needs & 2 ? call->out[1]->data : nullptr, nullptr);
}

// --- normalize: sums in double, so that squares of large numbers do not overflow
struct normalize_job {
    const void *a, *b, *norm;       // x; or dy, y and the norm
    void *out, *norm_out;
    column_shape c;
    double eps;
    template <class V> void visit(V &v) { v(a); v(b); v(norm); v(out); v(norm_out); }
};

// What a list is scaled with: y = (a - b * dot) / size, b being there in a backward only.
template <class W> struct list_scale {
    W size, dot;
    DEVICE list_scale(const normalize_job &j, double total, int64_t list, bool live) {
        if (j.norm) {
            const W norm = live ? static_cast<const W *>(j.norm)[list] : (W)1;
            const bool below = (double)norm < j.eps;
            dot = below ? (W)0 : (W)total;
            size = below ? (W)j.eps : norm;
        } else {
            const double root = sqrt(total);
            dot = 0;
            size = (W)(root < j.eps ? j.eps : root);
        }
    }
};

template <class T, int VEC, int PER>
__global__ void __launch_bounds__(ROW_THREADS) normalize_rows(const normalize_job j) {
    typedef wide_t<T> W;
    const int64_t d = j.c.n, packs = d / VEC;
    FOR_ROWS(row, j.c.outer) {
        const bool live = row < j.c.outer;
        const row_part<T, VEC, PER> a(static_cast<const T *>(j.a) + row * d, live ? packs : 0);
        const row_part<T, VEC, PER> b(static_cast<const T *>(j.b ? j.b : j.a) + row * d, live && j.b ? packs : 0);
        double total = 0;
        each_pack<PER>(a.packs, [&](int i, auto k) {
            const pack<T, VEC> p = a.at(i, k), q = j.b ? b.at(i, k) : p;
            for (int c = 0; c < VEC; c++) total += (double)widen<T>(p.v[c]) * (double)widen<T>(q.v[c]);
        });
        total = row_sum(total);
        const list_scale<W> s(j, total, row, live);
        T *const out = static_cast<T *>(j.out) + row * d;
        each_pack<PER>(a.packs, [&](int i, auto k) {
            const pack<T, VEC> p = a.at(i, k), q = j.b ? b.at(i, k) : p;
            pack<T, VEC> y;
            for (int c = 0; c < VEC; c++) {
                const W v = widen<T>(p.v[c]);
                y.v[c] = narrow<T>((j.b ? v - widen<T>(q.v[c]) * s.dot : v) / s.size);
            }
            write_pack<T, VEC>(out, k, y);
        });
        if (live && threadIdx.x == 0 && j.norm_out) static_cast<W *>(j.norm_out)[row] = (W)sqrt(total);
    }
}

template <class T>
__global__ void __launch_bounds__(COLUMN_WIDTH * COLUMN_DEPTH) normalize_columns(const normalize_job j) {
    typedef wide_t<T> W;
    const int64_t n = j.c.n, inner = j.c.inner;
    FOR_TILES(j.c) {
        const column_at at(j.c, tile);
        const T *const a = static_cast<const T *>(j.a) + at.base, *const b = j.b ? static_cast<const T *>(j.b) + at.base : a;
        double total = 0;
        for (int64_t i = threadIdx.y; at.live && i < n; i += COLUMN_DEPTH)
            total += (double)widen<T>(a[i * inner]) * (double)widen<T>(b[i * inner]);
        total = column_reduce(total, add_op());
        const list_scale<W> s(j, total, at.list, at.live);
        T *const out = static_cast<T *>(j.out) + at.base;
        for (int64_t i = threadIdx.y; at.live && i < n; i += COLUMN_DEPTH) {
            const W v = widen<T>(a[i * inner]);
            out[i * inner] = narrow<T>((j.b ? v - widen<T>(b[i * inner]) * s.dot : v) / s.size);
        }
        if (at.live && threadIdx.y == 0 && j.norm_out) static_cast<W *>(j.norm_out)[at.list] = (W)sqrt(total);
    }
}

static weft_status normalized(const weft_call *call, normalize_job j, int64_t dim) {
    j.a = call->in[0]->data;
    j.out = call->out[0]->data;
    j.c = columns_of(call->in[0], dim);
    if (j.c.outer * j.c.inner == 0) return WEFT_OK;
    return with_float(call->out[0]->dtype, [&](auto tag) -> weft_status {
        using T = TYPE_OF(tag);
        if (j.c.inner > 1)
            return LAUNCH(call, normalize_columns<T>, column_blocks(j.c), column_block, 0, j);
        const row_grid g = row_grid_of<T>(j.c.outer, j.c.n, address(j.a) | address(j.b) | address(j.out), 4);
        return with_row_grid<T, 4>(g, [&](auto vec, auto per) {
            return LAUNCH(call, (normalize_rows<T, COUNT_OF(vec), COUNT_OF(per)>), g.blocks, g.block, 0, j);
        });
    });
}

CUDA_KERNEL(normalize) {
    normalize_job j = {};
    j.norm_out = call->out[1]->data;
    j.eps = call->at->AT(normalize, eps);
    return normalized(call, j, call->at->AT(normalize, dim));
}

CUDA_KERNEL(normalize_backward) {
    normalize_job j = {};
    j.b = call->in[1]->data;
    j.norm = call->in[2]->data;
    j.eps = call->at->AT(normalize_backward, eps);
    return normalized(call, j, call->at->AT(normalize_backward, dim));
}
