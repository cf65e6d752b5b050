// cast.c: the kernel of cast: every dtype to every other. Floats to integers are cut towards zero;
// what is out of range becomes the nearest value in range, NaN becomes 0. To bool: not zero.
#include "copy.h"
#include "half.h"

typedef int32_t int32;
typedef int64_t int64;
typedef uint8_t uint8;
typedef float float32;
typedef double float64;

// From floats. The value is replaced before the conversion where C leaves that undefined.
#define FLOAT_TO_INT(T, F, low, high, above) \
    ALWAYS_INLINE T T##_of_##F(F x) { \
        bool inside = x >= (F)(low) && x < (F)(above); \
        T cut = (T)(inside ? x : (F)0); \
        T edge = x >= (F)(above) ? (T)(high) : x < (F)(low) ? (T)(low) : (T)0; \
        return inside ? cut : edge; \
    }
FLOAT_TO_INT(int32, float32, INT32_MIN, INT32_MAX, 2147483648.0)
FLOAT_TO_INT(int32, float64, INT32_MIN, INT32_MAX, 2147483648.0)
FLOAT_TO_INT(int64, float32, INT64_MIN, INT64_MAX, 9223372036854775808.0)
FLOAT_TO_INT(int64, float64, INT64_MIN, INT64_MAX, 9223372036854775808.0)
FLOAT_TO_INT(uint8, float32, 0, 255, 256.0)
FLOAT_TO_INT(uint8, float64, 0, 255, 256.0)

ALWAYS_INLINE int32 int32_of_int64(int64 x) {
    return x > INT32_MAX ? INT32_MAX : x < INT32_MIN ? INT32_MIN : (int32)x;
}
ALWAYS_INLINE uint8 uint8_of_int64(int64 x) { return x > 255 ? 255 : x < 0 ? 0 : (uint8)x; }
ALWAYS_INLINE uint8 uint8_of_int32(int32 x) { return x > 255 ? 255 : x < 0 ? 0 : (uint8)x; }

EACH_SPAN1(int32_from_float32, int32, float32, int32_of_float32(X))
EACH_SPAN1(int32_from_float64, int32, float64, int32_of_float64(X))
EACH_SPAN1(int64_from_float32, int64, float32, int64_of_float32(X))
EACH_SPAN1(int64_from_float64, int64, float64, int64_of_float64(X))
EACH_SPAN1(uint8_from_float32, uint8, float32, uint8_of_float32(X))
EACH_SPAN1(uint8_from_float64, uint8, float64, uint8_of_float64(X))
EACH_SPAN1(int32_from_int64, int32, int64, int32_of_int64(X))
EACH_SPAN1(uint8_from_int64, uint8, int64, uint8_of_int64(X))
EACH_SPAN1(uint8_from_int32, uint8, int32, uint8_of_int32(X))
EACH_SPAN1(int64_from_int32, int64, int32, X)
EACH_SPAN1(int64_from_uint8, int64, uint8, X)
EACH_SPAN1(int32_from_uint8, int32, uint8, X)
EACH_SPAN1(float32_from_float64, float32, float64, X)
EACH_SPAN1(float32_from_int32, float32, int32, X)
EACH_SPAN1(float32_from_int64, float32, int64, X)
EACH_SPAN1(float32_from_uint8, float32, uint8, X)
EACH_SPAN1(float64_from_float32, float64, float32, X)
EACH_SPAN1(float64_from_int32, float64, int32, X)
EACH_SPAN1(float64_from_int64, float64, int64, X)
EACH_SPAN1(float64_from_uint8, float64, uint8, X)
EACH_SPAN1(bool_from_float32, uint8, float32, X != 0)
EACH_SPAN1(bool_from_float64, uint8, float64, X != 0)
EACH_SPAN1(bool_from_int32, uint8, int32, X != 0)
EACH_SPAN1(bool_from_int64, uint8, int64, X != 0)
EACH_SPAN1(bool_from_uint8, uint8, uint8, X != 0)

