// backend.c: the CPU's kernel tables, one an instruction set, and the choice between them at start.
#include "../core.h"
#include "cpu.h"
#include <stdlib.h>
#include <string.h>

typedef enum { PLAIN, AVX2, AVX512, N_PATHS } path;
static const char *const names[N_PATHS] = {"plain", "avx2", "avx512"};

#define SYMBOL(isa, name) weft_cpu_##isa##_##name

// Rows without a kernel of their own (views, composites) leave NULL.
#define DECLARE_KERNEL(isa, name) weft_status SYMBOL(isa, name)(const weft_call *);
#define DECLARE_STRIDED DECLARE_KERNEL
#define DECLARE_ELEMENTWISE DECLARE_KERNEL
#define DECLARE_INPLACE DECLARE_KERNEL
#define DECLARE_VIEW(isa, name)
#define DECLARE_COMPOSITE(isa, name)
#define ENTRY_KERNEL(isa, name) [OP_##name] = SYMBOL(isa, name),
#define ENTRY_STRIDED ENTRY_KERNEL
#define ENTRY_ELEMENTWISE ENTRY_KERNEL
#define ENTRY_INPLACE ENTRY_KERNEL
#define ENTRY_VIEW(isa, name)
#define ENTRY_COMPOSITE(isa, name)

#define OP(name, family, kind, ...) DECLARE_##kind(plain, name)
#include "ops.def"
#undef OP
static const weft_kernel plain[WEFT_N_OPS] = {
#define OP(name, family, kind, ...) ENTRY_##kind(plain, name)
#include "ops.def"
#undef OP
};
#ifdef WEFT_HAVE_AVX2
#define OP(name, family, kind, ...) DECLARE_##kind(avx2, name)
#include "ops.def"
#undef OP
static const weft_kernel avx2[WEFT_N_OPS] = {
#define OP(name, family, kind, ...) ENTRY_##kind(avx2, name)
#include "ops.def"
#undef OP
};
#endif
#ifdef WEFT_HAVE_AVX512
#define OP(name, family, kind, ...) DECLARE_##kind(avx512, name)
#include "ops.def"
#undef OP
static const weft_kernel avx512[WEFT_N_OPS] = {
#define OP(name, family, kind, ...) ENTRY_##kind(avx512, name)
#include "ops.def"
#undef OP
};
#endif

static path best(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
#ifdef WEFT_HAVE_AVX512
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) return AVX512;
#endif
#ifdef WEFT_HAVE_AVX2
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return AVX2;
#endif
#endif
    return PLAIN;
}

// The best path that this machine and this build have; WEFT_CPU names a lesser one.
static path chosen(void) {
    static int known = -1;
    if (known >= 0) return (path)known;
    path p = best();
    const char *want = getenv("WEFT_CPU");
    for (int i = 0; want && i < N_PATHS; i++)
        if (strcmp(want, names[i]) == 0 && i < (int)p) p = (path)i;
#ifndef WEFT_HAVE_AVX2
    p = PLAIN;
#endif
    known = (int)p;
    return p;
}

const char *weft_cpu_path(void) { return names[chosen()]; }

const weft_kernel *weft_cpu_kernels(void);
const weft_kernel *weft_cpu_kernels(void) {
    switch (chosen()) {
#ifdef WEFT_HAVE_AVX512
    case AVX512: return avx512;
#endif
#ifdef WEFT_HAVE_AVX2
    case AVX2: return avx2;
#endif
    default: return plain;
    }
}
