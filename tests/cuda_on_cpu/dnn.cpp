// dnn.cpp: convolution for the simulated GPU, by the definition, summed in double. WEFT_SIM_DNN=1: it takes
// what cuDNN would; =refuse: it takes it and refuses when run. Otherwise cuda/conv.cu does without.
#include "cuda/dnn.h"
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

struct dnn_plan { dnn_part part; convolution c; };

dnn_plan *cuda_dnn_plan(const weft_call *, dnn_part part, const convolution *c) {
    static dnn_plan plan;
    const char *wanted = std::getenv("WEFT_SIM_DNN");
    if (!wanted || !*wanted || *wanted == '0') return nullptr;
    plan = { part, *c };
    return &plan;
}

// f(element of x, of w, of y) for every product that the definition adds up
template <class F> static void each_product(const convolution &c, F f) {
    for (int64_t b = 0; b < c.batch; b++)
        for (int64_t o = 0; o < c.groups * c.outputs; o++)
            for (int64_t i = 0; i < c.out_h; i++)
                for (int64_t j = 0; j < c.out_w; j++)
                    for (int64_t k = 0; k < c.channels; k++)
                        for (int64_t u = 0; u < c.kh; u++)
                            for (int64_t v = 0; v < c.kw; v++) {
                                const int64_t row = i * c.stride_h + u - c.pad_h, column = j * c.stride_w + v - c.pad_w;
                                if (row < 0 || row >= c.height || column < 0 || column >= c.width) continue;
                                const int64_t channel = (b * c.groups + o / c.outputs) * c.channels + k;
                                f((channel * c.height + row) * c.width + column, ((o * c.channels + k) * c.kh + u) * c.kw + v,
                                  ((b * c.groups * c.outputs + o) * c.out_h + i) * c.out_w + j);
                            }
}

template <class T> static void convolve(const dnn_plan *p, const T *a, const T *b, T *out, bool onto, int64_t n) {
    std::vector<double> sum((size_t)n);
    const auto at = [](const T *v, int64_t i) { return (double)widen<T>(v[i]); };
    for (int64_t i = 0; i < n; i++) sum[(size_t)i] = onto ? at(out, i) : 0;
    each_product(p->c, [&](int64_t x, int64_t w, int64_t y) {
        if (p->part == DNN_FORWARD) sum[(size_t)y] += at(a, x) * at(b, w);
        else if (p->part == DNN_BACKWARD_X) sum[(size_t)x] += at(a, y) * at(b, w);
        else sum[(size_t)w] += at(a, y) * at(b, x);
    });
    for (int64_t i = 0; i < n; i++) out[i] = narrow<T>((wide_t<T>)sum[(size_t)i]);
}

weft_status cuda_dnn_run(const weft_call *call, dnn_plan *p, const void *a, const void *b, void *out, bool onto, bool *done) {
    const convolution &c = p->c;
    const int64_t x = c.batch * c.groups * c.channels * c.height * c.width, y = c.batch * c.groups * c.outputs * c.out_h * c.out_w,
                  w = c.groups * c.outputs * c.channels * c.kh * c.kw;
    const int64_t n = p->part == DNN_FORWARD ? y : p->part == DNN_BACKWARD_X ? x : w;
    *done = std::strcmp(std::getenv("WEFT_SIM_DNN"), "refuse") != 0;
    if (!*done) return WEFT_OK;
    if (x < 1 || y < 1 || w < 1) sim::fail("an empty convolution is not for the library");
    device_of(call)->counters.launches++;
    const int64_t size = cuda_host->dtype_size(c.dtype);
    return with_float(c.dtype, [&](auto tag) -> weft_status {
        using T = TYPE_OF(tag);
        sim::in_stream([=, p = *p]() {
            sim::launched("convolution", size * (x + y + w - (onto ? 0 : n)), size * n);
            if (sim::dry) return;
            convolve<T>(&p, (const T *)sim::to_host(a, "convolution"), (const T *)sim::to_host(b, "convolution"),
                        (T *)sim::to_host(out, "convolution"), onto, n);
        });
        return WEFT_OK;
    });
}

void cuda_dnn_about(char *text, int64_t size) { std::snprintf(text, (size_t)size, "convolution by the definition"); }
