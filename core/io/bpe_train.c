// bpe_train.c: learning byte-level BPE merges from text: the most frequent pair first, of equals
// the one with the smaller ids. The same text gives the same tokenizer, in any order of feeding.
#include "bpe.h"

#include <stdlib.h>
#include <string.h>

typedef struct word_list { int32_t *at; int64_t n, capacity; } word_list;
typedef struct pair_item { int64_t count; uint64_t pair; word_list words; } pair_item;
typedef struct merge_made { int64_t left, right, whole; } merge_made;

struct weft_bpe_trainer {
    weft_splitter *splitter;
    weft_strings words;
    int64_t *counts, n_counts;
};

typedef struct training {
    weft_strings tokens;
    int64_t *symbols, *start, *length; // of word i: symbols[start[i] ...], length[i] of them
    weft_map counts;                   // pair -> occurrences now
    pair_item *heap;
    int64_t n_heap, room_heap;
    merge_made *merges;
    int64_t n_merges, room_merges;
    weft_map fresh;                    // pair -> index into found, for the merge under way
    pair_item *found;
    int64_t n_found, room_found;
    bool interrupted;
} training;

weft_bpe_trainer *weft_bpe_trainer_new(void) {
    weft_bpe_trainer *tr = calloc(1, sizeof *tr);
    if (!tr) weft_fail(WEFT_ENOMEM, "no memory to train a tokenizer");
    else if (!(tr->splitter = weft_splitter_new())) {
        weft_bpe_trainer_free(tr);
        return NULL;
    }
    return tr;
}

void weft_bpe_trainer_free(weft_bpe_trainer *tr) {
    if (!tr) return;
    weft_splitter_free(tr->splitter);
    weft_strings_clear(&tr->words);
    free(tr->counts);
    free(tr);
}

static bool count_word(void *context, const char *word, int64_t n) {
    weft_bpe_trainer *tr = context;
    int64_t i = weft_strings_add(&tr->words, word, n);
    if (i < 0 || i > INT32_MAX) return false;
    if (i >= tr->n_counts) {
        int64_t room = tr->n_counts ? tr->n_counts * 2 : 1024;
        int64_t *counts = realloc(tr->counts, (size_t)room * sizeof *counts);
        if (!counts) return false;
        memset(counts + tr->n_counts, 0, (size_t)(room - tr->n_counts) * sizeof *counts);
        tr->counts = counts;
        tr->n_counts = room;
    }
    tr->counts[i]++;
    return true;
}

weft_status weft_bpe_trainer_feed(weft_bpe_trainer *tr, const char *text, int64_t n) {
    int64_t size;
    char *clean = weft_utf8_repair(text, n, &size);
    weft_status status = clean ? weft_splitter_run(tr->splitter, clean, size, count_word, tr)
                               : WEFT_ENOMEM;
    free(clean);
    if (status == WEFT_ENOMEM)
        weft_fail(WEFT_ENOMEM, "no memory for the words of the training text");
    return status;
}

// Makes room for one more in a growing array; false: no memory.
static bool reserve(void **data, int64_t n, int64_t *room, size_t size) {
    if (n < *room) return true;
    int64_t more = *room ? *room * 2 : 64;
    void *bigger = realloc(*data, (size_t)more * size);
    if (!bigger) return false;
    *data = bigger;
    *room = more;
    return true;
}

static bool list_add(word_list *list, int64_t word) {
    if (list->n > 0 && list->at[list->n - 1] == word) return true;
    if (list->n == list->capacity) {
        int64_t capacity = list->capacity ? list->capacity * 2 : 4;
        int32_t *at = realloc(list->at, (size_t)capacity * sizeof *at);
        if (!at) return false;
        list->at = at;
        list->capacity = capacity;
    }
    list->at[list->n++] = (int32_t)word;
    return true;
}

static bool before(const pair_item *a, const pair_item *b) {
    return a->count != b->count ? a->count > b->count : a->pair < b->pair;
}

