// group.c: groups of ranks, and what every provider has in common: the checks, shapes, strided tensors.
// One rank alone ("self") is here; what several compute together is a device's (weft_collectives).
#include "../core.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct weft_group {
    int rank, size;
    int device;                             // of `with`
    weft_backend *backend;
    const weft_collectives *with;           // NULL: self
    void *group;                            // with's
};

// --- meeting
// The id appears under its name all at once.
static weft_status publish(const char *meeting, const char id[WEFT_GROUP_ID]) {
    char draft[4096];
    if (access(meeting, F_OK) == 0)
        return weft_fail(WEFT_EIO, "%s is there already: ranks meet at a file of their own; remove it or name another", meeting);
    int n = snprintf(draft, sizeof draft, "%s.%ld", meeting, (long)getpid());
    FILE *f = n > 0 && n < (int)sizeof draft ? fopen(draft, "wb") : NULL;
    bool good = f && fwrite(id, 1, WEFT_GROUP_ID, f) == WEFT_GROUP_ID;
    if (f && fclose(f) != 0) good = false;
    if (good && rename(draft, meeting) == 0) return WEFT_OK;
    weft_status code = weft_fail(WEFT_EIO, "%s can't be written: %s", meeting, strerror(errno));
    if (f) remove(draft);
    return code;
}

static weft_status wait_for(const char *meeting, char id[WEFT_GROUP_ID], double timeout) {
    const struct timespec pause = { 0, 10000000 };
    for (double waited = 0;; waited += 0.01) {
        FILE *f = fopen(meeting, "rb");
        if (f) {
            bool whole = fread(id, 1, WEFT_GROUP_ID, f) == WEFT_GROUP_ID && fgetc(f) == EOF;
            fclose(f);
            if (whole) return WEFT_OK;
            return weft_fail(WEFT_EFORMAT, "%s is not what rank 0 of a group writes", meeting);
        }
        if (errno != ENOENT) return weft_fail(WEFT_EIO, "%s can't be read: %s", meeting, strerror(errno));
        if (weft_the_state.interrupt) return weft_fail(WEFT_EINTERRUPTED, "interrupted while waiting for rank 0 at %s", meeting);
        if (waited >= timeout)
            return weft_fail(WEFT_EIO, "rank 0 did not come to %s within %g seconds: is it running, and does it see the same file?",
                             meeting, timeout);
        nanosleep(&pause, NULL);
    }
}

static weft_status meet(weft_group *g, const char *meeting, double timeout) {
    char id[WEFT_GROUP_ID];
    const bool alone = g->size == 1;
    if (!alone && (!meeting || !*meeting))
        return weft_fail(WEFT_EINVAL, "%d ranks meet at a file that all of them see; its path is missing", g->size);
    if (g->rank == 0) {
        TRY(g->with->identify(id));
        if (!alone) TRY(publish(meeting, id));
    } else TRY(wait_for(meeting, id, timeout));
    g->group = g->with->join(g->backend, id, g->rank, g->size);
    // all have read it then, or never will
    if (g->rank == 0 && !alone) remove(meeting);
    return g->group ? WEFT_OK : weft_error_code();
}

static weft_status open_group(weft_group *g, const char *provider, const char *meeting, double timeout) {
    if (g->size < 1 || g->rank < 0 || g->rank >= g->size)
        return weft_fail(WEFT_EINVAL, "there is no rank %d of %d: ranks are 0 to size - 1", g->rank, g->size);
    if (strcmp(provider, "self") == 0) {
        if (g->size > 1) return weft_fail(WEFT_EINVAL, "self is one rank, not %d: several want provider \"nccl\" and a GPU each", g->size);
        return WEFT_OK;
    }
    if (strcmp(provider, "nccl") != 0)
        return weft_fail(WEFT_EINVAL, "there is no provider \"%s\"; \"self\" (one rank) and \"nccl\" (GPUs) are known", provider);
    g->backend = weft_backend_of(g->device);
    if (!g->backend) return weft_error_code();
    g->with = g->backend->collectives;
    if (!g->with) return weft_fail(WEFT_EUNSUPPORTED, "nccl is for GPUs: %s has no collective operations", g->backend->name);
    return meet(g, meeting, timeout);
}

weft_group *weft_group_join(const char *provider, int device, int rank, int size, const char *meeting, double timeout) {
    weft_group *g = calloc(1, sizeof *g);
    if (!g) {
        weft_fail(WEFT_ENOMEM, "no memory for a group");
        return NULL;
    }
    *g = (weft_group){ .rank = rank, .size = size, .device = device };
    if (open_group(g, provider, meeting, timeout) == WEFT_OK) return g;
    free(g);
    return NULL;
}

void weft_group_leave(weft_group *g) {
    if (g && g->group) g->with->leave(g->group);
    free(g);
}

int weft_group_rank(const weft_group *g) { return g->rank; }
int weft_group_size(const weft_group *g) { return g->size; }

// --- operations
static weft_status suits(const weft_group *g, const weft_tensor *t, const char *what) {
    if (g->with && weft_capture)
        return weft_fail(WEFT_EUNSUPPORTED, "%s: what ranks do together is not captured in a graph", what);
    if (!g->with || t->v.device == g->device) return WEFT_OK;
    char text[160];
    weft_describe(text, sizeof text, &t->v);
    return weft_fail(WEFT_EINVAL, "%s: %s is on %s, the group's ranks compute on %s; move it with to", what, text,
                     weft_device_name(t->v.device), g->backend->name);
}

