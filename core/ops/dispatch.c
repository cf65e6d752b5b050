// dispatch.c: one call of an operator: checks, shape rule, memory, kernel, tape. Also the in-place
// writes, which are kernels whose output is an input.
#include "../core.h"
#include <stdio.h>
#include <string.h>

#define MAX_OUT 8
static int64_t calls[WEFT_N_OPS];

int64_t weft_op_calls(int op) { return op >= 0 && op < WEFT_N_OPS ? calls[op] : 0; }

// "matmul: a [8,197] x b [768,768]: <reason>, float32 on cpu"
static weft_status explain(const weft_op_info *info, const weft_tensor *const *in, int n_in, weft_status code) {
    char reason[512], text[900], shape[160];
    snprintf(reason, sizeof reason, "%s", weft_error());
    size_t at = (size_t)snprintf(text, sizeof text, "%s: ", info->name);
    bool first = true;
    const weft_tensor *typed = NULL;
    for (int i = 0; i < n_in && at < sizeof text - 200; i++) {
        if (!in[i]) continue;
        if (i == 6 && n_in > 8) {
            at += (size_t)snprintf(text + at, sizeof text - at, ", ... (%d tensors)", n_in);
            break;
        }
        weft_describe(shape, sizeof shape, &in[i]->v);
        int k = i < info->n_fixed ? i : info->n_fixed;
        at += (size_t)snprintf(text + at, sizeof text - at, "%s%s %s", first ? "" : n_in == 2 ? " x " : ", ",
                               info->in_name[k], shape);
        first = false;
        if (!typed && info->in_class[k] == 0) typed = in[i];
    }
    if (!first && at < sizeof text) at += (size_t)snprintf(text + at, sizeof text - at, ": ");
    if (!typed && n_in) typed = in[0];
    if (typed)
        return weft_fail(code, "%s%s, %s on %s", text, reason, weft_dtype_name(typed->v.dtype), weft_device_name(typed->v.device));
    return weft_fail(code, "%s%s", text, reason);
}

static weft_status check_inputs(const weft_op_info *info, const weft_tensor *const *in, int n_in,
                                const weft_tensor **first) {
    *first = NULL;
    const weft_tensor *any = NULL;
    if (info->n_in >= 0 ? n_in != info->n_in : n_in <= info->n_fixed)
        return weft_fail(WEFT_EINVAL, "%d tensors given", n_in);
    for (int i = 0; i < n_in; i++) {
        int k = i < info->n_fixed ? i : info->n_fixed;
        const weft_tensor *t = in[i];
        if (!t) {
            if (!info->optional[k]) return weft_fail(WEFT_EINVAL, "%s is missing", info->in_name[k]);
            continue;
        }
        if (any && t->v.device != any->v.device)
            return weft_fail(WEFT_EINVAL, "%s is on %s, %s on %s; move one with to()", info->in_name[k],
                             weft_device_name(t->v.device), info->in_name[0], weft_device_name(any->v.device));
        any = any ? any : t;
        int dtype = t->v.dtype;
        switch (info->in_class[k]) {
        case 0:
            // 16-bit floats are a dtype to compute in on GPUs only; meta stands for any device
            if (!(info->dtype_mask >> dtype & 1) && !(dtype == WEFT_BFLOAT16 && t->v.device != WEFT_CPU &&
                                                       info->dtype_mask >> WEFT_FLOAT32 & 1))
                return weft_fail(WEFT_EINVAL, "%s is %s; %s is expected here; convert it with to()", info->in_name[k],
                                 weft_dtype_name(dtype), strcmp(info->dtypes, "float") == 0 ? "float32 or float64" :
                                 strcmp(info->dtypes, "num") == 0 ? "float32, float64, int32 or int64" :
                                 "any dtype but bfloat16 and float16");
            if (*first && (*first)->v.dtype != dtype)
                return weft_fail(WEFT_EINVAL, "dtypes differ (%s is %s); convert one with to()", info->in_name[k], weft_dtype_name(dtype));
            *first = *first ? *first : t;
            break;
        case 1:
            if (dtype != WEFT_INT64 && dtype != WEFT_INT32)
                return weft_fail(WEFT_EINVAL, "%s is %s; int64 or int32 is expected", info->in_name[k], weft_dtype_name(dtype));
            break;
        case 2:
            if (dtype != WEFT_BOOL && dtype != WEFT_UINT8)
                return weft_fail(WEFT_EINVAL, "%s is %s; bool is expected", info->in_name[k], weft_dtype_name(dtype));
            break;
        default: break;
        }
    }
    if (!*first) *first = any;
    return WEFT_OK;
}

