// elementwise.c: kernels of arithmetic with broadcasting and of functions of one number.
// Integers wrap around; comparisons and choices are in compare.c, conversions in cast.c.
#include "copy.h"
#include "math.h"

// A kernel with one span function for each dtype. Those that call libm once an element for float64
// are cut into smaller pieces.
#define KERNEL_OF(op, grain32, grain64) \
    CPU_KERNEL(op) { \
        int dtype = call->out[0]->dtype; \
        return each_call(call, op##_spans[dtype], NULL, \
                         dtype == WEFT_FLOAT64 ? (grain64) : (grain32)); \
    }
#define NUM_SPANS(op) \
    static const each_fn op##_spans[WEFT_N_DTYPES] = { \
        [WEFT_FLOAT32] = op##_float32, [WEFT_FLOAT64] = op##_float64, \
        [WEFT_INT32] = op##_int32, [WEFT_INT64] = op##_int64 }
#define FLOAT_SPANS(op) \
    static const each_fn op##_spans[WEFT_N_DTYPES] = { \
        [WEFT_FLOAT32] = op##_float32, [WEFT_FLOAT64] = op##_float64 }

// --- two operands. Unsigned arithmetic is what wraps without undefined behaviour.
#define ARITHMETIC(op, symbol) \
    EACH_SPAN2(op##_float32, float, float, A symbol B) \
    EACH_SPAN2(op##_float64, double, double, A symbol B) \
    EACH_SPAN2(op##_int32, int32_t, int32_t, (uint32_t)A symbol (uint32_t)B) \
    EACH_SPAN2(op##_int64, int64_t, int64_t, (uint64_t)A symbol (uint64_t)B) \
    NUM_SPANS(op); \
    KERNEL_OF(op, EACH_CHEAP, EACH_CHEAP)
ARITHMETIC(add, +)
ARITHMETIC(sub, -)
ARITHMETIC(mul, *)

#define CHOICE(op, expr) \
    EACH_SPAN2(op##_float32, float, float, expr) \
    EACH_SPAN2(op##_float64, double, double, expr) \
    EACH_SPAN2(op##_int32, int32_t, int32_t, expr) \
    EACH_SPAN2(op##_int64, int64_t, int64_t, expr) \
    NUM_SPANS(op); \
    KERNEL_OF(op, EACH_CHEAP, EACH_CHEAP)
CHOICE(maximum, (A > B || A != A) ? A : B)
CHOICE(minimum, (A < B || A != A) ? A : B)

// The smallest integer over -1 wraps to itself, as the other operations do. Zeros were refused.
ALWAYS_INLINE int32_t quotient32(int32_t a, int32_t b) {
    return b == -1 ? (int32_t)(0u - (uint32_t)a) : a / b;
}
ALWAYS_INLINE int64_t quotient64(int64_t a, int64_t b) {
    return b == -1 ? (int64_t)(0u - (uint64_t)a) : a / b;
}
EACH_SPAN2(div_float32, float, float, A / B)
EACH_SPAN2(div_float64, double, double, A / B)
EACH_SPAN2(div_int32, int32_t, int32_t, quotient32(A, B))
EACH_SPAN2(div_int64, int64_t, int64_t, quotient64(A, B))
NUM_SPANS(div);

// Looks for zeros before anything is written.
typedef struct zero_search { int found; } zero_search;
#define ZEROS(T) \
    static void zeros_##T(const void *context, int64_t n, void *const *p) { \
        const T *b = p[1]; \
        int any = 0; \
        for (int64_t i = 0; i < n; i++) any |= b[i] == 0; \
        int *found = &((zero_search *)(uintptr_t)context)->found; \
        if (any) __atomic_store_n(found, 1, __ATOMIC_RELAXED); \
    }
ZEROS(int32_t)
ZEROS(int64_t)

CPU_KERNEL(div) {
    int dtype = call->out[0]->dtype;
    if (call->out[0]->numel && (dtype == WEFT_INT32 || dtype == WEFT_INT64)) {
        zero_search search = {0};
        each_search(call->in[1], dtype == WEFT_INT32 ? zeros_int32_t : zeros_int64_t, &search);
        if (search.found)
            return weft_fail(WEFT_EINVAL, "integer division by zero: b holds a 0; put another "
                                          "value there or divide in a float dtype");
    }
    return each_call(call, div_spans[dtype], NULL, EACH_CHEAP);
}

EACH_SPAN2(pow_float32, float, float, powf(A, B))
EACH_SPAN2(pow_float64, double, double, pow(A, B))
FLOAT_SPANS(pow);
KERNEL_OF(pow, EACH_COSTLY, EACH_COSTLY)

// --- one operand and attributes
typedef struct affine { double mul, add; int64_t int_mul, int_add; } affine;

#define SPAN1_WITH(name, T, prepare, expr) \
    static void name(const void *context, int64_t n, void *const *p) { \
        prepare; \
        T *y = p[0]; \
        const T *x = p[1]; \
        _Pragma("omp simd") \
        for (int64_t i = 0; i < n; i++) { \
            const T X = x[i]; \
            y[i] = (T)(expr); \
        } \
    }
#define AFFINE(T) const affine c = *(const affine *)context; const T mul = (T)c.mul, add = (T)c.add
SPAN1_WITH(affine_float32, float, AFFINE(float), X * mul + add)
SPAN1_WITH(affine_float64, double, AFFINE(double), X * mul + add)

// Through double, cut towards zero, the nearest value in range where the result is out of it.
ALWAYS_INLINE int32_t saturate32(double v) {
    bool inside = v > -2147483649.0 && v < 2147483648.0;
    int32_t cut = (int32_t)(inside ? v : 0.0);
    return inside ? cut : v > 0 ? INT32_MAX : v < 0 ? INT32_MIN : 0;
}
ALWAYS_INLINE int64_t saturate64(double v) {
    bool inside = v >= -9223372036854775808.0 && v < 9223372036854775808.0;
    int64_t cut = (int64_t)(inside ? v : 0.0);
    return inside ? cut : v > 0 ? INT64_MAX : v < 0 ? INT64_MIN : 0;
}
SPAN1_WITH(affine_int32, int32_t, AFFINE(double), saturate32(X * mul + add))
SPAN1_WITH(affine_int64, int64_t, AFFINE(double), saturate64((double)X * mul + add))
NUM_SPANS(affine);

// int64 with whole factors keeps all 64 bits.
SPAN1_WITH(affine_whole, int64_t, const affine c = *(const affine *)context,
           (uint64_t)X * (uint64_t)c.int_mul + (uint64_t)c.int_add)

CPU_KERNEL(affine) {
    int dtype = call->out[0]->dtype;
    affine c = { call->at->AT(affine, mul), call->at->AT(affine, add), 0, 0 };
    each_fn fn = affine_spans[dtype];
    if (dtype == WEFT_INT64 && fabs(c.mul) < 0x1p53 && fabs(c.add) < 0x1p53 &&
        c.mul == floor(c.mul) && c.add == floor(c.add)) {
        c.int_mul = (int64_t)c.mul;
        c.int_add = (int64_t)c.add;
        fn = affine_whole;
    }
    if (c.add == 0) c.add = -0.0;  // -0 * mul keeps its sign
    return each_call(call, fn, &c, EACH_CHEAP);
}

#define BOUNDS(T) const T low = ((const T *)context)[0], high = ((const T *)context)[1]
#define CLAMPED (X < low ? (low > high ? high : low) : X > high ? high : X)
SPAN1_WITH(clamp_float32, float, BOUNDS(float), CLAMPED)
SPAN1_WITH(clamp_float64, double, BOUNDS(double), CLAMPED)
SPAN1_WITH(clamp_int32, int32_t, BOUNDS(int32_t), CLAMPED)
SPAN1_WITH(clamp_int64, int64_t, BOUNDS(int64_t), CLAMPED)

CPU_KERNEL(clamp) {
    double low = call->at->AT(clamp, min), high = call->at->AT(clamp, max);
    float floats[2] = { (float)low, (float)high };
    double doubles[2] = { low, high };
    // integers: the whole numbers inside the bounds
    int32_t ints[2] = { saturate32(ceil(low)), saturate32(floor(high)) };
    int64_t longs[2] = { saturate64(ceil(low)), saturate64(floor(high)) };
    switch (call->out[0]->dtype) {
    case WEFT_FLOAT32: return each_call(call, clamp_float32, floats, EACH_CHEAP);
    case WEFT_FLOAT64: return each_call(call, clamp_float64, doubles, EACH_CHEAP);
    case WEFT_INT32: return each_call(call, clamp_int32, ints, EACH_CHEAP);
    default: return each_call(call, clamp_int64, longs, EACH_CHEAP);
    }
}

#define EXPONENT(T) const T e = (T)*(const double *)context
SPAN1_WITH(pow_scalar_float32, float, EXPONENT(float), powf(X, e))
SPAN1_WITH(pow_scalar_float64, double, EXPONENT(double), pow(X, e))
EACH_SPAN1(square_float32, float, float, X * X)
EACH_SPAN1(square_float64, double, double, X * X)
EACH_SPAN1(cube_float32, float, float, X * X * X)
EACH_SPAN1(cube_float64, double, double, X * X * X)
EACH_SPAN1(inverse_float32, float, float, 1.0f / X)
EACH_SPAN1(inverse_float64, double, double, 1.0 / X)

CPU_KERNEL(pow_scalar) {
    double e = call->at->AT(pow_scalar, exponent);
    bool f32 = call->out[0]->dtype == WEFT_FLOAT32;
    if (e == 2) return each_call(call, f32 ? square_float32 : square_float64, NULL, EACH_CHEAP);
    if (e == 3) return each_call(call, f32 ? cube_float32 : cube_float64, NULL, EACH_CHEAP);
    if (e == -1) return each_call(call, f32 ? inverse_float32 : inverse_float64, NULL, EACH_CHEAP);
    return each_call(call, f32 ? pow_scalar_float32 : pow_scalar_float64, &e, EACH_COSTLY);
}

// --- one operand
EACH_SPAN1(neg_float32, float, float, -X)
EACH_SPAN1(neg_float64, double, double, -X)
EACH_SPAN1(neg_int32, int32_t, int32_t, 0u - (uint32_t)X)
EACH_SPAN1(neg_int64, int64_t, int64_t, 0u - (uint64_t)X)
NUM_SPANS(neg);
KERNEL_OF(neg, EACH_CHEAP, EACH_CHEAP)

EACH_SPAN1(abs_float32, float, float, __builtin_fabsf(X))
EACH_SPAN1(abs_float64, double, double, __builtin_fabs(X))
EACH_SPAN1(abs_int32, int32_t, int32_t, X < 0 ? 0u - (uint32_t)X : (uint32_t)X)
EACH_SPAN1(abs_int64, int64_t, int64_t, X < 0 ? 0u - (uint64_t)X : (uint64_t)X)
NUM_SPANS(abs);
KERNEL_OF(abs, EACH_CHEAP, EACH_CHEAP)

EACH_SPAN1(sign_float32, float, float, X > 0 ? 1.0f : X < 0 ? -1.0f : X)
EACH_SPAN1(sign_float64, double, double, X > 0 ? 1.0 : X < 0 ? -1.0 : X)
EACH_SPAN1(sign_int32, int32_t, int32_t, (X > 0) - (X < 0))
EACH_SPAN1(sign_int64, int64_t, int64_t, (X > 0) - (X < 0))
NUM_SPANS(sign);
KERNEL_OF(sign, EACH_CHEAP, EACH_CHEAP)

#define FUNCTION(op, expr32, expr64, grain32, grain64) \
    EACH_SPAN1(op##_float32, float, float, expr32) \
    EACH_SPAN1(op##_float64, double, double, expr64) \
    FLOAT_SPANS(op); \
    KERNEL_OF(op, grain32, grain64)
FUNCTION(floor, floorf(X), floor(X), EACH_CHEAP, EACH_CHEAP)
FUNCTION(exp, weft_expf(X), weft_expd(X), EACH_CHEAP, EACH_COSTLY)
FUNCTION(log, weft_logf(X), weft_logd(X), EACH_CHEAP, EACH_COSTLY)
FUNCTION(sqrt, sqrtf(X), sqrt(X), EACH_CHEAP, EACH_CHEAP)
FUNCTION(rsqrt, 1.0f / sqrtf(X), 1.0 / sqrt(X), EACH_CHEAP, EACH_CHEAP)

// The polynomials hold for moderate angles; a block with one beyond goes through libm.
static bool moderate(const float *x, int64_t n) {
    int beyond = 0;
    for (int64_t i = 0; i < n; i++) beyond |= __builtin_fabsf(x[i]) > WEFT_TRIG_MAX;
    return !beyond;
}
#define TRIGONOMETRIC(op, vector, library) \
    EACH_SPAN1(op##_vector, float, float, vector(X)) \
    EACH_SPAN1(op##_library, float, float, library(X)) \
    static void op##_float32(const void *context, int64_t n, void *const *p) { \
        const float *x = p[1]; \
        float *y = p[0]; \
        for (int64_t i = 0; i < n; i += EACH_BLOCK) { \
            int64_t m = n - i < EACH_BLOCK ? n - i : EACH_BLOCK; \
            void *part[2] = { y + i, (void *)(uintptr_t)(x + i) }; \
            (moderate(x + i, m) ? op##_vector : op##_library)(context, m, part); \
        } \
    }
TRIGONOMETRIC(sin, weft_sinf, sinf)
TRIGONOMETRIC(cos, weft_cosf, cosf)
EACH_SPAN1(sin_float64, double, double, weft_sind(X))
EACH_SPAN1(cos_float64, double, double, weft_cosd(X))
FLOAT_SPANS(sin);
FLOAT_SPANS(cos);
KERNEL_OF(sin, EACH_COSTLY, EACH_COSTLY)
KERNEL_OF(cos, EACH_COSTLY, EACH_COSTLY)
