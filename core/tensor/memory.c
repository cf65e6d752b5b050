// memory.c: every allocation of the core. System memory with exact accounting, a caching allocator
// for the CPU, pools of small blocks, and the switch that makes the nth allocation fail.
#include "../core.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int64_t fail_in;  // allocations until they fail; 0: never

void weft_fail_allocation(int64_t nth) { fail_in = nth; }

bool weft_must_fail(void) {
    if (fail_in > 1) fail_in--;
    else if (fail_in == 1) return true;
    return false;
}

void *weft_system_alloc(int64_t nbytes, weft_memory *m) {
    if (nbytes < 0) return NULL;
    size_t size = ((size_t)nbytes + 63) & ~(size_t)63;
    void *p = aligned_alloc(64, size ? size : 64);
    if (p && m) m->system_calls++;
    return p;
}

void weft_system_free(void *p) { free(p); }

// --- the caching allocator. Sizes are rounded up to classes eight to a doubling, so at most 1/8 is
// lost; a freed block waits in its class for the next of its size.
#define CLASSES 512
#define HEADER 64                      // in front of a block, so that it stays aligned
#define SLACK ((int64_t)256 << 20)
typedef struct block { struct block *next; } block;
typedef struct header { int class; } header;
static int64_t held;                   // bytes of all blocks, live and waiting
static block *cache[CLASSES];
static int64_t taken[CLASSES];         // blocks of a class that the system gave since it was trimmed
#define COMPANY ((int64_t)64 << 10)    // bytes that a class grows by at most beside what is asked for
#define LARGE 64                       // the first class of blocks above 64 KiB

static int class_of(int64_t nbytes, int64_t *rounded) {
    if (nbytes <= 512) {
        int c = (int)((nbytes + 63) / 64);
        if (c == 0) c = 1;
        *rounded = (int64_t)c * 64;
        return c - 1;                            // 0 .. 7
    }
    int shift = 63 - __builtin_clzll((unsigned long long)(nbytes - 1));  // 2^shift < nbytes <= 2^(shift+1)
    int64_t step = (int64_t)1 << (shift - 3);
    int64_t k = (nbytes - ((int64_t)1 << shift) + step - 1) / step;      // 1 .. 8
    *rounded = ((int64_t)1 << shift) + k * step;
    return 8 + (shift - 9) * 8 + (int)(k - 1);
}

static weft_status out_of_memory(weft_backend *b, int64_t nbytes) {
    char limit[48] = "";
    if (b->memory->limit > 0) snprintf(limit, sizeof limit, ", limit %lld", (long long)b->memory->limit);
    return weft_fail(WEFT_ENOMEM, "out of memory on %s: requested %lld bytes, live %lld, cached %lld, peak %lld%s; "
                     "make the batch smaller or free tensors", b->name, (long long)nbytes, (long long)b->memory->live,
                     (long long)b->memory->cached, (long long)b->memory->peak, limit);
}

static int64_t size_of_class(int c) {
    if (c < 8) return (int64_t)(c + 1) * 64;
    int shift = 9 + (c - 8) / 8;
    return ((int64_t)1 << shift) + (int64_t)((c - 8) % 8 + 1) * ((int64_t)1 << (shift - 3));
}

// A waiting block of class c, or of one up to twice as large, four times where it is small: shapes that
// vary from step to step share blocks then, instead of each keeping its own.
static block *take_cached(int c) {
    int last = c >= 8 && c < LARGE ? c + 16 : c + 8;
    for (int k = c; k <= last && k < CLASSES; k++) {
        block *p = cache[k];
        if (!p) continue;
        cache[k] = p->next;
        return p;
    }
    return NULL;
}