// Whether a kernel takes input k as it lies.
static bool takes(const weft_op_info *info, int k, const weft_view *v) {
    weft_rows rows;
    if (info->kind != KERNEL || weft_view_contiguous(v)) return true;
    return info->apart[k] && weft_rows_of(v, info->apart[k] - 1, &rows);
}

// Memory that a kernel of the CPU would want beside its outputs, so that a plan made on meta counts it.
static weft_status plan_workspace(weft_op op, const weft_view *x, const weft_view *y, weft_backend *meta) {
    if (!x || !y || x->ndim == 0 || y->ndim == 0 || y->numel < 256 || strcmp(weft_ops[op].family, "matmul") != 0)
        return WEFT_OK;
    int64_t packed, scratch = weft_product_workspace(x->shape[x->ndim - 1], y->shape[y->ndim - 1], &packed);
    void *a = weft_workspace(meta, scratch), *b = weft_workspace(meta, packed);
    weft_workspace_free(meta, a, scratch);
    weft_workspace_free(meta, b, packed);
    return a && b ? WEFT_OK : WEFT_ENOMEM;
}

static weft_status run_kernel(weft_op op, const weft_view *const *in, int n_in, weft_view *const *out,
                              int n_out, const weft_attrs *at, int device) {
    weft_backend *backend = weft_backend_of(device);
    if (device == WEFT_META) return plan_workspace(op, n_in > 0 ? in[0] : NULL, n_out > 0 ? out[0] : NULL, backend);
    if (!backend) return WEFT_EUNSUPPORTED;
    weft_kernel kernel = backend->kernels[op];
    if (!kernel)
        return weft_fail(WEFT_EUNSUPPORTED, "there is no kernel on %s", backend->name);
    weft_call call = { .in = in, .out = out, .n_in = n_in, .n_out = n_out, .at = at, .backend = backend };
    weft_status code = kernel(&call);
    return code == WEFT_OK && backend->after ? backend->after(backend, op) : code;
}

static weft_tensor *converted(const weft_tensor *t, int dtype) {
    bool was = weft_set_grad_enabled(false);
    weft_tensor *y = weft_cast(t, dtype);
    weft_set_grad_enabled(was);
    return y;
}

static weft_tensor *copied(const weft_tensor *t) {
    bool was = weft_set_grad_enabled(false);
    weft_tensor *y = weft_contiguous(t);
    weft_set_grad_enabled(was);
    weft_the_state.copies++;
    return y;
}

static weft_tensor *moved(const weft_tensor *t, int device) {
    bool was = weft_set_grad_enabled(false);
    weft_tensor *y = weft_to_device(t, device);
    weft_set_grad_enabled(was);
    return y;
}

static weft_status call_view(weft_op op, const weft_tensor *const *in, int n_in, const weft_attrs *at, weft_tensor **out) {
    const weft_op_info *info = &weft_ops[op];
    const weft_tensor *x = in[0];
    weft_tensor *copy = NULL;
    weft_view y = { .dtype = x->v.dtype, .device = x->v.device };
    const weft_view *views[1] = { &x->v };
    weft_shape_call shape = { .op = op, .in = views, .out = &y, .n_in = 1, .n_out = 1, .at = at };
    weft_status code = info->shape(&shape);
    if (code == WEFT_OK && shape.must_copy) {
        copy = copied(x);
        if (!copy) return WEFT_ENOMEM;
        views[0] = &copy->v;
        shape.must_copy = false;
        code = info->shape(&shape);
    }
    if (code == WEFT_OK) {
        const weft_tensor *source = copy ? copy : x;
        y.data = source->v.data ? (char *)source->v.data + shape.offset * weft_dtype_size(y.dtype) : NULL;
        *out = weft_handle_new(&y, H(source)->storage);
        if (!*out) code = WEFT_ENOMEM;
        else if (weft_the_state.grad_enabled && x->requires_grad && info->grad) {
            weft_result result = { y, H(source)->storage };
            code = weft_record(op, in, n_in, at, &result, out, 1);
            if (code != WEFT_OK) {
                weft_free(*out);
                *out = NULL;
            }
        }
    } else code = explain(info, in, n_in, code);
    weft_free(copy);
    return code;
}

