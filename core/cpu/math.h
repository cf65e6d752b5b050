// math.h: elementary functions of the CPU kernels. The float32 ones (suffix f) are branch-free
// polynomials that the compiler vectorises in a loop; the float64 ones (suffix d) are libm's.
// Errors are at most 2.5 ulp; infinities, NaN and denormals come out as in libm.
#ifndef WEFT_CPU_MATH_H
#define WEFT_CPU_MATH_H

#include <math.h>
#include "cpu.h"

ALWAYS_INLINE uint32_t weft_bits_of(float x) {
    uint32_t b;
    __builtin_memcpy(&b, &x, sizeof b);
    return b;
}

ALWAYS_INLINE float weft_float_of(uint32_t b) {
    float x;
    __builtin_memcpy(&x, &b, sizeof x);
    return x;
}

// exp(x) = 2^n (1 + p), p = expm1(r), |r| <= ln(2) / 2. Adding 1.5 * 2^23 leaves the rounded
// integer n in the low bits of the mantissa. x lies in [-104, 89] or is NaN.
ALWAYS_INLINE float weft_exp_parts(float x, uint32_t *n) {
    const float magic = 12582912.0f;
    float shifted = x * 1.44269504f + magic;
    float k = shifted - magic;
    float r = x - k * 0.693359375f;  // few bits: k times it is exact
    r = r + k * 2.12194440e-4f;
    float q = 1.3814328829e-3f;
    q = q * r + 8.3688508916e-3f;
    q = q * r + 4.1668400943e-2f;
    q = q * r + 1.6666519526e-1f;
    q = q * r + 4.9999993374e-1f;
    *n = weft_bits_of(shifted) - 0x4B400000u;
    return r + r * r * q;
}

ALWAYS_INLINE float weft_expf(float x) {
    x = x > 89.0f ? 89.0f : x;
    x = x < -104.0f ? -104.0f : x;
    uint32_t n;
    float p = weft_exp_parts(x, &n);
    // 2^n in two factors, so that denormal results and 2^128 come out right
    int32_t half = (int32_t)n >> 1;
    float s1 = weft_float_of(((uint32_t)half + 127u) << 23);
    float s2 = weft_float_of((n - (uint32_t)half + 127u) << 23);
    return (p + 1.0f) * s1 * s2;
}

// exp for x <= 0 where results below the smallest normal number may become 0: one factor cheaper.
ALWAYS_INLINE float weft_exp_negf(float x) {
    float c = x < -87.0f ? -87.0f : x;
    uint32_t n;
    float p = weft_exp_parts(c, &n);
    float y = (p + 1.0f) * weft_float_of((n + 127u) << 23);
    return x < -87.0f ? 0.0f : y;
}

ALWAYS_INLINE float weft_logf(float x) {
    const float tiny = 1.17549435e-38f;
    bool denormal = x < tiny;
    float scaled = denormal ? x * 33554432.0f : x;
    // m in [sqrt(1/2), sqrt(2)): x = 2^e m
    uint32_t shifted = weft_bits_of(scaled) + (0x3F800000u - 0x3F3504F3u);
    float e = (float)((int32_t)(shifted >> 23) - (denormal ? 152 : 127));
    float f = weft_float_of((shifted & 0x007FFFFFu) + 0x3F3504F3u) - 1.0f;
    float p = 6.7466065888e-2f;
    p = p * f - 1.1679650407e-1f;
    p = p * f + 1.1890318197e-1f;
    p = p * f - 1.2405135657e-1f;
    p = p * f + 1.4219225155e-1f;
    p = p * f - 1.6668006900e-1f;
    p = p * f + 2.0002133550e-1f;
    p = p * f - 2.5000009636e-1f;
    p = p * f + 3.3333312416e-1f;
    float ff = f * f;
    float low = f * ff * p - e * 2.12194440e-4f;
    float y = (f + (low - 0.5f * ff)) + e * 0.693359375f;
    y = x == 0.0f ? -INFINITY : y;
    y = x < 0.0f ? NAN : y;
    // +inf, NaN
    return x < INFINITY ? y : x;
}

