// plan.h: the dims of a tensor split into those that stay and those that a reduction folds, each
// sorted by stride and joined where they run on. By shapes and strides alone, so that the order of
// every sum is too.
#ifndef WEFT_CUDA_PLAN_H
#define WEFT_CUDA_PLAN_H

#include "cuda/device.h"

struct reduce_plan {
    const void *x;
    void *y;
    int32_t nk, nr, column;     // dims of each kind, at least 1; column: outputs lie side by side in x
    int64_t kshape[WEFT_MAX_DIMS], kx[WEFT_MAX_DIMS], ky[WEFT_MAX_DIMS];   // outermost first
    int64_t rshape[WEFT_MAX_DIMS], rx[WEFT_MAX_DIMS], ry[WEFT_MAX_DIMS];
    int64_t n_out, n_red;
    template <class V> void visit(V &v) { v(x); v(y); }
};

static inline int64_t plan_magnitude(int64_t a) { return a < 0 ? -a : a; }

static inline void plan_add(int64_t *shape, int64_t *sx, int64_t *sy, int32_t *n, int64_t size, int64_t x, int64_t y) {
    int at = (*n)++;
    for (; at > 0 && plan_magnitude(sx[at - 1]) < plan_magnitude(x); at--) {
        shape[at] = shape[at - 1];
        sx[at] = sx[at - 1];
        sy[at] = sy[at - 1];
    }
    shape[at] = size;
    sx[at] = x;
    sy[at] = y;
}

static inline void plan_join(int64_t *shape, int64_t *sx, int64_t *sy, int32_t *n) {
    int last = 0;
    if (*n == 0) {
        shape[0] = 1;
        sx[0] = sy[0] = 0;
        *n = 1;
    }
    for (int d = 1; d < *n; d++) {
        if (sx[last] == sx[d] * shape[d] && sy[last] == sy[d] * shape[d]) shape[last] *= shape[d];
        else shape[++last] = shape[d];
        sx[last] = sx[d];
        sy[last] = sy[d];
    }
    *n = last + 1;
}

// mask: dims that go. y is row-major over the kept dims, or over all of them where whole is set.
static inline void plan_make(reduce_plan *p, const weft_view *x, uint32_t mask, bool whole) {
    memset(p, 0, sizeof *p);
    p->x = x->data;
    p->n_out = p->n_red = 1;
    int64_t ystride[WEFT_MAX_DIMS], run = 1;
    for (int d = x->ndim - 1; d >= 0; d--) {
        const bool reduced = mask >> d & 1;
        ystride[d] = reduced && !whole ? 0 : run;
        if (!reduced || whole) run *= x->shape[d];
    }
    for (int d = 0; d < x->ndim; d++) {
        const int64_t size = x->shape[d];
        const bool reduced = mask >> d & 1;
        (reduced ? p->n_red : p->n_out) *= size;
        if (size == 1) continue;
        if (reduced) plan_add(p->rshape, p->rx, p->ry, &p->nr, size, x->stride[d], ystride[d]);
        else plan_add(p->kshape, p->kx, p->ky, &p->nk, size, x->stride[d], ystride[d]);
    }
    if (p->n_out == 0 || p->n_red == 0) p->nk = p->nr = 0;
    const bool any_kept = p->nk > 0, any_reduced = p->nr > 0;
    plan_join(p->kshape, p->kx, p->ky, &p->nk);
    plan_join(p->rshape, p->rx, p->ry, &p->nr);
    if (p->n_red == 0) {    // nothing to read, but outputs to write
        p->kshape[0] = p->n_out;
        p->ky[0] = 1;
    }
    const int64_t k = plan_magnitude(p->kx[p->nk - 1]), r = plan_magnitude(p->rx[p->nr - 1]);
    p->column = any_kept && (!any_reduced || (k != 0 && k < r) || (k == 1 && p->n_red < 32));
}

DEVICE int64_t plan_offset(const int64_t *shape, const int64_t *stride, int n, int64_t i) {
    if (n == 1) return i * stride[0];
    int64_t at = 0;
    for (int d = n - 1; d > 0; d--) {
        const int64_t q = i / shape[d];
        at += (i - q * shape[d]) * stride[d];
        i = q;
    }
    return at + i * stride[0];
}

static inline uint32_t dims_mask(const weft_attrs *at, int ndim) {
    uint32_t mask = 0;
    for (int i = 0; i < at->n_list; i++) mask |= 1u << (at->list[i] < 0 ? at->list[i] + ndim : at->list[i]);
    return at->n_list ? mask : (1u << ndim) - 1;
}

#endif
