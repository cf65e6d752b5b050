// container.c: what PNG, JPEG and BMP files say about themselves: whole or damaged, and which way
// up. stb_image checks neither checksums nor ends, and knows nothing of EXIF.
#include "picture.h"

#include <string.h>

static uint32_t be32(const unsigned char *p) {
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}
static uint32_t le32(const unsigned char *p) {
    return (uint32_t)p[3] << 24 | (uint32_t)p[2] << 16 | (uint32_t)p[1] << 8 | p[0];
}
static uint32_t tiff16(const unsigned char *p, bool big) {
    return big ? (uint32_t)p[0] << 8 | p[1] : (uint32_t)p[1] << 8 | p[0];
}

// Orientation of a TIFF structure: entry 0x0112 of its first directory; 1 when there is none.
static int exif_orientation(const unsigned char *tiff, int64_t n) {
    if (n < 8) return 1;
    bool big = memcmp(tiff, "MM\0*", 4) == 0;
    if (!big && memcmp(tiff, "II*\0", 4) != 0) return 1;
    int64_t at = big ? be32(tiff + 4) : le32(tiff + 4);
    if (at > n - 2) return 1;
    int64_t entries = tiff16(tiff + at, big);
    at += 2;
    for (int64_t i = 0; i < entries && at <= n - 12; i++, at += 12) {
        if (tiff16(tiff + at, big) != 0x0112) continue;
        uint32_t type = tiff16(tiff + at + 2, big), value = tiff16(tiff + at + 8, big);
        return type == 3 && value >= 1 && value <= 8 ? (int)value : 1;
    }
    return 1;
}

static uint32_t crc32_of(const unsigned char *p, int64_t n) {
    static const uint32_t nibble[16] = {
        0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4, 0x4db26158,
        0x5005713c, 0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c, 0x9b64c2b0, 0x86d3d2d4,
        0xa00ae278, 0xbdbdf21c,
    };
    uint32_t c = 0xffffffff;
    for (int64_t i = 0; i < n; i++) {
        c ^= p[i];
        c = c >> 4 ^ nibble[c & 15];
        c = c >> 4 ^ nibble[c & 15];
    }
    return ~c;
}

static weft_status check_png(const unsigned char *data, int64_t n, const char *name,
                             weft_picture_info *info) {
    int64_t at = 8;
    info->format = "PNG";
    while (n - at >= 12) {
        const unsigned char *chunk = data + at;
        int64_t length = be32(chunk);
        if (length > n - at - 12) break;
        if (crc32_of(chunk + 4, length + 4) != be32(chunk + 8 + length))
            return weft_fail(WEFT_EFORMAT, "%s: damaged PNG: wrong checksum at byte %lld", name,
                             (long long)at);
        if (memcmp(chunk + 4, "IEND", 4) == 0) return WEFT_OK;
        if (memcmp(chunk + 4, "eXIf", 4) == 0)
            info->orientation = exif_orientation(chunk + 8, length);
        at += length + 12;
    }
    return weft_fail(WEFT_EFORMAT, "%s: truncated PNG: its %lld bytes end before the picture does",
                     name, (long long)n);
}

// The decoder trusts a table's 16 counts to add up to at most 256, and to fit their segment.
static bool huffman_ok(const unsigned char *p, int64_t n) {
    while (n > 0) {
        int sum = 0;
        if (n < 17) return false;
        for (int i = 1; i <= 16; i++) sum += p[i];
        if (sum > 256 || sum + 17 > n) return false;
        p += sum + 17;
        n -= sum + 17;
    }
    return true;
}

// Segments up to the end marker; inside a scan only markers other than restarts count.
static weft_status check_jpeg(const unsigned char *data, int64_t n, const char *name,
                              weft_picture_info *info) {
    int64_t at = 2;
    info->format = "JPEG";
    while (at + 1 < n) {
        if (data[at] != 0xff) {          // entropy-coded data, or padding
            const unsigned char *next = memchr(data + at, 0xff, (size_t)(n - at));
            if (!next) break;
            at = next - data;
            continue;
        }
        int marker = data[at + 1];
        if (marker == 0xff) { at++; continue; }
        if (marker == 0xd9) return WEFT_OK;
        if (marker == 0 || marker == 1 || (marker >= 0xd0 && marker <= 0xd8)) { at += 2; continue; }
        if (at + 4 > n) break;
        int64_t length = (int64_t)data[at + 2] << 8 | data[at + 3];
        if (length < 2 || length > n - at - 2) break;
        if (marker == 0xc4 && !huffman_ok(data + at + 4, length - 2))
            return weft_fail(WEFT_EFORMAT, "%s: damaged JPEG: bad Huffman table at byte %lld", name,
                             (long long)at);
        if (marker == 0xe1 && length >= 8 && memcmp(data + at + 4, "Exif\0\0", 6) == 0)
            info->orientation = exif_orientation(data + at + 10, length - 8);
        at += 2 + length;
    }
    return weft_fail(WEFT_EFORMAT, "%s: truncated JPEG: its %lld bytes hold no end marker", name,
                     (long long)n);
}

static weft_status check_bmp(const unsigned char *data, int64_t n, const char *name,
                             weft_picture_info *info) {
    info->format = "BMP";
    if (n < 54 || le32(data + 14) < 40) return WEFT_OK;  // the decoder tells of short headers
    int64_t offset = le32(data + 10), w = (int32_t)le32(data + 18), h = (int32_t)le32(data + 22);
    int64_t bits = tiff16(data + 28, false), packed = le32(data + 30);
    if (h < 0) h = -h;
    if (w <= 0 || h > (1 << 24) || w > (1 << 24) || packed == 1 || packed == 2) return WEFT_OK;
    if (offset + (w * bits + 31) / 32 * 4 * h > n)
        return weft_fail(WEFT_EFORMAT,
                         "%s: truncated BMP: its %lld bytes end before the picture does", name,
                         (long long)n);
    return WEFT_OK;
}

weft_status weft_picture_check(const unsigned char *data, int64_t n, const char *name,
                               weft_picture_info *info) {
    *info = (weft_picture_info){ .orientation = 1 };
    if (n >= 8 && memcmp(data, "\x89PNG\r\n\x1a\n", 8) == 0) return check_png(data, n, name, info);
    if (n >= 3 && memcmp(data, "\xff\xd8\xff", 3) == 0) return check_jpeg(data, n, name, info);
    if (n >= 2 && memcmp(data, "BM", 2) == 0) return check_bmp(data, n, name, info);
    if (n == 0) return weft_fail(WEFT_EFORMAT, "%s: an empty file", name);
    return weft_fail(WEFT_EFORMAT, "%s: neither PNG, JPEG nor BMP", name);
}