// `all`: hidden outputs get handles too. onto: the first output's memory, or NULL.
static weft_status call_kernel(weft_op op, const weft_tensor *const *in, int n_in, const weft_attrs *at,
                               weft_tensor **out, bool all, const weft_tensor *onto) {
    enum { FEW = 12 };
    const weft_op_info *info = &weft_ops[op];
    const weft_tensor *few_tensors[FEW], **used = few_tensors;
    const weft_view *few_views[FEW], **views = few_views;
    weft_tensor *few_temporary[FEW], **temporary = few_temporary;
    weft_view y[MAX_OUT], *outputs[MAX_OUT];
    weft_result results[MAX_OUT] = {0};
    weft_tensor *handles[MAX_OUT] = {0};
    int n_out = info->n_out;
    const int64_t bytes = n_in * (int64_t)sizeof(void *);
    const weft_tensor *first;
    weft_status code = check_inputs(info, in, n_in, &first);
    if (code != WEFT_OK) return explain(info, in, n_in, code);
    if (n_in > FEW) {
        used = weft_pool_alloc(3 * bytes);
        if (!used) return WEFT_ENOMEM;
        views = (const weft_view **)(void *)(used + n_in);
        temporary = (weft_tensor **)(void *)(views + n_in);
    }
    for (int i = 0; i < n_in; i++) {
        used[i] = in[i];
        temporary[i] = NULL;
    }
    for (int i = 0; i < n_in; i++) {
        if (!in[i]) {
            views[i] = NULL;
            continue;
        }
        int k = i < info->n_fixed ? i : info->n_fixed;
        if (info->in_class[k] == 1 && in[i]->v.dtype == WEFT_INT32) {
            used[i] = temporary[i] = converted(in[i], WEFT_INT64);
            if (!used[i]) { code = WEFT_ENOMEM; goto done; }
        }
        if (!takes(info, k, &used[i]->v)) {
            weft_tensor *c = copied(used[i]);
            weft_free(temporary[i]);
            used[i] = temporary[i] = c;
            if (!c) { code = WEFT_ENOMEM; goto done; }
        }
        views[i] = &used[i]->v;
        code = weft_capture_hold(H(used[i])->storage);
        if (code != WEFT_OK) goto done;
    }
    for (int j = 0; j < n_out; j++) {
        y[j].dtype = first ? first->v.dtype : WEFT_FLOAT32;
        y[j].device = first ? first->v.device : WEFT_CPU;
        y[j].ndim = 0;
        y[j].numel = 1;
        y[j].data = NULL;
        outputs[j] = &y[j];
    }
    weft_shape_call shape = { .op = op, .in = views, .out = y, .n_in = n_in, .n_out = n_out, .at = at };
    code = info->shape ? info->shape(&shape) : weft_fail(WEFT_EUNSUPPORTED, "no shape rule");
    if (code != WEFT_OK) { code = explain(info, in, n_in, code); goto done; }
    for (int j = 0; j < n_out; j++) {
        if (j == 0 && onto) {
            code = weft_capture_hold(H(onto)->storage);
            if (code != WEFT_OK) goto done;
            weft_storage_retain(results[j].storage = H(onto)->storage);
        }
        else results[j].storage = weft_storage_new(y[j].numel * weft_dtype_size(y[j].dtype), y[j].device);
        if (!results[j].storage) { code = explain(info, in, n_in, WEFT_ENOMEM); goto done; }
        y[j].data = y[j].device == WEFT_META ? NULL : j == 0 && onto ? onto->v.data : results[j].storage->data;
        results[j].view = y[j];
    }
    int device = first ? first->v.device : y[0].device;
    // a copy between devices is made by the one that the host can't reach
    if (op == OP_to_device) device = y[0].device == WEFT_CPU || device == WEFT_META ? device : y[0].device;
    weft_may_stop(device == WEFT_CPU && info->kind != INPLACE);
    code = run_kernel(op, views, n_in, outputs, n_out, at, device);
    if (weft_was_stopped()) { code = WEFT_EINTERRUPTED; goto done; }
    if (code != WEFT_OK) { code = explain(info, in, n_in, code); goto done; }
    if (onto) H(onto)->storage->version++;
    if (info->kind == INPLACE)
        for (int i = 0; i < n_in; i++)
            if (in[i]) H(in[i])->storage->version++;
    for (int j = 0; j < n_out; j++) {
        if (!all && info->out_name[j][0] == '_') continue;
        handles[j] = weft_handle_new(&y[j], results[j].storage);
        if (!handles[j]) { code = WEFT_ENOMEM; goto done; }
    }
    if (weft_the_state.grad_enabled && info->grad && weft_any_needs_grad(in, n_in))
        code = weft_record(op, in, n_in, at, results, handles, n_out);
done:
    for (int j = 0, k = 0; j < n_out; j++) {
        if (results[j].storage) weft_storage_release(results[j].storage);
        if (!handles[j]) continue;
        if (code == WEFT_OK) out[k++] = handles[j];
        else weft_free(handles[j]);
    }
    for (int i = 0; i < n_in; i++) weft_free(temporary[i]);
    if (used != few_tensors) weft_pool_free(used, 3 * bytes);
    return code;
}

