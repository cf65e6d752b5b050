// loader.c: pictures decoded ahead of the step, by threads that never touch Lua or tensors' books.
// A batch is planned in one thread, filled by others, and taken by the first. What a slot holds
// depends on its plan alone, so the number of threads changes nothing.
#include "picture.h"
#include "tables.h"
#include "../picture_plan.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define FILE_LIMIT ((int64_t)1 << 30)

typedef struct batch {
    int64_t ticket, n, next, done;    // next: the first item that no thread has claimed
    weft_tensor *t;                   // belongs to no scope; NULL where batches are raw
    weft_picture *raw;                // then the pictures as they go to the device
    bool *lent, *fitted;              // this one's bytes are the cache's; it has its final size
    weft_plan_item *items;
    char **paths, **messages;         // message: NULL where all went well
    struct batch *later;
} batch;

struct weft_loader {
    pthread_mutex_t lock;
    pthread_cond_t work, finished;
    pthread_t *threads;
    int n_threads;
    bool stopping, raw;
    int64_t depth, waiting, h, w, last_ticket;
    weft_image_options options;
    float table[3 * 256];
    batch *first;                     // oldest first
    batch *taken;                     // the last one handed out, for its messages
    double waited;
    // pictures at their final size; what does not fit is decoded again
    weft_strings keys;
    unsigned char **kept;
    int64_t n_kept, cache_bytes, cache_used, cache_hits;
};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void batch_free(batch *b) {
    if (!b) return;
    for (int64_t i = 0; i < b->n; i++) {
        if (b->paths) free(b->paths[i]);
        if (b->messages) free(b->messages[i]);
    }
    for (int64_t i = 0; b->raw && b->lent && i < b->n; i++)
        if (!b->lent[i]) weft_picture_free(&b->raw[i]);
    free(b->raw);
    free(b->lent);
    free(b->fitted);
    free(b->paths);
    free(b->messages);
    free(b->items);
    weft_free(b->t);
    free(b);
}

// --- the cache

static int64_t cache_key(const weft_plan_item *item, const char *path, char *key, size_t room) {
    int n = snprintf(key, room, "%lld %lld %d %s", (long long)item->resize_h,
                     (long long)item->resize_w, item->filter, path);
    return n > 0 && (size_t)n < room && item->crop_h == 0 ? n : -1;
}

static bool cache_get(weft_loader *l, const char *key, int64_t n, weft_picture *out) {
    bool found = false;
    if (n < 0 || l->cache_bytes <= 0) return false;
    pthread_mutex_lock(&l->lock);
    int64_t i = weft_strings_find(&l->keys, key, n);
    if (i >= 0 && i < l->n_kept && l->kept[i]) {
        // kept pictures stay until the loader ends, so they can be read without the lock
        *out = (weft_picture){ l->kept[i], l->h, l->w };
        l->cache_hits++;
        found = true;
    }
    pthread_mutex_unlock(&l->lock);
    return found;
}

// Takes the bytes over if they fit; false: the caller keeps them.
static bool cache_put(weft_loader *l, const char *key, int64_t n, unsigned char *rgb) {
    int64_t size = l->h * l->w * 3, cost = size + n + 64;
    bool took = false;
    if (n < 0 || l->cache_bytes <= 0) return false;
    pthread_mutex_lock(&l->lock);
    if (l->cache_used + cost <= l->cache_bytes) {
        int64_t i = weft_strings_add(&l->keys, key, n);
        if (i >= l->n_kept) {
            int64_t room = l->n_kept ? l->n_kept * 2 : 256;
            unsigned char **kept = realloc(l->kept, (size_t)room * sizeof *kept);
            if (kept) {
                memset(kept + l->n_kept, 0, (size_t)(room - l->n_kept) * sizeof *kept);
                l->kept = kept;
                l->n_kept = room;
            }
        }
        if (i >= 0 && i < l->n_kept && !l->kept[i]) {
            l->kept[i] = rgb;
            l->cache_used += cost;
            took = true;
        }
    }
    pthread_mutex_unlock(&l->lock);
    return took;
}

// --- one picture

static void replace(weft_picture *p, weft_picture *by) {
    weft_picture_free(p);
    *p = *by;
}

