// pool.c: the thread pool under many short jobs and more threads than processors: every piece of every
// job runs once, with that job's context, before the call returns.
#include <weft.h>
#include "check.h"

// of core/cpu/cpu.h, which is not installed
typedef void (*piece_fn)(void *context, int64_t piece);
void weft_parallel(int64_t pieces, piece_fn fn, void *context);

enum { MOST = 40 };
typedef struct job { int runs[MOST]; int64_t pieces; } job;

static void count(void *context, int64_t piece) { ((job *)context)->runs[piece]++; }

static void count_and_nest(void *context, int64_t piece) {
    job inner = { .pieces = 3 };
    weft_parallel(inner.pieces, count, &inner);
    ((job *)context)->runs[piece] += inner.runs[0] + inner.runs[1] + inner.runs[2] == 3;
}

static int wrong_after(int jobs, piece_fn fn) {
    int wrong = 0;
    for (int i = 0; i < jobs; i++) {
        job j = { .pieces = 1 + i % MOST };
        weft_parallel(j.pieces, fn, &j);
        for (int64_t p = 0; p < MOST; p++) wrong += j.runs[p] != (p < j.pieces);
    }
    return wrong;
}

int main(void) {
    const int before = weft_threads();
    for (int threads = 1; threads <= 8; threads++) {
        CHECK(weft_set_threads(threads) == WEFT_OK && weft_threads() == threads);
        CHECK(wrong_after(1500, count) == 0);
        CHECK(wrong_after(100, count_and_nest) == 0);
    }
    weft_parallel(0, count, NULL);
    CHECK(weft_set_threads(before) == WEFT_OK);
    return CHECK_REPORT();
}
