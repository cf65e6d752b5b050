// random.c: kernels that draw. Each element's draw is named by its number (core/tensor/random.h),
// so values depend neither on threads nor on the cut into pieces. Compiled without contraction.
#include "cpu.h"
#include "tensor/random.h"
#include <math.h>
#include <string.h>

#define BATCH 1024         // elements drawn at once
#define GRAIN (16 * BATCH) // elements of a piece
#define LANES 16

typedef struct stream {
    uint64_t key, counter;
} stream;

// Words first .. first + n - 1, rounded up to whole groups of LANES blocks; first: a multiple of 4.
ALWAYS_INLINE void fill_words(const stream *s, int64_t first, int64_t n, uint32_t *RESTRICT words) {
    const uint64_t start = (uint64_t)first >> 2;
    for (int64_t done = 0; done < n; done += 4 * LANES) {
        uint32_t c0[LANES], c1[LANES], c2[LANES], c3[LANES];
        uint32_t k0 = (uint32_t)s->key, k1 = (uint32_t)(s->key >> 32);
#pragma omp simd
        for (int l = 0; l < LANES; l++) {
            uint64_t block = start + (uint64_t)(done >> 2) + (uint64_t)l;
            c0[l] = (uint32_t)block;
            c1[l] = (uint32_t)(block >> 32);
            c2[l] = (uint32_t)s->counter;
            c3[l] = (uint32_t)(s->counter >> 32);
        }
        for (int round = 0; round < 10; round++) {
#pragma omp simd
            for (int l = 0; l < LANES; l++) {
                uint64_t a = (uint64_t)0xD2511F53u * c0[l], b = (uint64_t)0xCD9E8D57u * c2[l];
                c0[l] = (uint32_t)(b >> 32) ^ c1[l] ^ k0;
                c2[l] = (uint32_t)(a >> 32) ^ c3[l] ^ k1;
                c1[l] = (uint32_t)b;
                c3[l] = (uint32_t)a;
            }
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
#pragma omp simd
        for (int l = 0; l < LANES; l++) {
            words[done + 4 * l] = c0[l];
            words[done + 4 * l + 1] = c1[l];
            words[done + 4 * l + 2] = c2[l];
            words[done + 4 * l + 3] = c3[l];
        }
    }
}

// --- outputs without inputs: a sampler draws elements first .. first + n - 1, n <= BATCH
typedef struct draw draw;
typedef void (*sampler)(const draw *d, int64_t first, int64_t n, void *y);
struct draw {
    stream s;
    sampler fn;
    char *y;
    int64_t numel, size;   // size: bytes of an element
    double low, high, std; // of a truncated normal, before std
    double min, max;       // and after it
    int64_t start;
    uint64_t range;
};

static void draw_piece(void *context, int64_t piece) {
    const draw *d = context;
    int64_t end = weft_piece_end(d->numel, GRAIN, piece);
    for (int64_t i = piece * GRAIN; i < end; i += BATCH)
        d->fn(d, i, end - i < BATCH ? end - i : BATCH, d->y + i * d->size);
}

static weft_status run(const weft_call *call, draw *d, sampler narrow, sampler wide) {
    const weft_view *y = call->out[0];
    d->s = (stream){ call->at->rng_key, call->at->rng_counter };
    d->fn = y->dtype == WEFT_FLOAT32 ? narrow : wide;
    d->y = y->data;
    d->numel = y->numel;
    d->size = weft_dtype_size(y->dtype);
    weft_parallel(weft_pieces(y->numel, GRAIN), draw_piece, d);
    return WEFT_OK;
}

static void uniform32(const draw *d, int64_t first, int64_t n, void *out) {
    uint32_t words[BATCH];
    float *RESTRICT y = out;
    fill_words(&d->s, first, n, words);
    for (int64_t i = 0; i < n; i++) y[i] = weft_uniform32(words[i]);
}

static void uniform64(const draw *d, int64_t first, int64_t n, void *out) {
    uint32_t words[2 * BATCH];
    double *RESTRICT y = out;
    fill_words(&d->s, 2 * first, 2 * n, words);
    for (int64_t i = 0; i < n; i++) y[i] = weft_uniform64(words[2 * i], words[2 * i + 1]);
}

CPU_KERNEL(rand) {
    draw d = { 0 };
    return run(call, &d, uniform32, uniform64);
}

static void normal32(const draw *d, int64_t first, int64_t n, void *out) {
    uint32_t words[BATCH];
    float y[BATCH];
    fill_words(&d->s, first, n, words);
#pragma omp simd
    for (int64_t i = 0; i < (n + 1) / 2; i++)
        weft_normal32(words[2 * i], words[2 * i + 1], &y[2 * i], &y[2 * i + 1]);
    memcpy(out, y, (size_t)n * sizeof *y);
}

static void normal64(const draw *d, int64_t first, int64_t n, void *out) {
    uint32_t words[2 * BATCH + 2];
    double y[BATCH + 1];
    fill_words(&d->s, 2 * first, 2 * n, words);
#pragma omp simd
    for (int64_t i = 0; i < (n + 1) / 2; i++)
        weft_normal64(words + 4 * i, &y[2 * i], &y[2 * i + 1]);
    memcpy(out, y, (size_t)n * sizeof *y);
}

CPU_KERNEL(randn) {
    draw d = { 0 };
    return run(call, &d, normal32, normal64);
}

// y: normals of attempt 0. Those outside are drawn again, one by one.
#define TRUNC_NORMAL(NAME, REAL, NORMAL, WIDE) \
static void NAME(const draw *d, int64_t first, int64_t n, void *out) { \
    REAL *RESTRICT y = out; \
    const bool often = weft_often(d->low, d->high); \
    const REAL a = (REAL)d->min, b = (REAL)d->max; \
    if (often) NORMAL(d, first, n, out); \
    for (int64_t i = 0; i < n; i++) { \
        double x = y[i]; \
        if (!often || !(x >= d->low && x <= d->high)) \
            x = weft_cut_normal(d->s.key, d->s.counter, (uint64_t)(first + i), often, d->low, \
                                  d->high, WIDE); \
        REAL v = (REAL)x * (REAL)d->std; \
        y[i] = v < a ? a : v > b ? b : v; \
    } \
}
TRUNC_NORMAL(trunc_normal32, float, normal32, false)
TRUNC_NORMAL(trunc_normal64, double, normal64, true)

CPU_KERNEL(trunc_normal) {
    double std = call->at->AT(trunc_normal, std);
    draw d = { .std = std, .min = call->at->AT(trunc_normal, a),
               .max = call->at->AT(trunc_normal, b) };
    d.low = d.min / std;
    d.high = d.max / std;
    return run(call, &d, trunc_normal32, trunc_normal64);
}

#define RANDINT(NAME, TYPE) \
static void NAME(const draw *d, int64_t first, int64_t n, void *out) { \
    uint32_t words[2 * BATCH]; \
    TYPE *RESTRICT y = out; \
    fill_words(&d->s, 2 * first, 2 * n, words); \
    for (int64_t i = 0; i < n; i++) \
        y[i] = (TYPE)(int64_t)((uint64_t)d->start + \
                               weft_below(words[2 * i], words[2 * i + 1], d->range)); \
}
RANDINT(randint_float32, float)
RANDINT(randint_float64, double)
RANDINT(randint_int32, int32_t)
RANDINT(randint_int64, int64_t)

CPU_KERNEL(randint) {
    int64_t low = call->at->AT(randint, low), high = call->at->AT(randint, high);
    draw d = { .start = low, .range = (uint64_t)high - (uint64_t)low };
    switch (call->out[0]->dtype) {
    case WEFT_FLOAT64: return run(call, &d, NULL, randint_float64);
    case WEFT_INT32: return run(call, &d, NULL, randint_int32);
    case WEFT_INT64: return run(call, &d, NULL, randint_int64);
    default: return run(call, &d, randint_float32, NULL);
    }
}

// Fisher and Yates: step k exchanges positions n - 1 - k and one not above it.
CPU_KERNEL(randperm) {
    int64_t *y = call->out[0]->data, n = call->out[0]->numel;
    const stream s = { call->at->rng_key, call->at->rng_counter };
    uint32_t words[2 * BATCH];
    for (int64_t i = 0; i < n; i++) y[i] = i;
    for (int64_t k = 0; k < n - 1; k++) {
        int64_t in_batch = k % BATCH, last = n - 1 - k;
        if (in_batch == 0) fill_words(&s, 2 * k, 2 * (last < BATCH ? last : BATCH), words);
        uint64_t j = weft_below(words[2 * in_batch], words[2 * in_batch + 1], (uint64_t)last + 1);
        int64_t t = y[last];
        y[last] = y[j];
        y[j] = t;
    }
    return WEFT_OK;
}

// --- masks
typedef struct mask {
    stream s;
    const weft_view *x;
    const weft_view *y;
    double p;
    bool contiguous;
    int bad;       // set when a probability lies outside 0..1
} mask;

// Where element i of a view lies.
ALWAYS_INLINE int64_t offset_of(const weft_view *v, int64_t i) {
    int64_t offset = 0;
    for (int d = v->ndim - 1; d >= 0; d--) {
        offset += i % v->shape[d] * v->stride[d];
        i /= v->shape[d];
    }
    return offset;
}

#define MASKS(REAL) \
static void bernoulli_##REAL(void *context, int64_t piece) { \
    mask *m = context; \
    const REAL *p = m->x->data; \
    REAL *RESTRICT y = m->y->data; \
    uint32_t words[BATCH]; \
    bool bad = false; \
    int64_t end = weft_piece_end(m->y->numel, GRAIN, piece); \
    for (int64_t begin = piece * GRAIN; begin < end; begin += BATCH) { \
        int64_t n = end - begin < BATCH ? end - begin : BATCH; \
        fill_words(&m->s, begin, n, words); \
        for (int64_t i = 0; i < n; i++) { \
            REAL q = p[m->contiguous ? begin + i : offset_of(m->x, begin + i)]; \
            bad |= !(q >= 0 && q <= 1); \
            y[begin + i] = weft_kept(words[i], q) ? 0 : 1; \
        } \
    } \
    if (bad) __atomic_store_n(&m->bad, 1, __ATOMIC_RELAXED); \
} \
static void dropout_##REAL(void *context, int64_t piece) { \
    const mask *m = context; \
    const REAL *RESTRICT x = m->x->data, scale = (REAL)(1 / (1 - m->p)); \
    REAL *RESTRICT y = m->y->data; \
    uint32_t words[BATCH]; \
    int64_t end = weft_piece_end(m->y->numel, GRAIN, piece); \
    for (int64_t begin = piece * GRAIN; begin < end; begin += BATCH) { \
        int64_t n = end - begin < BATCH ? end - begin : BATCH; \
        fill_words(&m->s, begin, n, words); \
        for (int64_t i = 0; i < n; i++) \
            y[begin + i] = weft_kept(words[i], m->p) ? x[begin + i] * scale : 0; \
    } \
}
MASKS(float)
MASKS(double)

