// fiber.h: stacks to run a block's threads on. Under AddressSanitizer each change of stacks is told
// to it; on machines without a switch of our own the C library's contexts serve.
#ifndef WEFT_CUDA_ON_CPU_FIBER_H
#define WEFT_CUDA_ON_CPU_FIBER_H

#include <cstddef>

namespace sim {
struct fiber {
    void *stack_pointer;    // where it stands while another runs
    char *stack;
    size_t size;
    void *fake_stack;       // AddressSanitizer's
    void *context;          // the C library's, where used
    struct thread *running; // the thread on it
    fiber *next;
};
// A fiber that calls fn once it is first switched to; fn never returns.
fiber *fiber_new(void (*fn)());
// From the scheduler's own stack to f, and from f back.
void fiber_enter(fiber *f);
void fiber_leave(fiber *f);
}  // namespace sim

#endif
