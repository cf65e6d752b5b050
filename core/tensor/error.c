// error.c: the thread's last error, dtype names, and the state that bindings read.
#include "../core.h"
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static _Thread_local char message[1024];
static _Thread_local weft_status last;

weft_state weft_the_state = { .grad_enabled = true };

weft_state *weft_get_state(void) { return &weft_the_state; }
const char *weft_error(void) { return message; }
weft_status weft_error_code(void) { return last; }
const char *weft_version(void) { return WEFT_VERSION; }
void weft_interrupt(int flag) {
    weft_the_state.interrupt = flag;
    if (flag) weft_the_state.interrupts++;
}

weft_status weft_fail(weft_status code, const char *format, ...) {
    char text[sizeof message];  // format may quote the old message
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    memcpy(message, text, sizeof text);
    last = code;
    return code;
}

static const struct { const char *name; int size; } dtypes[WEFT_N_DTYPES] = {
    {"float32", 4}, {"float64", 8}, {"bfloat16", 2}, {"float16", 2},
    {"int32", 4},   {"int64", 8},   {"uint8", 1},    {"bool", 1},
};

const char *weft_dtype_name(int dtype) {
    return dtype >= 0 && dtype < WEFT_N_DTYPES ? dtypes[dtype].name : "unknown";
}

int weft_dtype_of(const char *name) {
    for (int i = 0; i < WEFT_N_DTYPES; i++)
        if (strcmp(dtypes[i].name, name) == 0) return i;
    return -1;
}

int64_t weft_dtype_size(int dtype) {
    return dtype >= 0 && dtype < WEFT_N_DTYPES ? dtypes[dtype].size : 0;
}
