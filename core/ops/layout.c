// layout.c: shape rules and gradients of the operators that move elements without changing them:
// cat, stack, flip, pad, and the gradients of views. Views themselves are in view.c.
#include "core.h"
#include <string.h>

weft_status grad_identity(weft_grad_call *call) {
    if (NEEDS(call, 0)) HAVE(call->dx[0] = weft_alias(call->dy[0]));
    return WEFT_OK;
}

weft_status shape_flip(weft_shape_call *call) {
    const weft_view *x = call->in[0];
    bool seen[WEFT_MAX_DIMS] = {0};
    for (int i = 0; i < call->at->n_list; i++) {
        int64_t dim = call->at->list[i];
        TRY(weft_fix_dim(&dim, x->ndim));
        if (seen[dim])
            return weft_fail(WEFT_EINVAL, "dim %lld is listed twice", (long long)dim + 1);
        seen[dim] = true;
    }
    return weft_set_shape(&call->out[0], x->shape, x->ndim);
}

weft_status grad_flip(weft_grad_call *call) {
    if (NEEDS(call, 0))
        HAVE(call->dx[0] = weft_flip(call->dy[0], call->at->list, call->at->n_list));
    return WEFT_OK;
}

// --- joining
weft_status shape_cat(weft_shape_call *call) {
    const weft_view *x = call->in[0];
    int64_t dim = call->at->AT(cat, dim), shape[WEFT_MAX_DIMS];
    TRY(weft_fix_dim(&dim, x->ndim));
    memcpy(shape, x->shape, sizeof shape);
    for (int i = 1; i < call->n_in; i++) {
        const weft_view *next = call->in[i];
        if (next->ndim != x->ndim)
            return weft_fail(WEFT_EINVAL, "tensor %d has %d dims, the first has %d", i + 1,
                             next->ndim, x->ndim);
        for (int d = 0; d < x->ndim; d++)
            if (d != dim && next->shape[d] != x->shape[d])
                return weft_fail(WEFT_EINVAL, "tensor %d has size %lld in dim %d, the first %lld; "
                                 "only dim %lld may differ", i + 1, (long long)next->shape[d],
                                 d + 1, (long long)x->shape[d], (long long)dim + 1);
        shape[dim] += next->shape[dim];
    }
    return weft_set_shape(&call->out[0], shape, x->ndim);
}

weft_status grad_cat(weft_grad_call *call) {
    int64_t dim = call->at->AT(cat, dim), start = 0;
    if (dim < 0) dim += call->in_view[0].ndim;
    for (int i = 0; i < call->n_in; i++) {
        int64_t size = call->in_view[i].shape[dim];
        if (NEEDS(call, i)) HAVE(call->dx[i] = weft_narrow(call->dy[0], dim, start, size));
        start += size;
    }
    return WEFT_OK;
}

weft_tensor *weft_stack(const weft_tensor *const *xs, int n_xs, int64_t dim) {
    const int64_t bytes = n_xs * (int64_t)sizeof(weft_tensor *);
    weft_tensor *y = NULL;
    int made = 0;
    for (int i = 0; i < n_xs; i++) {
        if (!xs[i]) {
            weft_fail(WEFT_EINVAL, "stack: tensor %d is missing", i + 1);
            return NULL;
        }
        bool same = xs[i]->v.ndim == xs[0]->v.ndim;
        for (int d = 0; same && d < xs[0]->v.ndim; d++)
            same = xs[i]->v.shape[d] == xs[0]->v.shape[d];
        if (!same) {
            char first[160], other[160];
            weft_describe(first, sizeof first, &xs[0]->v);
            weft_describe(other, sizeof other, &xs[i]->v);
            weft_fail(WEFT_EINVAL, "stack: tensor %d is %s, the first %s; shapes must be the same",
                      i + 1, other, first);
            return NULL;
        }
    }
    if (n_xs < 1) {
        weft_fail(WEFT_EINVAL, "stack: at least one tensor is expected");
        return NULL;
    }
    weft_tensor **rows = weft_pool_alloc(bytes);
    if (!rows) return NULL;
    while (made < n_xs && (rows[made] = weft_unsqueeze(xs[made], dim))) made++;
    if (made == n_xs) {
        int64_t along = dim < 0 ? dim + xs[0]->v.ndim + 1 : dim;
        y = weft_cat((const weft_tensor *const *)rows, n_xs, along);
    }
    for (int i = 0; i < made; i++) weft_free(rows[i]);
    weft_pool_free(rows, bytes);
    // what unsqueeze and cat refuse is refused in the name that was called
    const char *reason = y ? NULL : strchr(weft_error(), ':');
    if (reason) weft_fail(weft_error_code(), "stack%s", reason);
    return y;
}