// A node tells 64 inputs apart: more are joined in groups, and the groups after that.
static weft_status cat_many(const weft_tensor *const *in, int n_in, const weft_attrs *at, weft_tensor **out) {
    enum { GROUP = 64 };
    const int n = (n_in + GROUP - 1) / GROUP;
    weft_tensor **parts = weft_pool_alloc(n * (int64_t)sizeof *parts);
    weft_status code = parts ? WEFT_OK : WEFT_ENOMEM;
    int made = 0;
    while (code == WEFT_OK && made < n) {
        int from = made * GROUP;
        code = weft_dispatch(OP_cat, in + from, n_in - from < GROUP ? n_in - from : GROUP, at, &parts[made]);
        if (code == WEFT_OK) made++;
    }
    if (code == WEFT_OK) code = weft_dispatch(OP_cat, (const weft_tensor *const *)parts, n, at, out);
    for (int i = 0; i < made; i++) weft_free(parts[i]);
    weft_pool_free(parts, n * (int64_t)sizeof *parts);
    return code;
}

static weft_status dispatch(weft_op op, const weft_tensor *const *in, int n_in, const weft_attrs *at,
                            weft_tensor **out, bool all, const weft_tensor *onto) {
    static bool ready;
    if (!ready) ready = weft_ops_init() == WEFT_OK;
    const weft_op_info *info = &weft_ops[op];
    weft_the_state.calls++;
    calls[op]++;
    if (weft_the_state.interrupt) {
        weft_the_state.interrupt = 0;
        return weft_fail(WEFT_EINTERRUPTED, "interrupted");
    }
    if (info->kind == VIEW) {
        if (!in[0]) return weft_fail(WEFT_EINVAL, "%s: %s is missing", info->name, info->in_name[0]);
        return call_view(op, in, n_in, at, out);
    }
    if (op == OP_contiguous && in[0] && weft_view_contiguous(&in[0]->v)) {
        *out = weft_alias(in[0]);
        return *out ? WEFT_OK : WEFT_ENOMEM;
    }
    if (op == OP_cat && n_in > 64 && weft_the_state.grad_enabled && weft_any_needs_grad(in, n_in)) {
        weft_status code = cat_many(in, n_in, at, out);
        if (code != WEFT_EINVAL) return code;  // else the refusal is worded for the whole list
    }
    return call_kernel(op, in, n_in, at, out, all, onto);
}

weft_status weft_dispatch(weft_op op, const weft_tensor *const *in, int n_in, const weft_attrs *at, weft_tensor **out) {
    return dispatch(op, in, n_in, at, out, false, NULL);
}

weft_status weft_dispatch_all(weft_op op, const weft_tensor *const *in, int n_in, const weft_attrs *at, weft_tensor **out) {
    return dispatch(op, in, n_in, at, out, true, NULL);
}

weft_status weft_dispatch_onto(weft_op op, const weft_tensor *const *in, int n_in, const weft_attrs *at,
                               weft_tensor **out, const weft_tensor *onto) {
    return dispatch(op, in, n_in, at, out, false, onto);
}

