// safetensors.c: reading safetensors files through a map. Writing is in safetensors_write.c.
#include "io.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define HEADER_LIMIT 100000000

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "safetensors files are little-endian");

// The file's bytes, shared by the reader and the tensors made from it.
typedef struct file_map {
    char *bytes;
    int64_t size;
    int64_t refs;
} file_map;

typedef struct entry {
    const char *name, *dtype_name;    // inside the header's tree
    int dtype, ndim;
    int64_t begin, end, numel, first_dim;  // bytes in the data part; where its shape starts
} entry;

struct weft_file {
    char *path;
    file_map *map;
    json_t *header;
    int64_t data;                     // where the data part begins
    int64_t n, n_meta;
    entry *entries;                   // in the order of the file
    int64_t *by_name;                 // indices into entries, sorted by name
    int64_t *dims;
    const char **meta;                // key, value, key, value ...
};

static const struct { const char *name; int dtype, bits; } known_dtypes[] = {
    { "F32", WEFT_FLOAT32, 32 }, { "F64", WEFT_FLOAT64, 64 }, { "BF16", WEFT_BFLOAT16, 16 },
    { "F16", WEFT_FLOAT16, 16 }, { "I32", WEFT_INT32, 32 }, { "I64", WEFT_INT64, 64 },
    { "U8", WEFT_UINT8, 8 }, { "BOOL", WEFT_BOOL, 8 }, { "I8", -1, 8 }, { "I16", -1, 16 },
    { "U16", -1, 16 }, { "U32", -1, 32 }, { "U64", -1, 64 }, { "C64", -1, 64 },
    { "F8_E5M2", -1, 8 }, { "F8_E4M3", -1, 8 }, { "F8_E8M0", -1, 8 }, { "F4", -1, 4 },
    { "F6_E2M3", -1, 6 }, { "F6_E3M2", -1, 6 },
};

static void map_release(void *context) {
    file_map *map = context;
    if (__atomic_sub_fetch(&map->refs, 1, __ATOMIC_ACQ_REL) > 0) return;
    munmap(map->bytes, (size_t)map->size);
    free(map);
}

static file_map *map_open(const char *path) {
    struct stat st;
    file_map *map = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) != 0) {
        weft_fail(WEFT_EIO, "%s: %s", path, strerror(errno));
    } else if (!S_ISREG(st.st_mode)) {
        weft_fail(WEFT_EIO, "%s: not a regular file", path);
    } else if (st.st_size < 8) {
        weft_fail(WEFT_EFORMAT, "%s: %lld bytes are too few for a safetensors file", path,
                  (long long)st.st_size);
    } else if (!(map = calloc(1, sizeof *map))) {
        weft_fail(WEFT_ENOMEM, "%s: no memory to open it", path);
    } else {
        map->refs = 1;
        map->size = st.st_size;
        // Private and writable: what is written to a tensor stays in this process.
        map->bytes = mmap(NULL, (size_t)map->size, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_NORESERVE, fd, 0);
        if (map->bytes == MAP_FAILED) {
            weft_fail(WEFT_EIO, "%s: cannot map it: %s", path, strerror(errno));
            free(map);
            map = NULL;
        }
    }
    if (fd >= 0) close(fd);
    return map;
}

static weft_status read_shape(weft_file *f, entry *e, const json_t *shape, int64_t *n_dims) {
    size_t i;
    json_t *size;
    if (!json_is_array(shape))
        return weft_fail(WEFT_EFORMAT, "%s: tensor '%s' has no shape", f->path, e->name);
    e->ndim = (int)json_array_size(shape);
    e->first_dim = *n_dims;
    e->numel = 1;
    json_array_foreach(shape, i, size) {
        json_int_t value = json_integer_value(size);
        if (!json_is_integer(size) || value < 0)
            return weft_fail(WEFT_EFORMAT, "%s: tensor '%s': size %d of its shape is not a "
                             "non-negative integer", f->path, e->name, (int)i);
        if (__builtin_mul_overflow(e->numel, (int64_t)value, &e->numel))
            return weft_fail(WEFT_EFORMAT, "%s: tensor '%s': its shape is too large", f->path,
                             e->name);
        f->dims[(*n_dims)++] = value;
    }
    return WEFT_OK;
}

