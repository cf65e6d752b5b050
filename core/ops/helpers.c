// helpers.c: what several gradients share.
#include "../core.h"

weft_tensor *weft_sum_to(const weft_tensor *t, const weft_view *shape) {
    int64_t dims[WEFT_MAX_DIMS];
    int n = 0, shift = t->v.ndim - shape->ndim;
    bool same_rank = shift == 0;
    for (int d = 0; d < t->v.ndim; d++)
        if (d < shift || (shape->shape[d - shift] == 1 && t->v.shape[d] != 1)) dims[n++] = d;
    if (n == 0 && same_rank) return weft_alias(t);
    weft_tensor *s = n ? weft_sum(t, dims, n, 1) : weft_alias(t);
    if (!s || same_rank) return s;
    weft_tensor *y = weft_reshape(s, shape->shape, shape->ndim);
    weft_free(s);
    return y;
}
