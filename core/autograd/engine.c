// engine.c: backward. Nodes run from the newest to the oldest, so each has all its gradients when
// its turn comes, and sums have one order. Lua nodes and hooks make it pause (weft_run_step).
#include "../core.h"
#include <string.h>

struct weft_run {
    weft_node **nodes;            // reachable, by sequence, newest first
    int64_t n, capacity, at;
    bool retain;
    int state;                    // what the last step returned
    weft_hook *hook;              // the hook that waits, or the next one to run
    bool hooks_done;
    bool starved;                 // the waiting node found no memory and delivered nothing: it can be run again
    weft_tensor **given;          // [n_in of the waiting node]
    int n_given;
};

static int64_t visits;
int64_t weft_runs;

static weft_status push(weft_run *r, weft_node *n) {
    if (r->n == r->capacity) {
        int64_t capacity = r->capacity ? r->capacity * 2 : 256;
        weft_node **nodes = weft_pool_alloc(capacity * (int64_t)sizeof *nodes);
        if (!nodes) return WEFT_ENOMEM;
        if (r->n) memcpy(nodes, r->nodes, (size_t)r->n * sizeof *nodes);
        weft_pool_free(r->nodes, r->capacity * (int64_t)sizeof *nodes);
        r->nodes = nodes;
        r->capacity = capacity;
    }
    r->nodes[r->n++] = n;
    weft_node_retain(n);
    return WEFT_OK;
}

// The oldest of the first n goes down to where both below it are newer.
static void sift(weft_node **nodes, int64_t at, int64_t n) {
    weft_node *moved = nodes[at];
    for (int64_t below; (below = 2 * at + 1) < n; at = below) {
        if (below + 1 < n && nodes[below + 1]->seq < nodes[below]->seq) below++;
        if (moved->seq < nodes[below]->seq) break;
        nodes[at] = nodes[below];
    }
    nodes[at] = moved;
}

// A heap sort: the C library's takes memory from the system for lists as long as these.
static void newest_first(weft_node **nodes, int64_t n) {
    for (int64_t i = n / 2 - 1; i >= 0; i--) sift(nodes, i, n);
    for (int64_t i = n - 1; i > 0; i--) {
        weft_node *oldest = nodes[0];
        nodes[0] = nodes[i];
        nodes[i] = oldest;
        sift(nodes, 0, i);
    }
}

// Takes g over. Adds into what is there, in place when nobody else can see it.
static weft_status accumulate(weft_tensor **slot, weft_tensor *g) {
    if (!*slot) {
        *slot = g;
        return WEFT_OK;
    }
    if (H(*slot)->storage->refs == 1 && weft_is_contiguous(*slot)) {
        weft_status code = weft_inplace("add", *slot, g);
        weft_free(g);
        return code;
    }
    weft_tensor *sum = weft_add(*slot, g);
    weft_free(g);
    if (!sum) return WEFT_ENOMEM;
    weft_keep(sum);
    weft_free(*slot);
    *slot = sum;
    return WEFT_OK;
}

static bool same_shape(const weft_view *a, const weft_view *b) {
    if (a->ndim != b->ndim) return false;
    for (int d = 0; d < a->ndim; d++)
        if (a->shape[d] != b->shape[d]) return false;
    return true;
}