// direct[to][from]; copies and 16-bit floats are not in it.
static const each_fn direct[WEFT_N_DTYPES][WEFT_N_DTYPES] = {
    [WEFT_FLOAT32] = { [WEFT_FLOAT64] = float32_from_float64, [WEFT_INT32] = float32_from_int32,
                       [WEFT_INT64] = float32_from_int64, [WEFT_UINT8] = float32_from_uint8,
                       [WEFT_BOOL] = float32_from_uint8 },
    [WEFT_FLOAT64] = { [WEFT_FLOAT32] = float64_from_float32, [WEFT_INT32] = float64_from_int32,
                       [WEFT_INT64] = float64_from_int64, [WEFT_UINT8] = float64_from_uint8,
                       [WEFT_BOOL] = float64_from_uint8 },
    [WEFT_INT32] = { [WEFT_FLOAT32] = int32_from_float32, [WEFT_FLOAT64] = int32_from_float64,
                     [WEFT_INT64] = int32_from_int64, [WEFT_UINT8] = int32_from_uint8,
                     [WEFT_BOOL] = int32_from_uint8 },
    [WEFT_INT64] = { [WEFT_FLOAT32] = int64_from_float32, [WEFT_FLOAT64] = int64_from_float64,
                     [WEFT_INT32] = int64_from_int32, [WEFT_UINT8] = int64_from_uint8,
                     [WEFT_BOOL] = int64_from_uint8 },
    [WEFT_UINT8] = { [WEFT_FLOAT32] = uint8_from_float32, [WEFT_FLOAT64] = uint8_from_float64,
                     [WEFT_INT32] = uint8_from_int32, [WEFT_INT64] = uint8_from_int64 },
    [WEFT_BOOL] = { [WEFT_FLOAT32] = bool_from_float32, [WEFT_FLOAT64] = bool_from_float64,
                    [WEFT_INT32] = bool_from_int32, [WEFT_INT64] = bool_from_int64,
                    [WEFT_UINT8] = bool_from_uint8 },
};

// On the way to 16 bits nothing may be rounded twice.
EACH_SPAN1(odd_from_float64, float, double, weft_round_to_odd(X))
EACH_SPAN1(odd_from_int64, float, int64_t, weft_round_to_odd((double)X))
EACH_SPAN1(odd_from_int32, float, int32_t, weft_round_to_odd((double)X))

typedef struct by_float { int from, to; } by_float;

// 16-bit floats: through float32 in a block.
static void through_float(const void *context, int64_t n, void *const *p) {
    const by_float *c = context;
    float block[EACH_BLOCK];
    for (int64_t i = 0; i < n; i += EACH_BLOCK) {
        int64_t m = n - i < EACH_BLOCK ? n - i : EACH_BLOCK;
        const char *from = (const char *)p[1] + i * each_dtype_size(c->from);
        char *to = (char *)p[0] + i * each_dtype_size(c->to);
        void *in[2] = { block, (void *)(uintptr_t)from }, *out[2] = { to, block };
        float *middle = block;
        switch (c->from) {
        case WEFT_FLOAT32: middle = in[1]; break;
        case WEFT_BFLOAT16: weft_from_bfloat16_span(block, in[1], m); break;
        case WEFT_FLOAT16: weft_from_float16_span(block, in[1], m); break;
        case WEFT_FLOAT64: odd_from_float64(NULL, m, in); break;
        case WEFT_INT64: odd_from_int64(NULL, m, in); break;
        case WEFT_INT32: odd_from_int32(NULL, m, in); break;
        default: float32_from_uint8(NULL, m, in); break;
        }
        switch (c->to) {
        case WEFT_BFLOAT16: weft_bfloat16_span(out[0], middle, m); break;
        case WEFT_FLOAT16: weft_float16_span(out[0], middle, m); break;
        default: direct[c->to][WEFT_FLOAT32](NULL, m, out); break;
        }
    }
}

static void from_bfloat16(const void *context, int64_t n, void *const *p) {
    (void)context;
    weft_from_bfloat16_span(p[0], p[1], n);
}

static void from_float16(const void *context, int64_t n, void *const *p) {
    (void)context;
    weft_from_float16_span(p[0], p[1], n);
}

CPU_KERNEL(cast) {
    int from = call->in[0]->dtype, to = call->out[0]->dtype;
    each_fn fn = direct[to][from];
    if (to == from || (to == WEFT_UINT8 && from == WEFT_BOOL)) {
        copy_view(call->out[0], call->in[0]);
        return WEFT_OK;
    }
    if (to == WEFT_FLOAT32 && from == WEFT_BFLOAT16) fn = from_bfloat16;
    if (to == WEFT_FLOAT32 && from == WEFT_FLOAT16) fn = from_float16;
    if (fn) return each_call(call, fn, NULL, EACH_CHEAP);
    by_float context = { from, to };
    return each_call(call, through_float, &context, EACH_CHEAP);
}

// From the CPU to the CPU; what crosses to a GPU is the GPU's own kernel.
CPU_KERNEL(to_device) {
    copy_view(call->out[0], call->in[0]);
    return WEFT_OK;
}
