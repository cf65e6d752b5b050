// view.c: shape rules and gradients of the layout operators that only compute strides: reshape,
// permute, narrow, unfold ... Those that move elements are in layout.c.
#include "core.h"
#include <string.h>

static int64_t dim_of(int64_t dim, int ndim) { return dim < 0 ? dim + ndim : dim; }

static void keep_strides(weft_view *y, const int64_t *stride) {
    memcpy(y->stride, stride, sizeof(int64_t) * (size_t)y->ndim);
}

// --- reshape
// Strides that show x's elements in out's shape without moving any; false when there are none.
static bool view_strides(const weft_view *x, weft_view *out) {
    int64_t size[WEFT_MAX_DIMS], stride[WEFT_MAX_DIMS];
    int runs = 0;
    for (int d = 0; d < x->ndim; d++) {
        if (x->shape[d] == 1) continue;
        if (runs && stride[runs - 1] == x->stride[d] * x->shape[d]) size[runs - 1] *= x->shape[d];
        else size[runs++] = x->shape[d];
        stride[runs - 1] = x->stride[d];
    }
    // from the end: each new dim is taken out of one run of evenly spaced elements
    int run = runs;
    int64_t left = 1, step = 1;
    for (int d = out->ndim - 1; d >= 0; d--) {
        if (left == 1 && out->shape[d] != 1 && run > 0) {
            left = size[--run];
            step = stride[run];
        }
        if (left % out->shape[d]) return false;
        out->stride[d] = step;
        step *= out->shape[d];
        left /= out->shape[d];
    }
    return true;
}

weft_status shape_reshape(weft_shape_call *call) {
    const weft_view *x = call->in[0];
    int n = call->at->n_list, unknown = -1;
    int64_t shape[WEFT_LIST], known = 1;
    for (int d = 0; d < n; d++) {
        shape[d] = call->at->list[d];
        if (shape[d] == -1) {
            if (unknown >= 0)
                return weft_fail(WEFT_EINVAL, "sizes %d and %d are both -1; only one can be found",
                                 unknown + 1, d + 1);
            unknown = d;
        } else if (shape[d] < 0 || __builtin_mul_overflow(known, shape[d], &known)) {
            return weft_fail(WEFT_EINVAL, "size %lld of dim %d is out of range",
                             (long long)shape[d], d + 1);
        }
    }
    if (unknown >= 0) {
        if (known == 0 || x->numel % known)
            return weft_fail(WEFT_EINVAL, "%lld elements can't be split by the known sizes (%lld), "
                             "so -1 has no value", (long long)x->numel, (long long)known);
        shape[unknown] = x->numel / known;
        known = x->numel;
    }
    if (known != x->numel)
        return weft_fail(WEFT_EINVAL, "the new shape holds %lld elements, x %lld",
                         (long long)known, (long long)x->numel);
    TRY(weft_set_shape(&call->out[0], shape, n));
    if (x->numel && !weft_view_contiguous(x)) call->must_copy = !view_strides(x, &call->out[0]);
    return WEFT_OK;
}

weft_status grad_reshape(weft_grad_call *call) {
    const weft_view *x = &call->in_view[0];
    if (NEEDS(call, 0)) HAVE(call->dx[0] = weft_reshape(call->dy[0], x->shape, x->ndim));
    return WEFT_OK;
}

// --- order of dims
weft_status shape_permute(weft_shape_call *call) {
    const weft_view *x = call->in[0];
    bool seen[WEFT_MAX_DIMS] = {0};
    int64_t shape[WEFT_MAX_DIMS], stride[WEFT_MAX_DIMS];
    if (call->at->n_list != x->ndim)
        return weft_fail(WEFT_EINVAL, "%d dims are listed, x has %d", call->at->n_list, x->ndim);
    for (int d = 0; d < x->ndim; d++) {
        int64_t from = call->at->list[d];
        TRY(weft_fix_dim(&from, x->ndim));
        if (seen[from])
            return weft_fail(WEFT_EINVAL, "dim %lld is listed twice", (long long)from + 1);
        seen[from] = true;
        shape[d] = x->shape[from];
        stride[d] = x->stride[from];
    }
    TRY(weft_set_shape(&call->out[0], shape, x->ndim));
    keep_strides(&call->out[0], stride);
    return WEFT_OK;
}