static weft_status read_entry(weft_file *f, entry *e, const char *name, json_t *info,
                              int64_t *n_dims) {
    e->name = name;
    if (!json_is_object(info))
        return weft_fail(WEFT_EFORMAT, "%s: tensor '%s' is not described by an object", f->path,
                         name);
    json_t *offsets = json_object_get(info, "data_offsets");
    json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
    size_t k = 0, n_known = sizeof known_dtypes / sizeof *known_dtypes;
    int64_t bits;
    e->dtype_name = json_string_value(json_object_get(info, "dtype"));
    if (!e->dtype_name)
        return weft_fail(WEFT_EFORMAT, "%s: tensor '%s' has no dtype", f->path, name);
    while (k < n_known && strcmp(known_dtypes[k].name, e->dtype_name) != 0) k++;
    if (k == n_known)
        return weft_fail(WEFT_EFORMAT, "%s: tensor '%s' has the unknown dtype '%.40s'", f->path,
                         name, e->dtype_name);
    e->dtype = known_dtypes[k].dtype;
    weft_status status = read_shape(f, e, json_object_get(info, "shape"), n_dims);
    if (status != WEFT_OK) return status;
    if (!json_is_integer(begin) || !json_is_integer(end) || json_array_size(offsets) != 2)
        return weft_fail(WEFT_EFORMAT, "%s: tensor '%s' lacks its two data_offsets", f->path, name);
    e->begin = json_integer_value(begin);
    e->end = json_integer_value(end);
    if (e->begin < 0 || e->end < e->begin || e->end > f->map->size - f->data)
        return weft_fail(WEFT_EFORMAT, "%s: tensor '%s' at bytes %lld to %lld lies outside the "
                         "file's %lld bytes of data", f->path, name, (long long)e->begin,
                         (long long)e->end, (long long)(f->map->size - f->data));
    if (__builtin_mul_overflow(e->numel, (int64_t)known_dtypes[k].bits, &bits) || bits % 8 != 0 ||
        bits / 8 != e->end - e->begin)
        return weft_fail(WEFT_EFORMAT,
                         "%s: tensor '%s': %lld bytes of data do not fit its shape and "
                         "dtype %s",
                         f->path, name, (long long)(e->end - e->begin), e->dtype_name);
    return WEFT_OK;
}

static int order_by_offset(const void *a, const void *b) {
    const entry *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    if (x->end != y->end) return x->end < y->end ? -1 : 1;
    return strcmp(x->name, y->name);
}

static int order_by_name(const void *a, const void *b, void *entries) {
    const entry *e = entries;
    return strcmp(e[*(const int64_t *)a].name, e[*(const int64_t *)b].name);
}

static weft_status read_metadata(weft_file *f, json_t *metadata) {
    const char *key;
    json_t *value;
    if (!json_is_object(metadata))
        return weft_fail(WEFT_EFORMAT, "%s: __metadata__ is not an object", f->path);
    f->meta = calloc(json_object_size(metadata) * 2 + 1, sizeof *f->meta);
    if (!f->meta) return weft_fail(WEFT_ENOMEM, "%s: no memory for its metadata", f->path);
    json_object_foreach(metadata, key, value) {
        if (!json_is_string(value))
            return weft_fail(WEFT_EFORMAT, "%s: metadata '%s' is not a string", f->path, key);
        f->meta[2 * f->n_meta] = key;
        f->meta[2 * f->n_meta++ + 1] = json_string_value(value);
    }
    return WEFT_OK;
}

