// bpe_encode.c: text to token ids. Added tokens are cut out first, then words, then merges.
#include "bpe.h"

#include <stdlib.h>
#include <string.h>

typedef struct candidate { int64_t rank, at, id; } candidate;  // merge symbol `at` with the next

typedef struct encoder {
    const weft_tokenizer *t;
    int64_t *ids, n_ids, capacity;
    // symbols of one word, in a doubly linked list
    int64_t *symbol, *next, *prev, room;
    candidate *heap;
    int64_t n_heap;
} encoder;

static bool emit(encoder *e, int64_t id) {
    if (e->n_ids == e->capacity) {
        int64_t capacity = e->capacity * 2 + 64;
        int64_t *ids = realloc(e->ids, (size_t)capacity * sizeof *ids);
        if (!ids) return false;
        e->ids = ids;
        e->capacity = capacity;
    }
    e->ids[e->n_ids++] = id;
    return true;
}

static bool make_room(encoder *e, int64_t n) {
    if (n <= e->room) return true;
    int64_t room = n < 64 ? 64 : n * 2;
    free(e->symbol);
    free(e->heap);
    e->symbol = malloc((size_t)room * 3 * sizeof *e->symbol);
    e->heap = malloc((size_t)room * 3 * sizeof *e->heap);  // n - 1 pairs, and two more a merge
    e->room = e->symbol && e->heap ? room : 0;
    e->next = e->symbol + room;
    e->prev = e->symbol + 2 * room;
    return e->room > 0;
}

