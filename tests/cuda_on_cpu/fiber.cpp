// fiber.cpp: the switch between stacks.
#include "fiber.h"
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define SIM_ASAN 1
#else
#define SIM_ASAN 0
#endif

namespace sim {
static const size_t STACK = SIM_ASAN ? 256 << 10 : 64 << 10;
static fiber home;              // the scheduler's stack
static void (*entry)();
static fiber *entering;

#if SIM_ASAN
static const void *home_bottom;
static size_t home_size;
static void before(fiber *to, fiber *from) {
    __sanitizer_start_switch_fiber(&from->fake_stack, to == &home ? home_bottom : to->stack,
                                   to == &home ? home_size : to->size);
}
static void after(fiber *mine, bool from_home) {
    const void *bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(mine->fake_stack, &bottom, &size);
    if (from_home) { home_bottom = bottom; home_size = size; }
}
#else
static void before(fiber *, fiber *) {}
static void after(fiber *, bool) {}
#endif

#if defined(__x86_64__)
// Saves what a call must keep, exchanges stack pointers, restores.
extern "C" void sim_switch(void **save, void *load);
asm(R"(
.text
.globl sim_switch
.hidden sim_switch
.type sim_switch, @function
sim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size sim_switch, . - sim_switch
)");
static void prepare(fiber *f, void (*start)()) {
    void **top = reinterpret_cast<void **>(f->stack + f->size - 64);
    *--top = nullptr;                                   // what start would return to
    *--top = reinterpret_cast<void *>(start);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    f->stack_pointer = top;
}
static void change(fiber *from, fiber *to) { sim_switch(&from->stack_pointer, to->stack_pointer); }
#else
}
#include <ucontext.h>
namespace sim {
static void prepare(fiber *f, void (*start)()) {
    ucontext_t *c = new ucontext_t;
    getcontext(c);
    c->uc_stack.ss_sp = f->stack;
    c->uc_stack.ss_size = f->size;
    makecontext(c, start, 0);
    f->context = c;
}
static void change(fiber *from, fiber *to) {
    if (!from->context) from->context = new ucontext_t;
    swapcontext(static_cast<ucontext_t *>(from->context), static_cast<ucontext_t *>(to->context));
}
#endif

static void begin() {
    after(entering, true);
    entry();
    std::abort();
}

fiber *fiber_new(void (*fn)()) {
    entry = fn;
    fiber *f = new fiber();
    f->size = STACK;
    void *p = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        std::fprintf(stderr, "cuda-sim: no memory for a stack\n");
        std::abort();
    }
    f->stack = static_cast<char *>(p);
    prepare(f, begin);
    return f;
}

void fiber_enter(fiber *f) {
    entering = f;
    before(f, &home);
    change(&home, f);
    after(&home, false);
}

void fiber_leave(fiber *f) {
    before(&home, f);
    change(f, &home);
    after(f, true);
}
}  // namespace sim
