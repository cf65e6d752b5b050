// compare.cu: kernels that compare, combine truth values (bytes 0 and 1), and choose by them.
#include "cuda/cast.h"
#include "cuda/each.h"

#define COMPARE(name, symbol) \
    template <class T> struct name##_fn { \
        DEVICE uint8_t operator()(T a, T b) const { return widen<T>(a) symbol widen<T>(b); } \
    }; \
    CUDA_KERNEL(name) { \
        const int dtype = call->in[0]->dtype; \
        if (dtype == WEFT_UINT8 || dtype == WEFT_BOOL) \
            return each2<uint8_t, uint8_t, uint8_t>(call, name##_fn<uint8_t>{}); \
        return with_number(dtype, [&](auto tag) { \
            using T = TYPE_OF(tag); \
            return each2<uint8_t, T, T>(call, name##_fn<T>{}); \
        }); \
    }
COMPARE(eq, ==)
COMPARE(ne, !=)
COMPARE(lt, <)
COMPARE(le, <=)
COMPARE(gt, >)
COMPARE(ge, >=)

struct not_fn { DEVICE uint8_t operator()(uint8_t x) const { return x == 0; } };
struct and_fn { DEVICE uint8_t operator()(uint8_t a, uint8_t b) const { return (a != 0) & (b != 0); } };
struct or_fn { DEVICE uint8_t operator()(uint8_t a, uint8_t b) const { return (a | b) != 0; } };
CUDA_KERNEL(logical_not) { return each1<uint8_t, uint8_t>(call, not_fn{}); }
CUDA_KERNEL(logical_and) { return each2<uint8_t, uint8_t, uint8_t>(call, and_fn{}); }
CUDA_KERNEL(logical_or) { return each2<uint8_t, uint8_t, uint8_t>(call, or_fn{}); }

template <class T> struct isfinite_fn {
    DEVICE uint8_t operator()(T x) const { return fabs(widen<T>(x)) < (wide_t<T>)INFINITY; }
};
CUDA_KERNEL(isfinite) {
    return with_float(call->in[0]->dtype, [&](auto tag) {
        using T = TYPE_OF(tag);
        return each1<uint8_t, T>(call, isfinite_fn<T>{});
    });
}

// --- choices move bits, whatever their dtype
template <class T> struct where_fn {
    DEVICE T operator()(uint8_t c, T a, T b) const { return c ? a : b; }
};
CUDA_KERNEL(where) {
    return with_size(call->out[0]->dtype, [&](auto tag) {
        using T = TYPE_OF(tag);
        return each3<T, uint8_t, T, T>(call, where_fn<T>{});
    });
}

template <class T> struct masked_fill_fn {
    T value;
    DEVICE T operator()(T x, uint8_t m) const { return m ? value : x; }
};
CUDA_KERNEL(masked_fill) {
    const double value = call->at->AT(masked_fill, value);
    const int dtype = call->out[0]->dtype;
    if (dtype == WEFT_BOOL)
        return each2<uint8_t, uint8_t, uint8_t>(call, masked_fill_fn<uint8_t>{ (uint8_t)(value != 0) });
    if (dtype == WEFT_UINT8)
        return each2<uint8_t, uint8_t, uint8_t>(call, masked_fill_fn<uint8_t>{ converted<uint8_t>(value) });
    return with_number(dtype, [&](auto tag) {
        using T = TYPE_OF(tag);
        return each2<T, T, uint8_t>(call, masked_fill_fn<T>{ converted<T>(value) });
    });
}
