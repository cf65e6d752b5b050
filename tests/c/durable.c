// durable.c: a file is replaced so that a crash leaves the old one or the new one: its bytes reach the disk
// before the name does, and the name before the call returns. fsync and rename are watched from here.
#define _GNU_SOURCE
#include <weft.h>
#include "check.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static char seen[64];

static void note(char what) {
    const size_t n = strlen(seen);
    if (n + 1 < sizeof seen) seen[n] = what;
}

// The library's calls of these come here, as a program's own come before libc's.
int fsync(int fd);
int fsync(int fd) {
    struct stat st;
    note(fstat(fd, &st) == 0 && S_ISDIR(st.st_mode) ? 'D' : 'F');
    return (int)syscall(SYS_fsync, fd);
}
int rename(const char *from, const char *to);
int rename(const char *from, const char *to) {
    note('R');
    return (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}

static void test_order(const char *path) {
    weft_tensor *t = weft_full((const int64_t[]){1000}, 1, 3, WEFT_FLOAT32, WEFT_CPU);
    const char *name = "t";
    memset(seen, 0, sizeof seen);
    CHECK(weft_safetensors_write(path, 1, &name, &t, 0, NULL, NULL) == WEFT_OK);
    CHECK(strcmp(seen, "FRD") == 0);
    memset(seen, 0, sizeof seen);
    CHECK(weft_file_write(path, "text", 4) == WEFT_OK);
    CHECK(strcmp(seen, "FRD") == 0);
    weft_free(t);
}

int main(void) {
    const char *place = getenv("TMPDIR");
    char path[4096];
    snprintf(path, sizeof path, "%s/weft-durable-XXXXXX", place ? place : "/tmp");
    const int fd = mkstemp(path);
    if (fd < 0) return 1;
    close(fd);
    test_order(path);
    unlink(path);
    return CHECK_REPORT();
}
