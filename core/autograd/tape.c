// tape.c: the nodes that remember how a result was made. The engine that walks them is engine.c.
#include "../core.h"
#include <string.h>

static int64_t sequence, saved_bytes;
static struct { int64_t *ids; int64_t n, capacity; } released;

int64_t weft_tape_bytes(void) { return saved_bytes; }

static int64_t align8(int64_t n) { return (n + 7) & ~(int64_t)7; }

weft_node *weft_node_new(int op, int n_in, int n_out, int n_saved) {
    int64_t at = align8((int64_t)sizeof(weft_node));
    int64_t attrs = at; at += op >= 0 ? align8((int64_t)sizeof(weft_attrs)) : 0;
    int64_t edges = at; at += n_in * (int64_t)sizeof(weft_edge);
    int64_t in_view = at; at += n_in * (int64_t)sizeof(weft_view);
    int64_t out_view = at; at += n_out * (int64_t)sizeof(weft_view);
    int64_t pending = at; at += n_out * (int64_t)sizeof(weft_tensor *);
    int64_t grad = at; at += n_out * (int64_t)sizeof(weft_tensor *);
    int64_t saved = at; at += n_saved * (int64_t)sizeof(weft_saved);
    char *block = weft_pool_alloc(at);
    if (!block) return NULL;
    weft_node *n = (weft_node *)(void *)block;
    memset(n, 0, sizeof *n);
    n->refs = 1;
    n->seq = ++sequence;
    n->op = op;
    n->n_in = n_in;
    n->n_out = n_out;
    n->n_saved = 0;
    n->at = op >= 0 ? (weft_attrs *)(void *)(block + attrs) : NULL;
    n->edges = (weft_edge *)(void *)(block + edges);
    n->in_view = (weft_view *)(void *)(block + in_view);
    n->out_view = (weft_view *)(void *)(block + out_view);
    n->pending = (weft_tensor **)(void *)(block + pending);
    n->grad = (weft_tensor **)(void *)(block + grad);
    n->saved = (weft_saved *)(void *)(block + saved);
    memset(n->pending, 0, (size_t)n_out * sizeof *n->pending);
    memset(n->grad, 0, (size_t)n_out * sizeof *n->grad);
    memset(n->edges, 0, (size_t)n_in * sizeof *n->edges);
    n->nbytes = at;
    weft_the_state.nodes++;
    return n;
}

void weft_node_retain(weft_node *n) { n->refs++; }

static void note_released(int64_t id) {
    if (released.n == released.capacity) {
        int64_t capacity = released.capacity ? released.capacity * 2 : 64;
        int64_t *ids = weft_pool_alloc(capacity * (int64_t)sizeof *ids);
        if (!ids) return;  // the caller keeps a function a little longer than needed
        if (released.n) memcpy(ids, released.ids, (size_t)released.n * sizeof *ids);
        weft_pool_free(released.ids, released.capacity * (int64_t)sizeof *ids);
        released.ids = ids;
        released.capacity = capacity;
    }
    released.ids[released.n++] = id;
}

int64_t weft_next_released(void) { return released.n ? released.ids[--released.n] : 0; }

void weft_node_drop_saved(weft_node *n) {
    for (int i = 0; i < n->n_saved; i++) {
        saved_bytes -= n->saved[i].view.numel * weft_dtype_size(n->saved[i].view.dtype);
        weft_storage_release(n->saved[i].storage);
    }
    n->n_saved = 0;
}

void weft_node_release(weft_node *n) {
    if (--n->refs > 0) return;
    weft_node *dead = n;
    n->next_dead = NULL;
    while (dead) {
        n = dead;
        dead = n->next_dead;
        weft_node_drop_saved(n);
        for (int i = 0; i < n->n_in; i++) {
            weft_node *to = n->edges[i].node;
            if (to && --to->refs == 0) {
                to->next_dead = dead;
                dead = to;
            }
        }
        for (int j = 0; j < n->n_out; j++) {
            weft_free(n->pending[j]);
            weft_free(n->grad[j]);
        }
        while (n->hooks) {
            weft_hook *hook = n->hooks;
            n->hooks = hook->next;
            if (hook->id) note_released(hook->id);
            weft_pool_free(hook, sizeof *hook);
        }
        if (n->op == NODE_CUSTOM) note_released(n->custom_id);
        weft_pool_free(n, n->nbytes);
        weft_the_state.nodes--;
    }
}

bool weft_any_needs_grad(const weft_tensor *const *in, int n_in) {
    for (int i = 0; i < n_in; i++)
        if (in[i] && in[i]->requires_grad) return true;
    return false;
}