// The picture as decoded, with the plan's own crop.
static weft_status decode(const weft_loader *l, const weft_plan_item *item, const char *path, weft_picture *p) {
    char *data;
    int64_t n;
    weft_picture step;
    weft_status status = weft_slurp(path, FILE_LIMIT, &data, &n);
    if (status != WEFT_OK) return status;
    status = weft_picture_decode((unsigned char *)data, n, path, &l->options, p);
    free(data);
    if (status == WEFT_OK && item->crop_h > 0) {
        status =
            weft_picture_crop(p, item->crop_y, item->crop_x, item->crop_h, item->crop_w, &step);
        if (status == WEFT_OK) replace(p, &step);
    }
    if (status != WEFT_OK) weft_picture_free(p);
    return status;
}

// The size that a picture is resized to.
static void resized(const weft_plan_item *item, const weft_picture *p, int64_t *h, int64_t *w) {
    *h = item->resize_h > 0 ? item->resize_h : p->h;
    *w = item->resize_h > 0 ? item->resize_w : p->w;
    if (*w == 0) weft_picture_shortest(p->h, p->w, item->resize_h, h, w);
}

// From a decoded picture to its final size.
static weft_status fit(const weft_loader *l, const weft_plan_item *item, weft_picture *p) {
    weft_status status = WEFT_OK;
    weft_picture step;
    int64_t h, w;
    resized(item, p, &h, &w);
    if (item->resize_h > 0) {
        status = weft_picture_resize(p, h, w, item->filter, &step);
        if (status == WEFT_OK) replace(p, &step);
    }
    if (status == WEFT_OK && (p->h != l->h || p->w != l->w)) {
        status = weft_picture_crop(p, weft_crop_offset(p->h, l->h), weft_crop_offset(p->w, l->w),
                                   l->h, l->w, &step);
        if (status == WEFT_OK) replace(p, &step);
    }
    if (status != WEFT_OK) weft_picture_free(p);
    return status;
}

// This thread's error, beginning with the path; never NULL unless even that finds no memory.
static char *explain(const char *path) {
    const char *message = weft_error();
    size_t n = strlen(path), room = n + strlen(message) + 3;
    bool named = strncmp(message, path, n) == 0;
    char *text = malloc(room);
    if (text) snprintf(text, room, "%s%s%s", named ? "" : path, named ? "" : ": ", message);
    return text ? text : calloc(1, 1);
}

// The prepared picture, or the item's window of it enlarged, as floats.
static weft_status write_slot(const weft_loader *l, const weft_plan_item *item,
                              const weft_picture *p, float *slot) {
    weft_picture window, large;
    weft_status status;
    if (item->window_h == 0) {
        weft_picture_normalize(p, item->flip, l->table, slot);
        return WEFT_OK;
    }
    status = weft_picture_crop(p, item->window_y, item->window_x, item->window_h, item->window_w,
                               &window);
    if (status != WEFT_OK) return status;
    status = weft_picture_resize(&window, l->h, l->w, item->filter, &large);
    weft_picture_free(&window);
    if (status != WEFT_OK) return status;
    weft_picture_normalize(&large, item->flip, l->table, slot);
    weft_picture_free(&large);
    return WEFT_OK;
}

static bool cache_has_room(weft_loader *l, int64_t n) {
    pthread_mutex_lock(&l->lock);
    const bool room = n >= 0 && l->cache_used + l->h * l->w * 3 + n + 64 <= l->cache_bytes;
    pthread_mutex_unlock(&l->lock);
    return room;
}

// The window of a picture that has its final size, in memory of its own; `lent` bytes are left alone.
static weft_status cut_window(const weft_plan_item *item, weft_picture *p, bool *lent) {
    weft_picture window;
    weft_status status = weft_picture_crop(p, item->window_y, item->window_x, item->window_h, item->window_w, &window);
    if (!*lent) weft_picture_free(p);
    *lent = false;
    *p = status == WEFT_OK ? window : (weft_picture){ 0 };
    return status;
}