static weft_status reducible(const weft_tensor *t, int reduction, const char *what) {
    const int dtype = t->v.dtype;
    const bool whole = dtype == WEFT_INT32 || dtype == WEFT_INT64 || dtype == WEFT_UINT8;
    if (reduction < WEFT_SUM || reduction > WEFT_MAX)
        return weft_fail(WEFT_EINVAL, "%s: there is no reduction number %d; sum, mean and max are known", what, reduction);
    if (dtype == WEFT_BOOL)
        return weft_fail(WEFT_EINVAL, "%s: bool has no sum, mean or max over ranks; convert it to uint8", what);
    if (whole && reduction == WEFT_MEAN)
        return weft_fail(WEFT_EINVAL, "%s: the mean of %s over ranks is no %s; reduce by sum, or a float tensor", what,
                         weft_dtype_name(dtype), weft_dtype_name(dtype));
    return WEFT_OK;
}

// Runs an operation in place on t's elements, row-major.
typedef struct in_place { int reduction, root; } in_place;
static weft_status run_in_place(weft_group *g, weft_tensor *t, bool reduce, in_place with) {
    if (!g->with || t->v.numel == 0) return WEFT_OK;
    const bool was = weft_set_grad_enabled(false);
    weft_tensor *dense = weft_contiguous(t);
    weft_status code = dense ? WEFT_OK : weft_error_code();
    if (dense && reduce) code = g->with->all_reduce(g->group, dense->v.data, t->v.numel, t->v.dtype, with.reduction);
    else if (dense) code = g->with->broadcast(g->group, dense->v.data, t->v.numel, t->v.dtype, with.root);
    if (code == WEFT_OK && !weft_same_storage(dense, t)) code = weft_copy_(t, dense);
    else if (code == WEFT_OK) H(t)->storage->version++;
    weft_free(dense);
    weft_set_grad_enabled(was);
    return code;
}

weft_status weft_all_reduce_(weft_group *g, weft_tensor *t, int reduction) {
    TRY(suits(g, t, "all_reduce_"));
    TRY(reducible(t, reduction, "all_reduce_"));
    TRY(weft_may_write(t, NULL, "all_reduce_"));
    return run_in_place(g, t, true, (in_place){ .reduction = reduction });
}

weft_status weft_broadcast_(weft_group *g, weft_tensor *t, int root) {
    TRY(suits(g, t, "broadcast_"));
    if (root < 0 || root >= g->size)
        return weft_fail(WEFT_EINVAL, "broadcast_: there is no rank %d of %d: ranks are 0 to size - 1", root, g->size);
    TRY(weft_may_write(t, NULL, "broadcast_"));
    return run_in_place(g, t, false, (in_place){ .root = root });
}

static weft_status without_history(const weft_tensor *t, const char *what) {
    if (!weft_the_state.grad_enabled || !t->requires_grad) return WEFT_OK;
    return weft_fail(WEFT_EAUTOGRAD, "%s: the tensor requires a gradient, which does not pass between ranks; "
                     "detach() it, or use no_grad", what);
}

// A new tensor of t's dtype with `shape`, filled by reduce_scatter (reduce) or all_gather.
static weft_tensor *run_into(weft_group *g, const weft_tensor *t, const weft_view *shape, bool reduce, int reduction) {
    const bool was = weft_set_grad_enabled(false);
    weft_tensor *y = weft_empty(shape->shape, shape->ndim, t->v.dtype, t->v.device);
    weft_tensor *dense = y && g->with ? weft_contiguous(t) : NULL;
    weft_status code = WEFT_OK;
    if (!y || (g->with && !dense)) code = weft_error_code();
    else if (!g->with) code = weft_copy_(y, t);      // one rank: all of it; a number becomes [1]
    else if (y->v.numel > 0 && reduce)
        code = g->with->reduce_scatter(g->group, y->v.data, dense->v.data, y->v.numel, t->v.dtype, reduction);
    else if (y->v.numel > 0) code = g->with->all_gather(g->group, y->v.data, dense->v.data, t->v.numel, t->v.dtype);
    weft_free(dense);
    weft_set_grad_enabled(was);
    if (code == WEFT_OK) return y;
    weft_free(y);
    return NULL;
}

weft_tensor *weft_all_gather(weft_group *g, const weft_tensor *t) {
    weft_view shape = t->v;
    if (suits(g, t, "all_gather") != WEFT_OK || without_history(t, "all_gather") != WEFT_OK) return NULL;
    if (shape.ndim == 0) shape.ndim = 1, shape.shape[0] = 1;
    shape.shape[0] *= g->size;
    return run_into(g, t, &shape, false, 0);
}

weft_tensor *weft_reduce_scatter(weft_group *g, const weft_tensor *t, int reduction) {
    weft_view shape = t->v;
    if (suits(g, t, "reduce_scatter") != WEFT_OK || reducible(t, reduction, "reduce_scatter") != WEFT_OK ||
        without_history(t, "reduce_scatter") != WEFT_OK) return NULL;
    if (shape.ndim == 0 || shape.shape[0] % g->size != 0) {
        char text[160];
        weft_describe(text, sizeof text, &t->v);
        weft_fail(WEFT_EINVAL, "reduce_scatter: the first dim of %s is not cut evenly among %d ranks", text, g->size);
        return NULL;
    }
    shape.shape[0] /= g->size;
    return run_into(g, t, &shape, true, reduction);
}

weft_status weft_barrier(weft_group *g) {
    if (!g->with) return WEFT_OK;
    const int64_t none[1] = { 1 };
    weft_tensor *one = weft_zeros(none, 1, WEFT_INT32, g->device);
    if (!one) return weft_error_code();
    weft_status code = g->with->all_reduce(g->group, one->v.data, 1, WEFT_INT32, WEFT_SUM);
    if (code == WEFT_OK) code = g->backend->synchronize(g->backend);
    weft_free(one);
    return code;
}
