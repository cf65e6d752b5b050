// comm.h: collective operations of the GPU: NCCL (comm.cu), shared memory in tests
// (tests/cuda_on_cpu/comm.cpp).
#ifndef WEFT_CUDA_COMM_H
#define WEFT_CUDA_COMM_H

#include "cuda/device.h"

extern const weft_collectives cuda_collectives;
// "NCCL 2.28.9", or why there is none
void cuda_comm_about(char *text, int64_t size);

#endif
