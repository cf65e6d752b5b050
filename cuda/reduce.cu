// reduce.cu: sums and what is built from them. A warp or a block works on each output where its
// elements lie in a row, a block of 8 by 32 on 32 outputs where those lie side by side. Long
// reductions with few outputs are cut into chunks, joined in order by a second kernel.
#include "cuda/block.h"
#include "cuda/plan.h"

#define THREADS 256
#define COLUMNS 32
#define ROWS 8

enum reduce_map { SUM, SQUARE_DISTANCE, SQUARE, ABS, POWER, NONZERO, LARGEST_ABS, SMALLEST_ABS, LARGEST, EXP };
enum reduction { REDUCE_SUM, REDUCE_MEAN, REDUCE_VAR, REDUCE_NORM, REDUCE_LOGSUMEXP };

struct reduce_job {
    reduce_plan plan;
    int32_t what, first, second, twice;     // the second map runs with a constant from the first
    double p, divisor;
    int64_t chunk, chunks;
    template <class V> void visit(V &v) { plan.visit(v); }
};

template <class A> DEVICE A start_of(int map) {
    if constexpr (std::is_integral<A>::value) return 0;
    else return map == LARGEST ? -(A)INFINITY : map == SMALLEST_ABS ? (A)INFINITY : (A)0;
}

template <class A> DEVICE A mapped(int map, A x, A c, A p) {
    if constexpr (std::is_integral<A>::value) return x;
    else switch (map) {
    case SUM: case LARGEST: return x;
    case SQUARE_DISTANCE: return (x - c) * (x - c);
    case SQUARE: return x * x;
    case POWER: return pow(fabs(x), p);
    case NONZERO: return x != 0 ? (A)1 : (A)0;
    case EXP: return exp(x - c);
    default: return fabs(x);
    }
}

template <class A> DEVICE A joined(int map, A a, A b) {
    if constexpr (!std::is_integral<A>::value) {
        if (map == LARGEST || map == LARGEST_ABS) return b > a || b != b ? b : a;
        if (map == SMALLEST_ABS) return b < a || b != b ? b : a;
    }
    return a + b;
}

template <class A> struct join_op {
    int map;
    DEVICE A operator()(A a, A b) const { return joined(map, a, b); }
};

template <class A> DEVICE A constant_of(const reduce_job &j, A first) {
    if (j.what == REDUCE_VAR) return first / (A)j.plan.n_red;
    if constexpr (!std::is_integral<A>::value) return isinf(first) ? (A)0 : first;
    else return first;
}

template <class A> DEVICE A finished(const reduce_job &j, A v, A constant) {
    if constexpr (std::is_integral<A>::value) return v;
    else switch (j.what) {
    case REDUCE_MEAN: case REDUCE_VAR: return v / (A)j.divisor;
    case REDUCE_LOGSUMEXP: return constant + log(v);
    case REDUCE_NORM: return j.first == SQUARE ? sqrt(v) : j.first == POWER ? pow(v, (A)1 / (A)j.p) : v;
    default: return v;
    }
}

// Sums of integers are int64; the others are kept as wide_t<T> while they grow.
template <class T> struct sum_type { typedef wide_t<T> acc; typedef T out; };
template <> struct sum_type<int32_t> { typedef int64_t acc, out; };
template <> struct sum_type<int64_t> { typedef int64_t acc, out; };

template <class T, class A> DEVICE A span(const reduce_job &j, int map, const T *x, int64_t i, int64_t end, int64_t step, A c) {
    const reduce_plan &p = j.plan;
    A v = start_of<A>(map);
    const A power = (A)j.p;
    if (p.nr == 1) {
        const int64_t stride = p.rx[0];
        if (map == SUM)
            for (; i < end; i += step) v += (A)widen<T>(x[i * stride]);
        else
            for (; i < end; i += step) v = joined(map, v, mapped<A>(map, (A)widen<T>(x[i * stride]), c, power));
        return v;
    }
    for (; i < end; i += step)
        v = joined(map, v, mapped<A>(map, (A)widen<T>(x[plan_offset(p.rshape, p.rx, p.nr, i)]), c, power));
    return v;
}

