// pool.c: the one thread pool. Pieces are handed out by an atomic counter; the caller works too.
#include "cpu.h"
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#define MAX_THREADS 256
#define SPIN 4000

typedef struct job {
    weft_piece_fn fn;
    void *context;
    int64_t pieces;
} job;

static struct {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    pthread_t threads[MAX_THREADS];
    int wanted, started;      // worker threads beside the caller
    bool set;
    job job;
    atomic_int_fast64_t next, generation;
    atomic_int busy;          // workers still inside the current job
    int sleeping;
} pool = { .lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER };

static _Thread_local bool inside;

static void work(void) {
    int64_t piece;
    while ((piece = atomic_fetch_add(&pool.next, 1)) < pool.job.pieces)
        pool.job.fn(pool.job.context, piece);
}

static void *worker(void *argument) {
    int64_t seen = (int64_t)(intptr_t)argument;
    inside = true;
    for (;;) {
        int spins = 0;
        while (atomic_load(&pool.generation) == seen) {
            if (++spins < SPIN) {
#if defined(__x86_64__)
                __builtin_ia32_pause();
#endif
                continue;
            }
            pthread_mutex_lock(&pool.lock);
            pool.sleeping++;
            while (atomic_load(&pool.generation) == seen) pthread_cond_wait(&pool.wake, &pool.lock);
            pool.sleeping--;
            pthread_mutex_unlock(&pool.lock);
        }
        seen = atomic_load(&pool.generation);
        if (seen < 0) return NULL;
        work();
        atomic_fetch_sub(&pool.busy, 1);
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
    int64_t generation = atomic_load(&pool.generation);
    atomic_store(&pool.generation, INT64_MIN);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
    for (int i = 0; i < pool.started; i++) pthread_join(pool.threads[i], NULL);
    pool.started = 0;
    atomic_store(&pool.generation, generation);
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
        intptr_t seen = (intptr_t)atomic_load(&pool.generation);
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
    if (inside || pieces == 1 || pool.started == 0) {
        bool was = inside;
        inside = true;
        for (int64_t i = 0; i < pieces; i++) fn(context, i);
        inside = was;
        return;
    }
    inside = true;
    pool.job = (job){ fn, context, pieces };
    atomic_store(&pool.next, 0);
    atomic_store(&pool.busy, pool.started);
    atomic_fetch_add(&pool.generation, 1);
    pthread_mutex_lock(&pool.lock);
    if (pool.sleeping) pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
    work();
    // Every worker passes through each job, so none can meet the next one half set up.
    for (int spins = 0; atomic_load(&pool.busy) > 0;) {
        if (++spins < SPIN) {
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
        } else sched_yield();
    }
    inside = false;
}
