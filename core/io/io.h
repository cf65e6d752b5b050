// io.h: what the files of core/io share: reading and replacing whole files, and UTF-8.
#ifndef WEFT_IO_IO_H
#define WEFT_IO_IO_H

#include "kernel.h"

// A file being replaced: bytes go to a temporary file beside it, which takes its place on commit.
// The first failure sticks and comes back from commit; until then the old file is untouched.
typedef struct weft_saving {
    int fd;
    weft_status status;
    char *path, *temporary;
} weft_saving;

weft_status weft_saving_begin(weft_saving *s, const char *path);
void weft_saving_write(weft_saving *s, const void *data, int64_t n);
weft_status weft_saving_commit(weft_saving *s);  // fsync, rename, fsync of the directory
void weft_saving_abort(weft_saving *s);

// Reads a whole file of at most `limit` bytes; *data is malloc'ed, with a NUL behind it.
weft_status weft_slurp(const char *path, int64_t limit, char **data, int64_t *n);

// Length of the well-formed UTF-8 sequence at s, or 0; *bad is then the length of what one
// replacement character stands for.
int weft_utf8_step(const unsigned char *s, int64_t n, int *bad);
// A malloc'ed copy with each malformed part replaced by U+FFFD; NULL: no memory.
char *weft_utf8_repair(const char *text, int64_t n, int64_t *n_out);

#endif
