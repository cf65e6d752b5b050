// picture.h: pictures as plain bytes, shared by image.c, loader.c and sheet.c. Rows are RGB,
// interleaved, without gaps.
#ifndef WEFT_IO_PICTURE_H
#define WEFT_IO_PICTURE_H

#include "io.h"

typedef struct weft_picture {
    unsigned char *rgb;               // malloc'ed
    int64_t h, w;
} weft_picture;

// What the container says, before anything is decoded.
typedef struct weft_picture_info {
    const char *format;               // "PNG", "JPEG", "BMP"
    int orientation;                  // EXIF's 1..8
} weft_picture_info;

// Walks the chunks or segments: refuses damage that the decoder would paint over. `name` is for
// messages.
weft_status weft_picture_check(const unsigned char *data, int64_t n, const char *name,
                               weft_picture_info *info);
weft_status weft_picture_decode(const unsigned char *data, int64_t n, const char *name,
                                const weft_image_options *options, weft_picture *out);
weft_status weft_picture_crop(const weft_picture *p, int64_t y, int64_t x, int64_t h, int64_t w,
                              weft_picture *out);
weft_status weft_picture_check_size(const weft_picture *p, int64_t h, int64_t w);  // to resize to
weft_status weft_picture_resize(const weft_picture *p, int64_t h, int64_t w, int filter,
                                weft_picture *out);
// The taps of a resize in one direction, TAPS_LINE(widest) numbers for each of `to` positions
// (picture_plan.h); false: no memory.
int64_t weft_picture_widest(int64_t from, int64_t to, int filter);
bool weft_picture_taps(int64_t from, int64_t to, int filter, int32_t *out);
// float32 planes [3,h,w] at out, through a table of 3 * 256 values.
void weft_picture_table(const double *mean, const double *std, float *table);
void weft_picture_normalize(const weft_picture *p, bool flip, const float *table, float *out);
void weft_picture_free(weft_picture *p);

// The edge rule of preprocessors: the short edge becomes `edge`, the long one is floored.
void weft_picture_shortest(int64_t h, int64_t w, int64_t edge, int64_t *out_h, int64_t *out_w);

int64_t weft_crop_offset(int64_t size, int64_t crop);

void weft_stb_limit(size_t nbytes);
bool weft_stb_info(const void *data, int n, int *w, int *h, int *channels);
unsigned char *weft_stb_decode(const void *data, int n, int *w, int *h, int *channels);
const char *weft_stb_reason(void);
int weft_stb_write_png(void (*write)(void *, void *, int), void *context, int w, int h,
                       const void *rgb, int row_bytes);

#endif
