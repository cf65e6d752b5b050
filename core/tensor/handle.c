// handle.c: handles and scopes. A handle's memory is never handed back, so that a stale one can be
// told by its generation. Scopes own handles, not storage.
#include "../core.h"
#include <string.h>

#define SCOPES 256
static weft_handle *unused;
static struct { int64_t id; weft_handle *first; } scopes[SCOPES];
static int depth;
static int64_t last_id;

static void link_to(weft_handle *h, int level) {
    h->scope = scopes[level].id;
    h->prev = NULL;
    h->next = scopes[level].first;
    if (h->next) h->next->prev = h;
    scopes[level].first = h;
}

static int level_of(int64_t id) {
    for (int i = depth - 1; i >= 0; i--)
        if (scopes[i].id == id) return i;
    return -1;
}

static void unlink_from(weft_handle *h) {
    if (!h->scope) return;
    if (h->prev) h->prev->next = h->next;
    else {
        int level = level_of(h->scope);
        if (level >= 0) scopes[level].first = h->next;
    }
    if (h->next) h->next->prev = h->prev;
    h->scope = 0;
    h->prev = h->next = NULL;
}

weft_tensor *weft_handle_new(const weft_view *v, weft_storage *storage) {
    weft_handle *h = unused;
    if (h) unused = h->next;
    else {
        // handles come one block at a time; their memory stays ours for good
        h = weft_pool_alloc(sizeof *h);
        if (!h) return NULL;
        memset(h, 0, sizeof *h);
        h->t.gen = 1;
    }
    h->t.v = *v;
    h->t.requires_grad = false;
    h->t.is_leaf = true;
    h->storage = storage;
    h->node = NULL;
    h->out_index = 0;
    h->scope = 0;
    h->prev = h->next = NULL;
    weft_storage_retain(storage);
    weft_the_state.handles++;
    if (depth) link_to(h, depth - 1);
    return &h->t;
}

void weft_free(weft_tensor *t) {
    if (!t || !H(t)->storage) return;  // freed before: nothing to do
    weft_handle *h = H(t);
    unlink_from(h);
    weft_storage *storage = h->storage;
    weft_node *node = h->node;
    h->storage = NULL;
    h->node = NULL;
    h->t.v.data = NULL;
    h->t.gen++;
    h->next = unused;
    unused = h;
    weft_the_state.handles--;
    weft_storage_release(storage);
    if (node) weft_node_release(node);
}

int64_t weft_scope_begin(void) {
    if (depth == SCOPES) {
        weft_fail(WEFT_EINVAL, "scope: more than %d scopes inside one another", SCOPES);
        return 0;
    }
    scopes[depth].id = ++last_id;
    scopes[depth].first = NULL;
    depth++;
    weft_the_state.scope_depth = depth;
    return last_id;
}

// Ends the scope, and any that were opened inside it and not ended (an error passed through them).
weft_status weft_scope_end(int64_t id) {
    int level = level_of(id);
    if (level < 0) return weft_fail(WEFT_EINVAL, "scope %lld is not open", (long long)id);
    while (depth > level) {
        while (scopes[depth - 1].first) weft_free(&scopes[depth - 1].first->t);
        depth--;
    }
    weft_the_state.scope_depth = depth;
    return WEFT_OK;
}

// Only what the innermost scope made leaves it: an outer scope's tensor that merely passes through
// stays where it is.
weft_status weft_scope_escape(weft_tensor *t) {
    weft_handle *h = H(t);
    int level = h->scope ? level_of(h->scope) : -1;
    if (level < 0 || level != depth - 1) return WEFT_OK;
    unlink_from(h);
    if (level > 0) link_to(h, level - 1);
    return WEFT_OK;
}

weft_status weft_keep(weft_tensor *t) {
    unlink_from(H(t));
    return WEFT_OK;
}

int64_t weft_storage_refs(const weft_tensor *t) { return H(t)->storage->refs; }
uint32_t weft_version_of(const weft_tensor *t) { return H(t)->storage->version; }
bool weft_same_storage(const weft_tensor *a, const weft_tensor *b) { return H(a)->storage == H(b)->storage; }