static bool heap_push(training *g, pair_item item) {
    if (!reserve((void **)&g->heap, g->n_heap, &g->room_heap, sizeof *g->heap)) {
        free(item.words.at);
        return false;
    }
    int64_t i = g->n_heap++;
    while (i > 0 && before(&item, &g->heap[(i - 1) / 2])) {
        g->heap[i] = g->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    g->heap[i] = item;
    return true;
}

static pair_item heap_pop(training *g) {
    pair_item top = g->heap[0], last = g->heap[--g->n_heap];
    int64_t i = 0;
    for (;;) {
        int64_t child = 2 * i + 1;
        if (child >= g->n_heap) break;
        if (child + 1 < g->n_heap && before(&g->heap[child + 1], &g->heap[child])) child++;
        if (!before(&g->heap[child], &last)) break;
        g->heap[i] = g->heap[child];
        i = child;
    }
    g->heap[i] = last;
    return top;
}

// Counts `change` more of a pair; where it grew, remembers the word.
static bool change_pair(training *g, int64_t left, int64_t right, int64_t change, int64_t word) {
    uint64_t pair = WEFT_PAIR(left, right);
    int64_t *count = weft_map_add(&g->counts, pair, 0);
    if (!count) return false;
    *count += change;
    if (change < 0) return true;
    int64_t *slot = weft_map_add(&g->fresh, pair, g->n_found);
    if (!slot) return false;
    if (*slot == g->n_found) {
        if (!reserve((void **)&g->found, g->n_found, &g->room_found, sizeof *g->found))
            return false;
        g->found[g->n_found++] = (pair_item){ .pair = pair };
    }
    return list_add(&g->found[*slot].words, word);
}

static bool push_found(training *g) {
    bool ok = true;
    for (int64_t i = 0; i < g->n_found; i++) {
        pair_item item = g->found[i];
        item.count = *weft_map_find(&g->counts, item.pair);
        if (ok && item.count > 0) ok = heap_push(g, item);
        else free(item.words.at);
    }
    g->n_found = 0;
    weft_map_clear(&g->fresh);
    return ok;
}

// Merges left and right wherever they meet in one word.
static bool merge_word(training *g, const weft_bpe_trainer *tr, int64_t word, merge_made m) {
    int64_t *s = g->symbols + g->start[word], n = g->length[word], count = tr->counts[word],
            kept = 0;
    bool ok = true;
    for (int64_t i = 0; i < n && ok; i++) {
        if (s[i] != m.left || i + 1 >= n || s[i + 1] != m.right) {
            s[kept++] = s[i];
            continue;
        }
        if (kept > 0) {
            ok = change_pair(g, s[kept - 1], m.left, -count, word) &&
                 change_pair(g, s[kept - 1], m.whole, count, word);
        }
        i++;
        if (ok && i + 1 < n) {
            ok = change_pair(g, m.right, s[i + 1], -count, word) &&
                 change_pair(g, m.whole, s[i + 1], count, word);
        }
        s[kept++] = m.whole;
    }
    if (ok) g->length[word] = kept;
    return ok;
}

static int64_t join_tokens(training *g, int64_t left, int64_t right) {
    int64_t n_left = g->tokens.size[left], n_right = g->tokens.size[right];
    char *joined = malloc((size_t)(n_left + n_right) + 1);
    if (!joined) return -1;
    memcpy(joined, g->tokens.text[left], (size_t)n_left);
    memcpy(joined + n_left, g->tokens.text[right], (size_t)n_right);
    int64_t id = weft_strings_add(&g->tokens, joined, n_left + n_right);
    free(joined);
    return id;
}

static bool learn(training *g, const weft_bpe_trainer *tr, int64_t vocab_size, int64_t min_count) {
    bool ok = push_found(g);
    while (ok && g->tokens.count < vocab_size && g->n_heap > 0) {
        pair_item top = heap_pop(g);
        int64_t now = *weft_map_find(&g->counts, top.pair);
        if (top.count != now) {        // counted when it was pushed; others have taken some since
            top.count = now;
            ok = heap_push(g, top);
            continue;
        }
        if (now < 1 || now < min_count) {
            free(top.words.at);
            break;
        }
        merge_made m = { (int64_t)(top.pair >> 32), (int64_t)(top.pair & 0xffffffff), 0 };
        m.whole = join_tokens(g, m.left, m.right);
        ok = m.whole >= 0 && reserve((void **)&g->merges, g->n_merges, &g->room_merges, sizeof m);
        if (ok) g->merges[g->n_merges++] = m;
        for (int64_t i = 0; ok && i < top.words.n; i++) ok = merge_word(g, tr, top.words.at[i], m);
        free(top.words.at);
        g->interrupted = weft_get_state()->interrupt;
        ok = ok && push_found(g) && !g->interrupted;
    }
    return ok;
}

// Special tokens, then the 256 byte characters in the order of their code points.
static bool first_tokens(training *g, const char *const *specials, int64_t n_specials,
                         int64_t *byte_id) {
    char utf8[2];
    for (int64_t i = 0; i < n_specials; i++)
        if (weft_strings_add(&g->tokens, specials[i], (int64_t)strlen(specials[i])) < 0)
            return false;
    for (int pass = 0; pass < 3; pass++) // ASCII, the rest of Latin-1, then what lies beyond
        for (int byte = 0; byte < 256; byte++) {
            int n = weft_byte_char((unsigned char)byte, utf8);
            int of = n == 1 ? 0 : (unsigned char)utf8[0] < 0xc4 ? 1 : 2;
            if (of != pass) continue;
            if ((byte_id[byte] = weft_strings_add(&g->tokens, utf8, n)) < 0) return false;
        }
    return true;
}

static bool cut_words(training *g, const weft_bpe_trainer *tr, const int64_t *byte_id) {
    int64_t n = tr->words.count, total = 0;
    for (int64_t i = 0; i < n; i++) total += tr->words.size[i];
    g->symbols = malloc((size_t)(total + 1) * sizeof *g->symbols);
    g->start = malloc((size_t)(n + 1) * sizeof *g->start);
    g->length = malloc((size_t)(n + 1) * sizeof *g->length);
    if (!g->symbols || !g->start || !g->length) return false;
    total = 0;
    for (int64_t i = 0; i < n; i++) {
        g->start[i] = total;
        g->length[i] = tr->words.size[i];
        for (int64_t k = 0; k < g->length[i]; k++)
            g->symbols[total++] = byte_id[(unsigned char)tr->words.text[i][k]];
        const int64_t *s = g->symbols + g->start[i];
        for (int64_t k = 0; k + 1 < g->length[i]; k++)
            if (!change_pair(g, s[k], s[k + 1], tr->counts[i], i)) return false;
    }
    return true;
}

static json_t *text_of(const training *g, int64_t token) {
    return json_stringn(g->tokens.text[token], (size_t)g->tokens.size[token]);
}

static json_t *describe(const training *g, int64_t n_specials) {
    json_t *added = json_array(), *vocabulary = json_object(), *merges = json_array();
    weft_map last = { 0 };             // a pair that was merged twice counts where it was last
    bool ok = added && vocabulary && merges;
    for (int64_t i = 0; ok && i < n_specials; i++)
        ok = json_array_append_new(added,
                                   json_pack("{s:I,s:o,s:b,s:b,s:b,s:b,s:b}", "id", (json_int_t)i,
                                             "content", text_of(g, i), "single_word", 0, "lstrip",
                                             0, "rstrip", 0, "normalized", 0, "special", 1)) == 0;
    for (int64_t i = 0; ok && i < g->tokens.count; i++)
        ok = json_object_setn_new(vocabulary, g->tokens.text[i], (size_t)g->tokens.size[i],
                                  json_integer(i)) == 0;
    for (int64_t i = 0; ok && i < g->n_merges; i++) {
        int64_t *at = weft_map_add(&last, WEFT_PAIR(g->merges[i].left, g->merges[i].right), i);
        if ((ok = at != NULL)) *at = i;
    }
    for (int64_t i = 0; ok && i < g->n_merges; i++) {
        const merge_made *m = &g->merges[i];
        if (*weft_map_find(&last, WEFT_PAIR(m->left, m->right)) != i) continue;
        ok = json_array_append_new(merges, json_pack("[o,o]", text_of(g, m->left),
                                                     text_of(g, m->right))) == 0;
    }
    weft_map_clear(&last);
    if (!ok) {
        json_decref(added);
        json_decref(vocabulary);
        json_decref(merges);
        return NULL;
    }
    return json_pack("{s:s,s:n,s:n,s:o,s:n,s:{s:s,s:b,s:b,s:b},s:n,s:{s:s,s:b,s:b,s:b},"
                     "s:{s:s,s:n,s:n,s:n,s:n,s:b,s:b,s:b,s:o,s:o}}",
                     "version", "1.0", "truncation", "padding", "added_tokens", added, "normalizer",
                     "pre_tokenizer", "type", "ByteLevel", "add_prefix_space", 0, "trim_offsets", 1,
                     "use_regex", 1, "post_processor",
                     "decoder", "type", "ByteLevel", "add_prefix_space", 1, "trim_offsets", 1,
                     "use_regex", 1,
                     "model", "type", "BPE", "dropout", "unk_token", "continuing_subword_prefix",
                     "end_of_word_suffix", "fuse_unk", 0, "byte_fallback", 0, "ignore_merges", 0,
                     "vocab", vocabulary, "merges", merges);
}

static void training_clear(training *g) {
    for (int64_t i = 0; i < g->n_heap; i++) free(g->heap[i].words.at);
    for (int64_t i = 0; i < g->n_found; i++) free(g->found[i].words.at);
    weft_strings_clear(&g->tokens);
    weft_map_clear(&g->counts);
    weft_map_clear(&g->fresh);
    free(g->symbols);
    free(g->start);
    free(g->length);
    free(g->heap);
    free(g->found);
    free(g->merges);
}

weft_tokenizer *weft_bpe_trainer_finish(weft_bpe_trainer *tr, int64_t vocab_size, int64_t min_count,
                                        const char *const *specials, int64_t n_specials) {
    training g = { 0 };
    int64_t byte_id[256];
    json_t *root = NULL;
    for (int64_t i = 0; i < n_specials; i++)
        if (!*specials[i] || weft_utf8_check(specials[i], (int64_t)strlen(specials[i])) >= 0) {
            weft_fail(WEFT_EINVAL, "special token %lld is empty or not UTF-8", (long long)i + 1);
            return NULL;
        }
    for (int64_t i = 1; i < n_specials; i++)
        for (int64_t k = 0; k < i; k++)
            if (strcmp(specials[i], specials[k]) == 0) {
                weft_fail(WEFT_EINVAL, "the special token '%.60s' is named twice", specials[i]);
                return NULL;
            }
    if (vocab_size > (1 << 30)) {
        weft_fail(WEFT_EINVAL, "a vocabulary of %lld tokens is too large", (long long)vocab_size);
        return NULL;
    }
    bool ok = first_tokens(&g, specials, n_specials, byte_id);
    if (ok && g.tokens.count > vocab_size) {
        weft_fail(WEFT_EINVAL,
                  "a vocabulary of %lld tokens is too small: the special tokens and the "
                  "256 bytes alone take %lld",
                  (long long)vocab_size, (long long)g.tokens.count);
        training_clear(&g);
        return NULL;
    }
    ok = ok && cut_words(&g, tr, byte_id) && learn(&g, tr, vocab_size, min_count);
    if (ok) root = describe(&g, n_specials);
    training_clear(&g);
    if (root) return weft_tokenizer_from_json(root, "trained tokenizer");
    if (g.interrupted) {
        weft_interrupt(0);
        weft_fail(WEFT_EINTERRUPTED, "interrupted");
    } else {
        weft_fail(WEFT_ENOMEM, "no memory to train a tokenizer");
    }
    return NULL;
}
