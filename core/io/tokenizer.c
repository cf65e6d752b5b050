// tokenizer.c: byte-level BPE from a Hugging Face tokenizer.json: reading, encoding, decoding,
// saving. Training is in bpe_train.c.
#include "bpe.h"

#include <stdlib.h>
#include <string.h>

#define FILE_LIMIT ((int64_t)1 << 30)
#define MOST_IDS ((int64_t)1 << 30)

// --- reading

static const char *type_of(const json_t *part) {
    const char *type = json_string_value(json_object_get(part, "type"));
    return type ? type : "?";
}

static bool is_null(const json_t *part) { return !part || json_is_null(part); }

// What is not byte-level BPE is refused by name: text would be cut in another way.
static weft_status read_steps(weft_tokenizer *t, const char *name) {
    json_t *model = json_object_get(t->root, "model");
    json_t *normalizer = json_object_get(t->root, "normalizer");
    json_t *pre = json_object_get(t->root, "pre_tokenizer");
    json_t *decoder = json_object_get(t->root, "decoder");
    if (!json_is_object(model) || strcmp(type_of(model), "BPE") != 0)
        return weft_fail(WEFT_EUNSUPPORTED, "%s: model '%s'; only BPE is supported", name,
                         type_of(model));
    if (!is_null(normalizer))
        return weft_fail(WEFT_EUNSUPPORTED, "%s: normalizer '%s' is not supported", name,
                         type_of(normalizer));
    for (int i = 0; i < 4; i++) {
        static const char *const keys[] = { "continuing_subword_prefix", "end_of_word_suffix",
                                            "byte_fallback", "dropout" };
        const json_t *value = json_object_get(model, keys[i]);
        bool off = is_null(value) || json_is_false(value) ||
                   (json_is_string(value) && json_string_length(value) == 0) ||
                   (json_is_number(value) && json_number_value(value) == 0.0);
        if (!off)
            return weft_fail(WEFT_EUNSUPPORTED, "%s: the model's %s is not supported", name,
                             keys[i]);
    }
    if (strcmp(type_of(pre), "ByteLevel") != 0)
        return weft_fail(WEFT_EUNSUPPORTED, "%s: pre_tokenizer '%s'; only ByteLevel is supported",
                         name, type_of(pre));
    if (!is_null(decoder) && strcmp(type_of(decoder), "ByteLevel") != 0)
        return weft_fail(WEFT_EUNSUPPORTED, "%s: decoder '%s'; only ByteLevel is supported", name,
                         type_of(decoder));
    t->add_prefix_space = !json_is_false(json_object_get(pre, "add_prefix_space"));
    t->use_regex = !json_is_false(json_object_get(pre, "use_regex"));
    t->ignore_merges = json_is_true(json_object_get(model, "ignore_merges"));
    t->byte_decoder = !is_null(decoder);
    return WEFT_OK;
}

static weft_status add_token(weft_tokenizer *t, const char *text, int64_t n, int64_t id,
                             const char *name) {
    int64_t before = t->tokens.count, place = weft_strings_add(&t->tokens, text, n);
    if (place < 0) return weft_fail(WEFT_ENOMEM, "%s: no memory for the vocabulary", name);
    if (place < before) {
        if (t->token_id[place] == id) return WEFT_OK;
        return weft_fail(WEFT_EFORMAT, "%s: token '%.60s' has the ids %lld and %lld", name, text,
                         (long long)t->token_id[place], (long long)id);
    }
    t->token_id[place] = id;
    int64_t *seen = weft_map_add(&t->by_id, (uint64_t)id, place);
    if (!seen) return weft_fail(WEFT_ENOMEM, "%s: no memory for the vocabulary", name);
    if (*seen != place)
        return weft_fail(WEFT_EFORMAT, "%s: tokens '%.60s' and '%.60s' share the id %lld", name,
                         t->tokens.text[*seen], text, (long long)id);
    if (id >= t->n_ids) t->n_ids = id + 1;
    return WEFT_OK;
}

static bool id_ok(const json_t *id) {
    return json_is_integer(id) && json_integer_value(id) >= 0 && json_integer_value(id) < MOST_IDS;
}

