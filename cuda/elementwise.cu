// elementwise.cu: arithmetic with broadcasting and functions of one number; also fill and copies
// between devices. Comparisons and choices are in compare.cu, conversions in cast.cu.
#include "cuda/each.h"
#include "cuda/memory.h"
#include "cuda/cast.h"

// --- integers wrap around, as unsigned ones do
template <class W> struct unsigned_of { typedef W type; };
template <> struct unsigned_of<int32_t> { typedef uint32_t type; };
template <> struct unsigned_of<int64_t> { typedef uint64_t type; };
template <class W> using wrapping = typename unsigned_of<W>::type;

// One functor a kernel: an expression over widened operands.
#define UNARY(name, expr) \
    template <class T> struct name##_fn { \
        DEVICE T operator()(T stored) const { \
            typedef wide_t<T> W; \
            const W x = widen<T>(stored); \
            return narrow<T>((W)(expr)); \
        } \
    };
#define BINARY(name, expr) \
    template <class T> struct name##_fn { \
        DEVICE T operator()(T stored_a, T stored_b) const { \
            typedef wide_t<T> W; \
            const W a = widen<T>(stored_a), b = widen<T>(stored_b); \
            return narrow<T>((W)(expr)); \
        } \
    };
#define KERNEL1(name, with) \
    CUDA_KERNEL(name) { \
        return with(call->in[0]->dtype, [&](auto tag) { \
            using T = TYPE_OF(tag); \
            return each1<T, T>(call, name##_fn<T>{}); \
        }); \
    }
#define KERNEL2(name, with) \
    CUDA_KERNEL(name) { \
        return with(call->in[0]->dtype, [&](auto tag) { \
            using T = TYPE_OF(tag); \
            return each2<T, T, T>(call, name##_fn<T>{}); \
        }); \
    }

BINARY(add, (wrapping<W>)a + (wrapping<W>)b)
BINARY(sub, (wrapping<W>)a - (wrapping<W>)b)
BINARY(mul, (wrapping<W>)a * (wrapping<W>)b)
BINARY(maximum, (a > b || a != a) ? a : b)
BINARY(minimum, (a < b || a != a) ? a : b)
BINARY(pow, pow(a, b))
KERNEL2(add, with_number)
KERNEL2(sub, with_number)
KERNEL2(mul, with_number)
KERNEL2(maximum, with_number)
KERNEL2(minimum, with_number)
KERNEL2(pow, with_float)

// The smallest integer over -1 wraps to itself; over 0 it is 0 and the host is told.
template <class T> struct div_fn {
    fault_sink faults;
    template <class V> void visit(V &v) { faults.visit(v); }
    DEVICE T operator()(T stored_a, T stored_b) const {
        typedef wide_t<T> W;
        const W a = widen<T>(stored_a), b = widen<T>(stored_b);
        if constexpr (std::is_integral<T>::value) {
            if (b == 0) {
                faults.complain(FAULT_DIVISION, 0, 0, 0);
                return 0;
            }
            return b == -1 ? (T)(0 - (wrapping<W>)a) : a / b;
        } else return narrow<T>(a / b);
    }
};
CUDA_KERNEL(div) {
    return with_number(call->in[0]->dtype, [&](auto tag) {
        using T = TYPE_OF(tag);
        return each2<T, T, T>(call, div_fn<T>{ faults(call, OP_div) });
    });
}

UNARY(neg, 0 - (wrapping<W>)x)
template <> struct neg_fn<float> { DEVICE float operator()(float x) const { return -x; } };
template <> struct neg_fn<double> { DEVICE double operator()(double x) const { return -x; } };
template <> struct neg_fn<bf16> { DEVICE bf16 operator()(bf16 x) const { return narrow<bf16>(-widen<bf16>(x)); } };
UNARY(abs, x < 0 ? (W)(0 - (wrapping<W>)x) : x)
template <> struct abs_fn<float> { DEVICE float operator()(float x) const { return fabsf(x); } };
template <> struct abs_fn<double> { DEVICE double operator()(double x) const { return fabs(x); } };
template <> struct abs_fn<bf16> { DEVICE bf16 operator()(bf16 x) const { return narrow<bf16>(fabsf(widen<bf16>(x))); } };
UNARY(sign, x > 0 ? (W)1 : x < 0 ? (W)-1 : x)
UNARY(floor, floor(x))
UNARY(exp, exp(x))
UNARY(log, log(x))
UNARY(sqrt, sqrt(x))
UNARY(rsqrt, (W)1 / sqrt(x))
UNARY(sin, sin(x))
UNARY(cos, cos(x))
KERNEL1(neg, with_number)
KERNEL1(abs, with_number)
KERNEL1(sign, with_number)
KERNEL1(floor, with_float)
KERNEL1(exp, with_float)
KERNEL1(log, with_float)
KERNEL1(sqrt, with_float)
KERNEL1(rsqrt, with_float)
KERNEL1(sin, with_float)
KERNEL1(cos, with_float)

// --- with attributes
template <class T> struct affine_fn {
    wide_t<T> mul, add;
    DEVICE T operator()(T x) const { return narrow<T>(widen<T>(x) * mul + add); }
};
struct affine_int32 {    // through double
    double mul, add;
    DEVICE int32_t operator()(int32_t x) const { return converted<int32_t>((double)x * mul + add); }
};
struct affine_int64 {
    double mul, add;
    DEVICE int64_t operator()(int64_t x) const { return converted<int64_t>((double)x * mul + add); }
};
struct affine_whole {    // whole factors keep all 64 bits
    uint64_t mul, add;
    DEVICE int64_t operator()(int64_t x) const { return (int64_t)((uint64_t)x * mul + add); }
};
CUDA_KERNEL(affine) {
    const double mul = call->at->AT(affine, mul), given = call->at->AT(affine, add);
    const double add = given == 0 ? -0.0 : given;      // -0 * mul keeps its sign
    const int dtype = call->in[0]->dtype;
    if (dtype == WEFT_INT32) return each1<int32_t, int32_t>(call, affine_int32{ mul, add });
    if (dtype == WEFT_INT64) {
        const bool whole = std::fabs(mul) < 0x1p53 && std::fabs(add) < 0x1p53 && mul == std::floor(mul) && add == std::floor(add);
        if (whole) return each1<int64_t, int64_t>(call, affine_whole{ (uint64_t)(int64_t)mul, (uint64_t)(int64_t)add });
        return each1<int64_t, int64_t>(call, affine_int64{ mul, add });
    }
    return with_float(dtype, [&](auto tag) {
        using T = TYPE_OF(tag);
        return each1<T, T>(call, affine_fn<T>{ (wide_t<T>)mul, (wide_t<T>)add });
    });
}

template <class T> struct clamp_fn {
    wide_t<T> low, high;
    DEVICE T operator()(T stored) const {
        const wide_t<T> x = widen<T>(stored);
        return narrow<T>(x < low ? (low > high ? high : low) : x > high ? high : x);
    }
};
CUDA_KERNEL(clamp) {
    const double low = call->at->AT(clamp, min), high = call->at->AT(clamp, max);
    return with_number(call->in[0]->dtype, [&](auto tag) {
        using T = TYPE_OF(tag);
        typedef wide_t<T> W;
        if constexpr (std::is_integral<T>::value)   // the whole numbers inside the bounds
            return each1<T, T>(call, clamp_fn<T>{ converted<T>(std::ceil(low)), converted<T>(std::floor(high)) });
        else return each1<T, T>(call, clamp_fn<T>{ (W)low, (W)high });
    });
}

template <class T> struct square_fn { DEVICE T operator()(T v) const { const auto x = widen<T>(v); return narrow<T>(x * x); } };
template <class T> struct cube_fn { DEVICE T operator()(T v) const { const auto x = widen<T>(v); return narrow<T>(x * x * x); } };
template <class T> struct inverse_fn { DEVICE T operator()(T v) const { return narrow<T>((wide_t<T>)1 / widen<T>(v)); } };
template <class T> struct power_fn {
    wide_t<T> e;
    DEVICE T operator()(T v) const { return narrow<T>(pow(widen<T>(v), e)); }
};
CUDA_KERNEL(pow_scalar) {
    const double e = call->at->AT(pow_scalar, exponent);
    return with_float(call->in[0]->dtype, [&](auto tag) {
        using T = TYPE_OF(tag);
        if (e == 2) return each1<T, T>(call, square_fn<T>{});
        if (e == 3) return each1<T, T>(call, cube_fn<T>{});
        if (e == -1) return each1<T, T>(call, inverse_fn<T>{});
        return each1<T, T>(call, power_fn<T>{ (wide_t<T>)e });
    });
}

// --- fill: any strides, one launch
template <class T> struct constant_fn {
    T value;
    DEVICE T operator()() const { return value; }
};
weft_status cuda_fill(weft_backend *b, const weft_view *y, double value) {
    weft_call call = {};
    call.backend = b;
    const weft_view *views[1] = { y };
    uint64_t bits = 0;
    switch (y->dtype) {
    case WEFT_FLOAT32: { float v = (float)value; memcpy(&bits, &v, 4); break; }
    case WEFT_FLOAT64: memcpy(&bits, &value, 8); break;
    case WEFT_BFLOAT16: { bf16 v = converted<bf16>(value); memcpy(&bits, &v, 2); break; }
    case WEFT_FLOAT16: { half_t v = converted<half_t>(value); memcpy(&bits, &v, 2); break; }
    case WEFT_INT32: bits = (uint32_t)converted<int32_t>(value); break;
    case WEFT_INT64: bits = (uint64_t)converted<int64_t>(value); break;
    case WEFT_UINT8: bits = converted<uint8_t>(value); break;
    default: bits = value != 0; break;
    }
    return with_size(y->dtype, [&](auto tag) {
        using T = TYPE_OF(tag);
        return each_run<0, T, char, char, char>(&call, views, constant_fn<T>{ (T)bits });
    });
}

// --- between devices: contiguous, whole
CUDA_KERNEL(to_device) {
    const weft_view *x = call->in[0], *y = call->out[0];
    const int64_t nbytes = x->numel * cuda_host->dtype_size(x->dtype);
    weft_backend *b = call->backend;
    if (nbytes == 0) return WEFT_OK;
    if (x->device == WEFT_CPU) return b->upload(b, y->data, x->data, nbytes);
    if (y->device == WEFT_CPU) return b->download(b, y->data, x->data, nbytes);
    return cuda_check(cudaMemcpyAsync(y->data, x->data, (size_t)nbytes, cudaMemcpyDeviceToDevice, stream_of(call)), "copy");
}
