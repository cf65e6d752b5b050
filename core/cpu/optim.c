// optim.c: optimizer steps in place. One pass over all tensors of a call, cut into chunks that
// depend on shapes alone.
#include "half.h"
#include "tensor/adamw.h"
#include <math.h>
#include <string.h>

#define CHUNK 16384   // elements

// A chunk of the tensors of one group, at the same place of each.
typedef struct chunk { int64_t group, begin, n; } chunk;

typedef struct optim_job {
    const weft_call *call;
    int first, size;          // inputs: from `first` on, `size` to a group
    int64_t groups;
    const int64_t *starts;    // by group: its first chunk; then how many chunks there are
    double c[8];              // what the step computes once
    double *partial;          // global_norm: by chunk
} optim_job;

static chunk chunk_of(const optim_job *j, int64_t piece) {
    int64_t low = 0, high = j->groups - 1;
    while (low < high) {      // the last group that starts at or before the piece
        int64_t middle = low + (high - low + 1) / 2;
        if (j->starts[middle] <= piece) low = middle;
        else high = middle - 1;
    }
    const int64_t numel = j->call->in[j->first + low * j->size]->numel;
    const int64_t begin = (piece - j->starts[low]) * CHUNK;
    return (chunk){ low, begin, numel - begin < CHUNK ? numel - begin : CHUNK };
}

ALWAYS_INLINE void *at(const optim_job *j, chunk c, int member, int64_t size) {
    return (char *)j->call->in[j->first + c.group * j->size + member]->data + c.begin * size;
}

// Runs fn over all chunks. `finish`, where given, sees the chunks' partial results before they go.
static weft_status run(optim_job *j, weft_piece_fn fn, void (*finish)(const optim_job *, int64_t)) {
    const weft_call *call = j->call;
    j->groups = (call->n_in - j->first) / j->size;
    if (j->groups == 0) return WEFT_OK;
    int64_t chunks = 0;
    for (int64_t g = 0; g < j->groups; g++)
        chunks += weft_pieces(call->in[j->first + g * j->size]->numel, CHUNK);
    const int64_t nbytes = (j->groups + chunks) * 8;
    int64_t *starts = weft_workspace(call->backend, nbytes);
    if (!starts) return WEFT_ENOMEM;
    chunks = 0;
    for (int64_t g = 0; g < j->groups; g++) {
        starts[g] = chunks;
        chunks += weft_pieces(call->in[j->first + g * j->size]->numel, CHUNK);
    }
    j->starts = starts;
    j->partial = (double *)(void *)(starts + j->groups);
    weft_parallel(chunks, fn, j);
    if (finish) finish(j, chunks);
    weft_workspace_free(call->backend, starts, nbytes);
    return WEFT_OK;
}

static void set_rates(optim_job *j, double lr, double b1, double b2, double decay, int64_t step, double eps) {
    const weft_rates r = weft_rates_of(lr, b1, b2, decay, (double)step);
    const double c[8] = { r.keep, b1, 1 - b1, b2, 1 - b2, r.rate, r.fix2, eps };
    memcpy(j->c, c, sizeof c);
}

// p *= 1 - lr wd;  m, v: running means of g and g^2;
// p -= lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)
#define ADAMW(REAL, ROOT) \
static void adamw_##REAL(void *context, int64_t piece) { \
    const optim_job *j = context; \
    const chunk c = chunk_of(j, piece); \
    REAL *RESTRICT p = at(j, c, 0, sizeof(REAL)); \
    const REAL *RESTRICT g = at(j, c, 1, sizeof(REAL)); \
    REAL *RESTRICT m = at(j, c, 2, sizeof(REAL)), *RESTRICT v = at(j, c, 3, sizeof(REAL)); \
    const REAL keep = (REAL)j->c[0], b1 = (REAL)j->c[1], a1 = (REAL)j->c[2], b2 = (REAL)j->c[3]; \
    const REAL a2 = (REAL)j->c[4], rate = (REAL)j->c[5], fix2 = (REAL)j->c[6]; \
    const REAL eps = (REAL)j->c[7]; \
    for (int64_t i = 0; i < c.n; i++) { \
        REAL mi = b1 * m[i] + a1 * g[i], vi = b2 * v[i] + a2 * (g[i] * g[i]); \
        m[i] = mi; \
        v[i] = vi; \
        p[i] = p[i] * keep - rate * mi / (ROOT(vi * fix2) + eps); \
    } \
}
ADAMW(float, sqrtf)
ADAMW(double, sqrt)

