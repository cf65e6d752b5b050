// interrupt.c: Ctrl-C as a flag. The next operator, or whoever polls, sees it and stops; so does a
// kernel in its midst where what it writes is its own.
#include "../core.h"
#include <signal.h>
#include <stdatomic.h>
#include <string.h>

static struct sigaction before;
static bool caught;

static void on_interrupt(int number) {
    (void)number;
    weft_interrupt(1);
}

static atomic_bool stoppable, left_out;

// Handing out work and waiting for it order these; the flags themselves need no more.
void weft_may_stop(bool on) { atomic_store_explicit(&stoppable, on, memory_order_relaxed); }

bool weft_stopped(void) {
    if (!weft_the_state.interrupt || !atomic_load_explicit(&stoppable, memory_order_relaxed)) return false;
    atomic_store_explicit(&left_out, true, memory_order_relaxed);
    return true;
}

bool weft_was_stopped(void) {
    weft_may_stop(false);
    if (!atomic_load_explicit(&left_out, memory_order_relaxed)) return false;
    atomic_store_explicit(&left_out, false, memory_order_relaxed);
    weft_the_state.interrupt = 0;
    weft_fail(WEFT_EINTERRUPTED, "interrupted");
    return true;
}

weft_status weft_catch_interrupt(bool on) {
    if (on == caught) return WEFT_OK;
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_interrupt;
    sigemptyset(&action.sa_mask);  // and no SA_RESTART: a blocked read must return
    if (sigaction(SIGINT, on ? &action : &before, on ? &before : NULL) != 0)
        return weft_fail(WEFT_EINVAL, "the handler of SIGINT could not be set");
    caught = on;
    return WEFT_OK;
}
