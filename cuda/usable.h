// usable.h: which GPUs can be used, and why not.
#ifndef WEFT_CUDA_USABLE_H
#define WEFT_CUDA_USABLE_H

#include "cuda/device.h"

// GPUs; 0 and a sentence that says why none of them can be used
int cuda_count(char *why, int64_t size);
weft_status cuda_describe(int index, char *text, int64_t size);
// What the library was built for, and the versions that it found.
void cuda_about(char *text, int64_t size);
// WEFT_EUNSUPPORTED where the GPU is older than any that kernels are compiled for.
weft_status cuda_new_enough(const cudaDeviceProp *p);
// Runs one kernel on a device that was just opened, and compares what it wrote.
weft_status cuda_first_kernel(cuda_device *d);

#endif