static weft_status read_vocabulary(weft_tokenizer *t, const char *name) {
    json_t *vocabulary = json_object_get(json_object_get(t->root, "model"), "vocab"), *id;
    json_t *added = json_object_get(t->root, "added_tokens"), *entry;
    size_t i, n;
    const char *text;
    weft_status status;
    if (!json_is_object(vocabulary))
        return weft_fail(WEFT_EFORMAT, "%s: its model has no vocabulary", name);
    t->token_id =
        calloc(json_object_size(vocabulary) + json_array_size(added) + 1, sizeof(int64_t));
    t->added = calloc(json_array_size(added) + 1, sizeof *t->added);
    if (!t->token_id || !t->added) return weft_fail(WEFT_ENOMEM, "%s: no memory for it", name);
    json_object_keylen_foreach(vocabulary, text, n, id) {
        if (!id_ok(id))
            return weft_fail(WEFT_EFORMAT, "%s: token '%.60s' has no valid id", name, text);
        status = add_token(t, text, (int64_t)n, json_integer_value(id), name);
        if (status != WEFT_OK) return status;
    }
    json_array_foreach(added, i, entry) {
        json_t *content = json_object_get(entry, "content");
        id = json_object_get(entry, "id");
        text = json_string_value(content);
        n = json_string_length(content);
        if (!text || !id_ok(id))
            return weft_fail(WEFT_EFORMAT, "%s: added token %d has no content or id", name, (int)i);
        status = add_token(t, text, (int64_t)n, json_integer_value(id), name);
        if (status != WEFT_OK) return status;
        weft_added *a = &t->added[t->n_added];
        a->text = t->tokens.text[weft_strings_find(&t->tokens, text, (int64_t)n)];
        a->size = (int64_t)n;
        a->id = json_integer_value(id);
        a->special = json_is_true(json_object_get(entry, "special"));
        a->normalized = json_is_true(json_object_get(entry, "normalized"));
        a->single_word = json_is_true(json_object_get(entry, "single_word"));
        a->lstrip = json_is_true(json_object_get(entry, "lstrip"));
        a->rstrip = json_is_true(json_object_get(entry, "rstrip"));
        t->n_added += n > 0;
    }
    return WEFT_OK;
}

static int order_added(const void *a, const void *b) {
    const weft_added *x = a, *y = b;
    int first_x = (unsigned char)x->text[0], first_y = (unsigned char)y->text[0];
    if (first_x != first_y) return first_x - first_y;
    if (x->size != y->size) return x->size > y->size ? -1 : 1;
    return memcmp(x->text, y->text, (size_t)x->size);
}

static int64_t id_of(const weft_tokenizer *t, const char *text, int64_t n) {
    int64_t place = weft_strings_find(&t->tokens, text, n);
    return place < 0 ? -1 : t->token_id[place];
}

static weft_status read_merges(weft_tokenizer *t, const char *name) {
    json_t *merges = json_object_get(json_object_get(t->root, "model"), "merges"), *merge;
    size_t rank;
    if (!json_is_array(merges)) return weft_fail(WEFT_EFORMAT, "%s: its model has no merges", name);
    json_array_foreach(merges, rank, merge) {
        json_t *first = json_array_get(merge, 0), *second = json_array_get(merge, 1);
        const char *a = json_string_value(first), *b = json_string_value(second);
        int64_t n_a = (int64_t)json_string_length(first), n_b = (int64_t)json_string_length(second);
        if (json_is_string(merge)) {
            a = json_string_value(merge);
            b = strchr(a, ' ');
            n_a = b ? b - a : 0;
            n_b = b ? (int64_t)json_string_length(merge) - n_a - 1 : 0;
            b = b ? b + 1 : NULL;
        }
        if (!a || !b || n_a <= 0 || n_b <= 0 ||
            (json_is_array(merge) && json_array_size(merge) != 2))
            return weft_fail(WEFT_EFORMAT, "%s: merge %d is not a pair of tokens", name, (int)rank);
        char *joined = malloc((size_t)(n_a + n_b) + 1);
        if (!joined) return weft_fail(WEFT_ENOMEM, "%s: no memory for its merges", name);
        memcpy(joined, a, (size_t)n_a);
        memcpy(joined + n_a, b, (size_t)n_b);
        int64_t left = id_of(t, a, n_a), right = id_of(t, b, n_b),
                whole = id_of(t, joined, n_a + n_b);
        free(joined);
        if (left < 0 || right < 0 || whole < 0)
            return weft_fail(WEFT_EFORMAT,
                             "%s: merge %d of '%.*s' and '%.*s' makes or takes a token "
                             "that is not in the vocabulary",
                             name, (int)rank, (int)(n_a < 60 ? n_a : 60), a,
                             (int)(n_b < 60 ? n_b : 60), b);
        int64_t *slot = weft_map_add(&t->merges, WEFT_PAIR(left, right), 0);
        if (!slot) return weft_fail(WEFT_ENOMEM, "%s: no memory for its merges", name);
        *slot = (int64_t)rank << 32 | whole;   // of equal pairs the last counts
    }
    return WEFT_OK;
}

static weft_status read_tokenizer(weft_tokenizer *t, const char *name) {
    char utf8[2];
    const char *unknown;
    weft_status status = read_steps(t, name);
    if (status == WEFT_OK) status = read_vocabulary(t, name);
    if (status == WEFT_OK) status = read_merges(t, name);
    if (status != WEFT_OK) return status;
    for (int byte = 0; byte < 256; byte++)
        t->byte_id[byte] = id_of(t, utf8, weft_byte_char((unsigned char)byte, utf8));
    qsort(t->added, (size_t)t->n_added, sizeof *t->added, order_added);
    for (int64_t i = t->n_added - 1; i >= 0; i--)
        t->added_from[(unsigned char)t->added[i].text[0]] = i + 1;
    unknown = json_string_value(json_object_get(json_object_get(t->root, "model"), "unk_token"));
    t->unknown = unknown ? id_of(t, unknown, (int64_t)strlen(unknown)) : -1;
    t->splitter = weft_splitter_new();
    return t->splitter ? WEFT_OK : WEFT_ENOMEM;
}

