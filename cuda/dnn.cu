// dnn.cu: general convolution through cuDNN. Descriptors and the algorithm of a shape are made once and
// kept. Only algorithms that add up the definition's products in a fixed order are taken (no Winograd,
// no FFT, no atomics), by rule, not by timing. The library is loaded when a convolution first asks for
// it; only its header is wanted to build. WEFT_CUDNN=0 does without.
#include "cuda/dnn.h"
#include "cuda/provider.h"
#include <cstdlib>

#if __has_include(<cudnn.h>)
#include <cudnn.h>
#include <map>
#include <tuple>

#define MOST_WORKSPACE ((size_t)256 << 20)
#define MOST_PLANS 1024                 // then all are forgotten: shapes that never come back

#define FUNCTIONS(F) \
    F(cudnnGetVersion) F(cudnnGetErrorString) F(cudnnCreate) F(cudnnDestroy) F(cudnnSetStream) \
    F(cudnnCreateTensorDescriptor) F(cudnnSetTensor4dDescriptor) F(cudnnDestroyTensorDescriptor) \
    F(cudnnCreateFilterDescriptor) F(cudnnSetFilter4dDescriptor) F(cudnnDestroyFilterDescriptor) \
    F(cudnnCreateConvolutionDescriptor) F(cudnnSetConvolution2dDescriptor) F(cudnnSetConvolutionGroupCount) \
    F(cudnnSetConvolutionMathType) F(cudnnDestroyConvolutionDescriptor) \
    F(cudnnGetConvolutionForwardAlgorithm_v7) F(cudnnGetConvolutionBackwardDataAlgorithm_v7) \
    F(cudnnGetConvolutionBackwardFilterAlgorithm_v7) \
    F(cudnnConvolutionForward) F(cudnnConvolutionBackwardData) F(cudnnConvolutionBackwardFilter)
static struct {
#define MEMBER(name) decltype(&::name) name;
    FUNCTIONS(MEMBER)
#undef MEMBER
} dnn;
static provider library = { "libcudnn.so.9", nullptr, "" };

static bool load() {
    static const bool loaded = [] {
        const char *wanted = getenv("WEFT_CUDNN");
        if (wanted && *wanted == '0') {
            snprintf(library.why, sizeof library.why, "switched off by WEFT_CUDNN=0");
            return false;
        }
#define FIND(name) && library.find(&dnn.name, #name)
        return library.open() FUNCTIONS(FIND);
#undef FIND
    }();
    return loaded;
}

void cuda_dnn_about(char *text, int64_t size) {
    if (load()) {
        const size_t v = dnn.cudnnGetVersion();
        snprintf(text, (size_t)size, "cuDNN %zu.%zu.%zu", v / 10000, v / 100 % 100, v % 100);
    } else snprintf(text, (size_t)size, "no cuDNN: %s", library.why);
}

struct dnn_plan {
    dnn_part part;
    cudnnTensorDescriptor_t x, y;
    cudnnFilterDescriptor_t w;
    cudnnConvolutionDescriptor_t how;
    int algorithm;          // of the part's own enumeration
    size_t workspace;
    bool possible;
};
typedef std::tuple<int, int, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                   int64_t, int64_t, int64_t> plan_key;
struct cuda_dnn {
    cudnnHandle_t handle;
    std::map<plan_key, dnn_plan> plans;
};

static bool good(cudnnStatus_t code) { return code == CUDNN_STATUS_SUCCESS; }

static cuda_dnn *opened(cuda_device *d) {
    if (d->dnn || !load()) return static_cast<cuda_dnn *>(d->dnn);
    cudnnHandle_t handle;
    if (!good(dnn.cudnnCreate(&handle))) return nullptr;
    if (!good(dnn.cudnnSetStream(handle, d->stream))) {
        dnn.cudnnDestroy(handle);
        return nullptr;
    }
    d->dnn = new cuda_dnn{ handle, {} };
    return static_cast<cuda_dnn *>(d->dnn);
}