CPU_KERNEL(adamw_) {
    const weft_attrs *a = call->at;
    optim_job j = { .call = call, .size = 4 };
    set_rates(&j, a->AT(adamw_, lr), a->AT(adamw_, beta1), a->AT(adamw_, beta2), a->AT(adamw_, weight_decay),
              a->AT(adamw_, step), a->AT(adamw_, eps));
    if (call->n_in == 0) return WEFT_OK;
    return run(&j, call->in[0]->dtype == WEFT_FLOAT32 ? adamw_float : adamw_double, NULL);
}

// The same on float32 m, v and master; parameter and gradient are bfloat16.
static void adamw_mixed(void *context, int64_t piece) {
    const optim_job *j = context;
    const chunk c = chunk_of(j, piece);
    uint16_t *RESTRICT p = at(j, c, 0, 2);
    const uint16_t *RESTRICT g16 = at(j, c, 1, 2);
    float *RESTRICT m = at(j, c, 2, 4), *RESTRICT v = at(j, c, 3, 4), *RESTRICT w = at(j, c, 4, 4);
    const float keep = (float)j->c[0], b1 = (float)j->c[1], a1 = (float)j->c[2], b2 = (float)j->c[3];
    const float a2 = (float)j->c[4], rate = (float)j->c[5], fix2 = (float)j->c[6], eps = (float)j->c[7];
    for (int64_t i = 0; i < c.n; i++) {
        const float g = weft_float_of_bfloat16(g16[i]);
        const float mi = b1 * m[i] + a1 * g, vi = b2 * v[i] + a2 * (g * g);
        m[i] = mi;
        v[i] = vi;
        w[i] = w[i] * keep - rate * mi / (sqrtf(vi * fix2) + eps);
        p[i] = weft_bfloat16_of(w[i]);
    }
}

CPU_KERNEL(adamw_mixed_) {
    const weft_attrs *a = call->at;
    optim_job j = { .call = call, .size = 5 };
    set_rates(&j, a->AT(adamw_mixed_, lr), a->AT(adamw_mixed_, beta1), a->AT(adamw_mixed_, beta2),
              a->AT(adamw_mixed_, weight_decay), a->AT(adamw_mixed_, step), a->AT(adamw_mixed_, eps));
    return run(&j, adamw_mixed, NULL);
}

// Without momentum the buffer is neither read nor written.
#define SGD(REAL) \
static void sgd_##REAL(void *context, int64_t piece) { \
    const optim_job *j = context; \
    const chunk c = chunk_of(j, piece); \
    REAL *RESTRICT p = at(j, c, 0, sizeof(REAL)); \
    const REAL *RESTRICT g = at(j, c, 1, sizeof(REAL)); \
    REAL *RESTRICT b = at(j, c, 2, sizeof(REAL)); \
    const REAL lr = (REAL)j->c[0], momentum = (REAL)j->c[1], decay = (REAL)j->c[2]; \
    const bool nesterov = j->c[3] != 0; \
    if (momentum == 0) { \
        for (int64_t i = 0; i < c.n; i++) p[i] -= lr * (g[i] + decay * p[i]); \
        return; \
    } \
    for (int64_t i = 0; i < c.n; i++) { \
        REAL d = g[i] + decay * p[i]; \
        REAL bi = momentum * b[i] + d; \
        b[i] = bi; \
        p[i] -= lr * (nesterov ? d + momentum * bi : bi); \
    } \
}
SGD(float)
SGD(double)

