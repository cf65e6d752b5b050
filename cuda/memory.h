// memory.h: the device's memory.
#ifndef WEFT_CUDA_MEMORY_H
#define WEFT_CUDA_MEMORY_H

#include "cuda/device.h"

void *cuda_allocate(weft_backend *b, int64_t nbytes);
void cuda_release(weft_backend *b, void *data, int64_t nbytes);
void cuda_trim(weft_backend *b);
weft_status cuda_upload(weft_backend *b, void *to, const void *from, int64_t nbytes);
weft_status cuda_download(weft_backend *b, void *to, const void *from, int64_t nbytes);
weft_status cuda_memory_open(cuda_device *d);

#endif