// A raw batch's picture: at its final size where the cache has it or takes it, or where a window of it is
// wanted; else as decoded.
static weft_status prepare_raw(weft_loader *l, batch *b, int64_t i) {
    const weft_plan_item *item = &b->items[i];
    char key[4400];
    weft_picture *p = &b->raw[i];
    const int64_t n = cache_key(item, b->paths[i], key, sizeof key);
    weft_status status = WEFT_OK;
    b->fitted[i] = b->lent[i] = cache_get(l, key, n, p);
    if (!b->lent[i]) {
        int64_t h, w;
        status = decode(l, item, b->paths[i], p);
        if (status != WEFT_OK) return status;
        if (item->window_h > 0 || cache_has_room(l, n)) {
            status = fit(l, item, p);
            if (status != WEFT_OK) return status;
            b->fitted[i] = true;
            b->lent[i] = cache_put(l, key, n, p->rgb);
        } else {
            resized(item, p, &h, &w);
            status = weft_picture_check_size(p, h, w);
        }
    }
    return status == WEFT_OK && item->window_h > 0 ? cut_window(item, p, &b->lent[i]) : status;
}

static void fill_raw(weft_loader *l, batch *b, int64_t i) {
    if (prepare_raw(l, b, i) == WEFT_OK) return;
    if (!b->lent[i]) weft_picture_free(&b->raw[i]);
    b->raw[i] = (weft_picture){ 0 };
    b->messages[i] = explain(b->paths[i]);
}

static void fill_slot(weft_loader *l, batch *b, int64_t i) {
    if (l->raw) {
        fill_raw(l, b, i);
        return;
    }
    const weft_plan_item *item = &b->items[i];
    float *slot = (float *)b->t->v.data + i * 3 * l->h * l->w;
    char key[4400];
    weft_picture p = { 0 };
    int64_t n = cache_key(item, b->paths[i], key, sizeof key);
    bool kept = cache_get(l, key, n, &p);
    weft_status status = kept ? WEFT_OK : decode(l, item, b->paths[i], &p);
    if (!kept && status == WEFT_OK) status = fit(l, item, &p);
    if (status == WEFT_OK) status = write_slot(l, item, &p, slot);
    if (status != WEFT_OK) {
        memset(slot, 0, (size_t)(3 * l->h * l->w) * sizeof *slot);
        b->messages[i] = explain(b->paths[i]);
    }
    if (!kept && p.rgb && (status != WEFT_OK || !cache_put(l, key, n, p.rgb)))
        weft_picture_free(&p);
}

static batch *next_work(const weft_loader *l) {
    batch *b = l->first;
    while (b && b->next >= b->n) b = b->later;
    return b;
}

static void *run(void *context) {
    weft_loader *l = context;
    pthread_mutex_lock(&l->lock);
    for (;;) {
        batch *b = next_work(l);
        if (l->stopping) break;
        if (!b) {
            pthread_cond_wait(&l->work, &l->lock);
            continue;
        }
        int64_t i = b->next++;
        pthread_mutex_unlock(&l->lock);
        fill_slot(l, b, i);
        pthread_mutex_lock(&l->lock);
        if (++b->done == b->n) pthread_cond_broadcast(&l->finished);
    }
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

// --- the loader

// Signals are the main thread's: decode threads block them all.
static weft_status start_threads(weft_loader *l, int n) {
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int error = 0;
    while (l->n_threads < n && !error)
        if (!(error = pthread_create(&l->threads[l->n_threads], NULL, run, l))) l->n_threads++;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return error ? weft_fail(WEFT_ENOMEM, "loader: cannot start thread %d of %d: %s",
                             l->n_threads + 1, n, strerror(error))
                 : WEFT_OK;
}

weft_loader *weft_loader_new(int threads, int64_t depth, int64_t h, int64_t w, const double *mean,
                             const double *std, const weft_image_options *options,
                             int64_t cache_bytes) {
    if (threads < 1 || threads > 256 || depth < 1 || h < 1 || w < 1 || h > 65536 || w > 65536) {
        weft_fail(WEFT_EINVAL,
                  "loader: %d threads, depth %lld, pictures of %lldx%lld: each must be "
                  "positive, threads at most 256",
                  threads, (long long)depth, (long long)h, (long long)w);
        return NULL;
    }
    weft_loader *l = calloc(1, sizeof *l);
    if (!l || !(l->threads = calloc((size_t)threads, sizeof *l->threads))) {
        free(l);
        weft_fail(WEFT_ENOMEM, "loader: no memory");
        return NULL;
    }
    l->depth = depth, l->h = h, l->w = w, l->cache_bytes = cache_bytes;
    l->options = options ? *options : (weft_image_options){ .background = { 255, 255, 255 } };
    weft_picture_table(mean, std, l->table);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->work, NULL);
    pthread_cond_init(&l->finished, &monotonic);
    pthread_condattr_destroy(&monotonic);
    if (start_threads(l, threads) == WEFT_OK) return l;
    weft_loader_free(l);
    return NULL;
}

