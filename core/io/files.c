// files.c: folders, clocks and checksums: what a run needs of the system beyond reading and writing
// whole files.
#include "../core.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

static weft_status io_error(const char *what, const char *path) {
    return weft_fail(WEFT_EIO, "%s %s: %s", what, path, strerror(errno));
}

weft_status weft_make_dirs(const char *path) {
    char text[4096];
    size_t n = strlen(path);
    if (n >= sizeof text) return weft_fail(WEFT_EINVAL, "the path is longer than %zu bytes", sizeof text - 1);
    memcpy(text, path, n + 1);
    for (size_t i = 1; i <= n; i++) {
        if (text[i] != '/' && text[i] != 0) continue;
        char kept = text[i];
        text[i] = 0;
        if (mkdir(text, 0777) != 0 && errno != EEXIST) return io_error("making the folder", text);
        text[i] = kept;
    }
    struct stat s;
    if (stat(path, &s) != 0 || !S_ISDIR(s.st_mode)) return weft_fail(WEFT_EIO, "%s is not a folder", path);
    return WEFT_OK;
}

int weft_path_kind(const char *path) {
    struct stat s;
    if (stat(path, &s) != 0) return 0;
    return S_ISDIR(s.st_mode) ? 2 : 1;
}

int64_t weft_file_size(const char *path) {
    struct stat s;
    return stat(path, &s) == 0 ? (int64_t)s.st_size : -1;
}

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

char *weft_list_dir(const char *path) {
    DIR *d = opendir(path);
    if (!d) {
        io_error("opening the folder", path);
        return NULL;
    }
    char **names = NULL;
    size_t n = 0, capacity = 0, bytes = 1;
    bool failed = false;
    for (struct dirent *e; !failed && (e = readdir(d));) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0 || strchr(e->d_name, '\n')) continue;
        if (n == capacity) {
            capacity = capacity ? capacity * 2 : 64;
            char **more = realloc(names, capacity * sizeof *names);
            if (!more) { failed = true; break; }
            names = more;
        }
        names[n] = strdup(e->d_name);
        if (!names[n]) { failed = true; break; }
        bytes += strlen(names[n++]) + 1;
    }
    closedir(d);
    char *out = failed ? NULL : malloc(bytes);
    if (out) {
        if (n) qsort(names, n, sizeof *names, by_name);
        char *p = out;
        for (size_t i = 0; i < n; i++) p += sprintf(p, "%s\n", names[i]);
        *p = 0;
    } else weft_fail(WEFT_ENOMEM, "out of memory listing %s", path);
    for (size_t i = 0; i < n; i++) free(names[i]);
    free(names);
    return out;
}

void weft_free_text(char *text) { free(text); }

// Removes a folder and the plain files in it (checkpoints are flat).
weft_status weft_remove_dir(const char *path) {
    char *names = weft_list_dir(path);
    if (!names) return WEFT_EIO;
    weft_status code = WEFT_OK;
    for (char *p = names, *end; code == WEFT_OK && (end = strchr(p, '\n')); p = end + 1) {
        char file[4096];
        snprintf(file, sizeof file, "%s/%.*s", path, (int)(end - p), p);
        if (unlink(file) != 0) code = io_error("removing", file);
    }
    free(names);
    if (code == WEFT_OK && rmdir(path) != 0) code = io_error("removing", path);
    return code;
}

weft_status weft_remove_file(const char *path) {
    return unlink(path) == 0 || errno == ENOENT ? WEFT_OK : io_error("removing", path);
}

static weft_status sync_path(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return io_error("opening", path);
    weft_status code = fsync(fd) == 0 ? WEFT_OK : io_error("syncing", path);
    close(fd);
    return code;
}

weft_status weft_rename_dir(const char *from, const char *to) {
    TRY(sync_path(from));
    if (rename(from, to) != 0) return io_error("renaming", from);
    char parent[4096];
    snprintf(parent, sizeof parent, "%s", to);
    char *slash = strrchr(parent, '/');
    if (!slash) return sync_path(".");
    *slash = 0;
    return sync_path(*parent ? parent : "/");
}

weft_status weft_append_text(const char *path, const char *text) {
    FILE *f = fopen(path, "ae");
    if (!f) return io_error("opening", path);
    bool ok = fputs(text, f) >= 0;
    ok = fclose(f) == 0 && ok;
    return ok ? WEFT_OK : io_error("writing", path);
}

// Cuts a file to its first n bytes.
weft_status weft_truncate_file(const char *path, int64_t n) {
    return truncate(path, (off_t)n) == 0 ? WEFT_OK : io_error("cutting", path);
}

int64_t weft_disk_free(const char *path) {
    struct statvfs s;
    return statvfs(path, &s) == 0 ? (int64_t)s.f_bavail * (int64_t)s.f_frsize : -1;
}

double weft_clock(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

double weft_peak_rss(void) {
    struct rusage u;
    return getrusage(RUSAGE_SELF, &u) == 0 ? (double)u.ru_maxrss / 1024.0 : 0;
}

bool weft_is_terminal(int fd) { return isatty(fd) == 1; }

// 64 bits over bytes: eight at a time, multiply and fold (as in wyhash: 64x64 -> 128 bits).
static uint64_t fold(uint64_t a, uint64_t b) {
    __uint128_t p = (__uint128_t)a * b;
    return (uint64_t)p ^ (uint64_t)(p >> 64);
}

static uint64_t mix(uint64_t h, uint64_t word) { return fold(h ^ word, 0xD6E8FEB86659FD93u) + 0x9E3779B97F4A7C15u; }

void weft_hash_begin(weft_hash *h, int64_t total, uint64_t seed) {
    *h = (weft_hash){ .h = seed ^ 0x9E3779B97F4A7C15u ^ (uint64_t)total };
}

void weft_hash_add(weft_hash *h, const void *data, int64_t n) {
    const uint8_t *p = data;
    while (n > 0) {
        if (h->held == 0 && n >= 8) {
            uint64_t w;
            memcpy(&w, p, 8);
            h->h = mix(h->h, w);
            p += 8;
            n -= 8;
            continue;
        }
        h->rest[h->held++] = *p++;
        n--;
        if (h->held < 8) continue;
        uint64_t w;
        memcpy(&w, h->rest, 8);
        h->h = mix(h->h, w);
        h->held = 0;
    }
}

uint64_t weft_hash_end(const weft_hash *h) {
    uint64_t w = 0;
    memcpy(&w, h->rest, (size_t)h->held);
    return fold(h->h ^ w, 0xA0761D6478BD642Fu);
}

uint64_t weft_hash_bytes(const void *data, int64_t n, uint64_t seed) {
    weft_hash h;
    weft_hash_begin(&h, n, seed);
    weft_hash_add(&h, data, n);
    return weft_hash_end(&h);
}

uint64_t weft_checksum(const weft_tensor *t, uint64_t seed) {
    if (!t->v.data) return seed;
    const bool was = weft_set_grad_enabled(false);
    const bool copy = t->v.device != WEFT_CPU || !weft_is_contiguous(t);
    weft_tensor *c = !copy ? NULL : t->v.device != WEFT_CPU ? weft_to_device(t, WEFT_CPU) : weft_contiguous(t);
    weft_set_grad_enabled(was);
    if (copy && !c) return seed;
    const weft_view *v = c ? &c->v : &t->v;
    uint64_t h = weft_hash_bytes(v->data, v->numel * weft_dtype_size(v->dtype), seed);
    weft_free(c);
    return h;
}
