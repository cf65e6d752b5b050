// provider.h: a library of NVIDIA's that weft can do without: loaded when first asked for, and where it
// is missing the reason is kept.
#ifndef WEFT_CUDA_PROVIDER_H
#define WEFT_CUDA_PROVIDER_H

#include <cstdio>
#include <dlfcn.h>

struct provider {
    const char *file;
    void *handle;
    char why[384];              // it can't be used

    // Puts the address of a function into *fn, once the library is open.
    template <class F> bool find(F *fn, const char *name) {
        *reinterpret_cast<void **>(fn) = dlsym(handle, name);
        if (*fn) return true;
        snprintf(why, sizeof why, "%s has no %s", file, name);
        return false;
    }
    bool open() {
        handle = dlopen(file, RTLD_NOW | RTLD_LOCAL);
        if (handle) return true;
        const char *error = dlerror();
        snprintf(why, sizeof why, "%s was not loaded (%s)", file, error ? error : "no reason given");
        return false;
    }
};

#endif