// One output a warp (WARP) or a block. A whole reduction writes y, a chunk of one writes partial.
template <class T, bool WARP>
__global__ void __launch_bounds__(THREADS) reduce_rows(const reduce_job j, int stage, typename sum_type<T>::acc *partial,
                                                       const typename sum_type<T>::acc *constant) {
    typedef typename sum_type<T>::acc A;
    typedef typename sum_type<T>::out Y;
    const reduce_plan &p = j.plan;
    const int per = WARP ? 32 : THREADS, at = (int)threadIdx.x % per;
    const int64_t o = WARP ? (int64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32 : (int64_t)blockIdx.x;
    if (o >= p.n_out) return;
    const int64_t begin = (int64_t)blockIdx.y * j.chunk, end = begin + j.chunk < p.n_red ? begin + j.chunk : p.n_red;
    const T *x = static_cast<const T *>(p.x) + plan_offset(p.kshape, p.kx, p.nk, o);
    const int map = stage ? j.second : j.first;
    A c = constant ? constant[o] : (A)0;
    A v = span<T, A>(j, map, x, begin + at, end, per, c);
    v = WARP ? warp_reduce(v, join_op<A>{ map }) : block_reduce(v, join_op<A>{ map }, start_of<A>(map));
    if (j.chunks > 1) {
        if (at == 0) partial[blockIdx.y * p.n_out + o] = v;
        return;
    }
    if (j.twice) {
        c = constant_of(j, v);
        v = span<T, A>(j, j.second, x, at, end, per, c);
        v = WARP ? warp_reduce(v, join_op<A>{ j.second }) : block_reduce(v, join_op<A>{ j.second }, start_of<A>(j.second));
    }
    if (at == 0) static_cast<Y *>(p.y)[plan_offset(p.kshape, p.ky, p.nk, o)] = narrow<Y>(finished(j, v, c));
}

// The ROWS values of a column, joined in order; every row gets the result.
template <class A> DEVICE A column_reduce(A v, int map) {
    SHARED(A, part, [ROWS][COLUMNS + 1]);
    __syncthreads();
    part[threadIdx.y][threadIdx.x] = v;
    __syncthreads();
    v = part[0][threadIdx.x];
    for (int r = 1; r < ROWS; r++) v = joined(map, v, part[r][threadIdx.x]);
    return v;
}

template <class T>
__global__ void __launch_bounds__(THREADS) reduce_columns(const reduce_job j, int stage, typename sum_type<T>::acc *partial,
                                                          const typename sum_type<T>::acc *constant) {
    typedef typename sum_type<T>::acc A;
    typedef typename sum_type<T>::out Y;
    const reduce_plan &p = j.plan;
    const int64_t o = (int64_t)blockIdx.x * COLUMNS + threadIdx.x;
    const bool there = o < p.n_out;
    const int64_t begin = (int64_t)blockIdx.y * j.chunk, end = begin + j.chunk < p.n_red ? begin + j.chunk : p.n_red;
    const T *x = static_cast<const T *>(p.x) + plan_offset(p.kshape, p.kx, p.nk, there ? o : 0);
    const int map = stage ? j.second : j.first;
    A c = constant && there ? constant[o] : (A)0;
    A v = span<T, A>(j, map, x, begin + threadIdx.y, there ? end : begin, ROWS, c);
    v = column_reduce(v, map);
    if (j.chunks > 1) {
        if (there && threadIdx.y == 0) partial[blockIdx.y * p.n_out + o] = v;
        return;
    }
    if (j.twice) {
        c = constant_of(j, v);
        v = span<T, A>(j, j.second, x, threadIdx.y, there ? end : 0, ROWS, c);
        v = column_reduce(v, j.second);
    }
    if (there && threadIdx.y == 0) static_cast<Y *>(p.y)[plan_offset(p.kshape, p.ky, p.nk, o)] = narrow<Y>(finished(j, v, c));
}

// Chunks joined in order, into the constants of the second map or into y.
template <class T>
__global__ void __launch_bounds__(THREADS) reduce_join(const reduce_job j, int stage, const typename sum_type<T>::acc *partial,
                                                       typename sum_type<T>::acc *constant) {
    typedef typename sum_type<T>::acc A;
    typedef typename sum_type<T>::out Y;
    const reduce_plan &p = j.plan;
    const int map = stage ? j.second : j.first;
    for (int64_t o = THREAD_INDEX; o < p.n_out; o += THREAD_COUNT) {
        A v = start_of<A>(map);
        for (int64_t k = 0; k < j.chunks; k++) v = joined(map, v, partial[k * p.n_out + o]);
        if (j.twice && stage == 0) constant[o] = constant_of(j, v);
        else static_cast<Y *>(p.y)[plan_offset(p.kshape, p.ky, p.nk, o)] = narrow<Y>(finished(j, v, j.twice ? constant[o] : (A)0));
    }
}

template <class T> static weft_status run(const weft_call *call, reduce_job *j) {
    typedef typename sum_type<T>::acc A;
    reduce_plan *p = &j->plan;
    const bool warp = !p->column && p->n_red <= 1024;
    const int64_t groups = p->column ? ceil_div(p->n_out, COLUMNS) : warp ? ceil_div(p->n_out, THREADS / 32) : p->n_out;
    // chunks of at least 2048 elements a block, where whole reductions would leave the chip idle
    const int64_t least = p->column ? 64 * ROWS : 2048, room = 1024 / groups;
    j->chunks = p->n_red > 2 * least && room > 1 ? ceil_div(p->n_red, least) : 1;
    if (j->chunks > room && j->chunks > 1) j->chunks = room;
    j->chunk = ceil_div(p->n_red, j->chunks);
    if (j->chunk < 1) j->chunk = 1;
    if (j->chunks > 1) j->chunks = ceil_div(p->n_red, j->chunk);
    scratch partial(call, j->chunks > 1 ? j->chunks * p->n_out * (int64_t)sizeof(A) : 1);
    scratch constants(call, j->chunks > 1 && j->twice ? p->n_out * (int64_t)sizeof(A) : 1);
    if (!partial.data || !constants.data) return WEFT_ENOMEM;
    const dim3 grid((unsigned)groups, (unsigned)j->chunks);
    for (int stage = 0; stage < (j->chunks > 1 && j->twice ? 2 : 1); stage++) {
        const A *constant = stage ? constants.as<A>() : nullptr;
        if (p->column) TRY(LAUNCH(call, reduce_columns<T>, grid, dim3(COLUMNS, ROWS), 0, *j, stage, partial.as<A>(), constant));
        else if (warp) TRY(LAUNCH(call, (reduce_rows<T, true>), grid, THREADS, 0, *j, stage, partial.as<A>(), constant));
        else TRY(LAUNCH(call, (reduce_rows<T, false>), grid, THREADS, 0, *j, stage, partial.as<A>(), constant));
        if (j->chunks > 1)
            TRY(LAUNCH(call, reduce_join<T>, blocks_for(p->n_out, THREADS), THREADS, 0, *j, stage, partial.as<A>(), constants.as<A>()));
    }
    return WEFT_OK;
}

static weft_status reduce(const weft_call *call, int what, double power, int64_t correction) {
    const weft_view *x = call->in[0], *y = call->out[0];
    if (y->numel == 0) return WEFT_OK;
    reduce_job j = {};
    plan_make(&j.plan, x, dims_mask(call->at, x->ndim), false);
    j.plan.y = y->data;
    j.what = what;
    j.p = power;
    j.divisor = (double)(j.plan.n_red > correction ? j.plan.n_red - correction : 0);
    j.first = SUM;
    if (what == REDUCE_VAR) {
        j.second = SQUARE_DISTANCE;
        j.twice = 1;
    } else if (what == REDUCE_LOGSUMEXP) {
        j.first = LARGEST;
        j.second = EXP;
        j.twice = 1;
    } else if (what == REDUCE_NORM)
        j.first = power == 2 ? SQUARE : power == 1 ? ABS : power == 0 ? NONZERO
                : std::isinf(power) ? (power > 0 ? LARGEST_ABS : SMALLEST_ABS) : POWER;
    if (what == REDUCE_SUM)
        return with_number(x->dtype, [&](auto tag) { return run<TYPE_OF(tag)>(call, &j); });
    return with_float(x->dtype, [&](auto tag) { return run<TYPE_OF(tag)>(call, &j); });
}

CUDA_KERNEL(sum) { return reduce(call, REDUCE_SUM, 0, 0); }
CUDA_KERNEL(mean) { return reduce(call, REDUCE_MEAN, 0, 0); }
CUDA_KERNEL(var) { return reduce(call, REDUCE_VAR, 0, call->at->AT(var, correction)); }
CUDA_KERNEL(norm) { return reduce(call, REDUCE_NORM, call->at->AT(norm, p), 0); }
CUDA_KERNEL(logsumexp) { return reduce(call, REDUCE_LOGSUMEXP, 0, 0); }