// Entries in the order of the file must cover the data part, each byte once.
static weft_status check_layout(const weft_file *f) {
    int64_t at = 0;
    for (int64_t i = 0; i < f->n; i++) {
        const entry *e = &f->entries[i];
        if (e->begin < at)
            return weft_fail(WEFT_EFORMAT, "%s: tensor '%s' at byte %lld overlaps another one",
                             f->path, e->name, (long long)e->begin);
        if (e->begin > at)
            return weft_fail(WEFT_EFORMAT, "%s: %lld bytes before tensor '%s' belong to no tensor",
                             f->path, (long long)(e->begin - at), e->name);
        at = e->end;
    }
    if (at != f->map->size - f->data)
        return weft_fail(WEFT_EFORMAT, "%s: %lld bytes at its end belong to no tensor", f->path,
                         (long long)(f->map->size - f->data - at));
    return WEFT_OK;
}

static weft_status read_header(weft_file *f) {
    uint64_t length = 0;
    int64_t size = f->map->size, n_dims = 0;
    json_error_t error;
    const char *key;
    json_t *info;
    for (int i = 7; i >= 0; i--) length = length << 8 | (unsigned char)f->map->bytes[i];
    if (length > HEADER_LIMIT)
        return weft_fail(WEFT_EFORMAT, "%s: no safetensors file, or a damaged one: a header of %llu "
                         "bytes is more than a safetensors file may have (%d)", f->path, (unsigned long long)length, HEADER_LIMIT);
    if ((int64_t)length > size - 8)
        return weft_fail(WEFT_EFORMAT, "%s: truncated: its header has %llu bytes, the file %lld",
                         f->path, (unsigned long long)length, (long long)size);
    f->data = 8 + (int64_t)length;
    if (!length || f->map->bytes[8] != '{')
        return weft_fail(WEFT_EFORMAT, "%s: not a safetensors file: no header", f->path);
    f->header = json_loadb(f->map->bytes + 8, length, JSON_REJECT_DUPLICATES, &error);
    if (!f->header)
        return weft_fail(WEFT_EFORMAT, "%s: its header is not JSON: line %d, column %d: %s",
                         f->path, error.line, error.column, error.text);
    json_object_foreach(f->header, key, info)
        n_dims += (int64_t)json_array_size(json_object_get(info, "shape"));
    size_t n = json_object_size(f->header);
    f->entries = calloc(n + 1, sizeof *f->entries);
    f->by_name = calloc(n + 1, sizeof *f->by_name);
    f->dims = calloc((size_t)n_dims + 1, sizeof *f->dims);
    if (!f->entries || !f->by_name || !f->dims)
        return weft_fail(WEFT_ENOMEM, "%s: no memory for the list of its tensors", f->path);
    n_dims = 0;
    json_object_foreach(f->header, key, info) {
        weft_status status = strcmp(key, "__metadata__") == 0
            ? read_metadata(f, info) : read_entry(f, &f->entries[f->n++], key, info, &n_dims);
        if (status != WEFT_OK) return status;
    }
    qsort(f->entries, (size_t)f->n, sizeof *f->entries, order_by_offset);
    for (int64_t i = 0; i < f->n; i++) f->by_name[i] = i;
    qsort_r(f->by_name, (size_t)f->n, sizeof *f->by_name, order_by_name, f->entries);
    return check_layout(f);
}

weft_file *weft_safetensors_open(const char *path) {
    weft_file *f = calloc(1, sizeof *f);
    if (f) f->path = strdup(path);
    if (!f || !f->path) {
        weft_fail(WEFT_ENOMEM, "%s: no memory to open it", path);
        weft_safetensors_close(f);
        return NULL;
    }
    f->map = map_open(path);
    if (!f->map || read_header(f) != WEFT_OK) {
        weft_safetensors_close(f);
        return NULL;
    }
    return f;
}

void weft_safetensors_close(weft_file *f) {
    if (!f) return;
    if (f->map) map_release(f->map);
    json_decref(f->header);
    free(f->entries);
    free(f->by_name);
    free(f->dims);
    free(f->meta);
    free(f->path);
    free(f);
}