static void keep(weft_node *n, int slot, const weft_view *view, weft_storage *storage) {
    weft_saved *s = &n->saved[n->n_saved++];
    s->storage = storage;
    s->view = *view;
    s->version = storage->version;
    s->slot = slot;
    weft_storage_retain(storage);
    saved_bytes += view->numel * weft_dtype_size(view->dtype);
}

static void connect(weft_node *n, const weft_tensor *const *in, int n_in) {
    for (int i = 0; i < n_in; i++) {
        if (!in[i]) {
            memset(&n->in_view[i], 0, sizeof n->in_view[i]);
            continue;
        }
        n->in_view[i] = in[i]->v;
        n->in_view[i].data = NULL;
        if (!in[i]->requires_grad) continue;
        n->needs |= (uint64_t)1 << i;
        n->edges[i] = (weft_edge){ H(in[i])->node, H(in[i])->out_index };
        weft_node_retain(H(in[i])->node);
    }
}

static bool differentiable(int dtype) { return dtype <= WEFT_FLOAT16; }

static void attach(weft_tensor *t, weft_node *n, int j) {
    H(t)->node = n;
    H(t)->out_index = j;
    t->requires_grad = true;
    t->is_leaf = false;
    weft_node_retain(n);
}

weft_status weft_record(weft_op op, const weft_tensor *const *in, int n_in, const weft_attrs *at,
                        const weft_result *results, weft_tensor *const *handles, int n_out) {
    const weft_op_info *info = &weft_ops[op];
    uint64_t needs = 0;
    if (n_in > 64)
        return weft_fail(WEFT_EINVAL, "%s: at most 64 inputs can want gradients at once, got %d", info->name, n_in);
    for (int i = 0; i < n_in; i++)
        if (in[i] && in[i]->requires_grad) needs |= (uint64_t)1 << i;
    int n_saved = 0;
    for (int s = 0; info->saves[s].mask; s++) {
        const weft_save *save = &info->saves[s];
        if ((save->mask & needs) && (save->output || in[save->index])) n_saved++;
    }
    weft_node *n = weft_node_new(op, n_in, n_out, n_saved);
    if (!n) return WEFT_ENOMEM;
    *n->at = *at;
    connect(n, in, n_in);
    for (int s = 0; info->saves[s].mask; s++) {
        const weft_save *save = &info->saves[s];
        if (!(save->mask & needs)) continue;
        if (save->output) keep(n, n_in + save->index, &results[save->index].view, results[save->index].storage);
        else if (in[save->index]) keep(n, save->index, &in[save->index]->v, H(in[save->index])->storage);
    }
    for (int j = 0; j < n_out; j++) {
        n->out_view[j] = results[j].view;
        n->out_view[j].data = NULL;
        if (handles[j] && differentiable(handles[j]->v.dtype)) attach(handles[j], n, j);
    }
    weft_node_release(n);  // the handles hold it now
    return WEFT_OK;
}

weft_status weft_custom_node(int64_t id, weft_tensor *const *inputs, int n_in,
                             weft_tensor *const *outputs, int n_out,
                             weft_tensor *const *saved, int n_saved) {
    const weft_tensor *const *in = (const weft_tensor *const *)inputs;
    if (!weft_the_state.grad_enabled || !weft_any_needs_grad(in, n_in)) {
        note_released(id);
        return WEFT_OK;
    }
    if (n_in > 64 || n_out > 64)
        return weft_fail(WEFT_EINVAL, "custom function: at most 64 inputs and 64 outputs, got %d and %d", n_in, n_out);
    for (int j = 0; j < n_out; j++)
        if (outputs[j]->requires_grad)
            return weft_fail(WEFT_EAUTOGRAD, "custom function: output %d already has history; "
                             "compute it under no_grad, and return no input as it is", j + 1);
    weft_node *n = weft_node_new(NODE_CUSTOM, n_in, n_out, n_saved);
    if (!n) return WEFT_ENOMEM;
    n->custom_id = id;
    connect(n, in, n_in);
    for (int i = 0; i < n_saved; i++) keep(n, i, &saved[i]->v, H(saved[i])->storage);
    for (int j = 0; j < n_out; j++) {
        n->out_view[j] = outputs[j]->v;
        n->out_view[j].data = NULL;
        if (differentiable(outputs[j]->v.dtype)) attach(outputs[j], n, j);
    }
    weft_node_release(n);
    return WEFT_OK;
}

