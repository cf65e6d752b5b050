// conv.c: shapes and gradients of convolution and of resizing.
#include "../core.h"

#define LL(x) ((long long)(x))

enum { CONV_DX = 1, CONV_DW = 2 };

weft_status shape_conv2d(weft_shape_call *call) {
    const weft_view *x = call->in[0], *w = call->in[1], *bias = call->in[2];
    const weft_attrs *at = call->at;
    if (x->ndim != 4 || w->ndim != 4)
        return weft_fail(WEFT_EINVAL,
                         "expected x [B, C, H, W] and weight [out, C / groups, kh, kw]");
    const int64_t stride_h = at->AT(conv2d, stride_h), stride_w = at->AT(conv2d, stride_w);
    const int64_t pad_h = at->AT(conv2d, pad_h), pad_w = at->AT(conv2d, pad_w),
                  groups = at->AT(conv2d, groups);
    if (stride_h < 1 || stride_w < 1)
        return weft_fail(WEFT_EINVAL, "strides must be at least 1, got %lld and %lld", LL(stride_h),
                         LL(stride_w));
    if (pad_h < 0 || pad_w < 0)
        return weft_fail(WEFT_EINVAL, "padding must not be negative, got %lld and %lld", LL(pad_h),
                         LL(pad_w));
    if (groups < 1 || x->shape[1] % groups || w->shape[0] % groups)
        return weft_fail(WEFT_EINVAL, "groups must divide %lld channels and %lld outputs, got %lld",
                         LL(x->shape[1]), LL(w->shape[0]), LL(groups));
    if (w->shape[1] * groups != x->shape[1])
        return weft_fail(WEFT_EINVAL,
                         "weight takes %lld channels a group, x has %lld in %lld groups",
                         LL(w->shape[1]), LL(x->shape[1]), LL(groups));
    if (bias && (bias->ndim != 1 || bias->shape[0] != w->shape[0]))
        return weft_fail(WEFT_EINVAL, "bias must be [%lld]", LL(w->shape[0]));
    const int64_t room_h = x->shape[2] + 2 * pad_h - w->shape[2],
                  room_w = x->shape[3] + 2 * pad_w - w->shape[3];
    if (w->shape[2] < 1 || w->shape[3] < 1 || room_h < 0 || room_w < 0)
        return weft_fail(WEFT_EINVAL,
                         "a kernel of %lld x %lld does not fit a padded picture of %lld x %lld",
                         LL(w->shape[2]), LL(w->shape[3]), LL(x->shape[2] + 2 * pad_h),
                         LL(x->shape[3] + 2 * pad_w));
    const int64_t shape[4] = {x->shape[0], w->shape[0], room_h / stride_h + 1,
                              room_w / stride_w + 1};
    return weft_set_shape(&call->out[0], shape, 4);
}

weft_status shape_conv2d_backward(weft_shape_call *call) {
    const weft_view *dy = call->in[0], *x = call->in[1], *w = call->in[2];
    const weft_attrs *at = call->at;
    const int64_t needs = at->AT(conv2d_backward, needs), groups = at->AT(conv2d_backward, groups);
    TRY(weft_set_shape(&call->out[0], (int64_t[]){0}, 1));
    TRY(weft_set_shape(&call->out[1], (int64_t[]){0}, 1));
    if (needs & CONV_DX) {
        if (!w) return weft_fail(WEFT_EINVAL, "weight is needed for dx");
        const int64_t shape[4] = {dy->shape[0], w->shape[1] * groups, at->AT(conv2d_backward, h),
                                  at->AT(conv2d_backward, w)};
        TRY(weft_set_shape(&call->out[0], shape, 4));
    }
    if (needs & CONV_DW) {
        if (!x) return weft_fail(WEFT_EINVAL, "x is needed for dweight");
        const int64_t shape[4] = {dy->shape[1], x->shape[1] / groups, at->AT(conv2d_backward, kh),
                                  at->AT(conv2d_backward, kw)};
        TRY(weft_set_shape(&call->out[1], shape, 4));
    }
    return WEFT_OK;
}

weft_status grad_conv2d(weft_grad_call *call) {
    const weft_attrs *at = call->at;
    const weft_view *x = &call->in_view[0], *w = &call->in_view[1];
    const int64_t needs = (int64_t)(call->needs & 3);
    weft_tensor *d[2];
    if (needs) {
        TRY(weft_conv2d_backward(call->dy[0], call->in[0], call->in[1], at->AT(conv2d, stride_h),
                                 at->AT(conv2d, stride_w), at->AT(conv2d, pad_h),
                                 at->AT(conv2d, pad_w), at->AT(conv2d, groups), x->shape[2],
                                 x->shape[3], w->shape[2], w->shape[3], needs, d));
        for (int i = 0; i < 2; i++)
            if (NEEDS(call, i)) call->dx[i] = d[i];
    }
    if (NEEDS(call, 2)) HAVE(call->dx[2] = weft_sum(call->dy[0], (int64_t[]){0, 2, 3}, 3, 0));
    return WEFT_OK;
}

static weft_status check_resize(const weft_view *x, int64_t height, int64_t width, double scale_h,
                                double scale_w) {
    if (x->ndim != 4) return weft_fail(WEFT_EINVAL, "expected a tensor [B, C, H, W]");
    if (height < 1 || width < 1)
        return weft_fail(WEFT_EINVAL, "height and width must be at least 1, got %lld and %lld",
                         LL(height), LL(width));
    if (x->shape[2] < 1 || x->shape[3] < 1)
        return weft_fail(WEFT_EINVAL, "a picture of %lld x %lld can't be resized", LL(x->shape[2]),
                         LL(x->shape[3]));
    const double scales[2] = {scale_h, scale_w};
    for (int i = 0; i < 2; i++)
        if (scales[i] != 0 && !(scales[i] >= 1e-6 && scales[i] <= 1e6))
            return weft_fail(WEFT_EINVAL, "scales must be 0 or from 1e-6 to 1e6, got %g and %g",
                             scale_h, scale_w);
    return WEFT_OK;
}

weft_status shape_interpolate(weft_shape_call *call) {
    const weft_view *x = call->in[0];
    const weft_attrs *at = call->at;
    const int64_t height = at->AT(interpolate, height), width = at->AT(interpolate, width);
    TRY(check_resize(x, height, width, at->AT(interpolate, scale_h), at->AT(interpolate, scale_w)));
    return weft_set_shape(&call->out[0], (int64_t[]){x->shape[0], x->shape[1], height, width}, 4);
}

weft_status shape_interpolate_backward(weft_shape_call *call) {
    const weft_view *dy = call->in[0];
    const weft_attrs *at = call->at;
    const int64_t height = at->AT(interpolate_backward, height),
                  width = at->AT(interpolate_backward, width);
    TRY(check_resize(dy, height, width, at->AT(interpolate_backward, scale_h),
                     at->AT(interpolate_backward, scale_w)));
    return weft_set_shape(&call->out[0], (int64_t[]){dy->shape[0], dy->shape[1], height, width}, 4);
}

weft_status grad_interpolate(weft_grad_call *call) {
    const weft_attrs *at = call->at;
    HAVE(call->dx[0] = weft_interpolate_backward(
             call->dy[0], call->in_view[0].shape[2], call->in_view[0].shape[3],
             at->AT(interpolate, scale_h), at->AT(interpolate, scale_w),
             at->AT(interpolate, antialias)));
    return WEFT_OK;
}
