// dnn.h: general convolution by a library: cuDNN (dnn.cu), the definition in tests
// (tests/cuda_on_cpu/dnn.cpp). Where the library is missing, is switched off, or has no algorithm that
// fits, conv.cu does without it.
#ifndef WEFT_CUDA_DNN_H
#define WEFT_CUDA_DNN_H

#include "cuda/device.h"

// Pictures [batch, groups * channels, height, width], weights [groups * outputs, channels, kh, kw],
// results [batch, groups * outputs, out_h, out_w], all of one dtype and contiguous.
struct convolution {
    int dtype;
    int64_t batch, channels, height, width; // channels: of one group
    int64_t groups, outputs, kh, kw;        // outputs: of one group
    int64_t out_h, out_w, stride_h, stride_w, pad_h, pad_w;
};
enum dnn_part {
    DNN_FORWARD,        // y from x and w
    DNN_BACKWARD_X,     // dx from dy and w
    DNN_BACKWARD_W      // dw from dy and x
};

// What the library does for a convolution, kept by it; NULL where it does nothing.
struct dnn_plan;
dnn_plan *cuda_dnn_plan(const weft_call *call, dnn_part part, const convolution *c);
// out from a and b, in the order above; onto: added to what out holds (forward alone). *done: false where the
// library refused after all, and nothing was started.
weft_status cuda_dnn_run(const weft_call *call, dnn_plan *plan, const void *a, const void *b, void *out, bool onto, bool *done);
// "cuDNN 9.19.0", or why there is none
void cuda_dnn_about(char *text, int64_t size);

#endif
