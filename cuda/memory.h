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

// The blocks of one graph, from the begin of its capture until it is freed: nothing else is given them.
struct cuda_pool;
cuda_pool *cuda_pool_begin(cuda_device *d);     // what is allocated from here on comes from it
void cuda_pool_end(cuda_device *d);
void cuda_pool_free(cuda_device *d, cuda_pool *pool);
int64_t cuda_pool_bytes(const cuda_pool *pool);

// graph.cu
weft_status cuda_capture_begin(weft_backend *b);
void cuda_capture_bind(weft_backend *b, const void *clock, const void *rates);
weft_status cuda_capture_end(weft_backend *b, void **graph);
weft_status cuda_graph_launch(weft_backend *b, void *graph);
void cuda_graph_free(weft_backend *b, void *graph);
void cuda_graph_size(void *graph, int64_t *kernels, int64_t *nbytes);

#endif
