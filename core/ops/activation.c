// activation.c: gradients of activations; each has a fused backward row.
#include "core.h"

weft_status shape_same(weft_shape_call *call);   // elementwise.c

// Those that keep their output, and those that keep their input.
#define FROM_OUTPUT(op) \
    weft_status grad_##op(weft_grad_call *call) { \
        if (NEEDS(call, 0)) HAVE(call->dx[0] = weft_##op##_backward(call->dy[0], call->out[0])); \
        return WEFT_OK; \
    }
#define FROM_INPUT(op) \
    weft_status grad_##op(weft_grad_call *call) { \
        if (NEEDS(call, 0)) HAVE(call->dx[0] = weft_##op##_backward(call->dy[0], call->in[0])); \
        return WEFT_OK; \
    }

weft_status shape_same_pair(weft_shape_call *call) {
    TRY(shape_same(call));
    return weft_set_shape(&call->out[1], call->in[0]->shape, call->in[0]->ndim);
}

weft_status grad_silu_gate(weft_grad_call *call) {
    weft_tensor *out[2];
    if (NEEDS(call, 0)) {
        TRY(weft_silu_gate_backward(call->dy[0], call->in[0], call->in[1], out));
        call->dx[0] = out[0];
        if (NEEDS(call, 1)) call->dx[1] = out[1];
        return WEFT_OK;
    }
    weft_tensor *open;
    HAVE(open = weft_silu(call->in[0]));
    HAVE(call->dx[1] = weft_mul(call->dy[0], open));
    return WEFT_OK;
}

FROM_OUTPUT(relu)
FROM_INPUT(gelu)
FROM_INPUT(gelu_tanh)
FROM_INPUT(silu)
FROM_OUTPUT(tanh)
FROM_OUTPUT(sigmoid)
FROM_INPUT(erf)