// A class of small blocks that ran short doubles: shapes that vary from step to step, as captions do, would
// else ask the system for one more now and then, for hundreds of steps. Large blocks have no company.
static void bring_more(weft_memory *m, int c, int64_t rounded) {
    int64_t more = taken[c] < COMPANY / rounded ? taken[c] : COMPANY / rounded;
    taken[c] += 1 + more;
    for (; more > 0 && m->limit == 0; more--) {
        header *h = weft_system_alloc(rounded + HEADER, m);
        if (!h) return;
        h->class = c;
        block *p = (block *)(void *)((char *)h + HEADER);
        p->next = cache[c];
        cache[c] = p;
        held += rounded;
    }
}

// Memory of the system, with its class in front. What waits is handed back first when it is more
// than what lives (and worth it).
static block *take_new(weft_backend *b, int c, int64_t rounded) {
    weft_memory *m = b->memory;
    if (m->cached > m->live + SLACK) b->trim(b);
    if (m->limit > 0 && m->live + m->cached + rounded > m->limit) b->trim(b);
    if (m->limit > 0 && m->live + rounded > m->limit) return NULL;
    header *h = weft_system_alloc(rounded + HEADER, m);
    if (!h) {
        b->trim(b);
        h = weft_system_alloc(rounded + HEADER, m);
    }
    if (!h) return NULL;
    h->class = c;
    held += rounded;
    bring_more(m, c, rounded);
    return (block *)(void *)((char *)h + HEADER);
}

static void *cpu_allocate(weft_backend *b, int64_t nbytes) {
    weft_memory *m = b->memory;
    int64_t rounded;
    if (nbytes < 0 || nbytes > (int64_t)1 << 46 || weft_must_fail()) {
        out_of_memory(b, nbytes);
        return NULL;
    }
    int c = class_of(nbytes, &rounded);
    block *p = take_cached(c);
    if (!p) p = take_new(b, c, rounded);
    if (!p) {
        out_of_memory(b, nbytes);
        return NULL;
    }
    m->live += rounded;
    m->cached = held - m->live;
    m->pressure += rounded;
    if (m->live > m->peak) m->peak = m->live;
    return p;
}

static header *header_of(void *data) { return (header *)(void *)((char *)data - HEADER); }

static void cpu_release(weft_backend *b, void *data, int64_t nbytes) {
    int64_t rounded;
    class_of(nbytes, &rounded);
    int c = header_of(data)->class;
    block *p = data;
    p->next = cache[c];
    cache[c] = p;
    b->memory->live -= rounded;
    b->memory->cached = held - b->memory->live;
}

static void cpu_trim(weft_backend *b) {
    for (int c = 0; c < CLASSES; c++) {
        taken[c] = 0;
        while (cache[c]) {
            block *p = cache[c];
            cache[c] = p->next;
            held -= size_of_class(c);
            weft_system_free(header_of(p));
        }
    }
    b->memory->cached = held - b->memory->live;
}

// Counts as the CPU's allocator does, so that a plan made on meta says what the CPU will say.
static void *meta_allocate(weft_backend *b, int64_t nbytes) {
    class_of(nbytes, &nbytes);
    b->memory->live += nbytes;
    b->memory->pressure += nbytes;
    if (b->memory->live > b->memory->peak) b->memory->peak = b->memory->live;
    static char nothing;
    return &nothing;
}
static void meta_release(weft_backend *b, void *data, int64_t nbytes) {
    (void)data;
    class_of(nbytes, &nbytes);
    b->memory->live -= nbytes;
}
static void meta_trim(weft_backend *b) { (void)b; }

extern const weft_kernel *weft_cpu_kernels(void);
// the CPU's counters are where a binding reads them on every call
static weft_memory meta_memory;
static weft_backend cpu = { .name = "cpu", .device = WEFT_CPU, .memory = &weft_the_state.cpu, .allocate = cpu_allocate, .release = cpu_release, .trim = cpu_trim };
static weft_backend meta = { .name = "meta", .device = WEFT_META, .memory = &meta_memory, .allocate = meta_allocate, .release = meta_release, .trim = meta_trim };

