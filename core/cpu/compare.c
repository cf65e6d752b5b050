// compare.c: kernels that compare, combine truth values (bytes 0 and 1), and choose by them.
#include "copy.h"
#include "math.h"

// --- comparisons, by the dtype of the operands
#define COMPARE(op, symbol) \
    EACH_SPAN2(op##_float32, uint8_t, float, A symbol B) \
    EACH_SPAN2(op##_float64, uint8_t, double, A symbol B) \
    EACH_SPAN2(op##_int32, uint8_t, int32_t, A symbol B) \
    EACH_SPAN2(op##_int64, uint8_t, int64_t, A symbol B) \
    EACH_SPAN2(op##_uint8, uint8_t, uint8_t, A symbol B) \
    CPU_KERNEL(op) { \
        switch (call->in[0]->dtype) { \
        case WEFT_FLOAT32: return each_call(call, op##_float32, NULL, EACH_CHEAP); \
        case WEFT_FLOAT64: return each_call(call, op##_float64, NULL, EACH_CHEAP); \
        case WEFT_INT32: return each_call(call, op##_int32, NULL, EACH_CHEAP); \
        case WEFT_INT64: return each_call(call, op##_int64, NULL, EACH_CHEAP); \
        default: return each_call(call, op##_uint8, NULL, EACH_CHEAP); \
        } \
    }
COMPARE(eq, ==)
COMPARE(ne, !=)
COMPARE(lt, <)
COMPARE(le, <=)
COMPARE(gt, >)
COMPARE(ge, >=)

// --- truth values; uint8 inputs hold any byte
EACH_SPAN1(not_uint8, uint8_t, uint8_t, X == 0)
EACH_SPAN2(and_uint8, uint8_t, uint8_t, (A != 0) & (B != 0))
EACH_SPAN2(or_uint8, uint8_t, uint8_t, (A | B) != 0)
CPU_KERNEL(logical_not) { return each_call(call, not_uint8, NULL, EACH_CHEAP); }
CPU_KERNEL(logical_and) { return each_call(call, and_uint8, NULL, EACH_CHEAP); }
CPU_KERNEL(logical_or) { return each_call(call, or_uint8, NULL, EACH_CHEAP); }

EACH_SPAN1(isfinite_float32, uint8_t, float, __builtin_fabsf(X) < INFINITY)
EACH_SPAN1(isfinite_float64, uint8_t, double, __builtin_fabs(X) < (double)INFINITY)
CPU_KERNEL(isfinite) {
    bool f32 = call->in[0]->dtype == WEFT_FLOAT32;
    return each_call(call, f32 ? isfinite_float32 : isfinite_float64, NULL, EACH_CHEAP);
}

// --- choices move bits, whatever their dtype
#define WHERE(T) \
    static void where_##T(const void *context, int64_t n, void *const *p) { \
        T *y = p[0]; \
        const uint8_t *c = p[1]; \
        const T *a = p[2], *b = p[3]; \
        (void)context; \
        _Pragma("omp simd") \
        for (int64_t i = 0; i < n; i++) { \
            const T A = a[i], B = b[i]; \
            y[i] = c[i] ? A : B; \
        } \
    } \
    static void masked_fill_##T(const void *context, int64_t n, void *const *p) { \
        const T value = *(const T *)context; \
        T *y = p[0]; \
        const T *x = p[1]; \
        const uint8_t *m = p[2]; \
        _Pragma("omp simd") \
        for (int64_t i = 0; i < n; i++) { \
            const T X = x[i]; \
            y[i] = m[i] ? value : X; \
        } \
    }
typedef uint8_t __attribute__((may_alias)) bits8;
typedef uint32_t __attribute__((may_alias)) bits32;
typedef uint64_t __attribute__((may_alias)) bits64;
WHERE(bits8)
WHERE(bits32)
WHERE(bits64)

CPU_KERNEL(where) {
    switch (each_dtype_size(call->out[0]->dtype)) {
    case 1: return each_call(call, where_bits8, NULL, EACH_CHEAP);
    case 4: return each_call(call, where_bits32, NULL, EACH_CHEAP);
    default: return each_call(call, where_bits64, NULL, EACH_CHEAP);
    }
}

// value in the bits of dtype; integers take the nearest value in range.
static uint64_t bits_of(double value, int dtype) {
    uint64_t bits = 0;
    double low = 0, high = 255;
    float f = (float)value;
    switch (dtype) {
    case WEFT_FLOAT64: memcpy(&bits, &value, sizeof value); return bits;
    case WEFT_FLOAT32: memcpy(&bits, &f, sizeof f); return bits;
    case WEFT_BOOL: return value != 0;
    case WEFT_INT32: low = INT32_MIN; high = INT32_MAX; break;
    case WEFT_INT64:
        if (value >= 0x1p63) return INT64_MAX;
        low = -0x1p63; high = 0x1p63;
        break;
    default: break;
    }
    if (value != value) return 0;
    return (uint64_t)(int64_t)(value < low ? low : value > high ? high : value);
}

CPU_KERNEL(masked_fill) {
    int dtype = call->out[0]->dtype;
    uint64_t bits = bits_of(call->at->AT(masked_fill, value), dtype);
    bits8 b8 = (bits8)bits;
    bits32 b32 = (bits32)bits;
    switch (each_dtype_size(dtype)) {
    case 1: return each_call(call, masked_fill_bits8, &b8, EACH_CHEAP);
    case 4: return each_call(call, masked_fill_bits32, &b32, EACH_CHEAP);
    default: return each_call(call, masked_fill_bits64, &bits, EACH_CHEAP);
    }
}
