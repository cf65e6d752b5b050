// interrupt.c: Ctrl-C as a flag. The next operator, or whoever polls, sees it and stops.
#include "../core.h"
#include <signal.h>
#include <string.h>

static struct sigaction before;
static bool caught;

static void on_interrupt(int number) {
    (void)number;
    weft_the_state.interrupt = 1;
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