static void forget(dnn_plan *p) {
    if (p->x) dnn.cudnnDestroyTensorDescriptor(p->x);
    if (p->y) dnn.cudnnDestroyTensorDescriptor(p->y);
    if (p->w) dnn.cudnnDestroyFilterDescriptor(p->w);
    if (p->how) dnn.cudnnDestroyConvolutionDescriptor(p->how);
}

static bool describe(const convolution *c, dnn_plan *p) {
    const cudnnDataType_t type = c->dtype == WEFT_BFLOAT16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_FLOAT;
    return good(dnn.cudnnCreateTensorDescriptor(&p->x)) && good(dnn.cudnnCreateTensorDescriptor(&p->y)) &&
           good(dnn.cudnnCreateFilterDescriptor(&p->w)) && good(dnn.cudnnCreateConvolutionDescriptor(&p->how)) &&
           good(dnn.cudnnSetTensor4dDescriptor(p->x, CUDNN_TENSOR_NCHW, type, (int)c->batch, (int)(c->groups * c->channels),
                                               (int)c->height, (int)c->width)) &&
           good(dnn.cudnnSetTensor4dDescriptor(p->y, CUDNN_TENSOR_NCHW, type, (int)c->batch, (int)(c->groups * c->outputs),
                                               (int)c->out_h, (int)c->out_w)) &&
           good(dnn.cudnnSetFilter4dDescriptor(p->w, type, CUDNN_TENSOR_NCHW, (int)(c->groups * c->outputs), (int)c->channels,
                                               (int)c->kh, (int)c->kw)) &&
           good(dnn.cudnnSetConvolution2dDescriptor(p->how, (int)c->pad_h, (int)c->pad_w, (int)c->stride_h, (int)c->stride_w, 1, 1,
                                                    CUDNN_CROSS_CORRELATION, CUDNN_DATA_FLOAT)) &&
           good(dnn.cudnnSetConvolutionGroupCount(p->how, (int)c->groups)) &&
           // float32 in float32: no tf32
           good(dnn.cudnnSetConvolutionMathType(p->how, c->dtype == WEFT_BFLOAT16 ? CUDNN_TENSOR_OP_MATH : CUDNN_FMA_MATH));
}

// The first of what the library suggests that is among `wanted`.
template <class P> static void take(dnn_plan *p, const P *found, int n, const convolution *c, const int *wanted, int n_wanted) {
    for (int i = 0; i < n && !p->possible; i++) {
        bool known = false;
        for (int k = 0; k < n_wanted; k++) known = known || (int)found[i].algo == wanted[k];
        if (!known || !good(found[i].status) || found[i].determinism != CUDNN_DETERMINISTIC || found[i].memory > MOST_WORKSPACE) continue;
        // the library may suggest its default, which is tf32: float32 keeps what describe() set
        if (c->dtype == WEFT_BFLOAT16 && !good(dnn.cudnnSetConvolutionMathType(p->how, found[i].mathType))) continue;
        p->algorithm = (int)found[i].algo;
        p->workspace = found[i].memory;
        p->possible = true;
    }
}

static void choose(cuda_dnn *l, const convolution *c, dnn_plan *p) {
    int n = 0;
    if (p->part == DNN_FORWARD) {
        const int wanted[2] = { CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM, CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_GEMM };
        cudnnConvolutionFwdAlgoPerf_t found[CUDNN_CONVOLUTION_FWD_ALGO_COUNT];
        if (good(dnn.cudnnGetConvolutionForwardAlgorithm_v7(l->handle, p->x, p->w, p->how, p->y, CUDNN_CONVOLUTION_FWD_ALGO_COUNT, &n, found)))
            take(p, found, n, c, wanted, 2);
    } else if (p->part == DNN_BACKWARD_X) {
        const int wanted[1] = { CUDNN_CONVOLUTION_BWD_DATA_ALGO_1 };
        cudnnConvolutionBwdDataAlgoPerf_t found[CUDNN_CONVOLUTION_BWD_DATA_ALGO_COUNT];
        if (good(dnn.cudnnGetConvolutionBackwardDataAlgorithm_v7(l->handle, p->w, p->y, p->how, p->x, CUDNN_CONVOLUTION_BWD_DATA_ALGO_COUNT,
                                                                 &n, found)))
            take(p, found, n, c, wanted, 1);
    } else {
        const int wanted[1] = { CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1 };
        cudnnConvolutionBwdFilterAlgoPerf_t found[CUDNN_CONVOLUTION_BWD_FILTER_ALGO_COUNT];
        if (good(dnn.cudnnGetConvolutionBackwardFilterAlgorithm_v7(l->handle, p->x, p->y, p->how, p->w,
                                                                   CUDNN_CONVOLUTION_BWD_FILTER_ALGO_COUNT, &n, found)))
            take(p, found, n, c, wanted, 1);
    }
}

