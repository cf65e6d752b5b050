// regex.c: does a whole text match a pattern? For the patterns in adapters' settings.
#include "core.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

int weft_regex_full(const char *pattern, const char *text) {
    int error;
    PCRE2_SIZE at;
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                                     PCRE2_UTF | PCRE2_ANCHORED | PCRE2_ENDANCHORED, &error, &at, NULL);
    if (!code) {
        char why[128];
        pcre2_get_error_message(error, (PCRE2_UCHAR *)why, sizeof why);
        weft_fail(WEFT_EINVAL, "the pattern %s: %s at position %lld", pattern, why, (long long)at + 1);
        return -1;
    }
    int found = -1;
    pcre2_match_data *match = pcre2_match_data_create(1, NULL);
    if (!match) weft_fail(WEFT_ENOMEM, "no memory to match the pattern %s", pattern);
    else {
        found = pcre2_match(code, (PCRE2_SPTR)text, PCRE2_ZERO_TERMINATED, 0, 0, match, NULL);
        if (found < PCRE2_ERROR_NOMATCH)
            weft_fail(WEFT_EINVAL, "the pattern %s against %s: PCRE2 error %d", pattern, text, found);
        found = found >= 0 ? 1 : found == PCRE2_ERROR_NOMATCH ? 0 : -1;
    }
    pcre2_match_data_free(match);
    pcre2_code_free(code);
    return found;
}
