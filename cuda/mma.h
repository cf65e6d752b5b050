// mma.h: what Ampere and later have for matrices of bfloat16: products of a warp on tensor cores,
// loads of their fragments from shared memory, and copies into shared memory that threads don't wait
// for. Each is a few lines of PTX on a GPU and plain code on the simulated one.
//
// A warp multiplies A [16, 16] by B [16, 8] into C [16, 8]. Lane 4 g + t has, as pairs in 32 bits,
//   of A:  a[0] = A[g][2t..], a[1] = A[g + 8][2t..], a[2] = A[g][2t + 8..], a[3] = A[g + 8][2t + 8..]
//   of B:  b0 = B[2t..][g], b1 = B[2t + 8..][g]
//   of C:  c[0..1] = C[g][2t..], c[2..3] = C[g + 8][2t..]
// so C of two products side by side, rounded, is A of the next: a product of products needs no
// exchange between lanes.
#ifndef WEFT_CUDA_MMA_H
#define WEFT_CUDA_MMA_H

#include "cuda/device.h"

#ifndef WEFT_CUDA_ON_CPU

// c += a b
DEVICE void mma_bf16(float *c, const uint32_t *a, uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// Four matrices of 8 x 8: lanes 8 i .. 8 i + 7 give the rows of matrix i, 16 aligned bytes each. Lane
// 4 g + t gets elements 2t, 2t + 1 of row g of each.
DEVICE void load_matrices(uint32_t *r, const bf16 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"((uint32_t)__cvta_generic_to_shared(row)) : "memory");
}
// The same, transposed: elements g of rows 2t, 2t + 1.
DEVICE void load_transposed(uint32_t *r, const bf16 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"((uint32_t)__cvta_generic_to_shared(row)) : "memory");
}
// 16 aligned bytes into shared memory, zeros where they are not there; `from` must be an address even then.
DEVICE void copy_16(void *to, const void *from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from), "r"(there ? 16 : 0) : "memory");
}
DEVICE void copy_4(void *to, const void *from, bool there) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                 :: "r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from), "r"(there ? 4 : 0) : "memory");
}
// Until this thread's copies are there; a barrier tells the others.
DEVICE void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }
// Two numbers rounded to nearest even, the first in the lower half.
DEVICE uint32_t pack_bf16(float low, float high) {
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
// 2^x to 2 units in the last place; denormals are 0.
DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#else
#include <vector>

struct sim_mma { uint32_t a[4], b[2]; };
static inline float sim_half(uint32_t pair, int which) {
    return __uint_as_float(which ? pair & 0xffff0000u : pair << 16);
}
static inline void mma_bf16(float *c, const uint32_t *a, uint32_t b0, uint32_t b1) {
    char *slots = static_cast<char *>(sim::warp_slots());
    const sim_mma mine = { { a[0], a[1], a[2], a[3] }, { b0, b1 } };
    sim::check_mask(0xffffffffu);
    std::memcpy(slots + 64 * sim::lane(), &mine, sizeof mine);
    sim::warp_barrier();
    const int g = sim::lane() >> 2, t = sim::lane() & 3;
    for (int k = 0; k < 16; k++) {
        sim_mma row, column[2];
        const int lane = k % 8 / 2, upper = k / 8;
        std::memcpy(&row, slots + 64 * (4 * g + lane), sizeof row);
        for (int i = 0; i < 2; i++) std::memcpy(&column[i], slots + 64 * (4 * (2 * t + i) + lane), sizeof row);
        for (int i = 0; i < 4; i++)
            c[i] += sim_half(row.a[2 * upper + i / 2], k & 1) * sim_half(column[i & 1].b[upper], k & 1);
    }
    sim::warp_barrier();
}
template <bool TRANSPOSED> static inline void sim_matrices(uint32_t *r, const bf16 *row) {
    char *slots = static_cast<char *>(sim::warp_slots());
    if ((uintptr_t)row % 16) sim::fail("a row of a matrix at %p, which is no multiple of 16 bytes", (const void *)row);
    sim::check_mask(0xffffffffu);
    std::memcpy(slots + 64 * sim::lane(), &row, sizeof row);
    sim::warp_barrier();
    const int g = sim::lane() >> 2, t = sim::lane() & 3;
    for (int i = 0; i < 4; i++) {
        const bf16 *rows[8];
        for (int k = 0; k < 8; k++) std::memcpy(&rows[k], slots + 64 * (8 * i + k), sizeof row);
        const bf16 low = TRANSPOSED ? rows[2 * t][g] : rows[g][2 * t], high = TRANSPOSED ? rows[2 * t + 1][g] : rows[g][2 * t + 1];
        r[i] = (uint32_t)high.bits << 16 | low.bits;
    }
    sim::warp_barrier();
}
static inline void load_matrices(uint32_t *r, const bf16 *row) { sim_matrices<false>(r, row); }
static inline void load_transposed(uint32_t *r, const bf16 *row) { sim_matrices<true>(r, row); }
// Copies land when their thread waits; until then what was there is NaN.
struct sim_copy { void *to; const void *from; size_t n; };
inline std::vector<sim_copy> sim_copies[1024];      // by thread
static inline void sim_begin_copy(void *to, const void *from, bool there, size_t n) {
    if (((uintptr_t)to | (there ? (uintptr_t)from : 0)) % n) sim::fail("a copy of %zu bytes from %p to %p", n, from, to);
    std::memset(to, 0xff, n);
    sim_copies[sim::now->linear].push_back({ to, there ? from : nullptr, n });
}
static inline void copy_16(void *to, const void *from, bool there) { sim_begin_copy(to, from, there, 16); }
static inline void copy_4(void *to, const void *from, bool there) { sim_begin_copy(to, from, there, 4); }
static inline void wait_for_copies() {
    for (const sim_copy &c : sim_copies[sim::now->linear]) {
        if (c.from) std::memcpy(c.to, c.from, c.n);
        else std::memset(c.to, 0, c.n);
    }
    sim_copies[sim::now->linear].clear();
}
static inline uint32_t pack_bf16(float low, float high) {
    return (uint32_t)__float2bfloat16(high).bits << 16 | __float2bfloat16(low).bits;
}
static inline float exp2_fast(float x) { return std::exp2(x); }

#endif
#endif