void weft_loader_free(weft_loader *l) {
    if (!l) return;
    pthread_mutex_lock(&l->lock);
    l->stopping = true;
    pthread_cond_broadcast(&l->work);
    pthread_mutex_unlock(&l->lock);
    for (int i = 0; i < l->n_threads; i++) pthread_join(l->threads[i], NULL);
    while (l->first) {
        batch *b = l->first;
        l->first = b->later;
        batch_free(b);
    }
    batch_free(l->taken);
    for (int64_t i = 0; i < l->n_kept; i++) free(l->kept[i]);
    free(l->kept);
    weft_strings_clear(&l->keys);
    pthread_cond_destroy(&l->work);
    pthread_cond_destroy(&l->finished);
    pthread_mutex_destroy(&l->lock);
    free(l->threads);
    free(l);
}

static weft_status check_item(const weft_loader *l, const weft_plan_item *item, int64_t i) {
    if (!item->path || !*item->path)
        return weft_fail(WEFT_EINVAL, "loader: item %lld has no path", (long long)i + 1);
    bool crop_ok =
        item->crop_h >= 0 && item->crop_w >= 0 && (item->crop_h > 0) == (item->crop_w > 0);
    if (!crop_ok || item->resize_h < 0 || item->resize_w < 0)
        return weft_fail(WEFT_EINVAL,
                         "loader: item %lld (%s): crop %lldx%lld, resize %lldx%lld: sizes "
                         "are positive, or all 0 for none",
                         (long long)i + 1, item->path, (long long)item->crop_h,
                         (long long)item->crop_w, (long long)item->resize_h,
                         (long long)item->resize_w);
    if (item->filter != WEFT_BICUBIC && item->filter != WEFT_BILINEAR)
        return weft_fail(WEFT_EINVAL, "loader: item %lld (%s): no filter %d", (long long)i + 1,
                         item->path, item->filter);
    bool whole = item->window_h == 0 && item->window_w == 0;
    if (!whole && (item->window_h <= 0 || item->window_w <= 0 || item->window_y < 0 ||
                   item->window_x < 0 || item->window_y > l->h - item->window_h ||
                   item->window_x > l->w - item->window_w))
        return weft_fail(WEFT_EINVAL,
                         "loader: item %lld (%s): window %lldx%lld at (%lld,%lld) does not lie in "
                         "%lldx%lld",
                         (long long)i + 1, item->path, (long long)item->window_h,
                         (long long)item->window_w, (long long)item->window_y,
                         (long long)item->window_x, (long long)l->h, (long long)l->w);
    return WEFT_OK;
}

int64_t weft_loader_submit(weft_loader *l, const weft_plan_item *items, int64_t n) {
    if (n < 1 || l->waiting >= l->depth) {
        if (n < 1) weft_fail(WEFT_EINVAL, "loader: an empty plan");
        else weft_fail(WEFT_EINVAL, "loader: %lld batches are under way; take one first",
                       (long long)l->waiting);
        return 0;
    }
    for (int64_t i = 0; i < n; i++)
        if (check_item(l, &items[i], i) != WEFT_OK) return 0;
    batch *b = calloc(1, sizeof *b);
    bool ok = b != NULL;
    if (ok) {
        b->n = n;
        b->paths = calloc((size_t)n, sizeof *b->paths);
        b->messages = calloc((size_t)n, sizeof *b->messages);
        b->items = malloc((size_t)n * sizeof *b->items);
        if (l->raw) {
            b->raw = calloc((size_t)n, sizeof *b->raw);
            b->lent = calloc((size_t)n, sizeof *b->lent);
            b->fitted = calloc((size_t)n, sizeof *b->fitted);
        }
        ok = b->paths && b->messages && b->items && (!l->raw || (b->raw && b->lent && b->fitted));
    }
    for (int64_t i = 0; ok && i < n; i++) {
        b->items[i] = items[i];
        ok = (b->paths[i] = strdup(items[i].path)) != NULL;
    }
    if (!ok) {
        batch_free(b);
        weft_fail(WEFT_ENOMEM, "loader: no memory for a plan of %lld pictures", (long long)n);
        return 0;
    }
    if (!l->raw) b->t = weft_empty((int64_t[]){ n, 3, l->h, l->w }, 4, WEFT_FLOAT32, WEFT_CPU);
    if (!l->raw && (!b->t || weft_keep(b->t) != WEFT_OK)) {
        batch_free(b);
        return 0;
    }
    b->ticket = ++l->last_ticket;
    pthread_mutex_lock(&l->lock);
    batch **end = &l->first;
    while (*end) end = &(*end)->later;
    *end = b;
    l->waiting++;
    pthread_cond_broadcast(&l->work);
    pthread_mutex_unlock(&l->lock);
    return b->ticket;
}

