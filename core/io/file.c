// file.c: reading whole files, replacing whole files, UTF-8.
#include "io.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static weft_status saving_failed(weft_saving *s, const char *what, const char *name) {
    int error = errno;
    if (s->status == WEFT_OK)
        s->status = weft_fail(WEFT_EIO, "%s: cannot %s: %s", name, what, strerror(error));
    return s->status;
}

weft_status weft_saving_begin(weft_saving *s, const char *path) {
    *s = (weft_saving){ .fd = -1 };
    static int64_t counter;
    struct stat st;
    bool exists = stat(path, &st) == 0;
    if (exists && !S_ISREG(st.st_mode))
        return s->status = weft_fail(WEFT_EIO, "%s: not a regular file, so not replaced", path);
    s->path = exists ? realpath(path, NULL) : strdup(path);  // a link stays: its target is replaced
    size_t n = s->path ? strlen(s->path) : 0;
    s->temporary = malloc(n + 64);
    if (!s->path || !s->temporary) {
        weft_saving_abort(s);
        return s->status = weft_fail(WEFT_ENOMEM, "%s: no memory to write it", path);
    }
    snprintf(s->temporary, n + 64, "%s.tmp-%ld-%lld", s->path, (long)getpid(),
             (long long)__atomic_fetch_add(&counter, 1, __ATOMIC_RELAXED));
    s->fd = open(s->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (s->fd < 0) {
        saving_failed(s, "create a file beside it", path);
        free(s->temporary);
        s->temporary = NULL;
        weft_saving_abort(s);
    }
    return s->status;
}

void weft_saving_write(weft_saving *s, const void *data, int64_t n) {
    const char *p = data;
    while (n > 0 && s->status == WEFT_OK) {
        ssize_t done = write(s->fd, p, n > (1 << 30) ? (size_t)1 << 30 : (size_t)n);
        if (done < 0) {
            if (errno != EINTR) saving_failed(s, "write", s->path);
        } else {
            p += done;
            n -= done;
        }
    }
}

void weft_saving_abort(weft_saving *s) {
    if (s->fd >= 0) close(s->fd);
    if (s->temporary) unlink(s->temporary);
    free(s->temporary);
    free(s->path);
    s->temporary = s->path = NULL;
    s->fd = -1;
}

// A directory that cannot be opened or synced (some network file systems) is no failure: the file
// itself is on the disk by then.
static void sync_directory(const char *path) {
    char *copy = strdup(path);
    if (!copy) return;
    char *slash = strrchr(copy, '/');
    if (slash) slash[slash == copy] = 0;
    int fd = open(slash ? copy : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        (void)!fsync(fd);
        close(fd);
    }
    free(copy);
}

weft_status weft_saving_commit(weft_saving *s) {
    if (s->status == WEFT_OK && fsync(s->fd) != 0) saving_failed(s, "write", s->path);
    if (s->fd >= 0) {
        int fd = s->fd;
        s->fd = -1;
        if (close(fd) != 0 && s->status == WEFT_OK) saving_failed(s, "write", s->path);
    }
    if (s->status == WEFT_OK && rename(s->temporary, s->path) != 0)
        saving_failed(s, "replace", s->path);
    if (s->status == WEFT_OK) {
        free(s->temporary);
        s->temporary = NULL;
        sync_directory(s->path);
    }
    weft_saving_abort(s);
    return s->status;
}

weft_status weft_file_write(const char *path, const void *data, int64_t n) {
    weft_saving s;
    weft_status status = weft_saving_begin(&s, path);
    if (status != WEFT_OK) return status;
    weft_saving_write(&s, data, n);
    return weft_saving_commit(&s);
}

weft_status weft_slurp(const char *path, int64_t limit, char **data, int64_t *n) {
    struct stat st;
    weft_status status = WEFT_OK;
    char *buffer = NULL;
    int64_t have = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return weft_fail(WEFT_EIO, "%s: %s", path, strerror(errno));
    if (fstat(fd, &st) != 0) {
        status = weft_fail(WEFT_EIO, "%s: %s", path, strerror(errno));
    } else if (!S_ISREG(st.st_mode)) {
        status = weft_fail(WEFT_EIO, "%s: not a regular file", path);
    } else if (st.st_size > limit) {
        status =
            weft_fail(WEFT_EFORMAT, "%s: %lld bytes, more than the %lld that are accepted here",
                      path, (long long)st.st_size, (long long)limit);
    } else if (!(buffer = malloc((size_t)st.st_size + 1))) {
        status = weft_fail(WEFT_ENOMEM, "%s: no memory for its %lld bytes", path,
                           (long long)st.st_size);
    }
    while (status == WEFT_OK && have < st.st_size) {
        ssize_t got = read(fd, buffer + have, (size_t)(st.st_size - have));
        if (got == 0) break;
        if (got > 0) have += got;
        else if (errno != EINTR) status = weft_fail(WEFT_EIO, "%s: %s", path, strerror(errno));
    }
    close(fd);
    if (status != WEFT_OK) {
        free(buffer);
        return status;
    }
    buffer[have] = 0;
    *data = buffer;
    *n = have;
    return WEFT_OK;
}

int weft_utf8_step(const unsigned char *s, int64_t n, int *bad) {
    unsigned char c = s[0], low = 0x80, high = 0xbf;
    int need;
    *bad = 1;
    if (c < 0x80) return 1;
    if (c >= 0xc2 && c <= 0xdf) need = 1;
    else if (c >= 0xe0 && c <= 0xef) need = 2;
    else if (c >= 0xf0 && c <= 0xf4) need = 3;
    else return 0;
    if (c == 0xe0) low = 0xa0;       // overlong
    if (c == 0xed) high = 0x9f;      // surrogates
    if (c == 0xf0) low = 0x90;       // overlong
    if (c == 0xf4) high = 0x8f;      // above U+10FFFF
    for (int i = 1; i <= need; i++) {
        if (i >= n || s[i] < low || s[i] > high) {
            *bad = i;
            return 0;
        }
        low = 0x80, high = 0xbf;
    }
    return need + 1;
}

int64_t weft_utf8_check(const char *text, int64_t n) {
    int bad;
    for (int64_t i = 0; i < n;) {
        int step = weft_utf8_step((const unsigned char *)text + i, n - i, &bad);
        if (!step) return i;
        i += step;
    }
    return -1;
}

char *weft_utf8_repair(const char *text, int64_t n, int64_t *n_out) {
    char *out = malloc((size_t)n * 3 + 1);
    int64_t m = 0;
    int bad;
    if (!out) return NULL;
    for (int64_t i = 0; i < n;) {
        int step = weft_utf8_step((const unsigned char *)text + i, n - i, &bad);
        if (step) {
            memcpy(out + m, text + i, (size_t)step);
            m += step, i += step;
        } else {
            memcpy(out + m, "\xef\xbf\xbd", 3);
            m += 3, i += bad;
        }
    }
    out[m] = 0;
    *n_out = m;
    return out;
}
