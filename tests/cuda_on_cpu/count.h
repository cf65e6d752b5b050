// count.h: what the simulated device was asked to do: launches and bytes by kernel, calls of the runtime.
// Tests read it through the C functions at the end (tests/support/device_counts.lua).
#ifndef WEFT_CUDA_ON_CPU_COUNT_H
#define WEFT_CUDA_ON_CPU_COUNT_H

#include <cstddef>
#include <cstdint>
#include <string>

struct weft_call;
struct weft_backend;

namespace sim {
// WEFT_SIM_DRY=1: arguments, grids and sizes are checked and everything is counted, but nothing is
// computed. Device memory is address space that nobody may touch; what is read back is 0.
extern bool dry;

// --- operands of the launch under way: an address of the device, and whether the kernel may write there
void operand(const void *device, bool written, bool added_to = false);
// What the launch moves. An operand counts once, with all of its elements: read where it is an input of
// the call, written where it is an output, and as the kernel's argument says where it is scratch. Inputs
// of rows that work in place count both ways, and so does what a kernel adds to.
struct traffic { std::string kernel; int64_t bytes_read, bytes_written; };
traffic measured(const char *kernel, const char *what, const weft_call *call);
// One launch.
void launched(const char *kernel, int64_t bytes_read, int64_t bytes_written);
// Sizes of scratch are those that were asked for.
void watch_allocations(weft_backend *backend);
}  // namespace sim

extern "C" {
typedef struct sim_kernel_count {
    const char *name;
    int64_t launches, bytes_read, bytes_written;
} sim_kernel_count;
typedef struct sim_runtime_count {
    int64_t allocations, frees, pinned_allocations, stream_waits, event_waits;
    int64_t uploads, upload_bytes, downloads, download_bytes, copies, copy_bytes, clears, clear_bytes;
} sim_runtime_count;
__attribute__((visibility("default"))) void sim_count_reset(void);
__attribute__((visibility("default"))) int sim_count_kernels(void);
__attribute__((visibility("default"))) const sim_kernel_count *sim_count_kernel(int i);
__attribute__((visibility("default"))) sim_runtime_count *sim_count_runtime(void);
}

#endif
