// sort.cu: sort and topk along a dim. Short lists are sorted in shared memory. Of long ones, topk
// finds the k-th entry byte by byte and sorts those up to it; sort merges sorted tiles, each entry
// finding its place in the other run by itself.
#include "cuda/block.h"
#include "cuda/sort.h"

#define SHARED_BYTES (32 << 10)     // of entries that a block sorts
#define SELECT_MOST 2048            // largest k that is selected
#define SELECT_THREADS 512
#define SEGMENT 8192                // of a long list, where there are too few lists to fill the GPU
#define SEGMENT_LISTS 256
#define COPIES 8                    // of each counter: lanes that find the same byte wait less
#define SCRATCH_BYTES (256 << 20)

struct sort_job {
    const void *x;
    void *values;
    int64_t *indices;
    int64_t lists, first, n, inner, k;      // `lists` from the first; element i of a list at i * inner
    bool descending;
    template <class V> void visit(V &v) { v(x); v(values); v(indices); }
};

template <class T> DEVICE const T *list_at(const sort_job &j, int64_t list) {
    const int64_t outer = (j.first + list) / j.inner;
    return static_cast<const T *>(j.x) + outer * j.n * j.inner + (j.first + list - outer * j.inner);
}
template <class T> DEVICE entry_of<T> entry_at(const sort_job &j, const T *x, int64_t i) {
    entry_of<T> e;
    make_entry(&e, key_of(x[i * j.inner]), (uint32_t)i, j.descending);
    return e;
}
// The i-th of the result.
template <class T> DEVICE void put(const sort_job &j, int64_t list, int64_t i, const entry_of<T> &e) {
    const int64_t outer = (j.first + list) / j.inner, column = j.first + list - outer * j.inner;
    const int64_t to = (outer * j.k + i) * j.inner + column;
    static_cast<T *>(j.values)[to] = list_at<T>(j, list)[e.index() * j.inner];
    j.indices[to] = e.index();
}

// --- tiles: blockDim.y of them a block, `size` entries each. Without `runs` a tile is a whole list
// and its first k are the result.
template <class T>
__global__ void __launch_bounds__(1024) sort_tiles(const sort_job j, const int size, const int64_t tiles, entry_of<T> *runs) {
    typedef entry_of<T> E;
    DYNAMIC_SHARED(E, all);
    E *const part = all + threadIdx.y * size;
    for (int64_t first = (int64_t)blockIdx.x * blockDim.y; first < j.lists * tiles; first += (int64_t)gridDim.x * blockDim.y) {
        const int64_t unit = first + threadIdx.y, list = unit / tiles, begin = (unit - list * tiles) * size;
        const bool live = list < j.lists;
        const T *const x = list_at<T>(j, live ? list : 0);
        for (int i = (int)threadIdx.x; i < size; i += (int)blockDim.x) {
            if (live && begin + i < j.n) part[i] = entry_at<T>(j, x, begin + i);
            else no_entry(&part[i]);
        }
        sort_shared(part, size);
        for (int i = (int)threadIdx.x; live && i < size; i += (int)blockDim.x) {
            if (runs && begin + i < j.n) runs[list * j.n + begin + i] = part[i];
            if (!runs && i < j.k) put<T>(j, list, i, part[i]);
        }
        __syncthreads();
    }
}

// Pairs of sorted runs become one: an entry moves by as many places as the other run has before it.
template <class E>
__global__ void __launch_bounds__(256) sort_merge(const E *from, E *to, const int64_t total, const int64_t n, const int64_t run) {
    for (int64_t g = THREAD_INDEX; g < total; g += THREAD_COUNT) {
        const int64_t start = g / n * n, i = g - start, pair = i / (2 * run) * (2 * run);
        const int64_t middle = pair + run < n ? pair + run : n, end = middle + run < n ? middle + run : n;
        const E e = from[g];
        int64_t low = i < middle ? middle : pair, high = i < middle ? end : middle;
        const int64_t other = low;
        while (low < high) {
            const int64_t half = low + (high - low) / 2;
            if (from[start + half].before(e)) low = half + 1;
            else high = half;
        }
        const int64_t before = i < middle ? i - pair : i - middle;
        to[start + pair + before + (low - other)] = e;
    }
}

template <class T>
__global__ void __launch_bounds__(256) sort_put(const sort_job j, const entry_of<T> *sorted) {
    for (int64_t g = THREAD_INDEX; g < j.lists * j.k; g += THREAD_COUNT) {
        const int64_t list = g / j.k, i = g - list * j.k;
        put<T>(j, list, i, sorted[list * j.n + i]);
    }
}

