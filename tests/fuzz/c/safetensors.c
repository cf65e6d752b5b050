// safetensors.c: libFuzzer's way into the reader of safetensors files: any bytes are a file, whose every
// tensor is asked for and read. tests/fuzz/libfuzzer_spec.lua builds and runs it.
// The reader is compiled with these in the place of mmap and munmap: a real mapping ends in the zeros of its
// last page, which hide what reads too far; here the byte after the file is on a page that nobody may touch.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "weft.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
void *guarded_map(void *where, size_t size, int protection, int flags, int fd, off_t offset);
int guarded_unmap(void *start, size_t size);

static size_t whole_pages(size_t size) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (size + page - 1) / page * page;
}

void *guarded_map(void *where, size_t size, int protection, int flags, int fd, off_t offset) {
    (void)where, (void)protection, (void)flags;
    size_t body = whole_pages(size), page = (size_t)sysconf(_SC_PAGESIZE);
    char *pages = mmap(NULL, body + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) return MAP_FAILED;
    if (mprotect(pages + body, page, PROT_NONE) != 0) abort();
    if (pread(fd, pages + body - size, size, offset) != (ssize_t)size) abort();
    return pages + body - size;
}

int guarded_unmap(void *start, size_t size) {
    size_t body = whole_pages(size);
    return munmap((char *)start + size - body, body + (size_t)sysconf(_SC_PAGESIZE));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    int fd = memfd_create("weft-fuzz", 0);
    if (fd < 0) abort();
    if (size > 0 && write(fd, data, size) != (ssize_t)size) abort();
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    weft_file *file = weft_safetensors_open(path);
    if (!file) {
        if (weft_error()[0] == '\0') abort();  // a refusal says why
        close(fd);
        return 0;
    }
    volatile uint64_t sum = 0;
    for (int64_t i = 0; i < weft_safetensors_count(file); i++) {
        const char *name = weft_safetensors_name(file, i);
        int64_t found = weft_safetensors_find(file, name);
        if (found != i) abort();
        const int64_t *shape = weft_safetensors_shape(file, i);
        for (int d = 0; d < weft_safetensors_ndim(file, i); d++) {
            if (shape[d] < 0) abort();
        }
        weft_tensor *t = weft_safetensors_tensor(file, i);
        if (t) {
            sum += weft_checksum(t, 0);  // reads every value
            weft_free(t);
        }
    }
    for (int64_t i = 0; i < weft_safetensors_n_meta(file); i++) {
        for (const char *p = weft_safetensors_meta_key(file, i); *p; p++) sum += (uint64_t)*p;
        for (const char *p = weft_safetensors_meta_value(file, i); *p; p++) sum += (uint64_t)*p;
    }
    weft_safetensors_close(file);
    close(fd);
    return 0;
}
