// comm.cu: collective operations through NCCL, in the device's only stream. The library is loaded when a
// group is first made; only its header is wanted to build.
#include "cuda/comm.h"
#include "cuda/provider.h"

#if __has_include(<nccl.h>)
#include <nccl.h>

static_assert(NCCL_UNIQUE_ID_BYTES == WEFT_GROUP_ID, "the size of a group's id");

#define FUNCTIONS(F) \
    F(ncclGetVersion) F(ncclGetUniqueId) F(ncclCommInitRank) F(ncclCommDestroy) F(ncclGetErrorString) \
    F(ncclGetLastError) F(ncclAllReduce) F(ncclAllGather) F(ncclReduceScatter) F(ncclBroadcast)
static struct {
#define MEMBER(name) decltype(&::name) name;
    FUNCTIONS(MEMBER)
#undef MEMBER
} nccl;
static provider library = { "libnccl.so.2", nullptr, "" };

static bool load() {
    static const bool loaded = [] {
#define FIND(name) && library.find(&nccl.name, #name)
        return library.open() FUNCTIONS(FIND);
#undef FIND
    }();
    return loaded;
}

static weft_status there() {
    if (load()) return WEFT_OK;
    return weft_fail(WEFT_EUNSUPPORTED, "NCCL can't be used: %s", library.why);
}

static weft_status check(ncclResult_t code, const char *what) {
    if (code == ncclSuccess) return WEFT_OK;
    const char *more = nccl.ncclGetLastError(nullptr);
    return weft_fail(WEFT_EIO, "NCCL: %s: %s%s%s", what, nccl.ncclGetErrorString(code), more && *more ? ": " : "",
                     more ? more : "");
}

void cuda_comm_about(char *text, int64_t size) {
    int version = 0;
    if (load() && nccl.ncclGetVersion(&version) == ncclSuccess)
        snprintf(text, (size_t)size, "NCCL %d.%d.%d", version / 10000, version / 100 % 100, version % 100);
    else snprintf(text, (size_t)size, "no NCCL: %s", library.why);
}

struct comm { cuda_device *d; ncclComm_t nccl; };

static weft_status identify(char id[WEFT_GROUP_ID]) {
    ncclUniqueId made;
    TRY(there());
    TRY(check(nccl.ncclGetUniqueId(&made), "naming a group"));
    memcpy(id, made.internal, WEFT_GROUP_ID);
    return WEFT_OK;
}

static weft_status begin(comm *c, const char *id, int rank, int size) {
    ncclUniqueId name;
    memcpy(name.internal, id, WEFT_GROUP_ID);
    TRY(there());
    TRY(cuda_check(cudaSetDevice(c->d->index), "choosing the device"));
    return check(nccl.ncclCommInitRank(&c->nccl, size, name, rank), "joining");
}

static void *join(weft_backend *b, const char id[WEFT_GROUP_ID], int rank, int size) {
    comm *c = new comm{ reinterpret_cast<cuda_device *>(b), nullptr };
    if (begin(c, id, rank, size) == WEFT_OK) return c;
    delete c;
    return nullptr;
}

static void leave(void *group) {
    comm *c = static_cast<comm *>(group);
    nccl.ncclCommDestroy(c->nccl);
    delete c;
}

// bool travels as bytes
static ncclDataType_t type_of(int dtype) {
    switch (dtype) {
    case WEFT_FLOAT64: return ncclFloat64;
    case WEFT_BFLOAT16: return ncclBfloat16;
    case WEFT_FLOAT16: return ncclFloat16;
    case WEFT_INT32: return ncclInt32;
    case WEFT_INT64: return ncclInt64;
    case WEFT_UINT8: case WEFT_BOOL: return ncclUint8;
    default: return ncclFloat32;
    }
}
static ncclRedOp_t reduction_of(int reduction) {
    return reduction == WEFT_MEAN ? ncclAvg : reduction == WEFT_MAX ? ncclMax : ncclSum;
}

static weft_status started(comm *c, ncclResult_t code, const char *what) {
    TRY(check(code, what));
    c->d->counters.launches++;
    return WEFT_OK;
}

static weft_status all_reduce(void *group, void *data, int64_t n, int dtype, int reduction) {
    comm *c = static_cast<comm *>(group);
    return started(c, nccl.ncclAllReduce(data, data, (size_t)n, type_of(dtype), reduction_of(reduction), c->nccl, c->d->stream),
                   "all-reduce");
}

static weft_status all_gather(void *group, void *to, const void *from, int64_t n, int dtype) {
    comm *c = static_cast<comm *>(group);
    return started(c, nccl.ncclAllGather(from, to, (size_t)n, type_of(dtype), c->nccl, c->d->stream), "all-gather");
}

static weft_status reduce_scatter(void *group, void *to, const void *from, int64_t n, int dtype, int reduction) {
    comm *c = static_cast<comm *>(group);
    return started(c, nccl.ncclReduceScatter(from, to, (size_t)n, type_of(dtype), reduction_of(reduction), c->nccl, c->d->stream),
                   "reduce-scatter");
}

static weft_status broadcast(void *group, void *data, int64_t n, int dtype, int root) {
    comm *c = static_cast<comm *>(group);
    return started(c, nccl.ncclBroadcast(data, data, (size_t)n, type_of(dtype), root, c->nccl, c->d->stream), "broadcast");
}

const weft_collectives cuda_collectives = { identify, join, leave, all_reduce, all_gather, reduce_scatter, broadcast };

#else
static weft_status missing() { return weft_fail(WEFT_EUNSUPPORTED, "NCCL can't be used: libweft_cuda.so was built without its header nccl.h"); }
static weft_status identify(char *) { return missing(); }
static void *join(weft_backend *, const char *, int, int) { missing(); return nullptr; }
void cuda_comm_about(char *text, int64_t size) { snprintf(text, (size_t)size, "no NCCL: built without nccl.h"); }
// no group is ever joined, so nothing else is called
const weft_collectives cuda_collectives = { identify, join, nullptr, nullptr, nullptr, nullptr, nullptr };
#endif
