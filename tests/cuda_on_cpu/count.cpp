// count.cpp: counts what count.h says.
#include "cuda/device.h"
#include <cxxabi.h>
#include <map>
#include <string>
#include <vector>

namespace sim {
bool dry;

static std::map<std::string, sim_kernel_count> kernels;
static sim_runtime_count runtime;

// --- sizes of scratch
static std::map<uintptr_t, int64_t> scratch_sizes;
static void *(*give)(weft_backend *, int64_t);
static void (*take)(weft_backend *, void *, int64_t);
static void *watched_allocate(weft_backend *b, int64_t nbytes) {
    void *p = give(b, nbytes);
    if (p) scratch_sizes[(uintptr_t)p] = nbytes;
    return p;
}
static void watched_release(weft_backend *b, void *p, int64_t nbytes) {
    scratch_sizes.erase((uintptr_t)p);
    take(b, p, nbytes);
}
void watch_allocations(weft_backend *b) {
    give = b->allocate;
    take = b->release;
    b->allocate = watched_allocate;
    b->release = watched_release;
}
static int64_t left_of_block(uintptr_t p) {
    auto it = scratch_sizes.upper_bound(p);
    if (it == scratch_sizes.begin()) return 0;
    --it;
    const int64_t left = it->second - (int64_t)(p - it->first);
    return left > 0 ? left : 0;
}

// --- operands
struct seen { uintptr_t at; bool written, added_to; };
static std::vector<seen> operands;
void operand(const void *device, bool written, bool added_to) {
    if (!device) return;
    for (seen &s : operands)
        if (s.at == (uintptr_t)device) {
            s.written = s.written || written;
            s.added_to = s.added_to || added_to;
            return;
        }
    operands.push_back({ (uintptr_t)device, written, added_to });
}

// Bytes of a view's elements, those of a broadcast once; how far it reaches.
static int64_t bytes_of(const weft_view *v, int64_t *reach) {
    const int64_t size = cuda_host->dtype_size(v->dtype);
    int64_t n = v->numel > 0, last = 0;
    for (int d = 0; d < v->ndim && n; d++) {
        if (v->stride[d] != 0) n *= v->shape[d];
        last += (v->shape[d] - 1) * v->stride[d];
    }
    *reach = (last + 1) * size;
    return n * size;
}

// What of `views` lies at p; 0: nothing does.
static int64_t share(const weft_view *const *views, int n, uintptr_t p) {
    int64_t inside = 0;
    for (int i = 0; i < n; i++) {
        if (!views[i] || !views[i]->data) continue;
        const uintptr_t first = (uintptr_t)views[i]->data;
        int64_t reach, bytes = bytes_of(views[i], &reach);
        if (p == first) return bytes;
        // a part of it: what is left from there on
        if (p > first && p < first + (uintptr_t)reach)
            inside = bytes < reach - (int64_t)(p - first) ? bytes : reach - (int64_t)(p - first);
    }
    return inside;
}

static sim_kernel_count &row_of(const std::string &name) {
    sim_kernel_count &row = kernels[name];
    row.name = kernels.find(name)->first.c_str();
    return row;
}

// "(norm_forward<T, 4, true>)" is norm_forward; kernels that take what they do as an argument are told
// apart by its type.
static std::string short_name(const char *kernel, const char *what) {
    std::string name = kernel;
    name.erase(0, name.find_first_not_of("( "));
    name.resize(std::min(name.size(), name.find_first_of("<) ")));
    if (!what || (name != "each_kernel" && name != "optim_kernel")) return name;
    int status;
    char *text = abi::__cxa_demangle(what, nullptr, nullptr, &status);
    std::string of = text ? text : what;
    std::free(text);
    of.resize(std::min(of.size(), of.find_first_of("<(")));
    return name + " " + of;
}

traffic measured(const char *kernel, const char *what, const weft_call *call) {
    traffic t{ short_name(kernel, what), 0, 0 };
    for (const seen &s : operands) {
        const int64_t in = share(call->in, call->n_in, s.at), out = share(call->out, call->n_out, s.at);
        if (in || out) {
            t.bytes_read += in + (s.added_to ? out : 0);
            t.bytes_written += call->n_out == 0 && s.written ? in : out;
        } else (s.written ? t.bytes_written : t.bytes_read) += left_of_block(s.at);
    }
    operands.clear();
    return t;
}

void launched(const char *kernel, int64_t bytes_read, int64_t bytes_written) {
    sim_kernel_count &row = row_of(kernel);
    row.launches++;
    row.bytes_read += bytes_read;
    row.bytes_written += bytes_written;
    operands.clear();   // what a captured launch names again
}
}  // namespace sim

void sim_count_reset(void) {
    sim::kernels.clear();
    sim::runtime = sim_runtime_count{};
}
int sim_count_kernels(void) { return (int)sim::kernels.size(); }
const sim_kernel_count *sim_count_kernel(int i) {
    if (i < 0 || i >= sim_count_kernels()) return nullptr;
    return &std::next(sim::kernels.begin(), i)->second;
}
sim_runtime_count *sim_count_runtime(void) { return &sim::runtime; }
