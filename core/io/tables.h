// tables.h: maps from numbers and sets of strings, for the tokenizer and the loader's cache.
#ifndef WEFT_IO_TABLES_H
#define WEFT_IO_TABLES_H

#include "io.h"

// An open-addressing table from 64-bit keys to 64-bit values; key 0 is free for use.
typedef struct weft_map {
    uint64_t *keys;
    int64_t *values;
    uint8_t *used;
    int64_t count, capacity;          // capacity: a power of two, or 0
} weft_map;
int64_t *weft_map_find(const weft_map *m, uint64_t key);      // NULL when absent
int64_t *weft_map_add(weft_map *m, uint64_t key,
                      int64_t value); // NULL: no memory; keeps what is there
void weft_map_clear(weft_map *m);

// Byte strings to numbers 0, 1, 2 ... in the order of arrival.
typedef struct weft_strings {
    char **text;                      // each malloc'ed, with a NUL behind
    int64_t *size;
    int64_t count, capacity;
    int64_t *slots;                   // hash table of index + 1
    int64_t n_slots;
} weft_strings;
int64_t weft_strings_find(const weft_strings *s, const char *text, int64_t n);  // -1 when absent
int64_t weft_strings_add(weft_strings *s, const char *text, int64_t n);         // -1: no memory
void weft_strings_clear(weft_strings *s);

#endif
