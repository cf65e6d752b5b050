// image.c: pictures from bytes to RGB, upright, cropped, normalised; and the same on tensors.
#include "picture.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define FILE_LIMIT ((int64_t)1 << 30)
#define PIXEL_LIMIT 178956970         // where Pillow, too, suspects a decompression bomb

void weft_picture_free(weft_picture *p) {
    free(p->rgb);
    *p = (weft_picture){ 0 };
}

// --- decoding

// Grey is replicated, alpha composed onto the background or dropped.
static void to_rgb(const unsigned char *in, int channels, int64_t n, const unsigned char *ground,
                   unsigned char *out) {
    for (int64_t i = 0; i < n; i++, in += channels, out += 3) {
        int alpha = channels % 2 == 0 && ground ? in[channels - 1] : 255;
        for (int c = 0; c < 3; c++) {
            int v = channels < 3 ? in[0] : in[c];
            out[c] = (unsigned char)(alpha == 255 ? v
                                     : (v * alpha + ground[c] * (255 - alpha) + 127) / 255);
        }
    }
}

// EXIF: 2 mirrored, 3 turned by 180, 4 flipped, 5..8 the same after swapping rows and columns.
static weft_status upright(weft_picture *p, int orientation) {
    if (orientation <= 1) return WEFT_OK;
    bool swap = orientation >= 5;
    bool flip_x = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    bool flip_y = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    weft_picture out = { .h = swap ? p->w : p->h, .w = swap ? p->h : p->w };
    out.rgb = malloc((size_t)(out.h * out.w * 3));
    if (!out.rgb) return weft_fail(WEFT_ENOMEM, "no memory to turn a %lldx%lld picture",
                                   (long long)p->h, (long long)p->w);
    // flip_x and flip_y say which side of the stored picture to start from.
    for (int64_t y = 0; y < out.h; y++)
        for (int64_t x = 0; x < out.w; x++) {
            int64_t sy = swap ? x : y, sx = swap ? y : x;
            if (flip_y) sy = p->h - 1 - sy;
            if (flip_x) sx = p->w - 1 - sx;
            memcpy(out.rgb + (y * out.w + x) * 3, p->rgb + (sy * p->w + sx) * 3, 3);
        }
    weft_picture_free(p);
    *p = out;
    return WEFT_OK;
}

weft_status weft_picture_decode(const unsigned char *data, int64_t n, const char *name,
                                const weft_image_options *options, weft_picture *out) {
    static const weft_image_options defaults = { .background = { 255, 255, 255 } };
    const weft_image_options *o = options ? options : &defaults;
    int64_t limit = o->max_pixels > 0 ? o->max_pixels : PIXEL_LIMIT;
    weft_picture_info info;
    int w = 0, h = 0, channels = 0;
    *out = (weft_picture){ 0 };
    if (n > FILE_LIMIT) return weft_fail(WEFT_EFORMAT, "%s: %lld bytes are too many for a picture",
                                         name, (long long)n);
    weft_status status = weft_picture_check(data, n, name, &info);
    if (status != WEFT_OK) return status;
    weft_stb_limit((size_t)1 << 24);
    if (!weft_stb_info(data, (int)n, &w, &h, &channels) || w <= 0 || h <= 0)
        return weft_fail(WEFT_EFORMAT, "%s: damaged %s: %s", name, info.format, weft_stb_reason());
    if ((int64_t)w * h > limit)
        return weft_fail(WEFT_EFORMAT,
                         "%s: %d x %d pixels (width by height) are more than the %lld "
                         "that are accepted; raise max_pixels if it is meant",
                         name, w, h, (long long)limit);
    // Coefficients and 16-bit samples take at most 8 bytes a pixel, in blocks of up to 32.
    weft_stb_limit(((size_t)w + 64) * ((size_t)h + 64) * 8 + (1 << 20));
    unsigned char *pixels = weft_stb_decode(data, (int)n, &w, &h, &channels);
    if (!pixels)
        return weft_fail(WEFT_EFORMAT, "%s: damaged %s: %s", name, info.format, weft_stb_reason());
    out->h = h, out->w = w;
    if (channels == 3) {
        out->rgb = pixels;
    } else {
        out->rgb = malloc((size_t)w * (size_t)h * 3);
        if (out->rgb) to_rgb(pixels, channels, (int64_t)w * h, o->drop_alpha ? NULL : o->background,
                             out->rgb);
        free(pixels);
        if (!out->rgb)
            return weft_fail(WEFT_ENOMEM, "%s: no memory for %d x %d pixels", name, w, h);
    }
    if (!o->ignore_orientation) status = upright(out, info.orientation);
    if (status != WEFT_OK) weft_picture_free(out);
    return status;
}

// --- steps on bytes

weft_status weft_picture_crop(const weft_picture *p, int64_t y, int64_t x, int64_t h, int64_t w,
                              weft_picture *out) {
    const int64_t most = (int64_t)1 << 24;
    *out = (weft_picture){ .h = h, .w = w };
    if (h <= 0 || w <= 0 || h > most || w > most || h * w > most * 16 || y < -most || x < -most ||
        y > most || x > most)
        return weft_fail(WEFT_EINVAL, "cannot crop %lldx%lld at (%lld,%lld)", (long long)h,
                         (long long)w, (long long)y, (long long)x);
    out->rgb = calloc((size_t)(h * w), 3);
    if (!out->rgb) return weft_fail(WEFT_ENOMEM, "no memory for a %lldx%lld crop", (long long)h,
                                    (long long)w);
    int64_t left = x < 0 ? 0 : x, right = x + w < p->w ? x + w : p->w;
    for (int64_t row = 0; row < h && right > left; row++) {
        if (y + row < 0 || y + row >= p->h) continue;
        memcpy(out->rgb + (row * w + left - x) * 3, p->rgb + ((y + row) * p->w + left) * 3,
               (size_t)((right - left) * 3));
    }
    return WEFT_OK;
}