static const entry *entry_at(const weft_file *f, int64_t i) {
    if (i >= 0 && i < f->n) return &f->entries[i];
    weft_fail(WEFT_EINVAL, "%s: no tensor %lld among its %lld", f->path, (long long)i,
              (long long)f->n);
    return NULL;
}

int64_t weft_safetensors_count(const weft_file *f) { return f->n; }

int64_t weft_safetensors_find(const weft_file *f, const char *name) {
    int64_t low = 0, high = f->n;
    while (low < high) {
        int64_t middle = low + (high - low) / 2, i = f->by_name[middle];
        int order = strcmp(name, f->entries[i].name);
        if (order == 0) return i;
        if (order < 0) high = middle;
        else low = middle + 1;
    }
    return -1;
}

const char *weft_safetensors_name(const weft_file *f, int64_t i) {
    const entry *e = entry_at(f, i);
    return e ? e->name : NULL;
}

const char *weft_safetensors_dtype_name(const weft_file *f, int64_t i) {
    const entry *e = entry_at(f, i);
    return e ? e->dtype_name : NULL;
}

int weft_safetensors_dtype(const weft_file *f, int64_t i) {
    const entry *e = entry_at(f, i);
    return e ? e->dtype : -1;
}

int weft_safetensors_ndim(const weft_file *f, int64_t i) {
    const entry *e = entry_at(f, i);
    return e ? e->ndim : -1;
}

const int64_t *weft_safetensors_shape(const weft_file *f, int64_t i) {
    const entry *e = entry_at(f, i);
    return e ? f->dims + e->first_dim : NULL;
}

int64_t weft_safetensors_nbytes(const weft_file *f, int64_t i) {
    const entry *e = entry_at(f, i);
    return e ? e->end - e->begin : -1;
}

int64_t weft_safetensors_n_meta(const weft_file *f) { return f->n_meta; }

const char *weft_safetensors_meta_key(const weft_file *f, int64_t i) {
    return i >= 0 && i < f->n_meta ? f->meta[2 * i] : NULL;
}

const char *weft_safetensors_meta_value(const weft_file *f, int64_t i) {
    return i >= 0 && i < f->n_meta ? f->meta[2 * i + 1] : NULL;
}

weft_tensor *weft_safetensors_tensor(weft_file *f, int64_t i) {
    const entry *e = entry_at(f, i);
    if (!e) return NULL;
    if (e->dtype < 0 || e->ndim > WEFT_MAX_DIMS) {
        if (e->dtype < 0)
            weft_fail(WEFT_EUNSUPPORTED, "%s: tensor '%s' has dtype %s, which weft does not have",
                      f->path, e->name, e->dtype_name);
        else
            weft_fail(WEFT_EUNSUPPORTED, "%s: tensor '%s' has %d dims, more than %d", f->path,
                      e->name, e->ndim, WEFT_MAX_DIMS);
        return NULL;
    }
    char *data = f->map->bytes + f->data + e->begin;
    const int64_t *shape = f->dims + e->first_dim;
    int64_t nbytes = e->end - e->begin;
    if (e->dtype == WEFT_BOOL)
        for (int64_t k = 0; k < nbytes; k++)
            if ((unsigned char)data[k] > 1) {
                weft_fail(WEFT_EFORMAT,
                          "%s: tensor '%s': element %lld is %d, neither true nor false", f->path,
                          e->name, (long long)k, (unsigned char)data[k]);
                return NULL;
            }
    if (nbytes == 0) return weft_empty(shape, e->ndim, e->dtype, WEFT_CPU);
    if ((uintptr_t)data % (uintptr_t)weft_dtype_size(e->dtype) != 0)
        return weft_from(data, shape, e->ndim, e->dtype);
    __atomic_add_fetch(&f->map->refs, 1, __ATOMIC_RELAXED);
    weft_tensor *t = weft_wrap(data, nbytes, shape, e->ndim, e->dtype, map_release, f->map);
    if (!t) map_release(f->map);
    return t;
}
