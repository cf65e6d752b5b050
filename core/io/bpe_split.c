// bpe_split.c: GPT-2's cut of text into words, numbers, punctuation and space, through PCRE2; and
// the characters that stand for bytes.
#include "bpe.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdlib.h>

struct weft_splitter { pcre2_code *code, *word; };

// White space is spelled out: PCRE2's \s differs from Unicode's property by one character.
#define SPACE "\\t-\\r\\x20\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}" \
              "\\x{205f}\\x{3000}"
// Letters and digits that Unicode 15 and 16 brought: the tokenizers package knows them, and the
// PCRE2 of Debian 12, with Unicode 14, does not.
#define NEW_LETTERS \
    "\\x{1c89}-\\x{1c8a}\\x{a7cb}-\\x{a7cd}\\x{a7da}-\\x{a7dc}" \
    "\\x{105c0}-\\x{105f3}\\x{10d4a}-\\x{10d65}\\x{10d6f}-\\x{10d85}" \
    "\\x{10ec2}-\\x{10ec4}\\x{1123f}-\\x{11240}\\x{11380}-\\x{11389}" \
    "\\x{1138b}\\x{1138e}\\x{11390}-\\x{113b5}\\x{113b7}\\x{113d1}" \
    "\\x{113d3}\\x{11bc0}-\\x{11be0}\\x{11f02}\\x{11f04}-\\x{11f10}" \
    "\\x{11f12}-\\x{11f33}\\x{1342f}\\x{13441}-\\x{13446}" \
    "\\x{13460}-\\x{143fa}\\x{16100}-\\x{1611d}\\x{16d40}-\\x{16d6c}" \
    "\\x{18cff}\\x{1b132}\\x{1b155}\\x{1df25}-\\x{1df2a}" \
    "\\x{1e030}-\\x{1e06d}\\x{1e4d0}-\\x{1e4eb}\\x{1e5d0}-\\x{1e5ed}" \
    "\\x{1e5f0}\\x{2b739}\\x{2ebf0}-\\x{2ee5d}\\x{31350}-\\x{323af}"
#define NEW_DIGITS \
    "\\x{10d40}-\\x{10d49}\\x{116d0}-\\x{116e3}\\x{11bf0}-\\x{11bf9}" \
    "\\x{11f50}-\\x{11f59}\\x{16130}-\\x{16139}\\x{16d70}-\\x{16d79}" \
    "\\x{1ccf0}-\\x{1ccf9}\\x{1e4f0}-\\x{1e4f9}\\x{1e5f1}-\\x{1e5fa}"
#define LETTERS "\\p{L}" NEW_LETTERS
#define NUMBERS "\\p{N}" NEW_DIGITS "\\x{1d2c0}-\\x{1d2d3}"

static const char pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?[" LETTERS "]+| ?[" NUMBERS "]+| ?[^" SPACE LETTERS NUMBERS "]+"
    "|[" SPACE "]+(?![^" SPACE "])|[" SPACE "]+";

// What Unicode counts as a part of words: letters, marks, digits, connectors, circled letters.
static const char word_pattern[] = "[" LETTERS NEW_DIGITS
                                   "\\p{Nl}\\p{M}\\p{Nd}\\p{Pc}\\x{200c}\\x{200d}"
                                   "\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}"
                                   "\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}]";

static pcre2_code *compile(const char *text, uint32_t options) {
    int error;
    PCRE2_SIZE at;
    return pcre2_compile((PCRE2_SPTR)text, PCRE2_ZERO_TERMINATED,
                         PCRE2_UTF | PCRE2_UCP | options, &error, &at, NULL);
}

weft_splitter *weft_splitter_new(void) {
    weft_splitter *s = calloc(1, sizeof *s);
    if (s) {
        s->code = compile(pattern, 0);
        s->word = compile(word_pattern, PCRE2_ANCHORED);
    }
    if (!s || !s->code || !s->word) {
        weft_splitter_free(s);
        weft_fail(WEFT_ENOMEM, "no memory for the tokenizer's pattern");
        return NULL;
    }
    pcre2_jit_compile(s->code, PCRE2_JIT_COMPLETE);  // without it, matching is slower, no more
    return s;
}

void weft_splitter_free(weft_splitter *s) {
    if (!s) return;
    pcre2_code_free(s->code);
    pcre2_code_free(s->word);
    free(s);
}

bool weft_splitter_word(const weft_splitter *s, const char *text, int64_t n) {
    pcre2_match_data *match = pcre2_match_data_create(1, NULL);
    bool yes = match && pcre2_match(s->word, (PCRE2_SPTR)text, (PCRE2_SIZE)n, 0, PCRE2_NO_UTF_CHECK,
                                    match, NULL) > 0;
    pcre2_match_data_free(match);
    return yes;
}

weft_status weft_splitter_run(const weft_splitter *s, const char *text, int64_t n,
                              bool (*piece)(void *, const char *, int64_t), void *context) {
    pcre2_match_data *match = pcre2_match_data_create(1, NULL);
    weft_status status = WEFT_OK;
    if (!match) return weft_fail(WEFT_ENOMEM, "no memory to split text");
    const PCRE2_SIZE *range = pcre2_get_ovector_pointer(match);
    for (int64_t at = 0; at < n;) {
        int found = pcre2_match(s->code, (PCRE2_SPTR)text, (PCRE2_SIZE)n, (PCRE2_SIZE)at,
                                PCRE2_NO_UTF_CHECK, match, NULL);
        if (found == PCRE2_ERROR_JIT_STACKLIMIT)
            found = pcre2_match(s->code, (PCRE2_SPTR)text, (PCRE2_SIZE)n, (PCRE2_SIZE)at,
                                PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, match, NULL);
        if (found < 0 || (int64_t)range[1] <= at) {
            status = weft_fail(WEFT_EINVAL, "text cannot be split at byte %lld (PCRE2 error %d)",
                               (long long)at, found);
            break;
        }
        if (!piece(context, text + range[0], (int64_t)(range[1] - range[0]))) {
            status = WEFT_ENOMEM;
            break;
        }
        at = (int64_t)range[1];
    }
    pcre2_match_data_free(match);
    return status;
}

// Printable bytes of Latin-1 stand for themselves; the others, in order, for U+0100 onwards.
static bool printable(int byte) {
    return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
}

int weft_byte_char(unsigned char byte, char *utf8) {
    int code = byte;
    if (!printable(byte)) {
        code = 256;
        for (int b = 0; b < byte; b++) code += !printable(b);
    }
    if (code < 128) {
        utf8[0] = (char)code;
        return 1;
    }
    utf8[0] = (char)(0xc0 | code >> 6);
    utf8[1] = (char)(0x80 | (code & 63));
    return 2;
}

int weft_char_byte(const char *utf8, int64_t n, int *used) {
    unsigned char c = (unsigned char)utf8[0];
    int code = c;
    *used = 1;
    if (c >= 128) {
        if (c < 0xc2 || c > 0xc5 || n < 2) return -1;
        code = (c & 31) << 6 | (utf8[1] & 63);
        *used = 2;
    }
    if (code < 256) return printable(code) ? code : -1;
    for (int b = 0, k = 256; b < 256; b++)
        if (!printable(b) && k++ == code) return b;
    return -1;
}
