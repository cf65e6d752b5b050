// activation.c: gradients of activations; each has a fused backward row.
#include "core.h"

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

FROM_OUTPUT(relu)
FROM_INPUT(gelu)
FROM_INPUT(gelu_tanh)
FROM_INPUT(silu)
FROM_OUTPUT(tanh)
FROM_OUTPUT(sigmoid)
FROM_INPUT(erf)
