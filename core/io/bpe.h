// bpe.h: byte-level BPE, shared by tokenizer.c (files, encoding), bpe_train.c and bpe_split.c.
#ifndef WEFT_IO_BPE_H
#define WEFT_IO_BPE_H

#include "tables.h"

#include <jansson.h>

// Bytes as the printable characters that stand for them in vocabularies.
int weft_byte_char(unsigned char byte, char *utf8);           // returns the length, 1 or 2
int weft_char_byte(const char *utf8, int64_t n, int *used);   // -1: stands for no byte

// Cuts text (valid UTF-8) into the pieces within which merges happen.
typedef struct weft_splitter weft_splitter;
weft_splitter *weft_splitter_new(void);
void weft_splitter_free(weft_splitter *s);
bool weft_splitter_word(const weft_splitter *s, const char *text, int64_t n);  // begins as a word
// Calls piece(context, from, n) for each; stops at false.
weft_status weft_splitter_run(const weft_splitter *s, const char *text, int64_t n,
                              bool (*piece)(void *context, const char *from, int64_t n),
                              void *context);

typedef struct weft_added {
    char *text;
    int64_t size, id;
    bool special, normalized, single_word, lstrip, rstrip;
} weft_added;

struct weft_tokenizer {
    json_t *root;                     // the file as read or made; what is saved
    weft_strings tokens;              // by place, see token_id
    int64_t *token_id;                // place -> id
    weft_map by_id;                   // id -> place
    weft_map merges;                  // pair of ids -> rank << 32 | new id
    weft_added *added;                // by first byte, then the longest first
    int64_t added_from[256];          // 1 + where those with this first byte begin; 0: none
    int64_t n_added, n_ids;           // n_ids: largest id + 1
    int64_t byte_id[256];             // -1: not in the vocabulary
    int64_t unknown;                  // -1: none
    bool add_prefix_space, use_regex, ignore_merges, byte_decoder;
    weft_splitter *splitter;
};

#define WEFT_PAIR(a, b) ((uint64_t)(a) << 32 | (uint64_t)(b))

// Takes over root (also on failure).
weft_tokenizer *weft_tokenizer_from_json(json_t *root, const char *name);

#endif
