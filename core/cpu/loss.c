// loss.c: cross-entropy over classes and over soft targets, and losses over pairs of elements.
// Cross-entropy keeps one number a row, the logsumexp; probabilities are computed again for the
// gradient. Losses are summed in double, piece by piece in order.
#include "math.h"

#define GRAIN 16384

enum { MEAN, SUM, NONE };

typedef struct job {
    const void *x, *target, *dloss, *lse_in;  // target: int64 classes or REAL
    weft_rows dloss_at;
    void *loss, *lse, *dx, *dtarget;
    double *rows;            // the loss of each row, or of each piece of pairs
    int64_t n, classes, grain, ignore, counted, reduction;
    double smoothing, beta;
    bool bce;
} job;

#define BODY "rows_body.h"
#include "both_reals.h"
#define BODY "loss_body.h"
#include "both_reals.h"

#define PICK(v, name) ((v)->dtype == WEFT_FLOAT32 ? name##_f32 : name##_f64)

// Sums what the pieces left in j->rows into the loss; for NONE each row is written as it is.
static void reduce_rows(const job *j, int64_t n, double divisor, const weft_view *loss) {
    const bool f32 = loss->dtype == WEFT_FLOAT32;
    if (j->reduction == NONE) {
        for (int64_t i = 0; i < n; i++)
            if (f32) ((float *)loss->data)[i] = (float)j->rows[i];
            else ((double *)loss->data)[i] = j->rows[i];
        return;
    }
    double total = 0;
    for (int64_t i = 0; i < n; i++) total += j->rows[i];
    if (j->reduction == MEAN) total /= divisor;
    if (f32) *(float *)loss->data = (float)total;
    else *(double *)loss->data = total;
}

// Counts the rows that are not ignored, and refuses a class that does not exist.
static weft_status check_targets(job *j) {
    const int64_t *target = j->target;
    j->counted = 0;
    for (int64_t i = 0; i < j->n; i++) {
        if (target[i] == j->ignore) continue;
        if (target[i] < 0 || target[i] >= j->classes)
            return weft_fail(WEFT_EINVAL, "target %lld outside 0..%lld, row %lld", (long long)target[i],
                             (long long)j->classes - 1, (long long)i + 1);
        j->counted++;
    }
    return WEFT_OK;
}

static void set_rows(job *j, const weft_view *x) {
    j->n = x->shape[0];
    j->classes = x->shape[1];
    j->x = x->data;
    j->grain = j->classes >= GRAIN || j->classes == 0 ? 1 : GRAIN / j->classes;
}

static weft_status run_forward(const weft_call *call, job *j, weft_piece_fn fn, double divisor) {
    int64_t bytes = (j->n + 1) * (int64_t)sizeof(double);
    j->rows = weft_workspace(call->backend, bytes);
    if (!j->rows) return WEFT_ENOMEM;
    j->lse = call->out[1]->data;
    weft_parallel(weft_pieces(j->n, j->grain), fn, j);
    reduce_rows(j, j->n, divisor, call->out[0]);
    weft_workspace_free(call->backend, j->rows, bytes);
    return WEFT_OK;
}

CPU_KERNEL(cross_entropy) {
    const weft_attrs *at = call->at;
    job j = { .target = call->in[1]->data, .ignore = at->AT(cross_entropy, ignore_index),
              .smoothing = at->AT(cross_entropy, label_smoothing), .reduction = at->AT(cross_entropy, reduction) };
    set_rows(&j, call->in[0]);
    weft_status status = check_targets(&j);
    if (status != WEFT_OK) return status;
    return run_forward(call, &j, PICK(call->in[0], class_piece), (double)j.counted);
}

CPU_KERNEL(cross_entropy_backward) {
    const weft_attrs *at = call->at;
    job j = { .dloss = call->in[0]->data, .target = call->in[2]->data, .lse_in = call->in[3]->data,
              .dx = call->out[0]->data, .ignore = at->AT(cross_entropy_backward, ignore_index),
              .smoothing = at->AT(cross_entropy_backward, label_smoothing),
              .reduction = at->AT(cross_entropy_backward, reduction) };
    set_rows(&j, call->in[1]);
    weft_rows_of(call->in[0], 0, &j.dloss_at);
    weft_status status = check_targets(&j);
    if (status != WEFT_OK) return status;
    weft_parallel(weft_pieces(j.n, j.grain), PICK(call->in[1], class_grad_piece), &j);
    return WEFT_OK;
}

CPU_KERNEL(cross_entropy_soft) {
    job j = { .target = call->in[1]->data, .reduction = call->at->AT(cross_entropy_soft, reduction) };
    set_rows(&j, call->in[0]);
    return run_forward(call, &j, PICK(call->in[0], soft_piece), (double)j.n);
}

CPU_KERNEL(cross_entropy_soft_backward) {
    int64_t needs = call->at->AT(cross_entropy_soft_backward, needs);
    job j = { .dloss = call->in[0]->data, .target = call->in[2] ? call->in[2]->data : NULL,
              .lse_in = call->in[3]->data, .dx = needs & 1 ? call->out[0]->data : NULL,
              .dtarget = needs & 2 ? call->out[1]->data : NULL,
              .reduction = call->at->AT(cross_entropy_soft_backward, reduction) };
    set_rows(&j, call->in[1]);
    weft_rows_of(call->in[0], 0, &j.dloss_at);
    weft_parallel(weft_pieces(j.n, j.grain), PICK(call->in[1], soft_grad_piece), &j);
    return WEFT_OK;
}

static weft_status pair_forward(const weft_call *call, job *j) {
    const weft_view *x = call->in[0];
    j->x = x->data;
    j->target = call->in[1]->data;
    j->n = x->numel;
    j->grain = GRAIN;
    int64_t pieces = weft_pieces(j->n, j->grain), bytes = (pieces + 1) * (int64_t)sizeof(double);
    if (j->reduction == NONE) j->loss = call->out[0]->data;
    j->rows = weft_workspace(call->backend, bytes);
    if (!j->rows) return WEFT_ENOMEM;
    weft_parallel(pieces, PICK(x, pair_piece), j);
    if (j->reduction != NONE) reduce_rows(j, pieces, (double)j->n, call->out[0]);
    weft_workspace_free(call->backend, j->rows, bytes);
    return WEFT_OK;
}

static weft_status pair_backward(const weft_call *call, job *j) {
    j->dloss = call->in[0]->data;
    j->x = call->in[1]->data;
    j->target = call->in[2]->data;
    j->dx = call->out[0]->data;
    j->n = call->in[1]->numel;
    j->grain = GRAIN;
    weft_parallel(weft_pieces(j->n, j->grain), PICK(call->in[1], pair_grad_piece), j);
    return WEFT_OK;
}

CPU_KERNEL(binary_cross_entropy_with_logits) {
    job j = { .bce = true, .reduction = call->at->AT(binary_cross_entropy_with_logits, reduction) };
    return pair_forward(call, &j);
}
CPU_KERNEL(bce_backward) {
    job j = { .bce = true, .reduction = call->at->AT(bce_backward, reduction) };
    return pair_backward(call, &j);
}
CPU_KERNEL(smooth_l1) {
    job j = { .beta = call->at->AT(smooth_l1, beta), .reduction = call->at->AT(smooth_l1, reduction) };
    return pair_forward(call, &j);
}
CPU_KERNEL(smooth_l1_backward) {
    job j = { .beta = call->at->AT(smooth_l1_backward, beta), .reduction = call->at->AT(smooth_l1_backward, reduction) };
    return pair_backward(call, &j);
}