static bool before(const candidate *a, const candidate *b) {
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

static void heap_push(encoder *e, candidate c) {
    int64_t i = e->n_heap++;
    while (i > 0 && before(&c, &e->heap[(i - 1) / 2])) {
        e->heap[i] = e->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    e->heap[i] = c;
}

static candidate heap_pop(encoder *e) {
    candidate top = e->heap[0], last = e->heap[--e->n_heap];
    int64_t i = 0;
    for (;;) {
        int64_t child = 2 * i + 1;
        if (child >= e->n_heap) break;
        if (child + 1 < e->n_heap && before(&e->heap[child + 1], &e->heap[child])) child++;
        if (!before(&e->heap[child], &last)) break;
        e->heap[i] = e->heap[child];
        i = child;
    }
    e->heap[i] = last;
    return top;
}

static void consider(encoder *e, int64_t at) {
    if (at < 0 || e->next[at] < 0) return;
    const int64_t *merge = weft_map_find(&e->t->merges,
                                         WEFT_PAIR(e->symbol[at], e->symbol[e->next[at]]));
    if (merge) heap_push(e, (candidate){ *merge >> 32, at, *merge & 0xffffffff });
}

// The vocabulary spells a word in byte characters.
static int64_t whole_word(const weft_tokenizer *t, const char *word, int64_t n) {
    char *spelled = malloc((size_t)n * 2 + 1);
    int64_t m = 0, id = -1;
    if (!spelled) return -1;
    for (int64_t i = 0; i < n; i++) m += weft_byte_char((unsigned char)word[i], spelled + m);
    id = weft_tokenizer_id(t, spelled, m);
    free(spelled);
    return id;
}

static bool encode_word(void *context, const char *word, int64_t n) {
    encoder *e = context;
    const weft_tokenizer *t = e->t;
    int64_t count = 0;
    if (!make_room(e, n)) return false;
    if (t->ignore_merges) {
        int64_t id = whole_word(t, word, n);
        if (id >= 0) return emit(e, id);
    }
    for (int64_t i = 0; i < n; i++) {
        int64_t id = t->byte_id[(unsigned char)word[i]];
        if (id < 0) id = t->unknown;
        if (id < 0) continue; // neither the byte nor an unknown token: nothing stands for it
        e->symbol[count] = id;
        e->prev[count] = count - 1;
        e->next[count] = count + 1;
        count++;
    }
    if (count == 0) return true;
    e->next[count - 1] = -1;
    e->n_heap = 0;
    for (int64_t i = 0; i < count; i++) consider(e, i);
    while (e->n_heap > 0) {
        candidate c = heap_pop(e);
        int64_t right = e->symbol[c.at] < 0 ? -1 : e->next[c.at];
        if (right < 0) continue;
        const int64_t *merge = weft_map_find(&t->merges,
                                             WEFT_PAIR(e->symbol[c.at], e->symbol[right]));
        if (!merge || (*merge & 0xffffffff) != c.id) continue;  // changed since it was found
        e->symbol[c.at] = c.id;
        e->symbol[right] = -1;
        e->next[c.at] = e->next[right];
        if (e->next[right] >= 0) e->prev[e->next[right]] = c.at;
        consider(e, e->prev[c.at]);
        consider(e, c.at);
    }
    for (int64_t i = 0; i >= 0; i = e->next[i])
        if (!emit(e, e->symbol[i])) return false;
    return true;
}

static weft_status encode_plain(encoder *e, const char *text, int64_t n) {
    const weft_tokenizer *t = e->t;
    char *spaced = NULL;
    if (n > 0 && t->add_prefix_space && text[0] != ' ') {
        if (!(spaced = malloc((size_t)n + 1))) return WEFT_ENOMEM;
        spaced[0] = ' ';
        memcpy(spaced + 1, text, (size_t)n++);
        text = spaced;
    }
    weft_status status = WEFT_OK;
    if (n > 0 && t->use_regex) status = weft_splitter_run(t->splitter, text, n, encode_word, e);
    else if (n > 0 && !encode_word(e, text, n)) status = WEFT_ENOMEM;
    free(spaced);
    return status;
}

// Bytes of the white-space character at s, 0 when it is another one.
static int64_t space_at(const char *s, int64_t n) {
    unsigned char a = (unsigned char)s[0], b = n > 1 ? (unsigned char)s[1] : 0;
    unsigned char c = n > 2 ? (unsigned char)s[2] : 0;
    if (a == ' ' || (a >= 9 && a <= 13)) return 1;
    if (a == 0xc2 && (b == 0x85 || b == 0xa0)) return 2;
    if (a == 0xe2 && b == 0x80 && ((c >= 0x80 && c <= 0x8a) || c == 0xa8 || c == 0xa9 || c == 0xaf))
        return 3;
    if ((a == 0xe1 && b == 0x9a && c == 0x80) || (a == 0xe2 && b == 0x81 && c == 0x9f) ||
        (a == 0xe3 && b == 0x80 && c == 0x80)) return 3;
    return 0;
}

// Whether a word goes on before or after text[begin .. end - 1].
static bool inside_word(const weft_tokenizer *t, const char *text, int64_t n, int64_t begin,
                        int64_t end) {
    int64_t last = begin - 1;
    while (last > 0 && (text[last] & 0xc0) == 0x80) last--;
    return (begin > 0 && weft_splitter_word(t->splitter, text + last, begin - last)) ||
           (end < n && weft_splitter_word(t->splitter, text + end, n - end));
}

static const weft_added *added_at(const weft_tokenizer *t, const char *text, int64_t n,
                                  bool normalized) {
    int64_t from = t->added_from[(unsigned char)text[0]];
    for (int64_t i = from - 1; from && i < t->n_added && t->added[i].text[0] == text[0]; i++) {
        const weft_added *a = &t->added[i];
        if (a->normalized == normalized && a->size <= n &&
            memcmp(a->text, text, (size_t)a->size) == 0)
            return a;
    }
    return NULL;
}

// Cuts out the added tokens, first those that match as they are, then (in what is left) those that
// match normalised text: they differ in precedence only, as there is no normaliser.
static weft_status encode_added(encoder *e, const char *text, int64_t n, bool normalized) {
    int64_t done = 0;
    weft_status status = WEFT_OK;
    for (int64_t at = 0; at < n && status == WEFT_OK;) {
        const weft_added *a = added_at(e->t, text + at, n - at, normalized);
        if (!a) {
            at++;
            continue;
        }
        int64_t begin = at, end = at + a->size, step;
        at = end;
        if (a->single_word && inside_word(e->t, text, n, begin, end)) continue;
        while (a->lstrip && begin > done) {
            step = 1;
            while (step < begin - done && (text[begin - step] & 0xc0) == 0x80) step++;
            if (space_at(text + begin - step, step) != step) break;
            begin -= step;
        }
        while (a->rstrip && end < n && (step = space_at(text + end, n - end)) > 0) end += step;
        status = normalized ? encode_plain(e, text + done, begin - done)
                            : encode_added(e, text + done, begin - done, true);
        if (status == WEFT_OK && !emit(e, a->id)) status = WEFT_ENOMEM;
        done = end;
        if (at < end) at = end;
    }
    if (status != WEFT_OK) return status;
    return normalized ? encode_plain(e, text + done, n - done)
                      : encode_added(e, text + done, n - done, true);
}

int64_t *weft_tokenizer_encode(const weft_tokenizer *t, const char *text, int64_t n,
                               int64_t *n_out) {
    encoder e = { .t = t };
    int64_t size;
    char *clean = weft_utf8_repair(text, n, &size);
    weft_status status = clean ? encode_added(&e, clean, size, false) : WEFT_ENOMEM;
    free(clean);
    free(e.symbol);
    free(e.heap);
    if (status == WEFT_OK && !e.ids && !(e.ids = malloc(sizeof *e.ids))) status = WEFT_ENOMEM;
    if (status != WEFT_OK) {
        free(e.ids);
        if (status == WEFT_ENOMEM)
            weft_fail(WEFT_ENOMEM, "encode: no memory for %lld bytes of text", (long long)n);
        return NULL;
    }
    *n_out = e.n_ids;
    return e.ids;
}
