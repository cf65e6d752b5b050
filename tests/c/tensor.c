// tensor.c: the C door as a C program meets it: handles, errors, scopes, accounting.
#include <weft.h>
#include "check.h"

static void test_version(void) { CHECK(strcmp(weft_version(), WEFT_VERSION) == 0); }

static void test_reads_what_was_written(void) {
    const double in[6] = {1, 2, 3, 4, 5, 6};
    double out[6] = {0};
    weft_tensor *t = weft_zeros((const int64_t[]){2, 3}, 2, WEFT_FLOAT64, WEFT_CPU);
    CHECK(t && t->v.ndim == 2 && t->v.numel == 6 && t->v.stride[0] == 3);
    CHECK(weft_write(t, in, 6) == WEFT_OK && weft_read(t, out, 6) == WEFT_OK);
    CHECK(memcmp(in, out, sizeof in) == 0);
    weft_free(t);
}

static void test_refusal_leaves_a_message(void) {
    weft_tensor *a = weft_zeros((const int64_t[]){2, 3}, 2, WEFT_FLOAT32, WEFT_CPU);
    weft_tensor *b = weft_zeros((const int64_t[]){2, 4}, 2, WEFT_FLOAT32, WEFT_CPU);
    CHECK(weft_add(a, b) == NULL);
    CHECK(strstr(weft_error(), "add") && strstr(weft_error(), "[2,3]"));
    CHECK(weft_zeros((const int64_t[]){-1}, 1, WEFT_FLOAT32, WEFT_CPU) == NULL);
    CHECK(weft_dtype_of("float31") == -1 && weft_device_of("gpu") == -1);
    weft_free(a);
    weft_free(b);
}

static void test_scope_frees_what_it_owns(void) {
    weft_state *state = weft_get_state();
    const int64_t handles = state->handles, live = state->cpu.live;
    weft_tensor *kept = NULL;
    const int64_t scope = weft_scope_begin();
    for (int i = 0; i < 10; i++) {
        weft_tensor *t = weft_full((const int64_t[]){100}, 1, i, WEFT_FLOAT32, WEFT_CPU);
        if (t && i == 7 && weft_scope_escape(t) == WEFT_OK) kept = t;
    }
    CHECK(weft_scope_end(scope) == WEFT_OK);
    CHECK(state->handles == handles + 1);
    CHECK(kept && kept->v.numel == 100);
    weft_free(kept);
    CHECK(state->handles == handles && state->cpu.live == live);
}

static void test_failing_allocator(void) {
    const int64_t live = weft_get_state()->cpu.live;
    weft_fail_allocation(1);
    CHECK(weft_zeros((const int64_t[]){1000}, 1, WEFT_FLOAT32, WEFT_CPU) == NULL);
    weft_fail_allocation(0);
    CHECK(weft_get_state()->cpu.live == live);
}

static void test_gradient_of_a_square(void) {
    weft_tensor *x = weft_full(NULL, 0, 3.0, WEFT_FLOAT64, WEFT_CPU);
    CHECK(x && weft_requires_grad_(x, true) == WEFT_OK);
    weft_tensor *y = weft_mul(x, x);
    CHECK(y && weft_backward(y) == WEFT_OK);
    if (!y) return;
    weft_tensor *grad = weft_grad(x);
    CHECK(grad && weft_item(grad) == 6.0);
    // the tape gave its tensors back
    CHECK(weft_backward(y) == WEFT_EAUTOGRAD);
    weft_free(grad);
    weft_free(y);
    weft_free(x);
    CHECK(weft_get_state()->nodes == 0);
}

static void test_interrupt_stops_the_next_operator(void) {
    weft_tensor *a = weft_full(NULL, 0, 1.0, WEFT_FLOAT32, WEFT_CPU);
    weft_interrupt(1);
    CHECK(weft_add(a, a) == NULL);
    CHECK(strstr(weft_error(), "interrupted") != NULL);
    weft_tensor *b = weft_add(a, a);
    CHECK(b && weft_item(b) == 2.0);
    weft_free(b);
    weft_free(a);
}

int main(void) {
    test_version();
    test_reads_what_was_written();
    test_refusal_leaves_a_message();
    test_scope_frees_what_it_owns();
    test_failing_allocator();
    test_gradient_of_a_square();
    test_interrupt_stops_the_next_operator();
    return CHECK_REPORT();
}