weft_status weft_requires_grad_(weft_tensor *t, bool flag) {
    weft_handle *h = H(t);
    if (!t->is_leaf)
        return flag ? WEFT_OK : weft_fail(WEFT_EAUTOGRAD, "requires_grad_(false): this tensor is a result of %s; "
                                          "use detach()", weft_grad_op(t));
    if (flag == t->requires_grad) return WEFT_OK;
    if (flag) {
        // bfloat16 is a dtype to compute in on GPUs only; meta stands for any device
        const bool half = t->v.dtype == WEFT_BFLOAT16;
        if (t->v.dtype != WEFT_FLOAT32 && t->v.dtype != WEFT_FLOAT64 && !(half && t->v.device != WEFT_CPU))
            return weft_fail(WEFT_EAUTOGRAD, "requires_grad_: only float32 and float64 tensors have gradients, got %s%s",
                             weft_dtype_name(t->v.dtype), half ? " on the CPU; on a GPU bfloat16 ones have them too" : "");
        h->node = weft_node_new(NODE_LEAF, 0, 1, 0);
        if (!h->node) return WEFT_ENOMEM;
        h->node->out_view[0] = t->v;
        h->node->out_view[0].data = NULL;
        h->out_index = 0;
    } else {
        weft_node_release(h->node);
        h->node = NULL;
    }
    t->requires_grad = flag;
    return WEFT_OK;
}

bool weft_set_grad_enabled(bool on) {
    bool was = weft_the_state.grad_enabled;
    weft_the_state.grad_enabled = on;
    return was;
}

weft_tensor *weft_grad(const weft_tensor *t) {
    const weft_node *n = H(t)->node;
    return n && n->grad[H(t)->out_index] ? weft_alias(n->grad[H(t)->out_index]) : NULL;
}

weft_status weft_set_grad(weft_tensor *t, const weft_tensor *grad) {
    weft_node *n = H(t)->node;
    if (!grad && !n) return WEFT_OK;
    if (!n || (grad && n->op != NODE_LEAF)) return weft_fail(WEFT_EAUTOGRAD, "grad can be set on a leaf that requires a gradient");
    weft_tensor *g = NULL;
    if (grad) {
        if (grad->v.ndim != t->v.ndim || grad->v.dtype != t->v.dtype || grad->v.numel != t->v.numel ||
            memcmp(grad->v.shape, t->v.shape, (size_t)t->v.ndim * sizeof *t->v.shape) != 0)
            return weft_fail(WEFT_EAUTOGRAD, "grad must have its tensor's shape and dtype");
        g = weft_detach(grad);
        if (!g) return WEFT_ENOMEM;
        weft_keep(g);
    }
    weft_free(n->grad[H(t)->out_index]);
    n->grad[H(t)->out_index] = g;
    return WEFT_OK;
}

weft_status weft_retain_grad(weft_tensor *t) {
    if (!t->requires_grad) return weft_fail(WEFT_EAUTOGRAD, "retain_grad: the tensor does not require a gradient");
    if (H(t)->node->op != NODE_LEAF) H(t)->node->retain |= (uint64_t)1 << H(t)->out_index;
    return WEFT_OK;
}

const char *weft_grad_op(const weft_tensor *t) {
    const weft_node *n = H(t)->node;
    if (!n) return NULL;
    if (n->op == NODE_LEAF) return "leaf";
    return n->op == NODE_CUSTOM ? "a custom function" : weft_ops[n->op].name;
}

weft_status weft_add_hook(weft_tensor *t, int64_t id) {
    if (!t->requires_grad) return weft_fail(WEFT_EAUTOGRAD, "register_hook: the tensor does not require a gradient");
    weft_hook *hook = weft_pool_alloc(sizeof *hook), **at = &H(t)->node->hooks;
    if (!hook) return WEFT_ENOMEM;
    *hook = (weft_hook){ .id = id, .out_index = H(t)->out_index };
    while (*at) at = &(*at)->next;
    *at = hook;
    return WEFT_OK;
}

void weft_node_sweep_hooks(weft_node *n) {
    for (weft_hook **at = &n->hooks; *at;) {
        weft_hook *hook = *at;
        if (hook->id) {
            at = &hook->next;
            continue;
        }
        *at = hook->next;
        weft_pool_free(hook, sizeof *hook);
    }
}

weft_status weft_remove_hook(weft_tensor *t, int64_t id) {
    weft_node *n = H(t)->node;
    for (weft_hook **at = n ? &n->hooks : NULL; at && *at; at = &(*at)->next) {
        if ((*at)->id != id) continue;
        (*at)->id = 0;
        if (weft_runs == 0) weft_node_sweep_hooks(n);
        return WEFT_OK;
    }
    return weft_fail(WEFT_EAUTOGRAD, "this hook is not on this tensor");
}