// --- selecting the first k. Units are segments of lists (candidates: the k first of each in any
// order), then whole lists, of elements or of the segments' candidates.
template <class T> struct select_source {
    const entry_of<T> *candidates;      // NULL: elements
    int64_t count, segments, segment;   // entries of a list, its segments, entries of a segment
    template <class V> void visit(V &v) { v(candidates); }
};

struct select_state { int byte, need, done; };

// counts [256][COPIES] of the entries whose head is found: the byte in which the need-th lies.
DEVICE void select_byte(const int *counts, select_state *state) {
    if (threadIdx.x >= 32) return;
    const int lane = (int)threadIdx.x, need = state->need;
    int sums[8], total = 0;
    for (int b = 0; b < 8; b++) {
        sums[b] = 0;
        for (int c = 0; c < COPIES; c++) sums[b] += counts[(lane * 8 + b) * COPIES + c];
        total += sums[b];
    }
    int upto = total;
    for (int d = 1; d < 32; d *= 2) {
        const int lower = __shfl_up_sync(FULL_WARP, upto, d);
        if (lane >= d) upto += lower;
    }
    int below = upto - total;
    if (need > below && need <= upto)
        for (int b = 0; b < 8; b++) {
            if (need <= below + sums[b]) {
                state->byte = lane * 8 + b;
                state->need = need - below;
                state->done = need - below == sums[b];
                break;
            }
            below += sums[b];
        }
}

template <class T>
__global__ void __launch_bounds__(SELECT_THREADS) sort_select(const sort_job j, const select_source<T> s, const int size,
                                                              const int first_index_byte, entry_of<T> *out) {
    typedef entry_of<T> E;
    DYNAMIC_SHARED(E, best);
    SHARED(int, counts, [256 * COPIES]);
    SHARED(select_state, state, [1]);
    for (int64_t unit = blockIdx.x; unit < j.lists * s.segments; unit += gridDim.x) {
        const int64_t list = unit / s.segments, begin = (unit - list * s.segments) * s.segment;
        const int64_t end = begin + s.segment < s.count ? begin + s.segment : s.count;
        const T *const x = list_at<T>(j, list);
        const E *const given = s.candidates ? s.candidates + list * s.count : nullptr;
        const int keep = (int)(end - begin < j.k ? end - begin : j.k);
        auto entry = [&](int64_t i) { return given ? given[i] : entry_at<T>(j, x, i); };
        if (threadIdx.x == 0) state[0] = select_state{ 0, keep, 0 };
        E bound = {};
        int b = 0;
        for (; b < E::BYTES; b++) {
            if (b >= E::KEY_BYTES && b < first_index_byte) continue;    // 0 in all
            for (int i = (int)threadIdx.x; i < 256 * COPIES; i += (int)blockDim.x) counts[i] = 0;
            __syncthreads();
            for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
                const E e = entry(i);
                if (e.same_head(bound, b)) atomicAdd(&counts[e.byte(b) * COPIES + (threadIdx.x & (COPIES - 1))], 1);
            }
            __syncthreads();
            select_byte(counts, state);
            __syncthreads();
            bound.put_byte(b, state[0].byte);
            if (state[0].done) break;   // all with this head are wanted
        }
        for (b++; b < E::BYTES; b++) bound.put_byte(b, 255);
        if (threadIdx.x == 0) counts[0] = 0;
        for (int i = (int)threadIdx.x; i < size; i += (int)blockDim.x) no_entry(&best[i]);
        __syncthreads();
        for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
            const E e = entry(i);
            if (!bound.before(e)) best[atomicAdd(&counts[0], 1)] = e;
        }
        sort_shared(best, size);
        for (int i = (int)threadIdx.x; i < j.k; i += (int)blockDim.x) {
            if (out) out[unit * j.k + i] = best[i];
            else put<T>(j, list, i, best[i]);
        }
        __syncthreads();
    }
}

static int power_of_two(int64_t n) {
    int size = 2;
    while (size < n) size *= 2;
    return size;
}