weft_run *weft_run_new(weft_tensor *const *roots, weft_tensor *const *grads, int n, bool retain) {
    weft_run *r = weft_pool_alloc(sizeof *r);
    if (!r) return NULL;
    memset(r, 0, sizeof *r);
    weft_runs++;
    r->retain = retain;
    int64_t visit = ++visits;
    bool was = weft_set_grad_enabled(false);
    for (int i = 0; i < n; i++) {
        const weft_tensor *root = roots[i];
        weft_node *node = H(root)->node;
        char text[160];
        weft_describe(text, sizeof text, &root->v);
        if (!node) {
            weft_fail(WEFT_EAUTOGRAD, "backward: the tensor %s has no history: nothing that it was made from "
                      "requires a gradient (or it was made under no_grad)", text);
            goto fail;
        }
        if ((!grads || !grads[i]) && root->v.numel != 1) {
            weft_fail(WEFT_EAUTOGRAD, "backward: a loss of one element is expected, got %s; reduce it with "
                      "sum() or mean(), or pass its gradient", text);
            goto fail;
        }
        if (grads && grads[i] && (!same_shape(&grads[i]->v, &root->v) || grads[i]->v.dtype != root->v.dtype)) {
            weft_fail(WEFT_EAUTOGRAD, "backward: the gradient must have the shape %s and dtype of its tensor", text);
            goto fail;
        }
        weft_tensor *g = grads && grads[i] ? weft_detach(grads[i])
                                           : weft_full(root->v.shape, root->v.ndim, 1, root->v.dtype, root->v.device);
        if (!g) goto fail;
        weft_keep(g);
        if (node->visit != visit) {
            node->visit = visit;
            if (push(r, node) != WEFT_OK) {
                weft_free(g);
                goto fail;
            }
        }
        if (accumulate(&node->pending[H(root)->out_index], g) != WEFT_OK) goto fail;
    }
    for (int64_t i = 0; i < r->n; i++) {
        weft_node *node = r->nodes[i];
        for (int k = 0; k < node->n_in; k++) {
            weft_node *to = node->edges[k].node;
            if (!to || to->visit == visit) continue;
            to->visit = visit;
            if (push(r, to) != WEFT_OK) goto fail;
        }
    }
    newest_first(r->nodes, r->n);
    weft_set_grad_enabled(was);
    return r;
fail:
    weft_set_grad_enabled(was);
    weft_run_free(r);
    return NULL;
}

static void drop_given(weft_run *r) {
    for (int i = 0; i < r->n_given; i++) weft_free(r->given[i]);
    weft_pool_free(r->given, r->n_given * (int64_t)sizeof *r->given);
    r->given = NULL;
    r->n_given = 0;
}

void weft_run_free(weft_run *r) {
    if (!r) return;
    drop_given(r);
    weft_runs--;
    for (int64_t i = 0; i < r->n; i++) {
        weft_node *n = r->nodes[i];
        for (int j = 0; j < n->n_out; j++) {
            weft_free(n->pending[j]);
            n->pending[j] = NULL;
        }
        if (weft_runs == 0 && n->hooks) weft_node_sweep_hooks(n);
        weft_node_release(n);
    }
    weft_pool_free(r->nodes, r->capacity * (int64_t)sizeof *r->nodes);
    weft_pool_free(r, sizeof *r);
}

static weft_status check_saved(const weft_node *n) {
    const char *name = n->op >= 0 ? weft_ops[n->op].name : "a custom function";
    if (n->released)
        return weft_fail(WEFT_EAUTOGRAD, "backward: %s was passed through a second time after its saved tensors were "
                         "released; use backward{retain_graph = true} the first time, or compute the loss anew", name);
    for (int i = 0; i < n->n_saved; i++)
        if (n->saved[i].storage->version != n->saved[i].version)
            return weft_fail(WEFT_EAUTOGRAD, "backward: a tensor that %s saved was written in place since "
                             "(version %u, saved at %u); write to a clone() instead", name,
                             n->saved[i].storage->version, n->saved[i].version);
    return WEFT_OK;
}

// dx[i] of node n goes to whoever made input i.
static weft_status deliver(weft_node *n, int i, weft_tensor *dx) {
    const weft_view *x = &n->in_view[i];
    if (!same_shape(&dx->v, x) || dx->v.dtype != x->dtype || dx->v.device != x->device) {
        char got[160], want[160];
        const weft_view y = dx->v;
        weft_describe(got, sizeof got, &y);
        weft_describe(want, sizeof want, x);
        weft_free(dx);
        return weft_fail(WEFT_EAUTOGRAD, "backward: %s gave a gradient %s %s on %s for input %d, which is %s %s on %s",
                         n->op >= 0 ? weft_ops[n->op].name : "a custom function",
                         got, weft_dtype_name(y.dtype), weft_device_name(y.device), i + 1,
                         want, weft_dtype_name(x->dtype), weft_device_name(x->device));
    }
    return accumulate(&n->edges[i].node->pending[n->edges[i].out_index], dx);
}

// What input i's gradient is so far, where nobody else sees it and a kernel can add to it as it lies.
static weft_tensor *addable(const weft_node *n, int i) {
    if (!(n->needs >> i & 1) || !n->edges[i].node) return NULL;
    weft_tensor *g = n->edges[i].node->pending[n->edges[i].out_index];
    if (!g || H(g)->storage->refs != 1 || !weft_is_contiguous(g)) return NULL;
    return g->v.dtype == n->in_view[i].dtype && same_shape(&g->v, &n->in_view[i]) ? g : NULL;
}