static bool fits(const convolution *c) {     // the library counts in int
    const int64_t most = INT32_MAX;
    return (c->dtype == WEFT_FLOAT32 || c->dtype == WEFT_BFLOAT16) && c->batch * c->groups * c->channels * c->height * c->width <= most &&
           c->batch * c->groups * c->outputs * c->out_h * c->out_w <= most && c->groups * c->outputs * c->channels * c->kh * c->kw <= most;
}

dnn_plan *cuda_dnn_plan(const weft_call *call, dnn_part part, const convolution *c) {
    cuda_dnn *l = fits(c) ? opened(device_of(call)) : nullptr;
    if (!l) return nullptr;
    const plan_key key(part, c->dtype, c->batch, c->channels, c->height, c->width, c->groups, c->outputs, c->kh, c->kw, c->out_h, c->out_w,
                       c->stride_h, c->stride_w, c->pad_h, c->pad_w);
    auto it = l->plans.find(key);
    if (it == l->plans.end()) {
        if (l->plans.size() >= MOST_PLANS) {
            for (auto &old : l->plans) forget(&old.second);
            l->plans.clear();
        }
        dnn_plan p = {};
        p.part = part;
        if (describe(c, &p)) choose(l, c, &p);
        it = l->plans.emplace(key, p).first;
    }
    return it->second.possible ? &it->second : nullptr;
}

weft_status cuda_dnn_run(const weft_call *call, dnn_plan *p, const void *a, const void *b, void *out, bool onto, bool *done) {
    cuda_device *d = device_of(call);
    const cuda_dnn *l = static_cast<const cuda_dnn *>(d->dnn);
    const float one = 1, beta = onto ? 1 : 0;
    *done = false;
    scratch space(call, (int64_t)p->workspace);
    if (!space.data) return WEFT_ENOMEM;
    cudnnStatus_t code;
    if (p->part == DNN_FORWARD)
        code = dnn.cudnnConvolutionForward(l->handle, &one, p->x, a, p->w, b, p->how, (cudnnConvolutionFwdAlgo_t)p->algorithm, space.data,
                                           p->workspace, &beta, p->y, out);
    else if (p->part == DNN_BACKWARD_X)
        code = dnn.cudnnConvolutionBackwardData(l->handle, &one, p->w, b, p->y, a, p->how, (cudnnConvolutionBwdDataAlgo_t)p->algorithm,
                                                space.data, p->workspace, &beta, p->x, out);
    else
        code = dnn.cudnnConvolutionBackwardFilter(l->handle, &one, p->x, b, p->y, a, p->how, (cudnnConvolutionBwdFilterAlgo_t)p->algorithm,
                                                  space.data, p->workspace, &beta, p->w, out);
    const int category = CUDNN_STATUS_CATEGORY((int)code);
    if (category == CUDNN_STATUS_NOT_SUPPORTED || category == CUDNN_STATUS_BAD_PARAM) {     // said before anything starts
        p->possible = false;
        return WEFT_OK;
    }
    if (!good(code)) return weft_fail(WEFT_EIO, "cuDNN: convolution: %s", dnn.cudnnGetErrorString(code));
    d->counters.launches++;
    *done = true;
    return WEFT_OK;
}

#else
dnn_plan *cuda_dnn_plan(const weft_call *, dnn_part, const convolution *) { return nullptr; }
weft_status cuda_dnn_run(const weft_call *, dnn_plan *, const void *, const void *, void *, bool, bool *) { return WEFT_OK; }
void cuda_dnn_about(char *text, int64_t size) { snprintf(text, (size_t)size, "no cuDNN: built without cudnn.h"); }
#endif
