// signals.c: a polite stop. SIGINT and SIGTERM raise a flag that a training loop reads between steps;
// a second one does what it would do without us: it ends the process at once.
#include "../core.h"
#include <signal.h>
#include <string.h>

static volatile sig_atomic_t stop;

static void on_signal(int number) {
    if (stop) {
        signal(number, SIG_DFL);
        raise(number); // it comes through when this handler returns
    }
    stop = 1;
}

weft_status weft_catch_stop(bool on) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on ? on_signal : SIG_DFL;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    stop = 0;
    if (sigaction(SIGINT, &action, NULL) != 0 || sigaction(SIGTERM, &action, NULL) != 0)
        return weft_fail(WEFT_EIO, "the handlers of SIGINT and SIGTERM can't be set");
    return WEFT_OK;
}

bool weft_stop_requested(void) { return stop != 0; }
