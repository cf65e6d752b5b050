// picture_plan.h: a row of the plan of `pictures`, shared by the loader that writes it and the kernels of
// every device that read it.
#ifndef WEFT_PICTURE_PLAN_H
#define WEFT_PICTURE_PLAN_H

#include <stdint.h>

// Where the picture's bytes begin and its size (h 0: there is none, y is 0); the size that it is resized
// to; where what is kept of that begins, which may lie outside (black then); mirrored or not; and for each
// direction where its taps begin and how many weights a position has room for (0: that size stays).
enum {
    PLAN_BYTES, PLAN_H, PLAN_W, PLAN_TO_H, PLAN_TO_W, PLAN_Y, PLAN_X, PLAN_FLIP,
    PLAN_ACROSS, PLAN_ACROSS_WIDEST, PLAN_DOWN, PLAN_DOWN_WIDEST, PLAN_SIZE
};
// Taps of a position: the first of its inputs, how many, then the weights in 22-bit fixed point.
#define TAPS_BITS 22
#define TAPS_LINE(widest) ((widest) + 2)

#endif
