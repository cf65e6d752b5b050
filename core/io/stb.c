// stb.c: the third-party picture codecs, compiled once. Our own code is in image.c.
#include "picture.h"

#include <stdlib.h>

// A small file can claim to unpack into gigabytes: no single allocation of the decoder may exceed
// what its picture can need.
static _Thread_local size_t allocation_limit = (size_t)1 << 30;

void weft_stb_limit(size_t nbytes) { allocation_limit = nbytes; }

static void *limited_malloc(size_t n) { return n > allocation_limit ? NULL : malloc(n); }
static void *limited_realloc(void *p, size_t n) {
    return n > allocation_limit ? NULL : realloc(p, n);
}

#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wsign-compare"
#pragma GCC diagnostic ignored "-Wunused-but-set-variable"
// No input may end the caller's process, in no build; under the sanitizers a broken promise of the
// decoder's is to be heard of.
#ifndef __SANITIZE_ADDRESS__
#define STBI_ASSERT(x) ((void)0)
#define STBIW_ASSERT(x) ((void)0)
#endif
#define STBI_MALLOC(n) limited_malloc(n)
#define STBI_REALLOC(p, n) limited_realloc(p, n)
#define STBI_FREE(p) free(p)
#define STBI_ONLY_PNG
#define STBI_ONLY_JPEG
#define STBI_ONLY_BMP
#define STBI_NO_STDIO
#define STB_IMAGE_STATIC
#define STB_IMAGE_IMPLEMENTATION
#include <stb/stb_image.h>
#define STBI_WRITE_NO_STDIO
#define STB_IMAGE_WRITE_STATIC
#define STB_IMAGE_WRITE_IMPLEMENTATION
#include <stb/stb_image_write.h>

bool weft_stb_info(const void *data, int n, int *w, int *h, int *channels) {
    return stbi_info_from_memory(data, n, w, h, channels) != 0;
}

unsigned char *weft_stb_decode(const void *data, int n, int *w, int *h, int *channels) {
    return stbi_load_from_memory(data, n, w, h, channels, 0);
}

const char *weft_stb_reason(void) {
    const char *reason = stbi_failure_reason();
    return reason ? reason : "unknown format";
}

int weft_stb_write_png(void (*write)(void *, void *, int), void *context, int w, int h,
                       const void *rgb, int row_bytes) {
    return stbi_write_png_to_func(write, context, w, h, 3, rgb, row_bytes);
}