void weft_picture_table(const double *mean, const double *std, float *table) {
    for (int c = 0; c < 3; c++)
        for (int v = 0; v < 256; v++)
            table[c * 256 + v] = ((float)(v * (1.0 / 255.0)) - (float)mean[c]) / (float)std[c];
}

void weft_picture_normalize(const weft_picture *p, bool flip, const float *table, float *out) {
    int64_t plane = p->h * p->w;
    for (int64_t y = 0; y < p->h; y++) {
        const unsigned char *in = p->rgb + y * p->w * 3;
        float *to = out + y * p->w;
        for (int64_t x = 0; x < p->w; x++, in += 3) {
            int64_t at = flip ? p->w - 1 - x : x;
            to[at] = table[in[0]];
            to[plane + at] = table[256 + in[1]];
            to[2 * plane + at] = table[512 + in[2]];
        }
    }
}

// --- the same on tensors, uint8 [H,W,3]

// A copy, so that the picture's memory is counted with that of all tensors and paces collection.
static weft_tensor *to_tensor(weft_picture *p) {
    weft_tensor *t = weft_from(p->rgb, (int64_t[]){ p->h, p->w, 3 }, 3, WEFT_UINT8);
    weft_picture_free(p);
    return t;
}

static bool from_tensor(const weft_tensor *t, weft_picture *p) {
    const weft_view *v = &t->v;
    if (v->dtype != WEFT_UINT8 || v->ndim != 3 || v->shape[2] != 3 || v->device != WEFT_CPU ||
        !weft_view_contiguous(v) || v->numel == 0) {
        weft_fail(WEFT_EINVAL,
                  "a picture is a contiguous uint8 tensor [height, width, 3] on the CPU; "
                  "this is %s with %d dims",
                  weft_dtype_name(v->dtype), v->ndim);
        return false;
    }
    *p = (weft_picture){ v->data, v->shape[0], v->shape[1] };
    return true;
}

weft_tensor *weft_image_decode(const void *data, int64_t n, const weft_image_options *options) {
    weft_picture p;
    return weft_picture_decode(data, n, "picture", options, &p) == WEFT_OK ? to_tensor(&p) : NULL;
}

weft_tensor *weft_image_load(const char *path, const weft_image_options *options) {
    char *data;
    int64_t n;
    weft_picture p;
    if (weft_slurp(path, FILE_LIMIT, &data, &n) != WEFT_OK) return NULL;
    weft_status status = weft_picture_decode((unsigned char *)data, n, path, options, &p);
    free(data);
    return status == WEFT_OK ? to_tensor(&p) : NULL;
}

weft_tensor *weft_image_resize(const weft_tensor *image, int64_t h, int64_t w, int filter) {
    weft_picture p, out;
    if (!from_tensor(image, &p) || weft_picture_resize(&p, h, w, filter, &out) != WEFT_OK)
        return NULL;
    return to_tensor(&out);
}

weft_tensor *weft_image_resize_shortest(const weft_tensor *image, int64_t edge, int filter) {
    weft_picture p, out;
    int64_t h, w;
    if (!from_tensor(image, &p)) return NULL;
    if (edge <= 0 || edge > (1 << 24)) {
        weft_fail(WEFT_EINVAL, "the shortest edge must be positive, not %lld", (long long)edge);
        return NULL;
    }
    weft_picture_shortest(p.h, p.w, edge, &h, &w);
    return weft_picture_resize(&p, h, w, filter, &out) == WEFT_OK ? to_tensor(&out) : NULL;
}

weft_tensor *weft_image_crop(const weft_tensor *image, int64_t y, int64_t x, int64_t h, int64_t w) {
    weft_picture p, out;
    if (!from_tensor(image, &p) || weft_picture_crop(&p, y, x, h, w, &out) != WEFT_OK) return NULL;
    return to_tensor(&out);
}

// Half the difference, floored, also where the crop is larger than the picture.
int64_t weft_crop_offset(int64_t size, int64_t crop) {
    int64_t d = size - crop;
    return d >= 0 ? d / 2 : -((1 - d) / 2);
}

weft_tensor *weft_image_center_crop(const weft_tensor *image, int64_t h, int64_t w) {
    return weft_image_crop(image, weft_crop_offset(image->v.shape[0], h),
                           weft_crop_offset(image->v.shape[1], w), h, w);
}

weft_tensor *weft_image_normalize(const weft_tensor *image, const double *mean, const double *std,
                                  bool flip) {
    weft_picture p;
    float table[3 * 256];
    if (!from_tensor(image, &p)) return NULL;
    weft_picture_table(mean, std, table);
    weft_tensor *t = weft_empty((int64_t[]){ 3, p.h, p.w }, 3, WEFT_FLOAT32, WEFT_CPU);
    if (t) weft_picture_normalize(&p, flip, table, t->v.data);
    return t;
}