// --- padding
weft_status shape_pad(weft_shape_call *call) {
    const weft_view *x = call->in[0];
    const int64_t *pads = call->at->list;
    int64_t shape[WEFT_MAX_DIMS];
    if (call->at->n_list != 2 * x->ndim)
        return weft_fail(WEFT_EINVAL, "pads wants %d numbers, before and after for each of %d "
                         "dims, got %d", 2 * x->ndim, x->ndim, call->at->n_list);
    for (int d = 0; d < x->ndim; d++) {
        if (pads[2 * d] < 0 || pads[2 * d + 1] < 0)
            return weft_fail(WEFT_EINVAL, "pads of dim %d are %lld and %lld; use narrow to cut",
                             d + 1, (long long)pads[2 * d], (long long)pads[2 * d + 1]);
        shape[d] = x->shape[d] + pads[2 * d] + pads[2 * d + 1];
    }
    return weft_set_shape(&call->out[0], shape, x->ndim);
}

weft_status grad_pad(weft_grad_call *call) {
    const weft_view *x = &call->in_view[0];
    if (!NEEDS(call, 0)) return WEFT_OK;
    weft_tensor *t = weft_alias(call->dy[0]);
    HAVE(t);
    for (int d = 0; d < x->ndim; d++)
        if (call->at->list[2 * d] || call->at->list[2 * d + 1])
            HAVE(t = weft_narrow(t, d, call->at->list[2 * d], x->shape[d]));
    call->dx[0] = t;
    return WEFT_OK;
}

// --- gradients of views
weft_status shape_narrow_backward(weft_shape_call *call) {
    const weft_view *dy = call->in[0];
    int64_t dim = call->at->AT(narrow_backward, dim), start = call->at->AT(narrow_backward, start);
    int64_t size = call->at->AT(narrow_backward, size), shape[WEFT_MAX_DIMS];
    TRY(weft_fix_dim(&dim, dy->ndim));
    if (start < 0) start += size;
    if (start < 0 || size < 0 || start > size || dy->shape[dim] > size - start)
        return weft_fail(WEFT_EINVAL, "%lld positions from position %lld on don't lie in size %lld",
                         (long long)dy->shape[dim], (long long)start + 1, (long long)size);
    memcpy(shape, dy->shape, sizeof shape);
    shape[dim] = size;
    return weft_set_shape(&call->out[0], shape, dy->ndim);
}

// dy is [.., windows, .., length of one]; dx has `size` at dim and lacks the last dim.
weft_status shape_unfold_backward(weft_shape_call *call) {
    const weft_view *dy = call->in[0];
    int64_t dim = call->at->AT(unfold_backward, dim), step = call->at->AT(unfold_backward, step);
    int64_t size = call->at->AT(unfold_backward, size), shape[WEFT_MAX_DIMS];
    if (dy->ndim < 2) return weft_fail(WEFT_EINVAL, "dy wants at least 2 dims, got %d", dy->ndim);
    TRY(weft_fix_dim(&dim, dy->ndim - 1));
    if (step < 1 || (dy->shape[dim] - 1) * step + dy->shape[dy->ndim - 1] > size)
        return weft_fail(WEFT_EINVAL, "windows one each %lld don't fit size %lld", (long long)step,
                         (long long)size);
    memcpy(shape, dy->shape, sizeof shape);
    shape[dim] = size;
    return weft_set_shape(&call->out[0], shape, dy->ndim - 1);
}
