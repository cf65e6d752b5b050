// sheet.c: writing pictures: PNG files, pasting, and captions in a small bitmap font.
#include "picture.h"

#include <stdlib.h>
#include <string.h>

// Glyphs of ASCII 33..126: seven rows from the top, five bits each, the highest on the left.
static const unsigned char glyphs[94][7] = {
    {4,4,4,4,0,0,4}, {10,10,0,0,0,0,0}, {10,31,10,10,10,31,10}, {4,15,20,14,5,30,4},
    {25,25,2,4,8,19,19}, {12,18,20,8,21,18,13}, {4,4,0,0,0,0,0}, {2,4,4,4,4,4,2}, {8,4,4,4,4,4,8},
    {0,21,14,31,14,21,0}, {0,4,4,31,4,4,0}, {0,0,0,0,6,2,4}, {0,0,0,14,0,0,0}, {0,0,0,0,0,6,6},
    {1,2,2,4,8,8,16}, {14,17,17,21,17,17,14}, {4,12,20,4,4,4,31}, {14,17,1,6,8,16,31},
    {30,1,1,14,1,1,30}, {18,18,18,31,2,2,2}, {31,16,16,30,1,1,30}, {14,16,16,30,17,17,14},
    {31,1,1,2,2,4,4}, {14,17,17,14,17,17,14}, {14,17,17,15,1,1,14}, {0,4,4,0,4,4,0},
    {0,4,4,0,4,4,8}, {1,6,8,16,8,6,1}, {0,0,31,0,31,0,0}, {16,12,2,1,2,12,16}, {30,1,1,6,4,0,4},
    {14,17,23,21,23,16,15}, {4,4,10,10,31,17,17}, {30,17,17,30,17,17,30}, {15,16,16,16,16,16,15},
    {28,18,17,17,17,18,28}, {31,16,16,30,16,16,31}, {31,16,16,30,16,16,16}, {15,16,16,19,17,17,15},
    {17,17,17,31,17,17,17}, {31,4,4,4,4,4,31}, {31,1,1,1,1,17,14}, {17,18,20,24,20,18,17},
    {16,16,16,16,16,16,31}, {17,27,27,21,21,17,17}, {17,25,25,21,19,19,17}, {14,17,17,17,17,17,14},
    {30,17,17,30,16,16,16}, {14,17,17,17,17,14,3}, {30,17,17,30,20,18,17}, {15,16,16,14,1,1,30},
    {31,4,4,4,4,4,4}, {17,17,17,17,17,17,14}, {17,17,17,10,10,4,4}, {17,17,21,21,21,27,17},
    {17,17,10,4,10,17,17}, {17,17,10,4,4,4,4}, {31,1,2,4,8,16,31}, {6,4,4,4,4,4,6},
    {16,8,8,4,2,2,1}, {12,4,4,4,4,4,12}, {4,10,17,0,0,0,0}, {0,0,0,0,0,0,31}, {8,4,0,0,0,0,0},
    {0,0,14,1,15,17,15}, {16,16,30,17,17,17,30}, {0,0,15,16,16,16,15}, {1,1,15,17,17,17,15},
    {0,0,14,17,31,16,15}, {7,8,30,8,8,8,8}, {0,15,17,17,15,1,14}, {16,16,30,17,17,17,17},
    {4,0,12,4,4,4,14}, {2,0,6,2,2,2,12}, {16,16,18,20,24,20,18}, {12,4,4,4,4,4,6},
    {0,0,26,21,21,21,21}, {0,0,30,17,17,17,17}, {0,0,14,17,17,17,14}, {0,30,17,17,30,16,16},
    {0,15,17,17,15,1,1}, {0,0,22,25,16,16,16}, {0,0,15,16,14,1,30}, {8,8,30,8,8,8,7},
    {0,0,17,17,17,17,15}, {0,0,17,17,10,10,4}, {0,0,17,21,21,21,10}, {0,0,17,10,4,10,17},
    {0,17,17,17,15,1,30}, {0,0,31,2,4,8,31}, {3,4,4,8,4,4,3}, {4,4,4,4,4,4,4}, {24,4,4,2,4,4,24},
    {0,0,9,21,18,0,0},
};
static const unsigned char unknown_glyph[7] = { 31, 17, 17, 17, 17, 17, 31 };

