// Linear regression with autograd, through weft.h alone: fits y = x W^T + b to noisy samples.
//   cc examples/linear_regression.c -Icore -Ibuild/generated -Lbuild -lweft -Wl,-rpath,build
#include <weft.h>
#include <math.h>
#include <stdio.h>

enum { SAMPLES = 256, FEATURES = 3, STEPS = 200 };

static const double true_weight[FEATURES] = {2.0, -1.0, 0.5};
static const double true_bias = 0.25;

// The data: x is standard normal, y follows the line, off by a little noise.
static weft_status make_data(weft_tensor **x, weft_tensor **y) {
    const int64_t x_shape[] = {SAMPLES, FEATURES}, y_shape[] = {SAMPLES, 1};
    const uint64_t key = 1;
    *x = weft_randn(x_shape, 2, WEFT_FLOAT32, WEFT_CPU, key, 0);
    weft_tensor *weight = weft_empty((const int64_t[]){1, FEATURES}, 2, WEFT_FLOAT32, WEFT_CPU);
    weft_tensor *bias = weft_full((const int64_t[]){1}, 1, true_bias, WEFT_FLOAT32, WEFT_CPU);
    weft_tensor *noise = weft_randn(y_shape, 2, WEFT_FLOAT32, WEFT_CPU, key, 1);
    *y = NULL;
    if (*x && weight && bias && noise && weft_write(weight, true_weight, FEATURES) == WEFT_OK &&
        weft_affine_(noise, 0.01, 0.0) == WEFT_OK) {
        weft_tensor *line = weft_linear(*x, weight, bias);
        *y = line ? weft_add(line, noise) : NULL;
        weft_free(line);
    }
    weft_free(weight);
    weft_free(bias);
    weft_free(noise);
    return *y ? WEFT_OK : WEFT_EINVAL;
}

// parameter -= lr * gradient, then the gradient is cleared
static weft_status step(weft_tensor *parameter, double lr) {
    weft_tensor *grad = weft_grad(parameter);
    if (!grad) return WEFT_EAUTOGRAD;
    const bool was = weft_set_grad_enabled(false);
    weft_status code = weft_affine_(grad, lr, 0.0);
    if (code == WEFT_OK) code = weft_inplace("sub", parameter, grad);
    weft_set_grad_enabled(was);
    weft_free(grad);
    return code == WEFT_OK ? weft_set_grad(parameter, NULL) : code;
}

// One pass over all samples. The scope frees what the formula makes on its way.
static weft_status train_once(const weft_tensor *x, const weft_tensor *y, weft_tensor *weight,
                              weft_tensor *bias, double *loss) {
    const int64_t scope = weft_scope_begin();
    weft_status code = WEFT_EINVAL;
    weft_tensor *guess, *off, *square, *mean;
    if ((guess = weft_linear(x, weight, bias)) && (off = weft_sub(guess, y)) &&
        (square = weft_mul(off, off)) && (mean = weft_mean(square, NULL, 0, 0)) &&
        (code = weft_backward(mean)) == WEFT_OK) {
        *loss = weft_item(mean);
        code = step(weight, 0.1);
        if (code == WEFT_OK) code = step(bias, 0.1);
    }
    const weft_status closed = weft_scope_end(scope);
    return code != WEFT_OK ? code : closed;
}

int main(void) {
    weft_tensor *x = NULL, *y = NULL;
    weft_tensor *weight = weft_zeros((const int64_t[]){1, FEATURES}, 2, WEFT_FLOAT32, WEFT_CPU);
    weft_tensor *bias = weft_zeros((const int64_t[]){1}, 1, WEFT_FLOAT32, WEFT_CPU);
    double found[FEATURES] = {0}, loss = 0;
    int failed = 1;
    if (!weight || !bias || make_data(&x, &y) != WEFT_OK) goto done;
    if (weft_requires_grad_(weight, true) != WEFT_OK) goto done;
    if (weft_requires_grad_(bias, true) != WEFT_OK) goto done;
    for (int i = 0; i < STEPS; i++) {
        if (train_once(x, y, weight, bias, &loss) != WEFT_OK) goto done;
        if (i % 50 == 0) printf("step %3d  loss %.6f\n", i, loss);
    }
    if (weft_read(weight, found, FEATURES) != WEFT_OK) goto done;
    printf("step %3d  loss %.6f\n", STEPS, loss);
    failed = fabs(weft_item(bias) - true_bias) > 0.01;
    for (int i = 0; i < FEATURES; i++) {
        printf("weight %d: %+.3f (true %+.3f)\n", i, found[i], true_weight[i]);
        if (fabs(found[i] - true_weight[i]) > 0.01) failed = 1;
    }
    printf("bias:     %+.3f (true %+.3f)\n", weft_item(bias), true_bias);

done:
    if (failed) fprintf(stderr, "linear_regression: %s\n", weft_error());
    weft_free(x);
    weft_free(y);
    weft_free(weight);
    weft_free(bias);
    return failed;
}