weft_backend *weft_backend_of(int device) {
    if (device == WEFT_CPU) {
        if (!cpu.kernels) cpu.kernels = weft_cpu_kernels();
        return &cpu;
    }
    if (device == WEFT_META) return &meta;
    return weft_device_open(device);
}

weft_memory *weft_memory_of(int device) {
    weft_backend *b = weft_backend_of(device);
    return b ? b->memory : NULL;
}

void weft_empty_cache(int device) {
    if (device < 0) weft_device_trim_all();
    weft_backend *b = weft_backend_of(device < 0 ? WEFT_CPU : device);
    if (b) b->trim(b);
}

void weft_reset_peak(int device) {
    weft_memory *m = weft_memory_of(device);
    if (m) m->peak = m->live;
}

void *weft_workspace(weft_backend *backend, int64_t nbytes) { return backend->allocate(backend, nbytes); }
void weft_workspace_free(weft_backend *backend, void *data, int64_t nbytes) {
    if (data) backend->release(backend, data, nbytes);
}

// --- pools: small blocks by 32-byte classes, carved from slabs that are never handed back
#define POOL_STEP 32
#define POOL_MAX 4096
#define SLAB (64 * 1024)
static block *pool[POOL_MAX / POOL_STEP + 1];

void *weft_pool_alloc(int64_t nbytes) {
    weft_memory *m = cpu.memory;
    if (weft_must_fail()) {
        weft_fail(WEFT_ENOMEM, "out of memory: %lld bytes for bookkeeping", (long long)nbytes);
        return NULL;
    }
    if (nbytes > POOL_MAX) {
        int64_t save = fail_in;
        fail_in = 0;
        void *p = cpu_allocate(&cpu, nbytes);
        fail_in = save;
        return p;
    }
    int c = (int)((nbytes + POOL_STEP - 1) / POOL_STEP);
    if (!pool[c]) {
        int64_t size = (int64_t)c * POOL_STEP;
        char *slab = weft_system_alloc(SLAB, m);
        if (!slab) {
            weft_fail(WEFT_ENOMEM, "out of memory: %d bytes for bookkeeping", SLAB);
            return NULL;
        }
        for (int64_t at = 0; at + size <= SLAB; at += size) {
            block *p = (block *)(void *)(slab + at);
            p->next = pool[c];
            pool[c] = p;
        }
    }
    block *p = pool[c];
    pool[c] = p->next;
    return p;
}

void weft_pool_free(void *p, int64_t nbytes) {
    if (!p) return;
    if (nbytes > POOL_MAX) {
        cpu_release(&cpu, p, nbytes);
        return;
    }
    int c = (int)((nbytes + POOL_STEP - 1) / POOL_STEP);
    ((block *)p)->next = pool[c];
    pool[c] = p;
}

// --- storage
weft_storage *weft_storage_new(int64_t nbytes, int device) {
    weft_backend *b = weft_backend_of(device);
    if (!b) return NULL;
    weft_storage *s = weft_pool_alloc(sizeof *s);
    if (!s) return NULL;
    void *data = b->allocate(b, nbytes);
    if (!data) {
        weft_pool_free(s, sizeof *s);
        return NULL;
    }
    *s = (weft_storage){ .data = data, .nbytes = nbytes, .refs = 1, .device = device };
    if (weft_capture) weft_capture_made(s);
    // one counter paces a binding's collector, whatever the device
    if (device != WEFT_CPU && device != WEFT_META) weft_the_state.cpu.pressure += nbytes;
    return s;
}

void weft_storage_retain(weft_storage *s) { s->refs++; }

void weft_storage_release(weft_storage *s) {
    if (--s->refs > 0) return;
    if (s->release) s->release(s->context);
    else {
        weft_backend *b = weft_backend_of(s->device);
        b->release(b, s->data, s->nbytes);
    }
    weft_pool_free(s, sizeof *s);
}
