// multinomial.c: drawing indices by weight, one row after another in a piece, in float64.
#include "cpu.h"
#include "tensor/random.h"
#include <math.h>

typedef struct pick { double key; int64_t index; } pick;

typedef struct rows {
    const weft_call *call;
    int64_t n_rows, classes, n, grain;
    bool replacement;
    char *scratch;         // a stretch of `stretch` bytes a piece
    int64_t stretch;
    int64_t *bad;          // by piece: the first row that is refused, or -1
} rows;

ALWAYS_INLINE double weight(const rows *r, int64_t i) {
    const weft_view *w = r->call->in[0];
    return w->dtype == WEFT_FLOAT32 ? ((const float *)w->data)[i] : ((const double *)w->data)[i];
}

// 53 bits for draw number e.
ALWAYS_INLINE double uniform(const rows *r, int64_t e) {
    const weft_attrs *at = r->call->at;
    weft_philox4 w = weft_philox(at->rng_key, at->rng_counter, (uint64_t)e >> 1);
    return weft_uniform64(w.v[2 * (e & 1)], w.v[2 * (e & 1) + 1]);
}

// With replacement: draw j of the row falls where u * total lies among the running sums. A zero
// weight adds nothing to its sum, so it is never the first sum above u * total.
static void draw_by_sums(const rows *r, int64_t row, double largest, double *sums, int64_t *y) {
    int64_t last = 0;
    double total = 0;
    for (int64_t i = 0; i < r->classes; i++) {
        double w = weight(r, row * r->classes + i) / largest;
        if (w > 0) last = i;
        sums[i] = total += w;
    }
    for (int64_t j = 0; j < r->n; j++) {
        double at = uniform(r, row * r->n + j) * total;
        int64_t low = 0, high = last;
        while (low < high) {
            int64_t middle = low + (high - low) / 2;
            if (sums[middle] > at) high = middle;
            else low = middle + 1;
        }
        y[j] = low;
    }
}

ALWAYS_INLINE bool later(pick a, pick b) {
    return a.key > b.key || (a.key == b.key && a.index > b.index);
}

static void sift_down(pick *heap, int64_t n, int64_t i) {
    for (;;) {
        int64_t child = 2 * i + 1;
        if (child >= n) return;
        if (child + 1 < n && later(heap[child + 1], heap[child])) child++;
        if (!later(heap[child], heap[i])) return;
        pick t = heap[i];
        heap[i] = heap[child];
        heap[child] = t;
        i = child;
    }
}

// Without replacement: each index waits for a time -log(u) / weight; the n first ones, in order,
// are distributed as draws one after another. The heap holds the n first so far, last on top.
static void draw_by_times(const rows *r, int64_t row, double largest, pick *heap, int64_t *y) {
    int64_t n = 0;
    for (int64_t i = 0; i < r->classes; i++) {
        double w = weight(r, row * r->classes + i) / largest;
        if (weight(r, row * r->classes + i) == 0) continue;
        double u = uniform(r, row * r->classes + i) + 0x1p-54;
        pick p = { w > 0 ? -weft_log64(u) / w : (double)INFINITY, i };
        if (n < r->n) {
            heap[n++] = p;
            if (n == r->n)
                for (int64_t k = n / 2 - 1; k >= 0; k--) sift_down(heap, n, k);
        } else if (later(heap[0], p)) {
            heap[0] = p;
            sift_down(heap, n, 0);
        }
    }
    for (; n > 0; n--) {
        y[n - 1] = heap[0].index;
        heap[0] = heap[n - 1];
        sift_down(heap, n - 1, 0);
    }
}

// A row's positive weights; -1 where a weight is negative, infinite or NaN.
static int64_t count_positive(const rows *r, int64_t row, double *largest) {
    int64_t positive = 0;
    *largest = 0;
    for (int64_t i = 0; i < r->classes; i++) {
        double w = weight(r, row * r->classes + i);
        if (!(w >= 0 && w < (double)INFINITY)) return -1;
        positive += w > 0;
        if (w > *largest) *largest = w;
    }
    return positive;
}

static void draw_rows(void *context, int64_t piece) {
    const rows *r = context;
    void *scratch = r->scratch + piece * r->stretch;
    int64_t end = weft_piece_end(r->n_rows, r->grain, piece);
    for (int64_t row = piece * r->grain; row < end; row++) {
        int64_t *y = (int64_t *)r->call->out[0]->data + row * r->n;
        double largest;
        int64_t positive = count_positive(r, row, &largest);
        if (positive < 0 || (!r->replacement && positive > 0 && positive < r->n)) {
            r->bad[piece] = row;
            return;
        }
        if (positive == 0)
            for (int64_t j = 0; j < r->n; j++) y[j] = -1;
        else if (r->replacement || r->n == 1) draw_by_sums(r, row, largest, scratch, y);
        else draw_by_times(r, row, largest, scratch, y);
    }
}

static weft_status refuse_row(const rows *r, int64_t row) {
    double largest;
    int64_t positive = count_positive(r, row, &largest);
    for (int64_t i = 0; positive < 0 && i < r->classes; i++) {
        double w = weight(r, row * r->classes + i);
        if (!(w >= 0 && w < (double)INFINITY))
            return weft_fail(WEFT_EINVAL, "weight %g in row %lld, position %lld: weights must be "
                             "finite and not negative", w, (long long)row + 1, (long long)i + 1);
    }
    return weft_fail(WEFT_EINVAL, "%lld draws without replacement from row %lld, which has %lld "
                     "positive weights", (long long)r->n, (long long)row + 1,
                     (long long)positive);
}

CPU_KERNEL(multinomial) {
    const weft_view *w = call->in[0], *y = call->out[0];
    rows r = { .call = call, .n = call->at->AT(multinomial, n),
               .replacement = call->at->AT(multinomial, replacement) != 0 };
    r.classes = w->shape[w->ndim - 1];
    r.n_rows = weft_span(w, 0, w->ndim - 1);
    if (y->numel == 0) return WEFT_OK;
    r.grain = (r.n_rows + 63) / 64;
    int64_t pieces = weft_pieces(r.n_rows, r.grain);
    bool sums = r.replacement || r.n == 1;
    r.stretch = sums ? r.classes * (int64_t)sizeof(double)
                     : (r.n < r.classes ? r.n : r.classes) * (int64_t)sizeof(pick);
    int64_t nbytes = pieces * (r.stretch + (int64_t)sizeof *r.bad);
    char *scratch = weft_workspace(call->backend, nbytes);
    if (!scratch) return WEFT_ENOMEM;
    r.bad = (int64_t *)(void *)scratch;
    r.scratch = scratch + pieces * (int64_t)sizeof *r.bad;
    for (int64_t i = 0; i < pieces; i++) r.bad[i] = -1;
    weft_parallel(pieces, draw_rows, &r);
    int64_t bad = -1;
    for (int64_t i = 0; i < pieces && bad < 0; i++) bad = r.bad[i];
    weft_workspace_free(call->backend, scratch, nbytes);
    return bad < 0 ? WEFT_OK : refuse_row(&r, bad);
}
