// random.h: Philox4x32-10 and what is drawn from it; the same values on every device.
// Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011). Shared with device code:
// no library calls but correctly rounded square roots, and to be compiled without contraction so
// that bits agree.
//
// A draw is named by (key, counter, element), so that it depends on no other draw:
//   float32 uniform     word e
//   float64 uniform     words 2e, 2e + 1
//   bounded integer     words 2e, 2e + 1
//   float32 normal      words 2i, 2i + 1 make elements 2i (cosine) and 2i + 1 (sine)
//   float64 normal      words 4i .. 4i + 3 make elements 2i and 2i + 1
//   kept by dropout     word e
// A truncated normal is drawn by trial: attempt j (from 0) reads 2^50 j words further on, where it
// takes a normal, or four words 4e .. 4e + 3 for a point of a narrow interval and its acceptance.
#ifndef WEFT_RANDOM_H
#define WEFT_RANDOM_H

#include <stdbool.h>
#include <stdint.h>

#ifndef WEFT_FN
#define WEFT_FN static inline
#endif

typedef struct weft_philox4 { uint32_t v[4]; } weft_philox4;

// key: 64 bits; block: which group of four words; counter: which call.
WEFT_FN weft_philox4 weft_philox(uint64_t key, uint64_t counter, uint64_t block) {
    uint32_t c0 = (uint32_t)block, c1 = (uint32_t)(block >> 32);
    uint32_t c2 = (uint32_t)counter, c3 = (uint32_t)(counter >> 32);
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xD2511F53u * c0, b = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(b >> 32) ^ c1 ^ k0, n2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)b;
        c3 = (uint32_t)a;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    weft_philox4 out = {{c0, c1, c2, c3}};
    return out;
}

// Word number `element` of the stream (key, counter).
WEFT_FN uint32_t weft_random_word(uint64_t key, uint64_t counter, uint64_t element) {
    return weft_philox(key, counter, element >> 2).v[element & 3];
}

// [0, 1) with 24 bits: exact in float32.
WEFT_FN float weft_uniform32(uint32_t word) { return (float)(int32_t)(word >> 8) * 0x1p-24f; }

// [0, 1) with 53 bits: exact in float64.
WEFT_FN double weft_uniform64(uint32_t low, uint32_t high) {
    return (double)(int64_t)((uint64_t)high << 21 ^ low >> 11) * 0x1p-53;
}

// Dropout keeps an element iff this holds for its word.
WEFT_FN bool weft_kept(uint32_t word, double p) { return weft_uniform32(word) >= p; }

// An integer in [0, n): the upper half of a 64 by 64 bit product. The bias is below n / 2^64.
WEFT_FN uint64_t weft_below(uint32_t low, uint32_t high, uint64_t n) {
    uint64_t r = (uint64_t)high << 32 | low;
#ifdef __CUDA_ARCH__
    return __umul64hi(r, n);
#else
    return (uint64_t)((unsigned __int128)r * n >> 64);
#endif
}

// --- logarithm and sine, in plain arithmetic

// Natural logarithm of a normal x > 0. x = m 2^e with m in [sqrt(1/2), sqrt(2)), and
// log m = 2 artanh(s), s = (m - 1) / (m + 1), |s| < 0.1716: its series, cut below 2^-28.
WEFT_FN float weft_log32(float x) {
    union { float f; int32_t i; } b = { x };
    int32_t e = (b.i - 0x3F3504F3) >> 23;
    b.i -= (int32_t)((uint32_t)e << 23);
    float s = (b.f - 1) / (b.f + 1), z = s * s;
    float series = z * (1.f / 9);
    series = z * (series + 1.f / 7);
    series = z * (series + 1.f / 5);
    series = z * (series + 1.f / 3);
    return (float)e * 0.693147181f + 2 * (s + s * series);
}

// As weft_log32, cut below 2^-58.
WEFT_FN double weft_log64(double x) {
    union { double f; int64_t i; } b = { x };
    int64_t e = (b.i - 0x3FE6A09E667F3BCD) >> 52;
    b.i -= (int64_t)((uint64_t)e << 52);
    double s = (b.f - 1) / (b.f + 1), z = s * s;
    double series = z * (1. / 21);
    series = z * (series + 1. / 19);
    series = z * (series + 1. / 17);
    series = z * (series + 1. / 15);
    series = z * (series + 1. / 13);
    series = z * (series + 1. / 11);
    series = z * (series + 1. / 9);
    series = z * (series + 1. / 7);
    series = z * (series + 1. / 5);
    series = z * (series + 1. / 3);
    return (double)(int32_t)e * 0.69314718055994530942 + 2 * (s + s * series);
}

// Cosine and sine of word / 2^32 of a full turn. The nearest quarter turn comes off in integers,
// exactly; Taylor series do the rest, an angle of at most pi / 4.
WEFT_FN void weft_turn32(uint32_t word, float *cosine, float *sine) {
    uint32_t quarter = (word + 0x20000000u) >> 30;
    float x = (float)(int32_t)(word - (quarter << 30)) * (6.28318531f * 0x1p-32f), z = x * x;
    float s = z * (1.f / 362880);
    s = z * (s - 1.f / 5040);
    s = z * (s + 1.f / 120);
    s = z * (s - 1.f / 6);
    s = x + x * s;
    float c = z * (-1.f / 3628800);
    c = z * (c + 1.f / 40320);
    c = z * (c - 1.f / 720);
    c = z * (c + 1.f / 24);
    c = z * (c - 1.f / 2);
    c = 1 + c;
    float u = quarter & 1 ? s : c, v = quarter & 1 ? c : s;
    *cosine = (quarter + 1) & 2 ? -u : u;
    *sine = quarter & 2 ? -v : v;
}