// --- in-place writes
weft_status weft_may_write(const weft_tensor *t, const weft_tensor *source, const char *what) {
    char text[160];
    weft_describe(text, sizeof text, &t->v);
    if (weft_the_state.grad_enabled && t->requires_grad)
        return weft_fail(WEFT_EAUTOGRAD, "%s: %s %s requires a gradient and can't be written in place; "
                         "use the form that returns a new tensor, or no_grad", what, t->is_leaf ? "the leaf" : "a result", text);
    if (weft_the_state.grad_enabled && source && source->requires_grad)
        return weft_fail(WEFT_EAUTOGRAD, "%s: the source requires a gradient, which a write in place would lose; "
                         "detach() it or use the form that returns a new tensor", what);
    for (int d = 0; d < t->v.ndim; d++)
        if (t->v.stride[d] == 0 && t->v.shape[d] > 1)
            return weft_fail(WEFT_EINVAL, "%s: %s is an expanded view, several of its elements share memory; use clone() first", what, text);
    return WEFT_OK;
}

// Kernels write row-major outputs: a strided one is filled run by run of its contiguous inner part.
static weft_status write_runs(weft_op op, const weft_view *in, const weft_view *out, const weft_attrs *at) {
    // a GPU's kernel walks any strides of its output, in one launch
    if (weft_view_contiguous(out) || out->ndim == 0 || out->device != WEFT_CPU) {
        const weft_view *ins[1] = { in };
        weft_view target = *out;
        weft_view *outs[1] = { &target };
        return run_kernel(op, ins, 1, outs, 1, at, out->device);
    }
    weft_view part = *out, source = *in;
    part.ndim = source.ndim = out->ndim - 1;
    part.numel = source.numel = out->shape[0] ? out->numel / out->shape[0] : 0;
    memmove(part.shape, out->shape + 1, sizeof(int64_t) * (size_t)part.ndim);
    memmove(part.stride, out->stride + 1, sizeof(int64_t) * (size_t)part.ndim);
    memmove(source.shape, in->shape + 1, sizeof(int64_t) * (size_t)part.ndim);
    memmove(source.stride, in->stride + 1, sizeof(int64_t) * (size_t)part.ndim);
    for (int64_t i = 0; i < out->shape[0]; i++) {
        part.data = (char *)out->data + i * out->stride[0] * weft_dtype_size(out->dtype);
        source.data = (char *)in->data + i * in->stride[0] * weft_dtype_size(in->dtype);
        TRY(write_runs(op, &source, &part, at));
    }
    return WEFT_OK;
}

static weft_status expanded(const weft_view *src, const weft_view *dst, weft_view *out) {
    weft_view joint = *dst;
    bool same = weft_broadcast_shapes(&joint, dst, src) == WEFT_OK && joint.ndim == dst->ndim;
    for (int d = 0; same && d < dst->ndim; d++) same = joint.shape[d] == dst->shape[d];
    if (!same) {
        char a[160], b[160];
        weft_describe(a, sizeof a, src);
        weft_describe(b, sizeof b, dst);
        return weft_fail(WEFT_EINVAL, "%s does not broadcast to %s", a, b);
    }
    *out = *dst;
    out->data = src->data;
    out->dtype = src->dtype;
    int shift = dst->ndim - src->ndim;
    for (int d = 0; d < dst->ndim; d++)
        out->stride[d] = d < shift || (src->shape[d - shift] == 1 && dst->shape[d] != 1) ? 0 : src->stride[d - shift];
    return WEFT_OK;
}

// Whether each element of one is the same element of the other: reading and writing don't clash then.
static bool same_place(const weft_view *a, const weft_view *b) {
    if (a->data != b->data || a->dtype != b->dtype || a->ndim != b->ndim) return false;
    for (int d = 0; d < a->ndim; d++)
        if (a->shape[d] != b->shape[d] || (a->shape[d] > 1 && a->stride[d] != b->stride[d])) return false;
    return true;
}