weft_status grad_permute(weft_grad_call *call) {
    int n = call->at->n_list;
    int64_t inverse[WEFT_LIST];
    for (int d = 0; d < n; d++) inverse[dim_of(call->at->list[d], n)] = d;
    if (NEEDS(call, 0)) HAVE(call->dx[0] = weft_permute(call->dy[0], inverse, n));
    return WEFT_OK;
}

weft_status shape_transpose(weft_shape_call *call) {
    const weft_view *x = call->in[0];
    weft_view *y = &call->out[0];
    int64_t a = call->at->AT(transpose, dim0), b = call->at->AT(transpose, dim1);
    TRY(weft_fix_dim(&a, x->ndim));
    TRY(weft_fix_dim(&b, x->ndim));
    TRY(weft_set_shape(y, x->shape, x->ndim));
    keep_strides(y, x->stride);
    y->shape[a] = x->shape[b];
    y->shape[b] = x->shape[a];
    y->stride[a] = x->stride[b];
    y->stride[b] = x->stride[a];
    return WEFT_OK;
}

weft_status grad_transpose(weft_grad_call *call) {
    if (NEEDS(call, 0))
        HAVE(call->dx[0] = weft_transpose(call->dy[0], call->at->AT(transpose, dim0),
                                          call->at->AT(transpose, dim1)));
    return WEFT_OK;
}

// --- parts
weft_status shape_narrow(weft_shape_call *call) {
    const weft_view *x = call->in[0];
    weft_view *y = &call->out[0];
    int64_t dim = call->at->AT(narrow, dim), start = call->at->AT(narrow, start);
    int64_t length = call->at->AT(narrow, length), shape[WEFT_MAX_DIMS];
    TRY(weft_fix_dim(&dim, x->ndim));
    int64_t size = x->shape[dim];
    if (start < 0) start += size;
    if (start < 0 || length < 0 || start > size || length > size - start)
        return weft_fail(WEFT_EINVAL, "%lld positions from position %lld on don't lie in dim %lld "
                         "of size %lld", (long long)length, (long long)start + 1,
                         (long long)dim + 1, (long long)size);
    memcpy(shape, x->shape, sizeof shape);
    shape[dim] = length;
    TRY(weft_set_shape(y, shape, x->ndim));
    keep_strides(y, x->stride);
    call->offset = length ? start * x->stride[dim] : 0;
    return WEFT_OK;
}

weft_status grad_narrow(weft_grad_call *call) {
    const weft_view *x = &call->in_view[0];
    int64_t dim = dim_of(call->at->AT(narrow, dim), x->ndim), start = call->at->AT(narrow, start);
    if (start < 0) start += x->shape[dim];
    if (NEEDS(call, 0))
        HAVE(call->dx[0] = weft_narrow_backward(call->dy[0], dim, start, x->shape[dim]));
    return WEFT_OK;
}

// x without dim, whose elements at `at` remain.
static weft_status drop_dim(weft_shape_call *call, int64_t dim, int64_t at) {
    const weft_view *x = call->in[0];
    int64_t shape[WEFT_MAX_DIMS], stride[WEFT_MAX_DIMS];
    for (int d = 0, k = 0; d < x->ndim; d++) {
        if (d == dim) continue;
        shape[k] = x->shape[d];
        stride[k++] = x->stride[d];
    }
    TRY(weft_set_shape(&call->out[0], shape, x->ndim - 1));
    keep_strides(&call->out[0], stride);
    call->offset = at * x->stride[dim];
    return WEFT_OK;
}

weft_status shape_select(weft_shape_call *call) {
    const weft_view *x = call->in[0];
    int64_t dim = call->at->AT(select, dim), index = call->at->AT(select, index);
    TRY(weft_fix_dim(&dim, x->ndim));
    int64_t size = x->shape[dim], at = index < 0 ? index + size : index;
    if (at < 0 || at >= size)
        return weft_fail(WEFT_EINVAL, "position %lld outside 1..%lld of dim %lld (or -%lld..-1)",
                         (long long)(index < 0 ? index : index + 1), (long long)size,
                         (long long)dim + 1, (long long)size);
    return drop_dim(call, dim, at);
}

weft_status grad_select(weft_grad_call *call) {
    const weft_view *x = &call->in_view[0];
    int64_t dim = dim_of(call->at->AT(select, dim), x->ndim), index = call->at->AT(select, index);
    weft_tensor *row;
    if (!NEEDS(call, 0)) return WEFT_OK;
    if (index < 0) index += x->shape[dim];
    HAVE(row = weft_unsqueeze(call->dy[0], dim));
    HAVE(call->dx[0] = weft_narrow_backward(row, dim, index, x->shape[dim]));
    return WEFT_OK;
}