weft_tokenizer *weft_tokenizer_from_json(json_t *root, const char *name) {
    weft_tokenizer *t = calloc(1, sizeof *t);
    if (!t) {
        json_decref(root);
        weft_fail(WEFT_ENOMEM, "%s: no memory for the tokenizer", name);
        return NULL;
    }
    t->root = root;
    if (read_tokenizer(t, name) == WEFT_OK) return t;
    weft_tokenizer_free(t);
    return NULL;
}

weft_tokenizer *weft_tokenizer_parse(const char *text, int64_t n, const char *name) {
    json_error_t error;
    json_t *root = json_loadb(text, (size_t)n, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);
    if (root) return weft_tokenizer_from_json(root, name);
    weft_fail(WEFT_EFORMAT, "%s: not JSON: line %d, column %d: %s", name, error.line, error.column,
              error.text);
    return NULL;
}

weft_tokenizer *weft_tokenizer_load(const char *path) {
    char *text;
    int64_t n;
    if (weft_slurp(path, FILE_LIMIT, &text, &n) != WEFT_OK) return NULL;
    weft_tokenizer *t = weft_tokenizer_parse(text, n, path);
    free(text);
    return t;
}

void weft_tokenizer_free(weft_tokenizer *t) {
    if (!t) return;
    json_decref(t->root);
    weft_strings_clear(&t->tokens);
    weft_map_clear(&t->by_id);
    weft_map_clear(&t->merges);
    weft_splitter_free(t->splitter);
    free(t->token_id);
    free(t->added);
    free(t);
}

weft_status weft_tokenizer_save(const weft_tokenizer *t, const char *path) {
    char *text = json_dumps(t->root, JSON_INDENT(2));
    if (!text) return weft_fail(WEFT_ENOMEM, "%s: no memory to write it", path);
    weft_status status = weft_file_write(path, text, (int64_t)strlen(text));
    free(text);
    return status;
}

int64_t weft_tokenizer_size(const weft_tokenizer *t) { return t->n_ids; }

int64_t weft_tokenizer_id(const weft_tokenizer *t, const char *token, int64_t n) {
    return id_of(t, token, n);
}

const char *weft_tokenizer_token(const weft_tokenizer *t, int64_t id, int64_t *n) {
    const int64_t *place = weft_map_find(&t->by_id, (uint64_t)id);
    if (!place) return NULL;
    *n = t->tokens.size[*place];
    return t->tokens.text[*place];
}

bool weft_tokenizer_is_special(const weft_tokenizer *t, int64_t id) {
    for (int64_t i = 0; i < t->n_added; i++)
        if (t->added[i].id == id) return t->added[i].special;
    return false;
}

// --- decoding

// The bytes that a token stands for, appended at out (which may be NULL); their number.
static int64_t token_bytes(const weft_tokenizer *t, const char *text, int64_t n, char *out) {
    int64_t m = 0;
    int used;
    for (int64_t i = 0; i < n && t->byte_decoder; i += used, m++) {
        int byte = weft_char_byte(text + i, n - i, &used);
        if (byte < 0) {
            m = -1;                    // an added token, spelled in plain text
            break;
        }
        if (out) out[m] = (char)byte;
    }
    if (m >= 0 && t->byte_decoder) return m;
    if (out) memcpy(out, text, (size_t)n);
    return n;
}

char *weft_tokenizer_decode(const weft_tokenizer *t, const int64_t *ids, int64_t n,
                            bool skip_special, int64_t *n_out) {
    int64_t total = 0, size;
    for (int64_t i = 0; i < n; i++) {
        if (!weft_tokenizer_token(t, ids[i], &size)) {
            weft_fail(WEFT_EINVAL, "decode: token %lld at position %lld outside 0..%lld",
                      (long long)ids[i], (long long)i + 1, (long long)t->n_ids - 1);
            return NULL;
        }
        total += size + 1;
    }
    char *bytes = malloc((size_t)total + 1);
    if (!bytes) {
        weft_fail(WEFT_ENOMEM, "decode: no memory for %lld tokens", (long long)n);
        return NULL;
    }
    total = 0;
    for (int64_t i = 0; i < n; i++) {
        if (skip_special && weft_tokenizer_is_special(t, ids[i])) continue;
        const char *text = weft_tokenizer_token(t, ids[i], &size);
        if (!t->byte_decoder && total > 0) bytes[total++] = ' ';  // no decoder: words apart
        total += token_bytes(t, text, size, bytes + total);
    }
    char *out = weft_utf8_repair(bytes, total, n_out);
    free(bytes);
    if (!out) weft_fail(WEFT_ENOMEM, "decode: no memory for %lld tokens", (long long)n);
    return out;
}

void weft_buffer_free(void *buffer) { free(buffer); }
