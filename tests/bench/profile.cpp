// profile.cpp: what a GPU did while a program ran, by CUPTI: kernels and copies by name, and the time in
// which at least one of them ran. A library for tests/bench/gpu.lua; tests/gpu/bundle builds it where
// cupti.h is. CUPTI itself is loaded when asked for.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cxxabi.h>
#include <cupti.h>
#include <dlfcn.h>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

static struct {
    decltype(&::cuptiActivityRegisterCallbacks) callbacks;
    decltype(&::cuptiActivityEnable) enable;
    decltype(&::cuptiActivityDisable) disable;
    decltype(&::cuptiActivityFlushAll) flush;
    decltype(&::cuptiActivityGetNextRecord) next;
} cupti;

struct total { long count; double seconds; };
static std::mutex lock;                 // CUPTI hands buffers over from a thread of its own
static std::vector<std::pair<uint64_t, uint64_t>> spans;
static std::map<std::string, total> by_name;
static const CUpti_ActivityKind kinds[3] = { CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL, CUPTI_ACTIVITY_KIND_MEMCPY, CUPTI_ACTIVITY_KIND_MEMSET };

static void add(const char *name, uint64_t start, uint64_t end) {
    spans.emplace_back(start, end);
    total &t = by_name[name ? name : "?"];
    t.count++;
    t.seconds += 1e-9 * (double)(end - start);
}

static void CUPTIAPI wanted(uint8_t **buffer, size_t *size, size_t *most) {
    *size = 4 << 20;
    *buffer = static_cast<uint8_t *>(std::aligned_alloc(64, *size));
    *most = 0;
}

static void CUPTIAPI complete(CUcontext, uint32_t, uint8_t *buffer, size_t, size_t valid) {
    const std::lock_guard<std::mutex> held(lock);
    CUpti_Activity *record = nullptr;
    while (valid > 0 && cupti.next(buffer, valid, &record) == CUPTI_SUCCESS) {
        if (record->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL || record->kind == CUPTI_ACTIVITY_KIND_KERNEL) {
            const auto *k = reinterpret_cast<const CUpti_ActivityKernel10 *>(record);
            add(k->name, k->start, k->end);
        } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMCPY) {
            const auto *k = reinterpret_cast<const CUpti_ActivityMemcpy6 *>(record);
            add("copy", k->start, k->end);
        } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMSET) {
            const auto *k = reinterpret_cast<const CUpti_ActivityMemset4 *>(record);
            add("clear", k->start, k->end);
        }
    }
    std::free(buffer);
}

static std::string readable(const std::string &name) {
    int status = 0;
    char *plain = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
    std::string text = plain && status == 0 ? plain : name;
    std::free(plain);
    return text;
}

extern "C" {
// Begins; 0, or why not. `file`: libcupti.so.13, by name or path.
const char *profile_start(const char *file) {
    if (!cupti.next) {
        void *library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
        if (!library) return dlerror();
        const auto find = [&](auto *fn, const char *name) { *reinterpret_cast<void **>(fn) = dlsym(library, name); return *fn != nullptr; };
        if (!(find(&cupti.callbacks, "cuptiActivityRegisterCallbacks") && find(&cupti.enable, "cuptiActivityEnable") &&
              find(&cupti.disable, "cuptiActivityDisable") && find(&cupti.flush, "cuptiActivityFlushAll") &&
              find(&cupti.next, "cuptiActivityGetNextRecord"))) {
            cupti.next = nullptr;
            return "not CUPTI";
        }
        if (cupti.callbacks(wanted, complete) != CUPTI_SUCCESS) return "CUPTI refuses callbacks";
    }
    spans.clear();
    by_name.clear();
    for (CUpti_ActivityKind kind : kinds)
        if (cupti.enable(kind) != CUPTI_SUCCESS) return "CUPTI refuses to record (is another profiler at work?)";
    return nullptr;
}

// Ends, once the device has done all: records so far, seconds in which at least one ran, and a table of
// names in `file` (or NULL), the longest first.
long profile_stop(double *busy, const char *file) {
    for (CUpti_ActivityKind kind : kinds) cupti.disable(kind);
    cupti.flush(1);
    const std::lock_guard<std::mutex> held(lock);
    std::sort(spans.begin(), spans.end());
    uint64_t until = 0;
    double sum = 0;
    for (const auto &s : spans) {
        if (s.second > until) sum += 1e-9 * (double)(s.second - std::max(s.first, until));
        until = std::max(until, s.second);
    }
    *busy = sum;
    FILE *out = file ? std::fopen(file, "w") : nullptr;
    if (out) {
        std::vector<std::pair<std::string, total>> rows(by_name.begin(), by_name.end());
        std::sort(rows.begin(), rows.end(), [](const auto &a, const auto &b) { return a.second.seconds > b.second.seconds; });
        for (const auto &r : rows) std::fprintf(out, "%10.1f us %6ld  %s\n", 1e6 * r.second.seconds, r.second.count, readable(r.first).c_str());
        std::fclose(out);
    }
    return (long)spans.size();
}
}
