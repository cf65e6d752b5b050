// header.cpp: weft.h as a C++17 program meets it, nothing included before.
#include <weft.h>

int main() {
    const int64_t shape[] = {2, 3};
    weft_tensor *x = weft_full(shape, 2, 2.0, WEFT_FLOAT32, WEFT_CPU);
    if (x == nullptr || weft_requires_grad_(x, true) != WEFT_OK) return 1;
    weft_tensor *square = weft_mul(x, x);
    weft_tensor *loss = weft_sum(square, nullptr, 0, 0);
    if (loss == nullptr || weft_backward(loss) != WEFT_OK) return 1;
    weft_tensor *grad = weft_grad(x);
    double values[6] = {0};
    const bool right = weft_read(grad, values, 6) == WEFT_OK && values[5] == 4.0 && weft_item(loss) == 24.0;
    weft_free(grad);
    weft_free(loss);
    weft_free(square);
    weft_free(x);
    return right ? 0 : 1;
}