static weft_status check_canvas(const weft_tensor *t) {
    const weft_view *v = &t->v;
    if (v->dtype == WEFT_UINT8 && v->ndim == 3 && v->shape[2] == 3 && v->device == WEFT_CPU &&
        weft_view_contiguous(v))
        return WEFT_OK;
    return weft_fail(WEFT_EINVAL,
                     "a picture is a contiguous uint8 tensor [height, width, 3] on the "
                     "CPU; this is %s with %d dims",
                     weft_dtype_name(v->dtype), v->ndim);
}

weft_status weft_image_paste(weft_tensor *canvas, const weft_tensor *image, int64_t y, int64_t x) {
    weft_status status = check_canvas(canvas);
    if (status == WEFT_OK) status = check_canvas(image);
    if (status != WEFT_OK) return status;
    int64_t h = canvas->v.shape[0], w = canvas->v.shape[1], rows = image->v.shape[0];
    int64_t columns = image->v.shape[1], left = x < 0 ? 0 : x,
            right = x + columns < w ? x + columns : w;
    for (int64_t row = 0; row < rows && right > left; row++)
        if (y + row >= 0 && y + row < h)
            memcpy((char *)canvas->v.data + ((y + row) * w + left) * 3,
                   (const char *)image->v.data + (row * columns + left - x) * 3,
                   (size_t)((right - left) * 3));
    return WEFT_OK;
}

// One character cell is 6 by 8, times scale. What lies outside the canvas is cut off; a character
// outside ASCII shows as a box.
weft_status weft_image_text(weft_tensor *canvas, int64_t y, int64_t x, const char *text, int64_t n,
                            int scale, const uint8_t *color) {
    weft_status status = check_canvas(canvas);
    if (status != WEFT_OK) return status;
    if (scale < 1 || scale > 64)
        return weft_fail(WEFT_EINVAL, "the scale of text is 1 to 64, not %d", scale);
    int64_t h = canvas->v.shape[0], w = canvas->v.shape[1];
    unsigned char *pixels = canvas->v.data;
    for (int64_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)text[i];
        if ((c & 0xc0) == 0x80) continue;       // inside a UTF-8 sequence
        const unsigned char *glyph = c > 32 && c < 127 ? glyphs[c - 33] : unknown_glyph;
        for (int64_t column = 0; c > 32 && column < 5 * scale; column++)
            for (int64_t row = 0; row < 7 * scale; row++) {
                int64_t py = y + row, px = x + column;
                if (!(glyph[row / scale] >> (4 - column / scale) & 1)) continue;
                if (py >= 0 && py < h && px >= 0 && px < w)
                    memcpy(pixels + (py * w + px) * 3, color, 3);
            }
        x += 6 * scale;
    }
    return WEFT_OK;
}

static void write_piece(void *context, void *data, int n) { weft_saving_write(context, data, n); }

weft_status weft_image_write_png(const char *path, const weft_tensor *image) {
    weft_saving s;
    weft_status status = check_canvas(image);
    if (status != WEFT_OK) return status;
    int64_t h = image->v.shape[0], w = image->v.shape[1];
    if (h <= 0 || w <= 0 || h * w > ((int64_t)1 << 28))
        return weft_fail(WEFT_EINVAL, "%s: a PNG of %lldx%lld pixels is not written", path,
                         (long long)h, (long long)w);
    if ((status = weft_saving_begin(&s, path)) != WEFT_OK) return status;
    int written = weft_stb_write_png(write_piece, &s, (int)w, (int)h, image->v.data, (int)w * 3);
    if (!written && s.status == WEFT_OK)
        s.status = weft_fail(WEFT_ENOMEM, "%s: no memory to encode the picture", path);
    return weft_saving_commit(&s);
}