// Waits for a batch and makes it the one taken last.
static batch *take(weft_loader *l, int64_t ticket) {
    pthread_mutex_lock(&l->lock);
    batch **at = &l->first;
    while (*at && (*at)->ticket != ticket) at = &(*at)->later;
    batch *b = *at;
    double start = 0.0;
    bool interrupted = false;
    while (b && b->done < b->n && !interrupted) {
        struct timespec until;
        if (start == 0.0) start = now();
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += 50000000;
        if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
        pthread_cond_timedwait(&l->finished, &l->lock, &until);
        interrupted = b->done < b->n && weft_get_state()->interrupt;
    }
    if (start != 0.0) l->waited += now() - start;
    if (b && !interrupted) {
        *at = b->later;
        l->waiting--;
    }
    pthread_mutex_unlock(&l->lock);
    if (!b) {
        weft_fail(WEFT_EINVAL, "loader: no batch with ticket %lld is under way", (long long)ticket);
        return NULL;
    }
    if (interrupted) {
        weft_interrupt(0);
        weft_fail(WEFT_EINTERRUPTED, "loader: interrupted; the batch can still be taken");
        return NULL;
    }
    batch_free(l->taken);
    return l->taken = b;
}

weft_tensor *weft_loader_take(weft_loader *l, int64_t ticket) {
    if (l->raw) {
        weft_fail(WEFT_EINVAL, "loader: its batches are taken raw");
        return NULL;
    }
    batch *b = take(l, ticket);
    if (!b) return NULL;
    weft_tensor *t = weft_alias(b->t);  // belongs to the scope that is open now
    weft_free(b->t);
    b->t = NULL;
    return t;
}

weft_status weft_loader_raw(weft_loader *l, bool on) {
    if (l->last_ticket) return weft_fail(WEFT_EINVAL, "loader: batches are under way");
    l->raw = on;
    return WEFT_OK;
}

weft_tensor *weft_loader_table(const weft_loader *l) {
    return weft_from(l->table, (int64_t[]){ 3, 256 }, 2, WEFT_FLOAT32);
}

// A row of the plan; *n_taps grows by what it needs. `first`: another picture's row of the same sizes and
// filter, whose taps serve, or NULL.
static void plan_row(const weft_loader *l, const batch *b, int64_t i, int64_t *row, const int64_t *first, int64_t *n_taps) {
    const weft_picture *p = &b->raw[i];
    const weft_plan_item *item = &b->items[i];
    row[PLAN_H] = p->h, row[PLAN_W] = p->w;
    row[PLAN_FLIP] = item->flip;
    if (item->window_h > 0) row[PLAN_TO_H] = l->h, row[PLAN_TO_W] = l->w;
    else if (b->fitted[i]) row[PLAN_TO_H] = p->h, row[PLAN_TO_W] = p->w;
    else resized(item, p, &row[PLAN_TO_H], &row[PLAN_TO_W]);
    row[PLAN_Y] = row[PLAN_TO_H] == l->h ? 0 : weft_crop_offset(row[PLAN_TO_H], l->h);
    row[PLAN_X] = row[PLAN_TO_W] == l->w ? 0 : weft_crop_offset(row[PLAN_TO_W], l->w);
    if (first) {
        for (int k = PLAN_ACROSS; k <= PLAN_DOWN_WIDEST; k++) row[k] = first[k];
        return;
    }
    for (int d = 0; d < 2; d++) {
        const int64_t from = row[d ? PLAN_H : PLAN_W], to = row[d ? PLAN_TO_H : PLAN_TO_W];
        const int64_t widest = from == to ? 0 : weft_picture_widest(from, to, item->filter);
        row[d ? PLAN_DOWN : PLAN_ACROSS] = *n_taps;
        row[d ? PLAN_DOWN_WIDEST : PLAN_ACROSS_WIDEST] = widest;
        if (widest) *n_taps += to * TAPS_LINE(widest);
    }
}

