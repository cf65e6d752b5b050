// memory.cu: the device's memory. Blocks go back to lists of their size and are handed out again
// without asking the driver; since all kernels and copies of a device run in one stream, in order, a
// block may be used again at once. Freeing never waits and never calls the driver.
#include "cuda/memory.h"
#include <cstdio>
#include <cstdlib>
#include <unordered_map>
#include <vector>

// Sizes are rounded up to classes eight to a doubling, from 512 bytes on.
#define SMALLEST 512
#define CLASSES 512
#define SLACK ((int64_t)1 << 30)
#define STAGING ((int64_t)32 << 20)     // two halves, filled in turn

struct cuda_pool {
    struct block { int64_t size; int c; bool live; };       // live: some tensor's, or a kernel's scratch
    std::unordered_map<void *, block> blocks;
    std::vector<void *> waiting[CLASSES];       // while its graph is captured
    int64_t nbytes = 0;
};

struct cuda_blocks {
    std::vector<void *> waiting[CLASSES];
    cuda_pool *pool = nullptr;                  // of the graph that is being captured
    std::unordered_map<void *, cuda_pool *> pool_of;    // of blocks that belong to one
    std::unordered_map<void *, int> class_of;   // of every block, live or waiting
    int64_t held = 0;                           // bytes of all of them
    bool exact = false;                         // WEFT_CUDA_NO_CACHE: each tensor is an allocation of its own
};

static int class_of(int64_t nbytes, int64_t *rounded) {
    if (nbytes <= SMALLEST) {
        *rounded = SMALLEST;
        return 0;
    }
    const int shift = 63 - __builtin_clzll((unsigned long long)(nbytes - 1));
    const int64_t step = (int64_t)1 << (shift - 3);
    const int64_t k = (nbytes - ((int64_t)1 << shift) + step - 1) / step;       // 1 .. 8
    *rounded = ((int64_t)1 << shift) + k * step;
    return 1 + (shift - 9) * 8 + (int)(k - 1);
}

static int64_t size_of_class(int c) {
    if (c == 0) return SMALLEST;
    const int shift = 9 + (c - 1) / 8;
    return ((int64_t)1 << shift) + (int64_t)((c - 1) % 8 + 1) * ((int64_t)1 << (shift - 3));
}

static void *out_of_memory(cuda_device *d, int64_t nbytes) {
    size_t free_bytes = 0, total = 0;
    cudaMemGetInfo(&free_bytes, &total);
    char limit[48] = "";
    if (d->memory.limit > 0) snprintf(limit, sizeof limit, ", limit %lld", (long long)d->memory.limit);
    weft_fail(WEFT_ENOMEM, "out of memory on %s: requested %lld bytes, live %lld, cached %lld, free on the device "
              "%lld of %lld%s; make the batch smaller or free tensors", d->name, (long long)nbytes,
              (long long)d->memory.live, (long long)d->memory.cached, (long long)free_bytes, (long long)total, limit);
    return nullptr;
}

static void count_live(cuda_device *d, int64_t change) {
    d->memory.live += change;
    d->memory.cached = d->blocks->held - d->memory.live;
    if (change > 0) d->memory.pressure += change;
    if (d->memory.live > d->memory.peak) d->memory.peak = d->memory.live;
}

static void *from_driver(cuda_device *d, int64_t nbytes) {
    void *p = nullptr;
    d->memory.system_calls++;
    if (cudaMalloc(&p, (size_t)nbytes) != cudaSuccess) {
        cudaGetLastError();     // it is told by our own message
        return nullptr;
    }
    return p;
}

// Waits for the device: blocks that go back to the driver may still be in use.
void cuda_trim(weft_backend *b) {
    cuda_device *d = reinterpret_cast<cuda_device *>(b);
    bool waited = false;
    if (d->capturing) return;       // waiting is out of the question
    for (int c = 0; c < CLASSES; c++) {
        for (void *p : d->blocks->waiting[c]) {
            if (!waited) cudaStreamSynchronize(d->stream);
            waited = true;
            cudaFree(p);
            d->blocks->class_of.erase(p);
            d->blocks->held -= size_of_class(c);
        }
        d->blocks->waiting[c].clear();
    }
    d->memory.cached = d->blocks->held - d->memory.live;
}

static void *exactly(cuda_device *d, int64_t nbytes) {
    const int64_t size = nbytes > 0 ? nbytes : 1;
    void *p = d->memory.limit > 0 && d->memory.live + size > d->memory.limit ? nullptr : from_driver(d, size);
    if (!p) return out_of_memory(d, nbytes);
    d->blocks->held += size;
    count_live(d, size);
    return p;
}

// --- blocks of graphs. A graph's kernels know addresses: what it was given while captured is its own
// until it is freed, and counts as live. Within the capture blocks are used again, since a graph's
// kernels run in order too.
cuda_pool *cuda_pool_begin(cuda_device *d) { return d->blocks->pool = new cuda_pool; }
void cuda_pool_end(cuda_device *d) { d->blocks->pool = nullptr; }
int64_t cuda_pool_bytes(const cuda_pool *pool) { return pool->nbytes; }

static void *from_pool(cuda_pool *pool, int c) {
    for (int k = c; k <= c + 4 && k < CLASSES; k++) {
        if (pool->waiting[k].empty()) continue;
        void *p = pool->waiting[k].back();
        pool->waiting[k].pop_back();
        pool->blocks[p].live = true;
        return p;
    }
    return nullptr;
}

static void *into_pool(cuda_device *d, void *p, int64_t size, int c) {
    cuda_pool *pool = d->blocks->pool;
    if (!p || !pool) return p;
    pool->blocks[p] = { size, c, true };
    pool->nbytes += size;
    d->blocks->pool_of[p] = pool;
    return p;
}

