// comm.cpp: collective operations for the simulated GPU: ranks are processes that share memory, a
// piece of it each, and add up in the order of the ranks.
#include "cuda/comm.h"
#include <atomic>
#include <cstdio>
#include <ctime>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

static const int64_t PIECE = 1 << 16;

struct meeting { std::atomic<int> arrived, turn; };
struct comm {
    cuda_device *d;
    int rank, size;
    meeting *here;
    char *pieces;       // size * PIECE
};

static void barrier(comm *c) {
    const int turn = c->here->turn.load();
    if (c->here->arrived.fetch_add(1) + 1 == c->size) {
        c->here->arrived.store(0);
        c->here->turn.store(turn + 1);
        return;
    }
    const timespec pause = { 0, 200000 };
    for (int waited = 0; c->here->turn.load() == turn; waited++) {
        if (waited > 150000) sim::fail("a rank waits at a collective operation that others never reach");
        nanosleep(&pause, nullptr);
    }
}

// the meeting and a piece for each
static size_t bytes_of(int size) { return (size_t)(PIECE * (1 + size)); }

static weft_status identify(char id[WEFT_GROUP_ID]) {
    static int made;
    memset(id, 0, WEFT_GROUP_ID);
    snprintf(id, WEFT_GROUP_ID, "/weft-sim-%ld-%d", (long)getpid(), ++made);
    return WEFT_OK;
}

static void *join(weft_backend *b, const char id[WEFT_GROUP_ID], int rank, int size) {
    const int file = shm_open(id, O_CREAT | O_RDWR, 0600);      // whoever comes first makes it; it starts as zeros
    void *p = file < 0 || ftruncate(file, (off_t)bytes_of(size)) != 0 ? MAP_FAILED : mmap(nullptr, bytes_of(size), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (file >= 0) close(file);
    if (p == MAP_FAILED) {
        weft_fail(WEFT_EIO, "the group %s can't be joined", id);
        return nullptr;
    }
    comm *c = new comm{ reinterpret_cast<cuda_device *>(b), rank, size, static_cast<meeting *>(p), static_cast<char *>(p) + PIECE };
    barrier(c);
    if (rank == 0) shm_unlink(id);
    return c;
}

static void leave(void *group) {
    comm *c = static_cast<comm *>(group);
    munmap(c->here, bytes_of(c->size));
    delete c;
}

template <class T> static T reduced(const comm *c, int64_t i, int reduction) {
    wide_t<T> sum = widen<T>(reinterpret_cast<const T *>(c->pieces)[i]);
    for (int r = 1; r < c->size; r++) {
        const wide_t<T> v = widen<T>(reinterpret_cast<const T *>(c->pieces + r * PIECE)[i]);
        sum = reduction == WEFT_MAX ? (v > sum ? v : sum) : (wide_t<T>)(sum + v);
    }
    return narrow<T>(reduction == WEFT_MEAN ? (wide_t<T>)(sum / (wide_t<T>)c->size) : sum);
}

// to[i] of the ranks' n elements that lie in their pieces
static weft_status reduce(const comm *c, void *to, int64_t n, int dtype, int reduction) {
    const auto each = [&](auto tag) {
        using T = TYPE_OF(tag);
        for (int64_t i = 0; i < n; i++) static_cast<T *>(to)[i] = reduced<T>(c, i, reduction);
        return WEFT_OK;
    };
    if (dtype == WEFT_UINT8) return each(type_tag<uint8_t>{});
    if (dtype == WEFT_FLOAT16) return each(type_tag<half_t>{});
    return with_number(dtype, each);
}

// Walks n elements a piece at a time: f(first, count) between two meetings, each rank's part laid down first.
template <class F> static weft_status in_pieces(comm *c, const char *from, int64_t n, int64_t size, F f) {
    c->d->counters.launches++;
    sim::launched("collective", n * size, n * size);
    for (int64_t first = 0; !sim::dry && first < n; first += PIECE / size) {
        const int64_t count = n - first < PIECE / size ? n - first : PIECE / size;
        if (from) memcpy(c->pieces + c->rank * PIECE, from + first * size, (size_t)(count * size));
        barrier(c);
        const weft_status code = f(first, count);
        barrier(c);
        if (code != WEFT_OK) return code;
    }
    return WEFT_OK;
}

static weft_status all_reduce(void *group, void *data, int64_t n, int dtype, int reduction) {
    comm *c = static_cast<comm *>(group);
    char *here = static_cast<char *>(sim::to_host(data, "all-reduce"));
    const int64_t size = cuda_host->dtype_size(dtype);
    return in_pieces(c, here, n, size, [&](int64_t first, int64_t count) { return reduce(c, here + first * size, count, dtype, reduction); });
}

static weft_status all_gather(void *group, void *to, const void *from, int64_t n, int dtype) {
    comm *c = static_cast<comm *>(group);
    char *all = static_cast<char *>(sim::to_host(to, "all-gather"));
    const char *mine = static_cast<const char *>(sim::to_host(from, "all-gather"));
    const int64_t size = cuda_host->dtype_size(dtype);
    return in_pieces(c, mine, n, size, [&](int64_t first, int64_t count) {
        for (int r = 0; r < c->size; r++) memcpy(all + (r * n + first) * size, c->pieces + r * PIECE, (size_t)(count * size));
        return WEFT_OK;
    });
}

static weft_status reduce_scatter(void *group, void *to, const void *from, int64_t n, int dtype, int reduction) {
    comm *c = static_cast<comm *>(group);
    char *mine = static_cast<char *>(sim::to_host(to, "reduce-scatter"));
    const char *all = static_cast<const char *>(sim::to_host(from, "reduce-scatter"));
    const int64_t size = cuda_host->dtype_size(dtype);
    weft_status code = WEFT_OK;
    for (int r = 0; r < c->size && code == WEFT_OK; r++)
        code = in_pieces(c, all + r * n * size, n, size, [&](int64_t first, int64_t count) {
            return r == c->rank ? reduce(c, mine + first * size, count, dtype, reduction) : WEFT_OK;
        });
    return code;
}

static weft_status broadcast(void *group, void *data, int64_t n, int dtype, int root) {
    comm *c = static_cast<comm *>(group);
    char *here = static_cast<char *>(sim::to_host(data, "broadcast"));
    const int64_t size = cuda_host->dtype_size(dtype);
    return in_pieces(c, c->rank == root ? here : nullptr, n, size, [&](int64_t first, int64_t count) {
        memcpy(here + first * size, c->pieces + root * PIECE, (size_t)(count * size));
        return WEFT_OK;
    });
}

const weft_collectives cuda_collectives = { identify, join, leave, all_reduce, all_gather, reduce_scatter, broadcast };
void cuda_comm_about(char *text, int64_t size) { snprintf(text, (size_t)size, "ranks in shared memory"); }
