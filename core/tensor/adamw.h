// adamw.h: what an AdamW step computes once on the host, the same for every device.
#ifndef WEFT_ADAMW_H
#define WEFT_ADAMW_H

#include <math.h>

// p *= keep;  p -= rate * m / (sqrt(v * fix2) + eps)
typedef struct weft_rates { double keep, rate, fix2; } weft_rates;

static inline weft_rates weft_rates_of(double lr, double beta1, double beta2, double weight_decay, double step) {
    weft_rates r;
    r.keep = 1 - lr * weight_decay;
    r.rate = lr / (1 - pow(beta1, step));
    r.fix2 = 1 / (1 - pow(beta2, step));
    return r;
}

#endif
