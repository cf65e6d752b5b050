// device.c: devices by number and name, and the libraries that bring those which the core does not
// know: libweft_cuda.so beside the core's own library, loaded when a GPU is first asked for.
#include "../core.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct library {
    const char *file, *variable;    // where the file lies unless the variable of the environment says
    bool tried;
    const weft_device_library *door;
    char why[1536];                 // it can't be used
} library;

static library cuda = { .file = "libweft_cuda.so", .variable = "WEFT_CUDA_LIBRARY" };
static library simulated = { .file = "libweft_cuda_sim.so", .variable = "WEFT_CUDA_SIM_LIBRARY" };
static weft_backend *opened[WEFT_N_DEVICES];

static const char *op_name(int op) { return op >= 0 && op < WEFT_N_OPS ? weft_ops[op].name : "?"; }

static const weft_host host = { weft_fail, weft_error, weft_must_fail, weft_dtype_size, op_name };

// The file beside our own, or the one that the environment names.
static void find(const library *l, char *path, size_t size) {
    const char *given = getenv(l->variable);
    Dl_info here;
    if (given && *given) {
        snprintf(path, size, "%s", given);
        return;
    }
    snprintf(path, size, "%s", l->file);
    if (!dladdr((void *)(uintptr_t)weft_get_state, &here) || !here.dli_fname) return;
    const char *slash = strrchr(here.dli_fname, '/');
    if (slash) snprintf(path, size, "%.*s/%s", (int)(slash - here.dli_fname), here.dli_fname, l->file);
}

static const weft_device_library *load(library *l) {
    if (l->tried) return l->door;
    l->tried = true;
    char path[1024];
    find(l, path, sizeof path);
    weft_ops_init();
    void *file = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!file) {
        const char *error = dlerror();
        snprintf(l->why, sizeof l->why, "%s was not loaded (%s); %s", l->file, error ? error : "no reason given",
                 access(path, R_OK) != 0 ? "it is built where nvcc is found"
                                         : "install what it wants, or name that folder in LD_LIBRARY_PATH");
        return NULL;
    }
    weft_device_entry_fn entry;
    *(void **)(void *)&entry = dlsym(file, WEFT_DEVICE_ENTRY);
    const weft_device_library *door = entry ? entry(&host) : NULL;
    if (!door)
        snprintf(l->why, sizeof l->why, "%s has no %s: it is not weft's", path, WEFT_DEVICE_ENTRY);
    else if (door->abi != WEFT_DEVICE_ABI)
        snprintf(l->why, sizeof l->why, "%s speaks version %u of the device interface, this libweft version %d: "
                 "build both from one source", path, door->abi, WEFT_DEVICE_ABI);
    else if (door->ops_hash != weft_ops_hash())
        snprintf(l->why, sizeof l->why, "%s was built from another operator table: build both from one source", path);
    else l->door = door;
    if (!l->door) dlclose(file);
    return l->door;
}

// Devices of a library; 0 and its reason.
static int count(library *l) {
    const weft_device_library *door = load(l);
    if (!door) return 0;
    return door->count(l->why, sizeof l->why);
}

static library *library_of(int device) {
    return device == WEFT_CUDA_SIM ? &simulated : device >= WEFT_CUDA && device < WEFT_N_DEVICES ? &cuda : NULL;
}

weft_backend *weft_device_open(int device) {
    library *l = library_of(device);
    if (!l) {
        weft_fail(WEFT_EUNSUPPORTED, "there is no device number %d", device);
        return NULL;
    }
    if (opened[device]) return opened[device];
    int n = count(l), index = l == &cuda ? device - WEFT_CUDA : 0;
    if (n == 0) {
        weft_fail(WEFT_EUNSUPPORTED, "%s can't be used: %s", weft_device_name(device), l->why);
        return NULL;
    }
    if (index >= n) {
        weft_fail(WEFT_EUNSUPPORTED, "%s: this machine has %d GPU%s, cuda:0 to cuda:%d", weft_device_name(device), n,
                  n == 1 ? "" : "s", n - 1);
        return NULL;
    }
    opened[device] = l->door->open(index, device);
    if (!opened[device]) weft_fail(weft_error_code(), "%s can't be used: %s", weft_device_name(device), weft_error());
    return opened[device];
}

void weft_device_trim_all(void) {
    for (int i = 0; i < WEFT_N_DEVICES; i++)
        if (opened[i]) opened[i]->trim(opened[i]);
}

int weft_cuda_count(void) {
    int n = count(&cuda);
    if (n == 0) weft_fail(WEFT_EUNSUPPORTED, "%s", cuda.why);
    return n;
}

const char *weft_cuda_describe(int device) {
    static _Thread_local char text[256];
    weft_backend *b = weft_device_open(device);
    if (!b) return NULL;
    library *l = library_of(device);
    int index = l == &cuda ? device - WEFT_CUDA : 0;
    return l->door->describe(index, text, sizeof text) == WEFT_OK ? text : NULL;
}

const char *weft_cuda_about(void) {
    static _Thread_local char text[1024];
    const weft_device_library *door = load(&cuda);
    if (!door) {
        weft_fail(WEFT_EUNSUPPORTED, "%s", cuda.why);
        return NULL;
    }
    door->about(text, sizeof text);
    return text;
}

weft_status weft_synchronize(int device) {
    weft_backend *b = weft_backend_of(device);
    if (!b) return WEFT_EUNSUPPORTED;
    return b->synchronize ? b->synchronize(b) : WEFT_OK;
}

weft_device_counters *weft_counters_of(int device) {
    static weft_device_counters none;
    weft_backend *b = weft_backend_of(device);
    return !b ? NULL : b->counters ? b->counters : &none;
}

const char *weft_device_name(int device) {
    static _Thread_local char name[24];
    if (device == WEFT_CPU) return "cpu";
    if (device == WEFT_META) return "meta";
    if (device == WEFT_CUDA_SIM) return "cuda-sim";
    snprintf(name, sizeof name, "cuda:%d", device - WEFT_CUDA);
    return name;
}

int weft_device_of(const char *name) {
    if (strcmp(name, "cpu") == 0) return WEFT_CPU;
    if (strcmp(name, "meta") == 0) return WEFT_META;
    if (strcmp(name, "cuda-sim") == 0) return WEFT_CUDA_SIM;
    if (strcmp(name, "cuda") == 0) return WEFT_CUDA;
    if (strncmp(name, "cuda:", 5) == 0 && name[5]) {
        char *end;
        long n = strtol(name + 5, &end, 10);
        if (*end == 0 && n >= 0 && n < WEFT_N_DEVICES - WEFT_CUDA) return WEFT_CUDA + (int)n;
    }
    return -1;
}
