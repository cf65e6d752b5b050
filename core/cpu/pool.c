// pool.c: the one thread pool. Pieces are handed out one by one; the caller works too, and waits for
// pieces alone: a worker that sleeps, or that others keep from running, holds nothing up.
#include "cpu.h"
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#define MAX_THREADS 256
#define SPIN 4000
#define NO_PIECE UINT32_MAX  // as the next piece: none, the job is being set up

// What a worker takes a piece from. `state` holds the job's number (high half) and its next piece (low
// half), so that taking one is a single exchange, which fails when the job has changed meanwhile:
// what was read of fn, context and pieces then belongs to the piece.
static struct {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    pthread_t threads[MAX_THREADS];
    int wanted, started;      // worker threads beside the caller
    bool set;
    _Atomic(weft_piece_fn) fn;
    _Atomic(void *) context;
    atomic_int_fast64_t pieces, finished;
    _Atomic uint64_t state;
    atomic_int sleeping;
    atomic_bool stop;
} pool = { .lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER };

static _Thread_local bool inside;

static uint32_t job_of(uint64_t state) { return (uint32_t)(state >> 32); }

static void work(void) {
    uint64_t state = atomic_load(&pool.state);
    for (;;) {
        const weft_piece_fn fn = atomic_load(&pool.fn);
        void *context = atomic_load(&pool.context);
        const int64_t piece = (int64_t)(uint32_t)state;
        if (piece >= atomic_load(&pool.pieces)) return;
        if (!atomic_compare_exchange_weak(&pool.state, &state, state + 1)) continue;
        if (!weft_stopped()) fn(context, piece);
        atomic_fetch_add(&pool.finished, 1);
        state = atomic_load(&pool.state);
    }
}

static void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static void *worker(void *argument) {
    uint32_t seen = (uint32_t)(uintptr_t)argument;
    inside = true;
    for (;;) {
        for (int spins = 0; job_of(atomic_load(&pool.state)) == seen && !atomic_load(&pool.stop);) {
            if (++spins < SPIN) {
                pause_briefly();
                continue;
            }
            pthread_mutex_lock(&pool.lock);
            atomic_fetch_add(&pool.sleeping, 1);
            while (job_of(atomic_load(&pool.state)) == seen && !atomic_load(&pool.stop))
                pthread_cond_wait(&pool.wake, &pool.lock);
            atomic_fetch_sub(&pool.sleeping, 1);
            pthread_mutex_unlock(&pool.lock);
        }
        if (atomic_load(&pool.stop)) return NULL;
        // a job that is being set up has no pieces yet: it is looked at again
        const uint64_t state = atomic_load(&pool.state);
        if ((uint32_t)state == NO_PIECE) continue;
        seen = job_of(state);
        work();
    }
}

static int default_threads(void) {
    const char *text = getenv("WEFT_THREADS");
    if (text && atoi(text) > 0) return atoi(text) < MAX_THREADS ? atoi(text) : MAX_THREADS;
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int)n : 1;
}

int weft_threads(void) {
    if (!pool.set) {
        int n = default_threads();
        pool.wanted = (n < MAX_THREADS ? n : MAX_THREADS) - 1;
        pool.set = true;
    }
    return pool.wanted + 1;
}

static void stop_workers(void) {
    if (!pool.started) return;
    pthread_mutex_lock(&pool.lock);
    atomic_store(&pool.stop, true);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
    for (int i = 0; i < pool.started; i++) pthread_join(pool.threads[i], NULL);
    pool.started = 0;
    atomic_store(&pool.stop, false);
}

weft_status weft_set_threads(int n) {
    if (n < 1 || n > MAX_THREADS)
        return weft_fail(WEFT_EINVAL, "threads: expected 1 to %d, got %d", MAX_THREADS, n);
    if (inside) return weft_fail(WEFT_EINVAL, "threads: can't be set from inside a kernel");
    stop_workers();
    pool.wanted = n - 1;
    pool.set = true;
    return WEFT_OK;
}

// Starts what is missing. Fewer threads than asked for is slower, not wrong.
static void start_workers(void) {
    (void)weft_threads();
    while (pool.started < pool.wanted) {
        uintptr_t seen = job_of(atomic_load(&pool.state));
        if (pthread_create(&pool.threads[pool.started], NULL, worker, (void *)seen) != 0) {
            pool.wanted = pool.started;
            return;
        }
        pool.started++;
    }
}

void weft_parallel(int64_t pieces, weft_piece_fn fn, void *context) {
    if (pieces <= 0) return;
    if (pool.started < pool.wanted || !pool.set) start_workers();
    if (inside || pieces == 1 || pieces >= NO_PIECE || pool.started == 0) {
        bool was = inside;
        inside = true;
        for (int64_t i = 0; i < pieces && !weft_stopped(); i++) fn(context, i);
        inside = was;
        return;
    }
    inside = true;
    const uint64_t job = (uint64_t)(job_of(atomic_load(&pool.state)) + 1) << 32;
    atomic_store(&pool.state, job | NO_PIECE);  // every piece of the job before is finished
    atomic_store(&pool.fn, fn);
    atomic_store(&pool.context, context);
    atomic_store(&pool.pieces, pieces);
    atomic_store(&pool.finished, 0);
    atomic_store(&pool.state, job);
    if (atomic_load(&pool.sleeping)) {
        pthread_mutex_lock(&pool.lock);
        pthread_cond_broadcast(&pool.wake);
        pthread_mutex_unlock(&pool.lock);
    }
    work();
    for (int spins = 0; atomic_load(&pool.finished) < pieces;) {
        if (++spins < SPIN) pause_briefly();
        else sched_yield();
    }
    inside = false;
}
