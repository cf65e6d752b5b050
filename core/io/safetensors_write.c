// safetensors_write.c: writing safetensors files, laid out as Hugging Face's writer does.
#include "io.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define PIECE 65536  // bytes gathered before they are written

typedef struct item { const char *name; const weft_tensor *t; } item;

static const char *const dtype_names[WEFT_N_DTYPES] = {
    [WEFT_FLOAT32] = "F32", [WEFT_FLOAT64] = "F64", [WEFT_BFLOAT16] = "BF16",
    [WEFT_FLOAT16] = "F16", [WEFT_INT32] = "I32",   [WEFT_INT64] = "I64",
    [WEFT_UINT8] = "U8",    [WEFT_BOOL] = "BOOL",
};
// Widest first, so that every tensor is aligned.
static const int dtype_rank[WEFT_N_DTYPES] = {
    [WEFT_INT64] = 0, [WEFT_FLOAT64] = 1, [WEFT_FLOAT32] = 2, [WEFT_INT32] = 3,
    [WEFT_BFLOAT16] = 4, [WEFT_FLOAT16] = 5, [WEFT_UINT8] = 6, [WEFT_BOOL] = 7,
};

static int order_items(const void *a, const void *b) {
    const item *x = a, *y = b;
    int rank_x = dtype_rank[x->t->v.dtype], rank_y = dtype_rank[y->t->v.dtype];
    return rank_x != rank_y ? rank_x - rank_y : strcmp(x->name, y->name);
}

static bool text_ok(const char *text) {
    return text && weft_utf8_check(text, (int64_t)strlen(text)) < 0;
}

static weft_status check_items(const char *path, const item *items, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        const item *it = &items[i];
        if (!text_ok(it->name))
            return weft_fail(WEFT_EINVAL, "%s: name %lld is not UTF-8", path, (long long)i + 1);
        if (strcmp(it->name, "__metadata__") == 0)
            return weft_fail(WEFT_EINVAL, "%s: a tensor cannot be named '__metadata__'", path);
        if (!it->t) return weft_fail(WEFT_EINVAL, "%s: no tensor for '%s'", path, it->name);
        if (it->t->v.device != WEFT_CPU)
            return weft_fail(WEFT_EINVAL, "%s: tensor '%s' is on %s; move it to the CPU first",
                             path, it->name, weft_device_name(it->t->v.device));
    }
    return WEFT_OK;
}

static bool add_text(json_t *object, const char *key, const char *value) {
    return json_object_set_new(object, key, json_string(value)) == 0;
}

// The header's JSON, malloc'ed; NULL: no memory, or a duplicate (with an error).
static char *make_header(const char *path, const item *items, int64_t n, int64_t n_meta,
                         const char *const *keys, const char *const *values) {
    json_t *root = json_object(), *meta = NULL;
    char *text = NULL;
    int64_t at = 0;
    bool ok = root != NULL;
    if (ok && n_meta > 0) ok = (meta = json_object()) != NULL;
    for (int64_t i = 0; ok && i < n_meta; i++) {
        if (!text_ok(keys[i]) || !text_ok(values[i])) {
            weft_fail(WEFT_EINVAL, "%s: metadata %lld is not UTF-8", path, (long long)i + 1);
            goto done;
        }
        ok = add_text(meta, keys[i], values[i]);
    }
    if (ok && meta) ok = json_object_set(root, "__metadata__", meta) == 0;
    for (int64_t i = 0; ok && i < n; i++) {
        const weft_view *v = &items[i].t->v;
        int64_t nbytes = v->numel * weft_dtype_size(v->dtype);
        if (json_object_get(root, items[i].name)) {
            weft_fail(WEFT_EINVAL, "%s: two tensors are named '%s'", path, items[i].name);
            goto done;
        }
        json_t *info = json_object(), *shape = json_array();
        ok = info && shape && add_text(info, "dtype", dtype_names[v->dtype]);
        for (int d = 0; ok && d < v->ndim; d++)
            ok = json_array_append_new(shape, json_integer(v->shape[d])) == 0;
        ok = ok && json_object_set(info, "shape", shape) == 0 &&
             json_object_set_new(info, "data_offsets",
                                 json_pack("[I,I]", (json_int_t)at, (json_int_t)(at + nbytes))) ==
                 0 &&
             json_object_set(root, items[i].name, info) == 0;
        json_decref(info);
        json_decref(shape);
        at += nbytes;
    }
    if (ok) text = json_dumps(root, JSON_COMPACT);
    if (!text) weft_fail(WEFT_ENOMEM, "%s: no memory for its header", path);
done:
    json_decref(meta);
    json_decref(root);
    return text;
}

// Writes any strides: the longest run of contiguous trailing dims at a time, gathered if short.
static void write_data(weft_saving *s, const weft_view *v, char *piece) {
    int64_t size = weft_dtype_size(v->dtype), index[WEFT_MAX_DIMS] = { 0 }, run = size, held = 0;
    int outer = v->ndim;
    if (v->numel == 0) return;
    while (outer > 0 && (v->shape[outer - 1] == 1 || v->stride[outer - 1] * size == run))
        run *= v->shape[--outer];
    for (;;) {
        int64_t offset = 0;
        for (int d = 0; d < outer; d++) offset += index[d] * v->stride[d];
        const char *from = (const char *)v->data + offset * size;
        if (held + run > PIECE) {
            weft_saving_write(s, piece, held);
            held = 0;
        }
        if (run > PIECE) {
            weft_saving_write(s, from, run);
        } else {
            memcpy(piece + held, from, (size_t)run);
            held += run;
        }
        int d = outer - 1;
        while (d >= 0 && ++index[d] == v->shape[d]) index[d--] = 0;
        if (d < 0) break;
    }
    weft_saving_write(s, piece, held);
}

weft_status weft_safetensors_write(const char *path, int64_t n, const char *const *names,
                                   weft_tensor *const *tensors, int64_t n_meta,
                                   const char *const *keys, const char *const *values) {
    weft_saving s;
    weft_status status;
    unsigned char length[8];
    char *header = NULL, *piece = malloc(PIECE);
    item *items = calloc((size_t)n + 1, sizeof *items);
    if (!items || !piece) {
        status = weft_fail(WEFT_ENOMEM, "%s: no memory to write it", path);
        goto done;
    }
    for (int64_t i = 0; i < n; i++) items[i] = (item){ names[i], tensors[i] };
    if ((status = check_items(path, items, n)) != WEFT_OK) goto done;
    qsort(items, (size_t)n, sizeof *items, order_items);
    status = WEFT_EINVAL;
    if (!(header = make_header(path, items, n, n_meta, keys, values))) goto done;
    if ((status = weft_saving_begin(&s, path)) != WEFT_OK) goto done;
    size_t used = strlen(header), padded = (used + 7) / 8 * 8;
    for (int i = 0; i < 8; i++) length[i] = (unsigned char)(padded >> (8 * i));
    weft_saving_write(&s, length, 8);
    weft_saving_write(&s, header, (int64_t)used);
    weft_saving_write(&s, "        ", (int64_t)(padded - used));
    for (int64_t i = 0; i < n; i++) write_data(&s, &items[i].t->v, piece);
    status = weft_saving_commit(&s);
done:
    free(header);
    free(items);
    free(piece);
    return status;
}