// tanh(t) = expm1(2t) / (expm1(2t) + 2), odd.
ALWAYS_INLINE float weft_tanhf(float x) {
    float t = __builtin_fabsf(x) * 2.0f;
    t = t > 20.0f ? 20.0f : t;
    uint32_t n;
    float p = weft_exp_parts(t, &n);
    float s = weft_float_of((n + 127u) << 23);
    float em1 = s * p + (s - 1.0f);
    return __builtin_copysignf(em1 / (em1 + 2.0f), x);
}

ALWAYS_INLINE float weft_sigmoidf(float x) {
    float e = weft_expf(-__builtin_fabsf(x));
    return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

// P(Z > t) of the standard normal for t >= 0, given g = exp(-t^2 / 2): g times a polynomial in
// 1 / (1 + 0.29 t).
ALWAYS_INLINE float weft_normal_tailf(float t, float g) {
    float u = 1.0f / (1.0f + 0.29f * t);
    float p = 3.9346365550458021e-2f;
    p = p * u - 1.9330396707792954e-1f;
    p = p * u + 3.0800043159794332e-1f;
    p = p * u - 1.5455177142447160e-1f;
    p = p * u + 1.8899206781265912e-1f;
    p = p * u + 7.4913679751186943e-2f;
    p = p * u + 1.2148966900821040e-1f;
    p = p * u + 1.1508631133939611e-1f;
    p = p * u + 2.7193764827789008e-5f;
    return g * p;
}

ALWAYS_INLINE float weft_erff(float x) {
    float a = __builtin_fabsf(x), z = a * a;
    float p = 7.8538579055845143e-5f;
    p = p * z - 8.0101922342313192e-4f;
    p = p * z + 5.1883274768584949e-3f;
    p = p * z - 2.6853811788425958e-2f;
    p = p * z + 1.1283585143740539e-1f;
    p = p * z - 3.7612625823594575e-1f;
    p = p * z + 0.1283791657265634f;
    float large = 1.0f - 2.0f * weft_normal_tailf(a * 1.41421356f, weft_exp_negf(-z));
    return __builtin_copysignf(a < 1.0f ? a + a * p : large, x);
}

// sin and cos hold up to WEFT_TRIG_MAX; larger arguments go through libm.
#define WEFT_TRIG_MAX 1048576.0f
ALWAYS_INLINE float weft_trigf(float x, int64_t quarter) {
    const double magic = 6755399441055744.0;  // 1.5 * 2^52
    double shifted = (double)x * 0.63661977236758134308 + magic;
    double k = shifted - magic;
    int64_t n;
    __builtin_memcpy(&n, &shifted, sizeof n);
    n += quarter;
    double r = (double)x - k * 1.57079632673412561417;  // 33 bits of pi / 2
    r = r - k * 6.07710050650619224932e-11;
    double z = r * r;
    double s = 2.7167675423048376e-6;
    s = s * z - 1.9839136245170379e-4;
    s = s * z + 8.3333285488925556e-3;
    s = s * z - 1.6666666628965948e-1;
    s = s * z + 9.9999999999521605e-1;
    double c = 2.4368341114920261e-5;
    c = c * z - 1.3886480919083290e-3;
    c = c * z + 4.1666611579141276e-2;
    c = c * z - 4.9999999553679098e-1;
    c = c * z + 9.9999999994097377e-1;
    double y = (n & 1) ? c : r * s;
    return (float)((n & 2) ? -y : y);
}
ALWAYS_INLINE float weft_sinf(float x) { return weft_trigf(x, 0); }
ALWAYS_INLINE float weft_cosf(float x) { return weft_trigf(x, 1); }

// --- float64
ALWAYS_INLINE double weft_expd(double x) { return exp(x); }
ALWAYS_INLINE double weft_exp_negd(double x) { return exp(x); }
ALWAYS_INLINE double weft_logd(double x) { return log(x); }
ALWAYS_INLINE double weft_tanhd(double x) { return tanh(x); }
ALWAYS_INLINE double weft_erfd(double x) { return erf(x); }
ALWAYS_INLINE double weft_sind(double x) { return sin(x); }
ALWAYS_INLINE double weft_cosd(double x) { return cos(x); }
ALWAYS_INLINE double weft_sigmoidd(double x) {
    double e = exp(-fabs(x));
    return (x < 0 ? e : 1.0) / (1.0 + e);
}

#endif