template <class T> static weft_status select_first(const weft_call *call, const sort_job &j) {
    typedef entry_of<T> E;
    const int size = power_of_two(j.k);
    const size_t shared = (size_t)size * sizeof(E);
    int first_index_byte = E::KEY_BYTES + 3;
    for (int64_t top = j.n - 1; top > 255; top >>= 8) first_index_byte--;
    select_source<T> whole = { nullptr, j.n, 1, j.n };
    const int64_t segments = ceil_div(j.n, SEGMENT);
    const bool cut = j.lists <= SEGMENT_LISTS && segments > 2 && j.k <= SEGMENT / 4;
    scratch space(call, cut ? j.lists * segments * j.k * (int64_t)sizeof(E) : 0);
    if (!space.data) return WEFT_ENOMEM;
    if (cut) {
        const select_source<T> parts = { nullptr, j.n, segments, SEGMENT };
        TRY(LAUNCH(call, sort_select<T>, blocks_for(j.lists * segments, 1), SELECT_THREADS, shared, j, parts, size,
                   first_index_byte, space.as<E>()));
        whole = { space.as<E>(), segments * j.k, 1, segments * j.k };
    }
    return LAUNCH(call, sort_select<T>, blocks_for(j.lists, 1), SELECT_THREADS, shared, j, whole, size, first_index_byte,
                  static_cast<E *>(nullptr));
}

template <class T> static weft_status sort_whole(const weft_call *call, sort_job j) {
    typedef entry_of<T> E;
    const int tile = (int)(SHARED_BYTES / sizeof(E));
    const int64_t lists = j.lists, tiles = ceil_div(j.n, tile), each = 2 * j.n * (int64_t)sizeof(E);
    const int64_t most = each > SCRATCH_BYTES ? 1 : SCRATCH_BYTES / each, batch = lists < most ? lists : most;
    scratch space(call, batch * each);
    if (!space.data) return WEFT_ENOMEM;
    for (j.first = 0; j.first < lists; j.first += batch) {
        j.lists = lists - j.first < batch ? lists - j.first : batch;
        const int64_t total = j.lists * j.n;
        E *from = space.as<E>(), *to = from + batch * j.n;
        TRY(LAUNCH(call, sort_tiles<T>, blocks_for(j.lists * tiles, 1), 1024, SHARED_BYTES, j, tile, tiles, from));
        for (int64_t run = tile; run < j.n; run *= 2) {
            TRY(LAUNCH(call, sort_merge<E>, blocks_for(total, 256), 256, 0, static_cast<const E *>(from), to, total, j.n, run));
            E *t = from;
            from = to;
            to = t;
        }
        TRY(LAUNCH(call, sort_put<T>, blocks_for(j.lists * j.k, 256), 256, 0, j, static_cast<const E *>(from)));
    }
    return WEFT_OK;
}

template <class T> static weft_status run_as(const weft_call *call, const sort_job &j) {
    typedef entry_of<T> E;
    if (j.n <= SHARED_BYTES / (int64_t)sizeof(E)) {
        const int size = power_of_two(j.n), across = size / 2 < 512 ? size / 2 : 512;
        const dim3 block((unsigned)across, across < 128 ? 128u / (unsigned)across : 1);
        return LAUNCH(call, sort_tiles<T>, blocks_for(j.lists, block.y), block, block.y * (size_t)size * sizeof(E), j, size,
                      (int64_t)1, static_cast<E *>(nullptr));
    }
    return j.k <= SELECT_MOST ? select_first<T>(call, j) : sort_whole<T>(call, j);
}

static weft_status run(const weft_call *call, int64_t dim, int64_t k, bool descending) {
    const weft_view *x = call->in[0];
    if (call->out[0]->numel == 0) return WEFT_OK;
    if (dim < 0) dim += x->ndim;
    sort_job j = {};
    j.x = x->data;
    j.values = call->out[0]->data;
    j.indices = static_cast<int64_t *>(call->out[1]->data);
    j.n = x->shape[dim];
    j.inner = weft_span(x, (int)dim + 1, x->ndim);
    j.lists = weft_span(x, 0, (int)dim) * j.inner;
    j.k = k;
    j.descending = descending;
    if (j.n >= (int64_t)1 << 31)
        return weft_fail(WEFT_EUNSUPPORTED, "the dim has %lld elements, at most %lld can be sorted on a GPU; sort on the cpu",
                         (long long)j.n, ((long long)1 << 31) - 1);
    return with_number(x->dtype, [&](auto tag) { return run_as<TYPE_OF(tag)>(call, j); });
}

CUDA_KERNEL(topk) {
    return run(call, call->at->AT(topk, dim), call->at->AT(topk, k), call->at->AT(topk, largest));
}

CUDA_KERNEL(sort) {
    const weft_view *x = call->in[0];
    const int64_t dim = call->at->AT(sort, dim);
    return run(call, dim, x->shape[dim < 0 ? dim + x->ndim : dim], call->at->AT(sort, descending));
}