// --- dims of size 1
weft_status shape_expand(weft_shape_call *call) {
    const weft_view *x = call->in[0];
    weft_view *y = &call->out[0];
    int n = call->at->n_list, added = n - x->ndim;
    int64_t shape[WEFT_LIST] = {0};
    if (added < 0)
        return weft_fail(WEFT_EINVAL, "%d sizes are given, x has %d dims", n, x->ndim);
    for (int d = 0; d < n; d++) {
        int64_t want = call->at->list[d], have = d < added ? 1 : x->shape[d - added];
        if (want == -1 && d >= added) want = have;
        if (want < 0 || (have != want && have != 1))
            return weft_fail(WEFT_EINVAL, "size %lld of dim %d can't become %lld",
                             (long long)have, d + 1, (long long)want);
        shape[d] = want;
    }
    TRY(weft_set_shape(y, shape, n));
    for (int d = 0; d < n; d++)
        y->stride[d] = d < added || x->shape[d - added] != shape[d] ? 0 : x->stride[d - added];
    return WEFT_OK;
}

weft_status grad_expand(weft_grad_call *call) {
    if (NEEDS(call, 0)) HAVE(call->dx[0] = weft_sum_to(call->dy[0], &call->in_view[0]));
    return WEFT_OK;
}

weft_status shape_squeeze(weft_shape_call *call) {
    const weft_view *x = call->in[0];
    int64_t dim = call->at->AT(squeeze, dim);
    TRY(weft_fix_dim(&dim, x->ndim));
    if (x->shape[dim] != 1)
        return weft_fail(WEFT_EINVAL, "dim %lld has size %lld; only a dim of size 1 can go",
                         (long long)dim + 1, (long long)x->shape[dim]);
    return drop_dim(call, dim, 0);
}

weft_status shape_unsqueeze(weft_shape_call *call) {
    const weft_view *x = call->in[0];
    int64_t dim = call->at->AT(unsqueeze, dim);
    int64_t shape[WEFT_MAX_DIMS + 1], stride[WEFT_MAX_DIMS + 1];
    TRY(weft_fix_dim(&dim, x->ndim + 1));
    for (int d = 0, k = 0; d <= x->ndim; d++) {
        shape[d] = d == dim ? 1 : x->shape[k];
        stride[d] = d == dim ? 1 : x->stride[k];
        k += d != dim;
    }
    TRY(weft_set_shape(&call->out[0], shape, x->ndim + 1));
    keep_strides(&call->out[0], stride);
    return WEFT_OK;
}

// --- windows
weft_status shape_unfold(weft_shape_call *call) {
    const weft_view *x = call->in[0];
    weft_view *y = &call->out[0];
    int64_t dim = call->at->AT(unfold, dim), size = call->at->AT(unfold, size);
    int64_t step = call->at->AT(unfold, step), shape[WEFT_MAX_DIMS + 1];
    TRY(weft_fix_dim(&dim, x->ndim));
    if (size < 1 || step < 1 || size > x->shape[dim])
        return weft_fail(WEFT_EINVAL, "windows of size %lld, one each %lld, don't fit dim %lld of "
                         "size %lld", (long long)size, (long long)step, (long long)dim + 1,
                         (long long)x->shape[dim]);
    memcpy(shape, x->shape, sizeof x->shape);
    shape[dim] = (x->shape[dim] - size) / step + 1;
    shape[x->ndim] = size;
    TRY(weft_set_shape(y, shape, x->ndim + 1));
    memcpy(y->stride, x->stride, sizeof(int64_t) * (size_t)x->ndim);
    y->stride[dim] = x->stride[dim] * step;
    y->stride[x->ndim] = x->stride[dim];
    return WEFT_OK;
}

weft_status grad_unfold(weft_grad_call *call) {
    const weft_view *x = &call->in_view[0];
    int64_t dim = dim_of(call->at->AT(unfold, dim), x->ndim);
    if (NEEDS(call, 0))
        HAVE(call->dx[0] = weft_unfold_backward(call->dy[0], dim, call->at->AT(unfold, step),
                                                x->shape[dim]));
    return WEFT_OK;
}
