// cast.cu: the kernel of cast: every dtype to every other, any strides on both sides.
#include "cuda/cast.h"
#include "cuda/each.h"

template <class To, class From> struct cast_fn {
    DEVICE To operator()(From x) const { return converted<To>(x); }
};
template <class T> struct same_fn {
    DEVICE T operator()(T x) const { return x; }
};

template <class F> static weft_status with_any(int dtype, F f) {
    switch (dtype) {
    case WEFT_FLOAT32: return f(type_tag<float>{});
    case WEFT_FLOAT64: return f(type_tag<double>{});
    case WEFT_BFLOAT16: return f(type_tag<bf16>{});
    case WEFT_FLOAT16: return f(type_tag<half_t>{});
    case WEFT_INT32: return f(type_tag<int32_t>{});
    case WEFT_INT64: return f(type_tag<int64_t>{});
    case WEFT_UINT8: return f(type_tag<uint8_t>{});
    default: return f(type_tag<truth>{});
    }
}

CUDA_KERNEL(cast) {
    const int from = call->in[0]->dtype, to = call->out[0]->dtype;
    if (from == to || (to == WEFT_UINT8 && from == WEFT_BOOL))
        return with_size(to, [&](auto tag) {
            using T = TYPE_OF(tag);
            return each1<T, T>(call, same_fn<T>{});
        });
    return with_any(from, [&](auto from_tag) {
        using From = TYPE_OF(from_tag);
        return with_any(to, [&](auto to_tag) {
            using To = TYPE_OF(to_tag);
            return each1<To, From>(call, cast_fn<To, From>{});
        });
    });
}

CUDA_KERNEL(contiguous) {
    return with_size(call->out[0]->dtype, [&](auto tag) {
        using T = TYPE_OF(tag);
        return each1<T, T>(call, same_fn<T>{});
    });
}