static weft_status run_operator(weft_run *r, weft_node *n) {
    enum { MAX_IN = 64, MAX_OUT = 8 };
    TRY(check_saved(n));
    weft_tensor *in[MAX_IN] = {0}, *out[MAX_OUT] = {0}, *dx[MAX_IN] = {0}, *onto[MAX_IN];
    weft_grad_call call = { .at = n->at, .dy = n->pending, .in = in, .out = out, .in_view = n->in_view,
                            .needs = n->needs, .n_in = n->n_in, .n_out = n->n_out, .dx = dx,
                            .onto = onto };
    for (int i = 0; i < n->n_in; i++) onto[i] = addable(n, i);
    int64_t scope = weft_scope_begin();
    if (!scope) return WEFT_EINVAL;
    weft_status code = WEFT_OK;
    for (int i = 0; i < n->n_saved && code == WEFT_OK; i++) {
        const weft_saved *s = &n->saved[i];
        weft_tensor *t = weft_handle_new(&s->view, s->storage);
        if (!t) code = WEFT_ENOMEM;
        else if (s->slot < n->n_in) in[s->slot] = t;
        else out[s->slot - n->n_in] = t;
    }
    if (code == WEFT_OK) code = weft_ops[n->op].grad(&call);
    r->starved = code != WEFT_OK && weft_error_code() == WEFT_ENOMEM;
    for (int i = 0; i < n->n_in && code == WEFT_OK; i++) {
        if (!dx[i] || !NEEDS(&call, i) || dx[i] == onto[i]) continue;
        weft_keep(dx[i]);
        code = deliver(n, i, dx[i]);
    }
    weft_scope_end(scope);
    return code;
}

static weft_status finish_leaf(weft_node *n) {
    weft_tensor *g = n->pending[0];
    n->pending[0] = NULL;
    if (!g) return WEFT_OK;
    if (n->grad[0]) {
        weft_status code = weft_inplace("add", n->grad[0], g);
        weft_free(g);
        return code;
    }
    if (H(g)->storage->refs > 1 || !weft_is_contiguous(g)) {  // somebody else sees this memory
        weft_tensor *copy = weft_empty(g->v.shape, g->v.ndim, g->v.dtype, g->v.device);
        weft_status code = copy ? weft_copy_(copy, g) : WEFT_ENOMEM;
        weft_free(g);
        if (code != WEFT_OK) {
            weft_free(copy);
            return code;
        }
        weft_keep(copy);
        g = copy;
    }
    n->grad[0] = g;
    return WEFT_OK;
}

static bool any_pending(const weft_node *n) {
    for (int j = 0; j < n->n_out; j++)
        if (n->pending[j]) return true;
    return false;
}

static weft_status finish_node(weft_run *r, weft_node *n) {
    for (int j = 0; n->retain >> j && n->op != NODE_LEAF; j++) {
        if (!(n->retain >> j & 1) || !n->pending[j]) continue;
        weft_tensor *g = weft_detach(n->pending[j]);
        if (!g) return WEFT_ENOMEM;
        weft_keep(g);
        weft_free(n->grad[j]);
        n->grad[j] = g;
    }
    for (int j = 0; j < n->n_out; j++) {
        weft_free(n->pending[j]);
        n->pending[j] = NULL;
    }
    if (!r->retain && n->op != NODE_LEAF) {
        weft_node_drop_saved(n);
        n->released = true;
    }
    return WEFT_OK;
}

int64_t weft_run_id(const weft_run *r) {
    return r->state == WEFT_HOOK ? r->hook->id : r->at < r->n ? r->nodes[r->at]->custom_id : 0;
}
uint64_t weft_run_node_needs(const weft_run *r) { return r->at < r->n ? r->nodes[r->at]->needs : 0; }
int weft_run_node_outputs(const weft_run *r) { return r->at < r->n ? r->nodes[r->at]->n_out : 0; }

weft_tensor *weft_run_grad(weft_run *r, int i) {
    weft_node *n = r->nodes[r->at];
    if (r->state == WEFT_HOOK) i = r->hook->out_index;
    return i >= 0 && i < n->n_out && n->pending[i] ? weft_detach(n->pending[i]) : NULL;
}