weft_status weft_copy_(weft_tensor *dst, const weft_tensor *src) {
    weft_view source;
    TRY(weft_may_write(dst, src, "copy_"));
    weft_status code = expanded(&src->v, &dst->v, &source);
    if (code != WEFT_OK) return weft_fail(code, "copy_: %s", weft_error());
    if (dst->v.device != src->v.device && src->v.device == WEFT_META)
        return weft_fail(WEFT_EINVAL, "copy_: the source is on meta: it has no values");
    if (dst->v.device != src->v.device && dst->v.device != WEFT_META) {
        weft_tensor *near = moved(src, dst->v.device);
        if (!near) return weft_error_code();
        code = weft_copy_(dst, near);
        weft_free(near);
        return code;
    }
    TRY(weft_capture_hold(H(dst)->storage));
    TRY(weft_capture_hold(H(src)->storage));
    H(dst)->storage->version++;
    if (dst->v.numel == 0) return WEFT_OK;
    weft_attrs at = {0};
    at.AT(cast, dtype) = dst->v.dtype;
    // a source in the same storage may overlap: read it all first
    if (H(dst)->storage == H(src)->storage && !same_place(&dst->v, &src->v)) {
        weft_tensor *copy = weft_empty(src->v.shape, src->v.ndim, src->v.dtype, src->v.device);
        if (!copy) return WEFT_ENOMEM;
        code = write_runs(OP_cast, &src->v, &copy->v, &(weft_attrs){ .AT(cast, dtype) = src->v.dtype });
        if (code == WEFT_OK) code = expanded(&copy->v, &dst->v, &source);
        if (code == WEFT_OK) code = write_runs(OP_cast, &source, &dst->v, &at);
        weft_free(copy);
        return code;
    }
    return write_runs(OP_cast, &source, &dst->v, &at);
}

weft_status weft_fill_(weft_tensor *t, double value) {
    TRY(weft_may_write(t, NULL, "fill_"));
    TRY(weft_capture_hold(H(t)->storage));
    H(t)->storage->version++;
    if (t->v.numel == 0 || t->v.device == WEFT_META) return WEFT_OK;
    weft_backend *backend = weft_backend_of(t->v.device);
    if (backend->fill) return backend->fill(backend, &t->v, value);
    if (value == 0 && weft_view_contiguous(&t->v) && t->v.device == WEFT_CPU) {
        memset(t->v.data, 0, (size_t)(t->v.numel * weft_dtype_size(t->v.dtype)));
        return WEFT_OK;
    }
    weft_view source = t->v;
    source.dtype = WEFT_FLOAT64;
    source.data = &value;
    memset(source.stride, 0, sizeof source.stride);
    weft_attrs at = {0};
    at.AT(cast, dtype) = t->v.dtype;
    return write_runs(OP_cast, &source, &t->v, &at);
}

// Runs an elementwise operator over (a) or (a, b) into a.
static weft_status write_elementwise(weft_op op, weft_tensor *a, const weft_tensor *b, const weft_attrs *at) {
    const weft_op_info *info = &weft_ops[op];
    weft_ops_init();
    const weft_tensor *in[2] = { a, b }, *first;
    int n_in = b ? 2 : 1;
    TRY(weft_may_write(a, b, info->name));
    weft_status code = check_inputs(info, in, n_in, &first);
    weft_view joint;
    if (code == WEFT_OK && b) code = expanded(&b->v, &a->v, &joint);
    if (code != WEFT_OK) return explain(info, in, n_in, code);
    TRY(weft_capture_hold(H(a)->storage));
    if (b) TRY(weft_capture_hold(H(b)->storage));
    H(a)->storage->version++;
    if (a->v.numel == 0) return WEFT_OK;
    bool was = weft_set_grad_enabled(false);
    if (weft_view_contiguous(&a->v) && !(b && H(a)->storage == H(b)->storage && !same_place(&a->v, &b->v))) {
        const weft_view *ins[2] = { &a->v, b ? &b->v : NULL };
        weft_view *outs[1] = { &a->v };
        code = run_kernel(op, ins, n_in, outs, 1, at, a->v.device);
    } else {
        weft_tensor *y = NULL;
        code = weft_dispatch(op, in, n_in, at, &y);
        if (code == WEFT_OK) code = weft_copy_(a, y);
        weft_free(y);
    }
    weft_set_grad_enabled(was);
    return code == WEFT_OK ? code : explain(info, in, n_in, code);
}

weft_status weft_inplace(const char *name, weft_tensor *a, const weft_tensor *b) {
    for (int op = 0; op < WEFT_N_OPS; op++) {
        if (strcmp(weft_ops[op].name, name) != 0) continue;
        if (weft_ops[op].kind != ELEMENTWISE) break;
        weft_attrs at = {0};
        return write_elementwise((weft_op)op, a, b, &at);
    }
    return weft_fail(WEFT_EINVAL, "%s_: there is no such elementwise operator", name);
}

weft_status weft_affine_(weft_tensor *t, double mul, double add) {
    weft_attrs at = {0};
    at.AT(affine, mul) = mul;
    at.AT(affine, add) = add;
    return write_elementwise(OP_affine, t, NULL, &at);
}
