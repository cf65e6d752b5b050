// calls.h: kernels of the operator table that other kernels start as steps of their own.
#ifndef WEFT_CUDA_CALLS_H
#define WEFT_CUDA_CALLS_H

#include "cuda/device.h"

extern "C" weft_status weft_cuda_contiguous(const weft_call *call);
extern "C" weft_status weft_cuda_sum(const weft_call *call);

static inline weft_call step_call(const weft_call *call, const weft_view *const *in, weft_view *const *out, const weft_attrs *at) {
    weft_call step = *call;
    step.in = in;
    step.out = out;
    step.n_in = step.n_out = 1;
    step.at = at;
    return step;
}

// A view's elements into another of the same shape and dtype, whatever the strides of both.
static inline weft_status cuda_copy(const weft_call *call, const weft_view *to, const weft_view *from) {
    weft_view y = *to;
    weft_view *const out[1] = { &y };
    const weft_call step = step_call(call, &from, out, call->at);
    return weft_cuda_contiguous(&step);
}

// y [columns] = sums over all dims of x but the last
static inline weft_status cuda_sum_rows(const weft_call *call, const weft_view *y, const weft_view *x) {
    weft_attrs at = {};
    for (int d = 0; d < x->ndim - 1; d++) at.list[at.n_list++] = d;
    if (at.n_list == 0) return cuda_copy(call, y, x);     // an empty list means all dims
    weft_view sums = *y;
    weft_view *const out[1] = { &sums };
    const weft_call step = step_call(call, &x, out, &at);
    return weft_cuda_sum(&step);
}

#endif