ALWAYS_INLINE double read_real(const weft_view *v, int64_t i) {
    return v->dtype == WEFT_FLOAT32 ? ((const float *)v->data)[i] : ((const double *)v->data)[i];
}

CPU_KERNEL(bernoulli) {
    const weft_view *p = call->in[0];
    mask m = { { call->at->rng_key, call->at->rng_counter }, p, call->out[0], 0,
               weft_view_contiguous(p), 0 };
    weft_parallel(weft_pieces(m.y->numel, GRAIN),
                  p->dtype == WEFT_FLOAT32 ? bernoulli_float : bernoulli_double, &m);
    for (int64_t i = 0; m.bad && i < p->numel; i++) {
        double q = read_real(p, offset_of(p, i));
        if (!(q >= 0 && q <= 1))
            return weft_fail(WEFT_EINVAL, "probability %g outside 0..1, position %lld", q,
                             (long long)i + 1);
    }
    return WEFT_OK;
}

CPU_KERNEL(dropout) {
    const weft_view *x = call->in[0];
    double p = call->at->AT(dropout, p);
    if (!(p >= 0 && p <= 1)) return weft_fail(WEFT_EINVAL, "p must lie in 0..1, got %g", p);
    mask m = { { call->at->rng_key, call->at->rng_counter }, x, call->out[0], p, true, 0 };
    weft_parallel(weft_pieces(x->numel, GRAIN),
                  x->dtype == WEFT_FLOAT32 ? dropout_float : dropout_double, &m);
    return WEFT_OK;
}
