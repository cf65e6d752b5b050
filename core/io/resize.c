// resize.c: resizing 8-bit pictures to the byte as Pillow does: two passes, horizontal first, with
// weights in 22-bit fixed point, rounded to bytes after each. Antialiased: the filter widens when
// the picture shrinks.
#include "picture.h"
#include "../picture_plan.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct taps {
    int64_t widest;                   // weights in a row of `weight`
    int32_t *first, *count;           // by output position: where its inputs begin, how many
    int32_t *weight;
} taps;

static double bicubic(double x) {
    const double a = -0.5;
    x = fabs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
    if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
    return 0.0;
}

static double bilinear(double x) {
    x = fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

int64_t weft_picture_widest(int64_t from, int64_t to, int filter) {
    const double scale = (double)from / (double)to;
    return (int64_t)ceil((filter == WEFT_BICUBIC ? 2.0 : 1.0) * (scale > 1.0 ? scale : 1.0)) * 2 + 1;
}

static void taps_free(taps *t) {
    free(t->first);
    free(t->count);
    free(t->weight);
}

static bool taps_make(taps *t, int64_t from, int64_t to, int filter) {
    double scale = (double)from / (double)to, wide = scale > 1.0 ? scale : 1.0;
    double support = (filter == WEFT_BICUBIC ? 2.0 : 1.0) * wide, narrow = 1.0 / wide;
    t->widest = weft_picture_widest(from, to, filter);
    t->first = calloc((size_t)to, sizeof *t->first);
    t->count = calloc((size_t)to, sizeof *t->count);
    t->weight = calloc((size_t)(to * t->widest), sizeof *t->weight);
    double *k = calloc((size_t)t->widest, sizeof *k);
    if (!t->first || !t->count || !t->weight || !k) {
        free(k);
        taps_free(t);
        return false;
    }
    for (int64_t i = 0; i < to; i++) {
        double center = ((double)i + 0.5) * scale, sum = 0.0;
        int64_t begin = (int64_t)(center - support + 0.5), end = (int64_t)(center + support + 0.5);
        if (begin < 0) begin = 0;
        if (end > from) end = from;
        int64_t n = end - begin;
        for (int64_t j = 0; j < n; j++) {
            double x = ((double)(j + begin) - center + 0.5) * narrow;
            k[j] = filter == WEFT_BICUBIC ? bicubic(x) : bilinear(x);
            sum += k[j];
        }
        for (int64_t j = 0; j < n; j++) {
            double scaled = (sum != 0.0 ? k[j] / sum : k[j]) * (1 << TAPS_BITS);
            t->weight[i * t->widest + j] = (int32_t)(scaled + (scaled < 0 ? -0.5 : 0.5));
        }
        t->first[i] = (int32_t)begin;
        t->count[i] = (int32_t)n;
    }
    free(k);
    return true;
}

bool weft_picture_taps(int64_t from, int64_t to, int filter, int32_t *out) {
    taps t;
    if (!taps_make(&t, from, to, filter)) return false;
    for (int64_t i = 0; i < to; i++, out += TAPS_LINE(t.widest)) {
        out[0] = t.first[i];
        out[1] = t.count[i];
        memcpy(out + 2, t.weight + i * t.widest, (size_t)t.widest * sizeof *out);
    }
    taps_free(&t);
    return true;
}

static unsigned char to_byte(int32_t sum) {
    int32_t v = sum >> TAPS_BITS;
    return (unsigned char)(v < 0 ? 0 : v > 255 ? 255 : v);
}

static void horizontal(const weft_picture *p, const taps *t, weft_picture *out) {
    for (int64_t y = 0; y < p->h; y++) {
        const unsigned char *row = p->rgb + y * p->w * 3;
        unsigned char *to = out->rgb + y * out->w * 3;
        for (int64_t x = 0; x < out->w; x++, to += 3) {
            const int32_t *k = t->weight + x * t->widest;
            const unsigned char *in = row + (int64_t)t->first[x] * 3;
            int32_t r = 1 << (TAPS_BITS - 1), g = r, b = r;
            for (int32_t j = 0; j < t->count[x]; j++, in += 3) {
                r += in[0] * k[j];
                g += in[1] * k[j];
                b += in[2] * k[j];
            }
            to[0] = to_byte(r), to[1] = to_byte(g), to[2] = to_byte(b);
        }
    }
}

// Rows are summed whole, so that the inner loop runs over neighbours.
static void vertical(const weft_picture *p, const taps *t, weft_picture *out, int32_t *sums) {
    int64_t n = p->w * 3;
    for (int64_t y = 0; y < out->h; y++) {
        const int32_t *k = t->weight + y * t->widest;
        for (int64_t i = 0; i < n; i++) sums[i] = 1 << (TAPS_BITS - 1);
        for (int32_t j = 0; j < t->count[y]; j++) {
            const unsigned char *row = p->rgb + (t->first[y] + j) * n;
            int32_t weight = k[j];
            for (int64_t i = 0; i < n; i++) sums[i] += row[i] * weight;
        }
        unsigned char *to = out->rgb + y * n;
        for (int64_t i = 0; i < n; i++) to[i] = to_byte(sums[i]);
    }
}

static bool picture_new(weft_picture *p, int64_t h, int64_t w) {
    p->h = h, p->w = w;
    p->rgb = malloc((size_t)(h * w * 3));
    return p->rgb != NULL;
}

weft_status weft_picture_check_size(const weft_picture *p, int64_t h, int64_t w) {
    const int64_t most = (int64_t)1 << 24;
    if (h <= 0 || w <= 0 || h > most || w > most || p->h <= 0 || p->w <= 0 || h * w > most * 16)
        return weft_fail(WEFT_EINVAL, "cannot resize %lldx%lld to %lldx%lld (height by width)",
                         (long long)p->h, (long long)p->w, (long long)h, (long long)w);
    return WEFT_OK;
}

weft_status weft_picture_resize(const weft_picture *p, int64_t h, int64_t w, int filter,
                                weft_picture *out) {
    weft_picture middle = { 0 };
    taps across = { 0 }, down = { 0 };
    int32_t *sums = NULL;
    bool ok = true;
    *out = (weft_picture){ 0 };
    weft_status possible = weft_picture_check_size(p, h, w);
    if (possible != WEFT_OK) return possible;
    if (w != p->w) {
        ok = taps_make(&across, p->w, w, filter) && picture_new(&middle, p->h, w);
        if (ok) horizontal(p, &across, &middle);
    }
    const weft_picture *source = middle.rgb ? &middle : p;
    if (ok && h != p->h) {
        sums = malloc((size_t)(w * 3) * sizeof *sums);
        ok = sums && taps_make(&down, p->h, h, filter) && picture_new(out, h, w);
        if (ok) vertical(source, &down, out, sums);
    } else if (ok && middle.rgb) {
        *out = middle;
        middle.rgb = NULL;
    } else if (ok) {
        ok = picture_new(out, h, w);
        if (ok) memcpy(out->rgb, p->rgb, (size_t)(h * w * 3));
    }
    taps_free(&across);
    taps_free(&down);
    free(sums);
    free(middle.rgb);
    if (ok) return WEFT_OK;
    weft_picture_free(out);
    return weft_fail(WEFT_ENOMEM, "no memory to resize %lldx%lld to %lldx%lld (height by width)",
                     (long long)p->h, (long long)p->w, (long long)h, (long long)w);
}

void weft_picture_shortest(int64_t h, int64_t w, int64_t edge, int64_t *out_h, int64_t *out_w) {
    if (h <= w) *out_h = edge, *out_w = edge * w / h;
    else *out_w = edge, *out_h = edge * h / w;
}