// Whether the block is a graph's, which keeps it.
static bool back_to_pool(cuda_device *d, void *p) {
    if (d->blocks->pool_of.empty()) return false;
    auto it = d->blocks->pool_of.find(p);
    if (it == d->blocks->pool_of.end()) return false;
    cuda_pool::block &block = it->second->blocks[p];
    block.live = false;
    if (it->second == d->blocks->pool && !d->blocks->exact) it->second->waiting[block.c].push_back(p);
    return true;
}

// Blocks of tensors that outlive the graph become like all others.
void cuda_pool_free(cuda_device *d, cuda_pool *pool) {
    for (auto &b : pool->blocks) {
        d->blocks->pool_of.erase(b.first);
        if (!b.second.live) cuda_release(&d->base, b.first, b.second.size);
    }
    delete pool;
}

void *cuda_allocate(weft_backend *b, int64_t nbytes) {
    cuda_device *d = reinterpret_cast<cuda_device *>(b);
    weft_memory *m = &d->memory;
    if (nbytes < 0 || nbytes > (int64_t)1 << 46 || cuda_host->must_fail()) return out_of_memory(d, nbytes);
    if (d->blocks->exact) return into_pool(d, exactly(d, nbytes), nbytes > 0 ? nbytes : 1, 0);
    int64_t rounded;
    const int c = class_of(nbytes, &rounded);
    void *p = d->blocks->pool ? from_pool(d->blocks->pool, c) : nullptr;
    if (p) return p;
    for (int k = c; k <= c + 4 && k < CLASSES && !p; k++) {     // up to half as large again
        if (d->blocks->waiting[k].empty()) continue;
        p = d->blocks->waiting[k].back();
        d->blocks->waiting[k].pop_back();
        rounded = size_of_class(k);
    }
    if (!p) {
        if (m->cached > m->live + SLACK) cuda_trim(b);
        if (m->limit > 0 && m->live + m->cached + rounded > m->limit) cuda_trim(b);
        if (m->limit > 0 && m->live + rounded > m->limit) return out_of_memory(d, nbytes);
        p = from_driver(d, rounded);
        if (!p) {
            cuda_trim(b);
            p = from_driver(d, rounded);
        }
        if (!p) return out_of_memory(d, nbytes);
        d->blocks->held += rounded;
        d->blocks->class_of[p] = c;
    }
    count_live(d, rounded);
    return into_pool(d, p, rounded, d->blocks->class_of[p]);
}

void cuda_release(weft_backend *b, void *data, int64_t nbytes) {
    cuda_device *d = reinterpret_cast<cuda_device *>(b);
    if (back_to_pool(d, data)) return;
    if (d->blocks->exact) {
        const int64_t size = nbytes > 0 ? nbytes : 1;
        if (!d->capturing) cudaStreamSynchronize(d->stream);
        cudaFree(data);
        d->blocks->held -= size;
        count_live(d, -size);
        return;
    }
    const int c = d->blocks->class_of[data];
    d->blocks->waiting[c].push_back(data);
    count_live(d, -size_of_class(c));
}

// Host memory goes through a pinned ring of two halves, so that this returns before the copy is
// done and `from` may be used again.
weft_status cuda_upload(weft_backend *b, void *to, const void *from, int64_t nbytes) {
    cuda_device *d = reinterpret_cast<cuda_device *>(b);
    const int64_t half = d->staging_size / 2;
    TRY(cuda_not_captured(d, "data of the host is wanted"));
    d->counters.uploads++;
    d->counters.upload_bytes += nbytes;
    for (int64_t done = 0; done < nbytes;) {
        if (d->staging_at == d->staging_size) d->staging_at = 0;
        const int which = d->staging_at >= half;
        if (d->staging_at % half == 0)      // the last copy out of this half must be over
            TRY(cuda_check(cudaEventSynchronize(d->staged[which]), "waiting for an upload"));
        int64_t n = (which + 1) * half - d->staging_at;
        if (n > nbytes - done) n = nbytes - done;
        memcpy(d->staging + d->staging_at, static_cast<const char *>(from) + done, (size_t)n);
        TRY(cuda_check(cudaMemcpyAsync(static_cast<char *>(to) + done, d->staging + d->staging_at, (size_t)n,
                                       cudaMemcpyHostToDevice, d->stream), "upload"));
        done += n;
        // the next piece begins at a line of its own
        d->staging_at += (n + 255) / 256 * 256;
        if (d->staging_at > (which + 1) * half) d->staging_at = (which + 1) * half;
        TRY(cuda_check(cudaEventRecord(d->staged[which], d->stream), "upload"));
    }
    return WEFT_OK;
}

weft_status cuda_download(weft_backend *b, void *to, const void *from, int64_t nbytes) {
    cuda_device *d = reinterpret_cast<cuda_device *>(b);
    TRY(cuda_not_captured(d, "a value is read"));
    d->counters.downloads++;
    d->counters.download_bytes += nbytes;
    if (nbytes) TRY(cuda_check(cudaMemcpyAsync(to, from, (size_t)nbytes, cudaMemcpyDeviceToHost, d->stream), "download"));
    return b->synchronize(b);
}

weft_status cuda_memory_open(cuda_device *d) {
    const char *no_cache = getenv("WEFT_CUDA_NO_CACHE");
    d->blocks = new cuda_blocks;
    d->blocks->exact = no_cache && *no_cache == '1';
    d->staging_size = STAGING;
    TRY(cuda_check(cudaMallocHost((void **)&d->staging, STAGING), "pinned memory"));
    for (int i = 0; i < 2; i++)
        TRY(cuda_check(cudaEventCreateWithFlags(&d->staged[i], cudaEventDisableTiming), "an event"));
    return WEFT_OK;
}
