// graph.cu: the stream's work captured as a CUDA graph and launched as one. A kernel in it has the
// addresses and numbers that it was captured with; what changes from launch to launch lies on the device.
#include "cuda/memory.h"

struct cuda_graph {
    cudaGraphExec_t exec;
    cuda_pool *pool;
    int64_t kernels;
};

static cuda_device *of(weft_backend *b) { return reinterpret_cast<cuda_device *>(b); }

// The graph while it is captured: one at a time, and the core sees to that.
static cuda_graph *current;

weft_status cuda_capture_begin(weft_backend *b) {
    cuda_device *d = of(b);
    // relaxed: memory may be asked for in between
    TRY(cuda_check(cudaStreamBeginCapture(d->stream, cudaStreamCaptureModeRelaxed), "capturing a graph"));
    current = new cuda_graph{ nullptr, cuda_pool_begin(d), -d->counters.launches };
    d->capturing = true;
    return WEFT_OK;
}

void cuda_capture_bind(weft_backend *b, const void *clock, const void *rates) {
    of(b)->clock = clock ? static_cast<const uint64_t *>(clock) : of(b)->still;
    of(b)->rates = static_cast<const double *>(rates);
}

weft_status cuda_capture_end(weft_backend *b, void **graph) {
    cuda_device *d = of(b);
    cuda_graph *g = current;
    cudaGraph_t captured = nullptr;
    current = nullptr;
    g->kernels += d->counters.launches;
    d->counters.launches -= g->kernels;     // none of them has run
    d->capturing = false;
    cuda_pool_end(d);
    weft_status status = cuda_check(cudaStreamEndCapture(d->stream, &captured), "capturing a graph");
    if (status == WEFT_OK && graph)
        status = cuda_check(cudaGraphInstantiate(&g->exec, captured, 0), "making a graph ready");
    if (captured) cudaGraphDestroy(captured);
    if (status == WEFT_OK && graph) {
        *graph = g;
        return WEFT_OK;
    }
    cuda_graph_free(b, g);
    return graph ? status : WEFT_OK;
}

weft_status cuda_graph_launch(weft_backend *b, void *graph) {
    cuda_device *d = of(b);
    TRY(cuda_not_captured(d, "another graph is launched"));
    d->counters.graphs++;
    TRY(cuda_check(cudaGraphLaunch(static_cast<cuda_graph *>(graph)->exec, d->stream), "launching a graph"));
    return d->blocking ? b->synchronize(b) : WEFT_OK;
}

void cuda_graph_free(weft_backend *b, void *graph) {
    cuda_graph *g = static_cast<cuda_graph *>(graph);
    if (g->exec) cudaGraphExecDestroy(g->exec);     // after what is under way of it
    cuda_pool_free(of(b), g->pool);
    delete g;
}

void cuda_graph_size(void *graph, int64_t *kernels, int64_t *nbytes) {
    const cuda_graph *g = static_cast<const cuda_graph *>(graph);
    *kernels = g->kernels;
    *nbytes = cuda_pool_bytes(g->pool);
}
