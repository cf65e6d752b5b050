// shim.cpp: runs a kernel's blocks one after another, their threads as fibers. A thread that meets
// no barrier runs to its end on one stack, which the next thread then uses: only waiting costs.
#include "shim.h"
#include "fiber.h"
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <map>
#include <string>
#include <vector>
#include <sys/mman.h>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace sim {
thread *now;
dim3 block_index, block_size, grid_size;

void fail(const char *format, ...) {
    std::fprintf(stderr, "cuda-sim: ");
    va_list args;
    va_start(args, format);
    std::vfprintf(stderr, format, args);
    va_end(args);
    std::fprintf(stderr, "\n");
    std::fflush(stderr);
    std::abort();
}

// --- settings
static uint64_t seed_state;
static uint64_t draw() {       // splitmix64
    uint64_t z = (seed_state += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}
static long setting(const char *name, long otherwise) {
    const char *v = std::getenv(name);
    return v && *v ? std::atol(v) : otherwise;
}
int64_t conv_chunk = 8192;      // small, so that small pictures come in several chunks
// WEFT_SIM_MACHINE: what is wrong with the machine: "no driver", "old driver", "no gpu", "old gpu", "broken gpu".
static bool machine_has(const char *what) {
    const char *v = std::getenv("WEFT_SIM_MACHINE");
    return v && !std::strcmp(v, what);
}
// Each kernel twice, under two orders of its threads, and the same bits demanded.
static bool twice;

// --- device memory: blocks of the C library behind marked addresses
static std::map<uintptr_t, size_t> blocks;

void *to_device(void *host) { return (void *)((uintptr_t)host | MARK); }

void *to_host(const void *device, const char *who) {
    uintptr_t p = (uintptr_t)device;
    if (!p) return nullptr;
    if (!(p & MARK)) fail("%s was given %p, which is not the device's memory", who, device);
    return (void *)(p & ~MARK);
}

// --- one block
struct waiting { int arrived = 0; std::vector<fiber *> fibers; };
struct warp { waiting wait; int alive = 0; alignas(64) char slots[32 * 64]; };

static struct {
    body fn;
    void *context;
    const char *name;
    int n, next, alive;
    std::vector<thread> threads;
    std::vector<int> order;
    std::vector<warp> warps;
    waiting block;
    std::vector<fiber *> ready;
    std::vector<std::pair<const void *, char *>> shared_sites;
    std::vector<char> shared;
    size_t shared_used, dynamic_size;
    char *dynamic;
} b;
static fiber *idle, *current;
static const size_t STATIC_LIMIT = 48 << 10, DYNAMIC_LIMIT = 227 << 10;

int lane() { return now->linear & 31; }
static warp &my_warp() { return b.warps[(size_t)now->linear >> 5]; }
void *warp_slots() { return my_warp().slots; }

void check_mask(unsigned mask) {
    const warp &w = my_warp();
    unsigned present = w.alive >= 32 ? 0xffffffffu : (1u << w.alive) - 1;
    if ((mask & present) != present)
        fail("%s: a warp's exchange names lanes %08x, but %d lanes run", b.name, mask, w.alive);
}

static void give_way() {
    fiber *f = current;
    fiber_leave(f);
}

static void release(waiting &w) {
    w.arrived = 0;
    b.ready.insert(b.ready.end(), w.fibers.begin(), w.fibers.end());
    w.fibers.clear();
}

static void wait_for(waiting &w, int all) {
    if (++w.arrived >= all) {
        release(w);
        return;
    }
    w.fibers.push_back(current);
    thread *me = now;
    give_way();
    now = me;
}

void barrier() { wait_for(b.block, b.alive); }
void warp_barrier() { warp &w = my_warp(); wait_for(w.wait, w.alive); }

static void ended(thread *t) {
    warp &w = b.warps[(size_t)t->linear >> 5];
    w.alive--;
    b.alive--;
    if (w.alive > 0 && w.wait.arrived >= w.alive) release(w.wait);
    if (b.alive > 0 && b.block.arrived >= b.alive) release(b.block);
}

// What each stack does: threads, one after another, until the block has none left to start.
static void work() {
    for (;;) {
        fiber *me = current;
        while (b.next < b.n) {
            thread *t = &b.threads[(size_t)b.order[(size_t)b.next++]];
            now = t;
            me->running = t;
            b.fn(b.context);
            ended(t);
        }
        me->next = idle;
        idle = me;
        give_way();
    }
}

static void enter(fiber *f) {
    current = f;
    fiber_enter(f);
}

void *shared(const void *site, size_t bytes, size_t align) {
    for (auto &s : b.shared_sites)
        if (s.first == site) return s.second;
    b.shared_used = (b.shared_used + align - 1) / align * align;
    char *p = b.shared.data() + b.shared_used;
    b.shared_used += bytes;
    if (b.shared_used > STATIC_LIMIT)
        fail("%s: %zu bytes of static shared memory, the limit is %zu", b.name, b.shared_used, STATIC_LIMIT);
    b.shared_sites.emplace_back(site, p);
    return p;
}

void *dynamic_shared() {
    if (!b.dynamic_size) fail("%s uses dynamic shared memory but was launched with none", b.name);
    return b.dynamic;
}

static void shuffle(std::vector<int> &order, int n) {
    order.resize((size_t)n);
    for (int i = 0; i < n; i++) order[(size_t)i] = i;
    for (int i = n - 1; i > 0; i--) std::swap(order[(size_t)i], order[(size_t)(draw() % (uint64_t)(i + 1))]);
}

static void run_block(dim3 index) {
    block_index = index;
    std::memset(b.shared.data(), 0xff, b.shared.size());        // NaN in every dtype
    if (b.dynamic_size) std::memset(b.dynamic, 0xff, b.dynamic_size);
    b.shared_sites.clear();
    b.shared_used = 0;
    b.next = 0;
    b.alive = b.n;
    b.block.arrived = 0;
    // In every other block those go on first that were let go last: warps run far ahead of others.
    const bool ahead = draw() & 1;
    for (size_t w = 0; w < b.warps.size(); w++) {
        b.warps[w].wait.arrived = 0;
        b.warps[w].alive = std::min(32, b.n - 32 * (int)w);
    }
    while (b.alive > 0) {
        if (b.next < b.n && (b.ready.empty() || draw() & 1)) {
            fiber *f = idle;
            if (f) idle = f->next;
            else f = fiber_new(work);
            enter(f);
        } else if (!b.ready.empty()) {
            const size_t k = ahead ? b.ready.size() - 1 : (size_t)(draw() % b.ready.size());
            fiber *f = b.ready[k];
            b.ready[k] = b.ready.back();
            b.ready.pop_back();
            enter(f);
        } else fail("%s: %d threads of a block wait at barriers that others never reach", b.name, b.alive);
    }
}

static void run_grid(dim3 grid) {
    const int64_t total = (int64_t)grid.x * grid.y * grid.z;
    const bool backwards = draw() & 1;
    for (int64_t i = 0; i < total; i++) {
        if (i % 64 == 0) shuffle(b.order, b.n);
        int64_t k = backwards ? total - 1 - i : i;
        run_block(dim3((unsigned)(k % grid.x), (unsigned)(k / grid.x % grid.y), (unsigned)(k / grid.x / grid.y)));
    }
}

// The blocks that the launch was given: what it may write.
static std::map<uintptr_t, size_t> given;
void touched(const void *host) {
    if (!twice || dry || !host) return;
    auto it = blocks.upper_bound((uintptr_t)host);
    if (it == blocks.begin()) return;
    --it;
    if ((uintptr_t)host < it->first + it->second) given[it->first] = it->second;
}
static std::vector<std::string> contents() {
    std::vector<std::string> all;
    for (auto &k : given) all.emplace_back(reinterpret_cast<char *>(k.first), k.second);
    return all;
}
static void restore(const std::vector<std::string> &all) {
    size_t i = 0;
    for (auto &k : given) std::memcpy(reinterpret_cast<char *>(k.first), all[i++].data(), k.second);
}

int run(const char *kernel, dim3 grid, dim3 block, size_t dynamic, body fn, void *context) {
    const int64_t threads = (int64_t)block.x * block.y * block.z;
    if (threads < 1 || threads > 1024) fail("%s: %lld threads a block, the limit is 1024", kernel, (long long)threads);
    if (block.z > 64) fail("%s: %u threads along z, the limit is 64", kernel, block.z);
    if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.x > 2147483647u || grid.y > 65535u || grid.z > 65535u)
        fail("%s: a grid of %u x %u x %u is not possible", kernel, grid.x, grid.y, grid.z);
    if (dynamic > DYNAMIC_LIMIT)
        fail("%s: %zu bytes of dynamic shared memory, the limit is %zu", kernel, dynamic, DYNAMIC_LIMIT);
    if (dry || machine_has("broken gpu")) return 0;
    b.fn = fn;
    b.context = context;
    b.name = kernel;
    b.n = (int)threads;
    b.threads.resize((size_t)threads);
    b.warps.resize((size_t)(threads + 31) / 32);
    for (int i = 0; i < b.n; i++) {
        b.threads[(size_t)i].linear = i;
        b.threads[(size_t)i].index = dim3((unsigned)i % block.x, (unsigned)i / block.x % block.y, (unsigned)i / block.x / block.y);
    }
    block_size = block;
    grid_size = grid;
    b.shared.resize(STATIC_LIMIT);
    b.dynamic_size = dynamic;
    b.dynamic = dynamic ? static_cast<char *>(std::aligned_alloc(128, (dynamic + 127) / 128 * 128)) : nullptr;
    if (twice) {
        std::vector<std::string> before = contents();
        run_grid(grid);
        std::vector<std::string> first = contents();
        restore(before);
        run_grid(grid);
        size_t i = 0;
        for (auto &k : given) {
            if (std::memcmp(reinterpret_cast<char *>(k.first), first[i].data(), k.second) != 0)
                fail("%s: another order of its threads gives other bits", kernel);
            i++;
        }
    } else run_grid(grid);
    given.clear();
    std::free(b.dynamic);
    b.dynamic = nullptr;
    now = nullptr;
    return 0;
}

