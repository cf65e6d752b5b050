// cast.h: one number from any dtype to any other, as cast does it everywhere: floats to integers
// are cut towards zero, what is out of range becomes the nearest value in range, NaN becomes 0; to
// 16-bit floats to nearest even, rounded once.
#ifndef WEFT_CUDA_CAST_H
#define WEFT_CUDA_CAST_H

#include "cuda/device.h"

struct truth { uint8_t v; };    // a bool's storage, apart from uint8_t

// float32 with the last bit set where something was lost, so that the next rounding sees which side
// of a tie the number was on.
HD float round_to_odd(double x) {
    const float f = (float)x;
    const double back = (double)f;
    if (x != x || back == x) return f;
    uint32_t b;
    memcpy(&b, &f, 4);
    b -= fabs(back) > fabs(x);
    b |= 1u;
    float y;
    memcpy(&y, &b, 4);
    return y;
}

template <class To, class From> HD To float_to_int(From x, From low, From above, To least, To most) {
    return x >= low && x < above ? (To)x : x >= above ? most : x < low ? least : (To)0;
}

template <class To> struct converter;
template <> struct converter<float> {
    template <class F> static HD float of(F x) { return (float)x; }
};
template <> struct converter<double> {
    template <class F> static HD double of(F x) { return (double)x; }
};
template <> struct converter<bf16> {
    static HD bf16 of(float x) { return narrow<bf16>(x); }
    template <class F> static HD bf16 of(F x) { return narrow<bf16>(round_to_odd((double)x)); }
};
template <> struct converter<half_t> {
    static HD half_t of(float x) { return narrow<half_t>(x); }
    template <class F> static HD half_t of(F x) { return narrow<half_t>(round_to_odd((double)x)); }
};
template <> struct converter<int32_t> {
    static HD int32_t of(float x) { return float_to_int<int32_t, float>(x, -2147483648.0f, 2147483648.0f, INT32_MIN, INT32_MAX); }
    static HD int32_t of(double x) {
        return x > -2147483649.0 && x < 2147483648.0 ? (int32_t)x : x > 0 ? INT32_MAX : x < 0 ? INT32_MIN : 0;
    }
    static HD int32_t of(int64_t x) { return x > INT32_MAX ? INT32_MAX : x < INT32_MIN ? INT32_MIN : (int32_t)x; }
    static HD int32_t of(int32_t x) { return x; }
    static HD int32_t of(uint8_t x) { return x; }
};
template <> struct converter<int64_t> {
    static HD int64_t of(float x) { return of((double)x); }
    static HD int64_t of(double x) {
        return float_to_int<int64_t, double>(x, -9223372036854775808.0, 9223372036854775808.0, INT64_MIN, INT64_MAX);
    }
    static HD int64_t of(int64_t x) { return x; }
    static HD int64_t of(int32_t x) { return x; }
    static HD int64_t of(uint8_t x) { return x; }
};
template <> struct converter<uint8_t> {
    static HD uint8_t of(float x) { return of((double)x); }
    static HD uint8_t of(double x) { return x > -1.0 && x < 256.0 ? (uint8_t)x : x >= 256.0 ? 255 : 0; }
    static HD uint8_t of(int64_t x) { return x > 255 ? 255 : x < 0 ? 0 : (uint8_t)x; }
    static HD uint8_t of(int32_t x) { return of((int64_t)x); }
    static HD uint8_t of(uint8_t x) { return x; }
};
template <> struct converter<truth> {
    template <class F> static HD truth of(F x) { return truth{ (uint8_t)(x != 0) }; }
};

// 16-bit floats widen first, truth values are bytes.
template <class To, class From> HD To converted(From x) { return converter<To>::of(x); }
template <class To> HD To converted(bf16 x) { return converter<To>::of(widen<bf16>(x)); }
template <class To> HD To converted(half_t x) { return converter<To>::of(widen<half_t>(x)); }
template <class To> HD To converted(truth x) { return converter<To>::of(x.v); }

#endif