static const int64_t *same_taps(const batch *b, const int64_t *plan, int64_t i) {
    const weft_picture *p = &b->raw[i];
    for (int64_t k = 0; k < i; k++) {
        const weft_plan_item *a = &b->items[k], *c = &b->items[i];
        if (b->raw[k].rgb && b->raw[k].h == p->h && b->raw[k].w == p->w && b->fitted[k] == b->fitted[i] &&
            (a->window_h > 0) == (c->window_h > 0) &&
            a->resize_h == c->resize_h && a->resize_w == c->resize_w && a->filter == c->filter)
            return plan + k * PLAN_SIZE;
    }
    return NULL;
}

weft_status weft_loader_take_raw(weft_loader *l, int64_t ticket, weft_raw_batch *out) {
    weft_tensor *bytes = NULL, *plan = NULL, *taps = NULL;
    if (!l->raw) return weft_fail(WEFT_EINVAL, "loader: its batches are not raw");
    batch *b = take(l, ticket);
    if (!b) return weft_error_code();
    int64_t n_bytes = 0, n_taps = 0, most = 0;
    plan = weft_zeros((int64_t[]){ b->n, PLAN_SIZE }, 2, WEFT_INT64, WEFT_CPU);
    if (!plan) return WEFT_ENOMEM;
    int64_t *rows = plan->v.data;
    for (int64_t i = 0; i < b->n; i++) {
        const weft_picture *p = &b->raw[i];
        if (!p->rgb) continue;      // could not be read
        int64_t *row = rows + i * PLAN_SIZE;
        row[PLAN_BYTES] = n_bytes;
        plan_row(l, b, i, row, same_taps(b, rows, i), &n_taps);
        n_bytes += p->h * p->w * 3;
        if (p->h > most) most = p->h;
    }
    bytes = weft_empty(&n_bytes, 1, WEFT_UINT8, WEFT_CPU);
    taps = weft_empty(&n_taps, 1, WEFT_INT32, WEFT_CPU);
    bool ok = bytes && taps;
    int64_t made = 0;
    for (int64_t i = 0; ok && i < b->n; i++) {
        const weft_picture *p = &b->raw[i];
        const int64_t *row = rows + i * PLAN_SIZE;
        if (!p->rgb) continue;
        memcpy((char *)bytes->v.data + row[PLAN_BYTES], p->rgb, (size_t)(p->h * p->w * 3));
        if (row[PLAN_ACROSS] < made) continue;      // another's taps
        int32_t *at = (int32_t *)taps->v.data;
        if (row[PLAN_ACROSS_WIDEST])
            ok = weft_picture_taps(p->w, row[PLAN_TO_W], b->items[i].filter, at + row[PLAN_ACROSS]);
        if (ok && row[PLAN_DOWN_WIDEST])
            ok = weft_picture_taps(p->h, row[PLAN_TO_H], b->items[i].filter, at + row[PLAN_DOWN]);
        made = row[PLAN_DOWN] + row[PLAN_TO_H] * (row[PLAN_DOWN_WIDEST] ? TAPS_LINE(row[PLAN_DOWN_WIDEST]) : 0);
    }
    if (ok) {
        *out = (weft_raw_batch){ bytes, plan, taps, most };
        return WEFT_OK;
    }
    weft_free(bytes);
    weft_free(plan);
    weft_free(taps);
    return weft_fail(WEFT_ENOMEM, "loader: no memory for a batch of %lld pictures", (long long)b->n);
}

const char *weft_loader_message(const weft_loader *l, int64_t i) {
    return l->taken && i >= 0 && i < l->taken->n ? l->taken->messages[i] : NULL;
}

double weft_loader_waited(const weft_loader *l) { return l->waited; }

int64_t weft_loader_cache_used(weft_loader *l) {
    pthread_mutex_lock(&l->lock);
    int64_t used = l->cache_used;
    pthread_mutex_unlock(&l->lock);
    return used;
}

int64_t weft_loader_cache_hits(weft_loader *l) {
    pthread_mutex_lock(&l->lock);
    int64_t hits = l->cache_hits;
    pthread_mutex_unlock(&l->lock);
    return hits;
}
