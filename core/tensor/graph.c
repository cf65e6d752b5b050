// graph.c: capturing what a device is given as a graph, and what keeps the memory that it works on.
#include "../core.h"
#include "adamw.h"
#include <string.h>

struct weft_graph {
    weft_backend *backend;
    void *graph;                  // the device's, once the capture has ended
    weft_storage **held;          // made before the capture, used in it
    int64_t n_held, capacity;
};

int64_t weft_capture;
static weft_graph *capturing;

weft_graph *weft_graph_begin(int device) {
    static int64_t captures;
    weft_backend *b = weft_backend_of(device);
    if (!b) return NULL;
    if (!b->capture_begin) {
        weft_fail(WEFT_EUNSUPPORTED, "there are no graphs on %s", b->name);
        return NULL;
    }
    if (capturing) {
        weft_fail(WEFT_EINVAL, "a graph is being captured on %s; end it first", capturing->backend->name);
        return NULL;
    }
    weft_graph *g = weft_pool_alloc(sizeof *g);
    if (!g) return NULL;
    *g = (weft_graph){ .backend = b };
    if (b->capture_begin(b) != WEFT_OK) {
        weft_pool_free(g, sizeof *g);
        return NULL;
    }
    capturing = g;
    weft_capture = ++captures;
    return g;
}

void weft_capture_made(weft_storage *s) {
    if (s->device == capturing->backend->device) s->capture = weft_capture;
}

weft_status weft_capture_holds(weft_storage *s) {
    weft_graph *g = capturing;
    if (s->device != g->backend->device) return WEFT_OK;
    if (g->n_held == g->capacity) {
        const int64_t capacity = g->capacity ? 2 * g->capacity : 64;
        weft_storage **held = weft_pool_alloc(capacity * (int64_t)sizeof *held);
        if (!held) return WEFT_ENOMEM;
        if (g->n_held) memcpy(held, g->held, (size_t)g->n_held * sizeof *held);
        weft_pool_free(g->held, g->capacity * (int64_t)sizeof *held);
        g->held = held;
        g->capacity = capacity;
    }
    weft_storage_retain(s);
    s->capture = weft_capture;
    g->held[g->n_held++] = s;
    return WEFT_OK;
}

static weft_status is_scalar(const weft_graph *g, const weft_tensor *t, int dtype, int64_t n, const char *name) {
    if (t->v.device == g->backend->device && t->v.dtype == dtype && t->v.numel == n && weft_is_contiguous(t)) return WEFT_OK;
    char text[160];
    weft_describe(text, sizeof text, &t->v);
    return weft_fail(WEFT_EINVAL, "graph: %s: %lld %s on %s are expected, got %s %s on %s", name, (long long)n,
                     weft_dtype_name(dtype), g->backend->name, text, weft_dtype_name(t->v.dtype), weft_device_name(t->v.device));
}

weft_status weft_graph_bind(weft_graph *g, const weft_tensor *clock, const weft_tensor *rates) {
    if (g != capturing) return weft_fail(WEFT_EINVAL, "graph: it is not being captured");
    if (clock) {
        TRY(is_scalar(g, clock, WEFT_INT64, 1, "clock"));
        TRY(weft_capture_hold(H(clock)->storage));
    }
    if (rates) {
        TRY(is_scalar(g, rates, WEFT_FLOAT64, 4, "rates"));
        TRY(weft_capture_hold(H(rates)->storage));
    }
    g->backend->capture_bind(g->backend, clock ? clock->v.data : NULL, rates ? rates->v.data : NULL);
    return WEFT_OK;
}

static weft_status end(weft_graph *g, void **graph) {
    capturing = NULL;
    weft_capture = 0;
    g->backend->capture_bind(g->backend, NULL, NULL);
    return g->backend->capture_end(g->backend, graph);
}

weft_status weft_graph_end(weft_graph *g) {
    if (g != capturing) return weft_fail(WEFT_EINVAL, "graph: it is not being captured");
    return end(g, &g->graph);
}

weft_status weft_graph_launch(weft_graph *g) {
    if (!g->graph) return weft_fail(WEFT_EINVAL, "graph: its capture has not come to an end");
    return g->backend->graph_launch(g->backend, g->graph);
}

static void size_of(const weft_graph *g, int64_t *kernels, int64_t *nbytes) {
    *kernels = *nbytes = 0;
    if (g->graph) g->backend->graph_size(g->graph, kernels, nbytes);
}

int64_t weft_graph_kernels(const weft_graph *g) {
    int64_t kernels, nbytes;
    size_of(g, &kernels, &nbytes);
    return kernels;
}

int64_t weft_graph_bytes(const weft_graph *g) {
    int64_t kernels, nbytes;
    size_of(g, &kernels, &nbytes);
    return nbytes;
}

void weft_graph_free(weft_graph *g) {
    if (!g) return;
    if (g == capturing) end(g, NULL);
    if (g->graph) g->backend->graph_free(g->backend, g->graph);
    for (int64_t i = 0; i < g->n_held; i++) weft_storage_release(g->held[i]);
    weft_pool_free(g->held, g->capacity * (int64_t)sizeof *g->held);
    weft_pool_free(g, sizeof *g);
}

void weft_adamw_rates(double lr, double beta1, double beta2, double weight_decay, int64_t step, double out[3]) {
    const weft_rates r = weft_rates_of(lr, beta1, beta2, weight_decay, (double)step);
    out[0] = r.keep;
    out[1] = r.rate;
    out[2] = r.fix2;
}
