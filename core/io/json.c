// json.c: JSON text into a flat list of items, through jansson. Writing is Lua's part.
#include "io.h"

#include <jansson.h>
#include <stdlib.h>

#define JSON_LIMIT ((int64_t)1 << 30)  // bytes of text

struct weft_json {
    json_t *root;                      // owns the strings
    weft_json_item *items;
    int64_t count, capacity;
};

static weft_json_item *json_push(weft_json *j, weft_json_kind kind) {
    if (j->count == j->capacity) {
        int64_t capacity = j->capacity ? j->capacity * 2 : 64;
        weft_json_item *items = realloc(j->items, (size_t)capacity * sizeof *items);
        if (!items) return NULL;
        j->items = items;
        j->capacity = capacity;
    }
    weft_json_item *item = &j->items[j->count++];
    *item = (weft_json_item){ .kind = kind };
    return item;
}

static weft_json_item *json_push_text(weft_json *j, const char *text, size_t n) {
    weft_json_item *item = json_push(j, WEFT_JSON_STRING);
    if (item) item->text = text, item->size = (int64_t)n;
    return item;
}

// Recursion is bounded: jansson refuses more than 2048 levels.
static bool json_flatten(weft_json *j, json_t *value) {
    weft_json_item *item;
    size_t i;
    const char *key;
    json_t *part;
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        if (!(item = json_push(j, WEFT_JSON_OBJECT))) return false;
        item->size = (int64_t)json_object_size(value);
        for (void *it = json_object_iter(value); it; it = json_object_iter_next(value, it)) {
            key = json_object_iter_key(it);
            if (!json_push_text(j, key, json_object_iter_key_len(it))) return false;
            if (!json_flatten(j, json_object_iter_value(it))) return false;
        }
        return true;
    case JSON_ARRAY:
        if (!(item = json_push(j, WEFT_JSON_ARRAY))) return false;
        item->size = (int64_t)json_array_size(value);
        json_array_foreach(value, i, part)
            if (!json_flatten(j, part)) return false;
        return true;
    case JSON_STRING:
        return json_push_text(j, json_string_value(value), json_string_length(value)) != NULL;
    case JSON_INTEGER:
    case JSON_REAL:
        if (!(item = json_push(j, WEFT_JSON_NUMBER))) return false;
        item->number = json_number_value(value);
        return true;
    case JSON_TRUE: return json_push(j, WEFT_JSON_TRUE) != NULL;
    case JSON_FALSE: return json_push(j, WEFT_JSON_FALSE) != NULL;
    default: return json_push(j, WEFT_JSON_NULL) != NULL;
    }
}

static weft_json *json_parse_named(const char *text, int64_t n, const char *name) {
    json_error_t error;
    // Numbers are doubles in Lua; reading integers as such also takes those beyond 64 bits, which
    // Hugging Face writes for "no limit".
    json_t *root = json_loadb(text, (size_t)n,
                              JSON_DECODE_ANY | JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL |
                              JSON_DECODE_INT_AS_REAL, &error);
    if (!root) {
        weft_fail(WEFT_EFORMAT, "%s%snot JSON: line %d, column %d: %s", name, *name ? ": " : "",
                  error.line, error.column, error.text);
        return NULL;
    }
    weft_json *j = calloc(1, sizeof *j);
    if (j) j->root = root;
    if (!j || !json_flatten(j, root)) {
        if (!j) json_decref(root);
        weft_json_free(j);
        weft_fail(WEFT_ENOMEM, "%s%sno memory for the parsed JSON", name, *name ? ": " : "");
        return NULL;
    }
    return j;
}

weft_json *weft_json_parse(const char *text, int64_t n) {
    return json_parse_named(text, n, "");
}

weft_json *weft_json_read(const char *path) {
    char *text;
    int64_t n;
    if (weft_slurp(path, JSON_LIMIT, &text, &n) != WEFT_OK) return NULL;
    weft_json *j = json_parse_named(text, n, path);
    free(text);
    return j;
}

const weft_json_item *weft_json_items(const weft_json *json) { return json->items; }
int64_t weft_json_count(const weft_json *json) { return json->count; }

void weft_json_free(weft_json *json) {
    if (!json) return;
    json_decref(json->root);
    free(json->items);
    free(json);
}