weft_tensor *weft_run_saved(weft_run *r, int i) {
    weft_node *n = r->nodes[r->at];
    if (r->state != WEFT_NODE || i < 0 || i >= n->n_saved) return NULL;
    return weft_handle_new(&n->saved[i].view, n->saved[i].storage);
}

weft_status weft_run_give(weft_run *r, int i, const weft_tensor *grad) {
    weft_node *n = r->nodes[r->at];
    weft_tensor *g = weft_detach(grad);
    if (!g) return WEFT_ENOMEM;
    weft_keep(g);
    if (r->state == WEFT_HOOK) {
        weft_tensor **slot = &n->pending[r->hook->out_index];
        if (*slot && (!same_shape(&(*slot)->v, &g->v) || (*slot)->v.dtype != g->v.dtype)) {
            weft_free(g);
            return weft_fail(WEFT_EAUTOGRAD, "a hook must return a gradient of the shape and dtype it was given");
        }
        weft_free(*slot);
        *slot = g;
        return WEFT_OK;
    }
    if (i < 0 || i >= r->n_given) {
        weft_free(g);
        return weft_fail(WEFT_EAUTOGRAD, "custom function: a gradient for input %d of %d", i + 1, r->n_given);
    }
    weft_free(r->given[i]);
    r->given[i] = g;
    return WEFT_OK;
}

// Runs until the end, a pause, or a failure. After a pause it takes what was given and goes on.
static weft_status advance(weft_run *r, int *state) {
    weft_node *n;
    if (r->state == WEFT_NODE) {
        n = r->nodes[r->at];
        for (int i = 0; i < r->n_given; i++) {
            if (!r->given[i]) continue;
            weft_tensor *dx = r->given[i];
            r->given[i] = NULL;
            if (!(n->needs >> i & 1)) weft_free(dx);
            else TRY(deliver(n, i, dx));
        }
        drop_given(r);
        TRY(finish_node(r, n));
        r->at++;
        r->hooks_done = false;
        r->hook = NULL;
    }
    if (r->state == WEFT_HOOK) {
        r->hook = r->hook->next;
        r->hooks_done = !r->hook;
    }
    for (; r->at < r->n; r->at++, r->hooks_done = false, r->hook = NULL) {
        n = r->nodes[r->at];
        if (!any_pending(n)) continue;
        if (!r->hooks_done) {
            if (!r->hook) r->hook = n->hooks;
            while (r->hook && !(r->hook->id && n->pending[r->hook->out_index])) r->hook = r->hook->next;
            if (r->hook) {
                *state = WEFT_HOOK;
                return WEFT_OK;
            }
        }
        if (n->op == NODE_LEAF) {
            TRY(finish_leaf(n));
            continue;
        }
        if (n->op == NODE_CUSTOM) {
            TRY(check_saved(n));
            r->given = weft_pool_alloc(n->n_in * (int64_t)sizeof *r->given);
            if (!r->given) return WEFT_ENOMEM;
            memset(r->given, 0, (size_t)n->n_in * sizeof *r->given);
            r->n_given = n->n_in;
            *state = WEFT_NODE;
            return WEFT_OK;
        }
        TRY(run_operator(r, n));
        TRY(finish_node(r, n));
    }
    *state = WEFT_DONE;
    return WEFT_OK;
}

int weft_run_step(weft_run *r) {
    if (r->state == WEFT_FAILED) return WEFT_FAILED;
    int state = WEFT_FAILED;
    r->starved = false;
    bool was = weft_set_grad_enabled(false);
    weft_status code = advance(r, &state);
    weft_set_grad_enabled(was);
    r->state = code == WEFT_OK ? state : r->starved ? WEFT_DONE : WEFT_FAILED;
    return code == WEFT_OK ? state : WEFT_FAILED;
}

weft_status weft_backward(weft_tensor *loss) {
    weft_run *r = weft_run_new(&loss, NULL, 1, false);
    if (!r) return WEFT_EAUTOGRAD;
    int state = weft_run_step(r);
    weft_run_free(r);
    if (state == WEFT_DONE) return WEFT_OK;
    if (state == WEFT_FAILED) return WEFT_EAUTOGRAD;
    return weft_fail(WEFT_EAUTOGRAD, "backward: this graph has nodes or hooks of the caller's; use weft_run_step");
}
