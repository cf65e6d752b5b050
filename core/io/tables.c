// tables.c: maps from numbers and sets of strings.
#include "tables.h"

#include <stdlib.h>
#include <string.h>

static uint64_t mix(uint64_t x) {
    x ^= x >> 32;
    x *= 0xd6e8feb86659fd93u;
    x ^= x >> 32;
    x *= 0xd6e8feb86659fd93u;
    return x ^ x >> 32;
}

static int64_t map_slot(const weft_map *m, uint64_t key) {
    int64_t i = (int64_t)(mix(key) & (uint64_t)(m->capacity - 1));
    while (m->used[i] && m->keys[i] != key) i = (i + 1) & (m->capacity - 1);
    return i;
}

int64_t *weft_map_find(const weft_map *m, uint64_t key) {
    if (!m->capacity) return NULL;
    int64_t i = map_slot(m, key);
    return m->used[i] ? &m->values[i] : NULL;
}

static bool map_grow(weft_map *m) {
    weft_map bigger = { .capacity = m->capacity ? m->capacity * 2 : 64, .count = m->count };
    bigger.keys = malloc((size_t)bigger.capacity * sizeof *bigger.keys);
    bigger.values = malloc((size_t)bigger.capacity * sizeof *bigger.values);
    bigger.used = calloc((size_t)bigger.capacity, 1);
    if (!bigger.keys || !bigger.values || !bigger.used) {
        weft_map_clear(&bigger);
        return false;
    }
    for (int64_t i = 0; i < m->capacity; i++) {
        if (!m->used[i]) continue;
        int64_t j = map_slot(&bigger, m->keys[i]);
        bigger.used[j] = 1;
        bigger.keys[j] = m->keys[i];
        bigger.values[j] = m->values[i];
    }
    weft_map_clear(m);
    *m = bigger;
    return true;
}

int64_t *weft_map_add(weft_map *m, uint64_t key, int64_t value) {
    if (m->count * 3 >= m->capacity * 2 && !map_grow(m)) return NULL;
    int64_t i = map_slot(m, key);
    if (!m->used[i]) {
        m->used[i] = 1;
        m->keys[i] = key;
        m->values[i] = value;
        m->count++;
    }
    return &m->values[i];
}

void weft_map_clear(weft_map *m) {
    free(m->keys);
    free(m->values);
    free(m->used);
    *m = (weft_map){ 0 };
}

static uint64_t text_hash(const char *text, int64_t n) {
    uint64_t h = 0xcbf29ce484222325u;
    for (int64_t i = 0; i < n; i++) h = (h ^ (unsigned char)text[i]) * 0x100000001b3u;
    return mix(h);
}

static int64_t string_slot(const weft_strings *s, const char *text, int64_t n) {
    int64_t i = (int64_t)(text_hash(text, n) & (uint64_t)(s->n_slots - 1));
    for (;; i = (i + 1) & (s->n_slots - 1)) {
        int64_t at = s->slots[i] - 1;
        if (at < 0 || (s->size[at] == n && memcmp(s->text[at], text, (size_t)n) == 0)) return i;
    }
}

int64_t weft_strings_find(const weft_strings *s, const char *text, int64_t n) {
    return s->n_slots ? s->slots[string_slot(s, text, n)] - 1 : -1;
}

static bool strings_grow(weft_strings *s) {
    int64_t n_slots = s->n_slots ? s->n_slots * 2 : 64, capacity = n_slots / 2;
    char **text = realloc(s->text, (size_t)capacity * sizeof *text);
    if (text) s->text = text;
    int64_t *size = realloc(s->size, (size_t)capacity * sizeof *size);
    if (size) s->size = size;
    int64_t *slots = calloc((size_t)n_slots, sizeof *slots);
    if (!text || !size || !slots) {
        free(slots);
        return false;
    }
    free(s->slots);
    s->slots = slots;
    s->n_slots = n_slots;
    s->capacity = capacity;
    for (int64_t i = 0; i < s->count; i++)
        s->slots[string_slot(s, s->text[i], s->size[i])] = i + 1;
    return true;
}

int64_t weft_strings_add(weft_strings *s, const char *text, int64_t n) {
    int64_t found = weft_strings_find(s, text, n);
    if (found >= 0) return found;
    if (s->count == s->capacity && !strings_grow(s)) return -1;
    char *copy = malloc((size_t)n + 1);
    if (!copy) return -1;
    memcpy(copy, text, (size_t)n);
    copy[n] = 0;
    s->slots[string_slot(s, text, n)] = s->count + 1;
    s->text[s->count] = copy;
    s->size[s->count] = n;
    return s->count++;
}

void weft_strings_clear(weft_strings *s) {
    for (int64_t i = 0; i < s->count; i++) free(s->text[i]);
    free(s->text);
    free(s->size);
    free(s->slots);
    *s = (weft_strings){ 0 };
}
