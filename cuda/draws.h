// draws.h: draws while a graph is captured. Its clock moves those on that are named by the step; others
// would be the same at each launch.
#ifndef WEFT_CUDA_DRAWS_H
#define WEFT_CUDA_DRAWS_H

#include "cuda/device.h"

#define DRAW_WITHOUT_NAME (~(uint64_t)0)     // a counter that stands for the default stream's

static inline weft_status named_draw(const weft_call *call) {
    if (device_of(call)->clock == device_of(call)->still || call->at->rng_counter != DRAW_WITHOUT_NAME) return WEFT_OK;
    return weft_fail(WEFT_EUNSUPPORTED, "a draw from the default stream would be the same at each launch of the graph that is "
                     "captured; name it (module:rng)");
}

#endif