// As weft_turn32 for bits / 2^64 of a turn.
WEFT_FN void weft_turn64(uint64_t bits, double *cosine, double *sine) {
    uint64_t quarter = (bits + ((uint64_t)1 << 61)) >> 62;
    double x = (double)(int64_t)(bits - (quarter << 62)) * (6.28318530717958647693 * 0x1p-64);
    double z = x * x;
    double s = z * (1. / 355687428096000);
    s = z * (s - 1. / 1307674368000);
    s = z * (s + 1. / 6227020800);
    s = z * (s - 1. / 39916800);
    s = z * (s + 1. / 362880);
    s = z * (s - 1. / 5040);
    s = z * (s + 1. / 120);
    s = z * (s - 1. / 6);
    s = x + x * s;
    double c = z * (-1. / 6402373705728000);
    c = z * (c + 1. / 20922789888000);
    c = z * (c - 1. / 87178291200);
    c = z * (c + 1. / 479001600);
    c = z * (c - 1. / 3628800);
    c = z * (c + 1. / 40320);
    c = z * (c - 1. / 720);
    c = z * (c + 1. / 24);
    c = z * (c - 1. / 2);
    c = 1 + c;
    double u = quarter & 1 ? s : c, v = quarter & 1 ? c : s;
    *cosine = (quarter + 1) & 2 ? -u : u;
    *sine = quarter & 2 ? -v : v;
}

// --- normals, by Box and Muller: two at a time

#ifdef __CUDA_ARCH__
#define WEFT_ROOT32 __fsqrt_rn
#define WEFT_ROOT64 __dsqrt_rn
#else
#define WEFT_ROOT32 __builtin_sqrtf
#define WEFT_ROOT64 __builtin_sqrt
#endif

// |y| is at most 6.67; the radius comes from 31 bits.
WEFT_FN void weft_normal32(uint32_t radius, uint32_t angle, float *y0, float *y1) {
    float u = ((float)(int32_t)(radius >> 1) + 0.5f) * 0x1p-31f, c, s;
    float r = WEFT_ROOT32(-2 * weft_log32(u));
    weft_turn32(angle, &c, &s);
    *y0 = r * c;
    *y1 = r * s;
}

// |y| is at most 8.66; the radius comes from 53 bits.
WEFT_FN void weft_normal64(const uint32_t w[4], double *y0, double *y1) {
    double u = weft_uniform64(w[0], w[1]) + 0x1p-54, c, s;
    double r = WEFT_ROOT64(-2 * weft_log64(u));
    weft_turn64((uint64_t)w[3] << 32 | w[2], &c, &s);
    *y0 = r * c;
    *y1 = r * s;
}

#define WEFT_ATTEMPTS 1024  // the chance that an element needs more is below 1e-11

// Element e at an attempt: a float64 normal if wide, else a float32 one.
WEFT_FN double weft_normal_at(uint64_t key, uint64_t counter, uint64_t e, uint64_t attempt,
                              bool wide) {
    uint64_t jump = attempt << 48;
    if (wide) {
        double y0, y1;
        weft_philox4 w = weft_philox(key, counter, (e >> 1) + jump);
        weft_normal64(w.v, &y0, &y1);
        return e & 1 ? y1 : y0;
    }
    float y0, y1;
    weft_philox4 w = weft_philox(key, counter, (e >> 2) + jump);
    weft_normal32(w.v[e & 2], w.v[(e & 2) + 1], &y0, &y1);
    return e & 1 ? y1 : y0;
}

// Whether plain normals fall into [low, high] often enough (24 % at the least) to wait for one.
WEFT_FN bool weft_often(double low, double high) {
    return low <= 0.5 && high >= -0.5 && high - low >= 1;
}

// Element e of a standard normal cut to [low, high], from that attempt on; wide: float64.
WEFT_FN double weft_cut_normal(uint64_t key, uint64_t counter, uint64_t e, uint64_t attempt,
                               double low, double high, bool wide) {
    double x = low;
    if (weft_often(low, high)) {
        for (; attempt < WEFT_ATTEMPTS; attempt++) {
            x = weft_normal_at(key, counter, e, attempt, wide);
            if (x >= low && x <= high) return x;
        }
        return x < low ? low : high;
    }
    // The density is highest at distance m from 0; beyond sqrt(m^2 + 72) it is 2e-16 of that.
    double m = low > 0 ? low : high < 0 ? -high : 0, far = WEFT_ROOT64(m * m + 72);
    if (low < -far) low = -far;
    if (high > far) high = far;
    for (; attempt < WEFT_ATTEMPTS; attempt++) {
        weft_philox4 w = weft_philox(key, counter, e + (attempt << 48));
        x = low + (high - low) * weft_uniform64(w.v[0], w.v[1]);
        double accept = weft_uniform64(w.v[2], w.v[3]) + 0x1p-54;
        if (2 * weft_log64(accept) <= (m - x) * (m + x)) break;
    }
    return x;
}

#endif