CPU_KERNEL(sgd_) {
    const weft_attrs *a = call->at;
    optim_job j = { .call = call, .size = 3,
                    .c = { a->AT(sgd_, lr), a->AT(sgd_, momentum), a->AT(sgd_, weight_decay),
                           (double)a->AT(sgd_, nesterov) } };
    if (call->n_in == 0) return WEFT_OK;
    return run(&j, call->in[0]->dtype == WEFT_FLOAT32 ? sgd_float : sgd_double, NULL);
}

#define EMA(REAL) \
static void ema_##REAL(void *context, int64_t piece) { \
    const optim_job *j = context; \
    const chunk c = chunk_of(j, piece); \
    REAL *RESTRICT e = at(j, c, 0, sizeof(REAL)); \
    const REAL *RESTRICT p = at(j, c, 1, sizeof(REAL)); \
    const REAL rest = (REAL)j->c[1]; \
    /* in this form an average that equals its value stays equal to it */ \
    for (int64_t i = 0; i < c.n; i++) e[i] += rest * (p[i] - e[i]); \
}
EMA(float)
EMA(double)

CPU_KERNEL(ema_) {
    const double decay = call->at->AT(ema_, decay);
    optim_job j = { .call = call, .size = 2, .c = { decay, 1 - decay } };
    if (call->n_in == 0) return WEFT_OK;
    return run(&j, call->in[0]->dtype == WEFT_FLOAT32 ? ema_float : ema_double, NULL);
}

#define SQUARES(REAL) \
static void squares_##REAL(void *context, int64_t piece) { \
    const optim_job *j = context; \
    const chunk c = chunk_of(j, piece); \
    const REAL *RESTRICT x = at(j, c, 0, sizeof(REAL)); \
    double s[16] = { 0 }; \
    int64_t i = 0; \
    for (; i + 16 <= c.n; i += 16) \
        for (int l = 0; l < 16; l++) s[l] += (double)x[i + l] * (double)x[i + l]; \
    for (; i < c.n; i++) s[0] += (double)x[i] * (double)x[i]; \
    for (int step = 8; step > 0; step /= 2) \
        for (int l = 0; l < step; l++) s[l] += s[l + step]; \
    j->partial[piece] = s[0]; \
}
SQUARES(float)
SQUARES(double)

static void norm_of_partials(const optim_job *j, int64_t chunks) {
    double sum = 0;
    for (int64_t i = 0; i < chunks; i++) sum += j->partial[i];
    *(float *)j->call->out[0]->data = (float)sqrt(sum);
}

CPU_KERNEL(global_norm) {
    optim_job j = { .call = call, .size = 1 };
    return run(&j, call->in[0]->dtype == WEFT_FLOAT32 ? squares_float : squares_double,
               norm_of_partials);
}

#define SCALE(REAL) \
static void scale_##REAL(void *context, int64_t piece) { \
    const optim_job *j = context; \
    const chunk c = chunk_of(j, piece); \
    REAL *RESTRICT x = at(j, c, 0, sizeof(REAL)); \
    const REAL factor = (REAL)j->c[0]; \
    for (int64_t i = 0; i < c.n; i++) x[i] *= factor; \
}
SCALE(float)
SCALE(double)

CPU_KERNEL(clip_) {
    const weft_view *norm = call->in[0];
    const double n = norm->dtype == WEFT_FLOAT32 ? *(const float *)norm->data
                                                 : *(const double *)norm->data;
    const double factor = call->at->AT(clip_, max_norm) / (n + 1e-6);
    optim_job j = { .call = call, .first = 1, .size = 1, .c = { factor } };
    if (factor >= 1 || call->n_in == 1) return WEFT_OK;   // a NaN goes on into the gradients
    return run(&j, call->in[1]->dtype == WEFT_FLOAT32 ? scale_float : scale_double, NULL);
}