static void settle() __attribute__((constructor));
static void settle() {
    seed_state = (uint64_t)setting("WEFT_SIM_SEED", 1);
    twice = setting("WEFT_SIM_TWO_ORDERS", 0) != 0;
    dry = setting("WEFT_SIM_DRY", 0) != 0;
    if (dry) conv_chunk = 256 << 20;
}
}  // namespace sim

// --- the runtime
static size_t device_bytes() { return (size_t)sim::setting("WEFT_SIM_MEMORY", sim::dry ? 1l << 37 : 1l << 30); }
static size_t in_use;

cudaError_t cudaMalloc(void **p, size_t n) {
    sim_count_runtime()->allocations++;
    if (in_use + n > device_bytes()) return cudaErrorMemoryAllocation;
    const size_t size = n ? n : 1;
    void *host;
    if (sim::dry) {
        host = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (host == MAP_FAILED) return cudaErrorMemoryAllocation;
    } else {
        if (posix_memalign(&host, 256, size) != 0) return cudaErrorMemoryAllocation;
        std::memset(host, 0xff, size);      // what is not written reads as NaN
    }
    sim::blocks[(uintptr_t)host] = size;
    in_use += size;
    *p = sim::to_device(host);
    return cudaSuccess;
}
cudaError_t cudaFree(void *p) {
    if (!p) return cudaSuccess;
    void *host = sim::to_host(p, "cudaFree");
    auto it = sim::blocks.find((uintptr_t)host);
    if (it == sim::blocks.end()) sim::fail("cudaFree of what cudaMalloc did not give");
    sim_count_runtime()->frees++;
    in_use -= it->second;
    if (sim::dry) munmap(host, it->second);
    else std::free(host);
    sim::blocks.erase(it);
    return cudaSuccess;
}
cudaError_t cudaMallocHost(void **p, size_t n) {
    sim_count_runtime()->pinned_allocations++;
    *p = std::aligned_alloc(256, (n + 255) / 256 * 256);
    return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaHostAlloc(void **p, size_t n, unsigned) { return cudaMallocHost(p, n); }
cudaError_t cudaHostGetDevicePointer(void **device, void *host, unsigned) {
    *device = sim::to_device(host);
    return cudaSuccess;
}
cudaError_t cudaFreeHost(void *p) { std::free(p); return cudaSuccess; }

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, cudaMemcpyKind kind, cudaStream_t) {
    const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (!to_device && (uintptr_t)to & sim::MARK) sim::fail("a copy to the host was given a device address");
    if (!from_device && (uintptr_t)from & sim::MARK) sim::fail("a copy from the host was given a device address");
    // allowed on a GPU, which would read what lies there at each launch
    if (sim::capturing() && !(to_device && from_device)) sim::fail("a copy from or to the host was captured in a graph");
    sim::in_stream([=]() {
        void *const out = to_device ? sim::to_host(to, "cudaMemcpy") : to;
        const void *const in = from_device ? sim::to_host(from, "cudaMemcpy") : from;
        sim_runtime_count *c = sim_count_runtime();
        (to_device && from_device ? c->copies : to_device ? c->uploads : c->downloads)++;
        (to_device && from_device ? c->copy_bytes : to_device ? c->upload_bytes : c->download_bytes) += (int64_t)n;
        if (!sim::dry) std::memmove(out, in, n);
        else if (!to_device) std::memset(out, 0, n);
    });
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *p, int value, size_t n, cudaStream_t) {
    sim::in_stream([=]() {
        void *const host = sim::to_host(p, "cudaMemset");
        sim_count_runtime()->clears++;
        sim_count_runtime()->clear_bytes += (int64_t)n;
        if (!sim::dry) std::memset(host, value, n);
    });
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    *total = device_bytes();
    *free_bytes = *total - in_use;
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) { *stream = nullptr; return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) {
    sim_count_runtime()->stream_waits++;
    return sim::capturing() ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) { *event = nullptr; return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { sim_count_runtime()->event_waits++; return cudaSuccess; }

// --- graphs: a list of work. What it works on must still be there when it is launched: addresses are
// looked up anew, and one that was freed in between is told.
struct sim_graph { std::vector<std::function<void()>> work; };
static sim_graph *captured;

namespace sim {
bool capturing() { return captured != nullptr; }
void record(std::function<void()> work) {
    given.clear();      // it runs later, if at all
    captured->work.push_back(std::move(work));
}
}  // namespace sim

cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
    if (captured) return cudaErrorStreamCaptureUnsupported;
    captured = new sim_graph;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *graph) {
    *graph = captured;
    captured = nullptr;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long) {
    *exec = new sim_graph(*graph);
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t) {
    for (auto &work : exec->work) work();
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { delete graph; return cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { delete exec; return cudaSuccess; }

cudaError_t cudaGetDeviceCount(int *n) {
    *n = 0;
    if (sim::machine_has("no driver") || sim::machine_has("old driver")) return cudaErrorInsufficientDriver;
    if (sim::machine_has("no gpu")) return cudaErrorNoDevice;
    *n = 1;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) { *version = 13000; return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *version) {
    *version = sim::machine_has("no driver") ? 0 : sim::machine_has("old driver") ? 12040 : 13000;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int) {
    *p = cudaDeviceProp{};
    std::snprintf(p->name, sizeof p->name, "a simulated GPU");
    p->totalGlobalMem = device_bytes();
    p->sharedMemPerBlockOptin = 227 << 10;
    p->major = sim::machine_has("old gpu") ? 7 : 8;
    p->minor = sim::machine_has("old gpu") ? 5 : 0;
    p->multiProcessorCount = 4;
    return cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char *cudaGetErrorString(cudaError_t e) { return e == cudaErrorMemoryAllocation ? "out of memory" : "an error"; }
const char *cudaGetErrorName(cudaError_t e) { return e == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaError"; }
cudaError_t cudaFuncSetAttribute(const void *, cudaFuncAttribute, int) { return cudaSuccess; }

// --- float16, to nearest even
float __half2float(half_t v) {
    const uint32_t sign = (uint32_t)(v.bits & 0x8000) << 16, e = v.bits >> 10 & 31, m = v.bits & 1023;
    if (e == 31) return __uint_as_float(sign | 0x7f800000u | m << 13);
    if (e) return __uint_as_float(sign | (e + 112) << 23 | m << 13);
    const float f = (float)m * 0x1p-24f;
    return sign ? -f : f;
}
half_t __float2half(float f) {
    const uint32_t u = __float_as_uint(f), sign = u >> 16 & 0x8000, a = u & 0x7fffffffu;
    uint32_t h;
    if (a > 0x7f800000u) h = 0x7e00;
    else if (a >= 0x477ff000u) h = 0x7c00;                       // 65520 and above
    else if (a >= 0x38800000u) h = (a - 0x38000000u + 0xfffu + (a >> 13 & 1)) >> 13;
    else h = (uint32_t)std::nearbyint(__uint_as_float(a) * 0x1p24f);    // denormal, in units of 2^-24
    return half_t{ (uint16_t)(sign | h) };
}
