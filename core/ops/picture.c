// picture.c: the shape of `pictures`, which has no gradient.
#include "../core.h"
#include "../picture_plan.h"

weft_status shape_pictures(weft_shape_call *call) {
    const weft_view *bytes = call->in[0], *plan = call->in[1], *taps = call->in[2], *table = call->in[3];
    const int64_t h = call->at->AT(pictures, height), w = call->at->AT(pictures, width);
    if (bytes->dtype != WEFT_UINT8 || bytes->ndim != 1) return weft_fail(WEFT_EINVAL, "bytes must be uint8 [n]");
    if (plan->ndim != 2 || plan->shape[1] != PLAN_SIZE)
        return weft_fail(WEFT_EINVAL, "plan must be [n, %d]", PLAN_SIZE);
    if (taps->dtype != WEFT_INT32 || taps->ndim != 1) return weft_fail(WEFT_EINVAL, "taps must be int32 [n]");
    if (table->ndim != 2 || table->shape[0] != 3 || table->shape[1] != 256)
        return weft_fail(WEFT_EINVAL, "table must be [3, 256]");
    if (h < 1 || w < 1 || h > 65536 || w > 65536 || call->at->AT(pictures, rows) < 0)
        return weft_fail(WEFT_EINVAL, "height and width must be 1 to 65536, rows at least 0");
    return weft_set_shape(&call->out[0], (int64_t[]){ plan->shape[0], 3, h, w }, 4);
}
