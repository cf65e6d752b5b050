// half.h: bfloat16 and float16 to and from float32, a span at a time. Rounded to nearest even; NaN
// stays NaN, what is too large becomes infinite, float16 denormals are kept.
#ifndef WEFT_CPU_HALF_H
#define WEFT_CPU_HALF_H

#include "math.h"
#if defined(__F16C__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

ALWAYS_INLINE uint16_t weft_bfloat16_of(float x) {
    uint32_t b = weft_bits_of(x);
    uint32_t rounded = (b + 0x7FFFu + ((b >> 16) & 1u)) >> 16, nan = (b >> 16) | 0x40u;
    return (uint16_t)((b & 0x7FFFFFFFu) > 0x7F800000u ? nan : rounded);
}
ALWAYS_INLINE float weft_float_of_bfloat16(uint16_t h) { return weft_float_of((uint32_t)h << 16); }

ALWAYS_INLINE uint16_t weft_float16_of(float x) {
    uint32_t b = weft_bits_of(x), sign = (b >> 16) & 0x8000u, a = b & 0x7FFFFFFFu;
    // normal: the exponent's bias changes by 112, 13 bits of mantissa are rounded away
    uint32_t normal = (a - (112u << 23) + 0xFFFu + ((a >> 13) & 1u)) >> 13;
    // denormal: adding 0.5 leaves multiples of 2^-24 in the low bits, rounded by the adder
    uint32_t denormal = weft_bits_of(weft_float_of(a) + 0.5f) - 0x3F000000u;
    uint32_t h = a < 0x38800000u ? denormal : normal;
    h = a >= 0x477FF000u ? 0x7C00u : h;
    h = a > 0x7F800000u ? (0x7E00u | ((a >> 13) & 0x3FFu)) : h;
    return (uint16_t)(sign | h);
}
ALWAYS_INLINE float weft_float_of_float16(uint16_t h) {
    uint32_t a = (uint32_t)(h & 0x7FFFu) << 13, sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t normal = a + (112u << 23);
    uint32_t special = (a + (224u << 23)) | ((h & 0x3FFu) ? 0x400000u : 0u);
    // denormal: as the mantissa of a number in [0.5, 1), which is then taken off
    uint32_t denormal = weft_bits_of(weft_float_of(0x3F000000u | (a >> 13)) - 0.5f);
    uint32_t b = a < 0x00800000u ? denormal : normal;
    b = a >= 0x0F800000u ? special : b;
    return weft_float_of(sign | b);
}

// A double on its way to 16 bits: cut to float32 with the last bit set where something was lost, so
// that the second rounding sees which side of a tie it was on.
ALWAYS_INLINE float weft_round_to_odd(double x) {
    float f = (float)x;
    double back = (double)f;
    uint32_t b = weft_bits_of(f);
    b -= __builtin_fabs(back) > __builtin_fabs(x);
    b |= back != x;
    return x != x ? f : weft_float_of(b);
}
static inline void weft_bfloat16_span(uint16_t *to, const float *from, int64_t n) {
    _Pragma("omp simd")
    for (int64_t i = 0; i < n; i++) to[i] = weft_bfloat16_of(from[i]);
}
static inline void weft_from_bfloat16_span(float *to, const uint16_t *from, int64_t n) {
    _Pragma("omp simd")
    for (int64_t i = 0; i < n; i++) to[i] = weft_float_of_bfloat16(from[i]);
}

static inline void weft_float16_span(uint16_t *to, const float *from, int64_t n) {
    int64_t i = 0;
#if defined(__AVX512F__)
    for (; i + 16 <= n; i += 16)
        _mm256_storeu_si256((__m256i *)(void *)(to + i),
                            _mm512_cvtps_ph(_mm512_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i *)(void *)(to + i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
#endif
    for (; i < n; i++) to[i] = weft_float16_of(from[i]);
}
static inline void weft_from_float16_span(float *to, const uint16_t *from, int64_t n) {
    int64_t i = 0;
#if defined(__AVX512F__)
    for (; i + 16 <= n; i += 16)
        _mm512_storeu_ps(to + i, _mm512_cvtph_ps(
                             _mm256_loadu_si256((const __m256i *)(const void *)(from + i))));
#elif defined(__F16C__)
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(
                             _mm_loadu_si128((const __m128i *)(const void *)(from + i))));
#endif
    for (; i < n; i++) to[i] = weft_float_of_float16(from[i]);
}

#endif
