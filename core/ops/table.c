// table.c: the operator table in memory, and questions about it.
#include "../core.h"
#include <string.h>

#define OP(name, family, kind, inputs, outputs, attrs, dtypes, saves, shape, grad, doc) \
    weft_status shape_##shape(weft_shape_call *call); \
    weft_status grad_##grad(weft_grad_call *call);
#include "ops.def"
#undef OP

weft_status shape_none(weft_shape_call *call) { (void)call; return WEFT_OK; }
weft_status grad_none(weft_grad_call *call) { (void)call; return WEFT_OK; }

#define UNWRAP(...) __VA_ARGS__
#define IN(i, mask_) {.output = 0, .index = i, .mask = mask_},
#define OUT(j, mask_) {.output = 1, .index = j, .mask = mask_},
weft_op_info weft_ops[WEFT_N_OPS] = {
#define OP(name_, family_, kind_, inputs_, outputs_, attrs_, dtypes_, saves_, rule_, gradient_, doc_) \
    [OP_##name_] = { .name = #name_, .family = #family_, .kind = kind_, .inputs = inputs_, .outputs = outputs_, \
                     .attrs = attrs_, .dtypes = dtypes_, .doc = doc_, .shape = shape_##rule_, \
                     .grad = grad_##gradient_, .saves = { UNWRAP saves_ } },
#include "ops.def"
#undef OP
};
#undef IN
#undef OUT

static const char *const kinds[] = {"kernel", "strided", "elementwise", "view", "inplace", "composite"};

static uint32_t mask_of(const char *dtypes) {
    const uint32_t floats = 1u << WEFT_FLOAT32 | 1u << WEFT_FLOAT64;
    const uint32_t ints = 1u << WEFT_INT32 | 1u << WEFT_INT64;
    const uint32_t rest = 1u << WEFT_UINT8 | 1u << WEFT_BOOL;
    if (strcmp(dtypes, "float") == 0) return floats;
    if (strcmp(dtypes, "num") == 0) return floats | ints;
    if (strcmp(dtypes, "any") == 0) return floats | ints | rest;
    return floats | ints | rest | 1u << WEFT_BFLOAT16 | 1u << WEFT_FLOAT16;
}

// One word of "x weight? ids:index xs..." into the info.
static void parse_input(weft_op_info *info, int i, const char *word, size_t n) {
    size_t k = 0;
    while (k < n && !strchr("/?:.", word[k])) k++;
    size_t name = k < sizeof info->in_name[i] ? k : sizeof info->in_name[i] - 1;
    memcpy(info->in_name[i], word, name);
    for (; k < n; k++) {
        if (word[k] == '?') info->optional[i] = 1;
        if (word[k] == '.') info->n_in = -1;
        if (word[k] == '/') info->apart[i] = (uint8_t)(word[k + 1] - '0' + 1);
        if (word[k] == ':') {
            if (strncmp(word + k, ":index", 6) == 0) info->in_class[i] = 1;
            if (strncmp(word + k, ":bool", 5) == 0) info->in_class[i] = 2;
            if (strncmp(word + k, ":any", 4) == 0) info->in_class[i] = 3;
            break;
        }
    }
}

static void parse(weft_op_info *info) {
    int count = 0;
    for (const char *p = info->inputs; *p;) {
        size_t n = strcspn(p, " ");
        parse_input(info, count++, p, n);
        p += n + (p[n] == ' ');
    }
    if (info->n_in == -1) info->n_fixed = count - 1;
    else info->n_in = info->n_fixed = count;
    for (const char *p = info->outputs; *p;) {
        size_t n = strcspn(p, " ");
        memcpy(info->out_name[info->n_out], p, n < 15 ? n : 15);
        if (*p != '_') info->n_visible++;
        info->n_out++;
        p += n + (p[n] == ' ');
    }
    info->dtype_mask = mask_of(info->dtypes);
    if (info->shape == shape_none) info->shape = NULL;
    if (info->grad == grad_none) info->grad = NULL;
}

weft_status weft_ops_init(void) {
    static bool done;
    if (done) return WEFT_OK;
    for (int i = 0; i < WEFT_N_OPS; i++) parse(&weft_ops[i]);
    done = true;
    return WEFT_OK;
}

int weft_n_ops(void) { return WEFT_N_OPS; }

const char *weft_op_field(int op, const char *field) {
    if (op < 0 || op >= WEFT_N_OPS) return NULL;
    weft_ops_init();
    const weft_op_info *info = &weft_ops[op];
    const struct { const char *name, *value; } fields[] = {
        {"name", info->name}, {"family", info->family}, {"inputs", info->inputs}, {"outputs", info->outputs},
        {"attrs", info->attrs}, {"dtypes", info->dtypes}, {"doc", info->doc}, {"kind", kinds[info->kind]},
        {"gradient", info->grad ? "yes" : "no"},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (strcmp(fields[i].name, field) == 0) return fields[i].value;
    return NULL;
}

// FNV-1a over every row, so that a device library built from another table is told.
uint64_t weft_ops_hash(void) {
    uint64_t h = 1469598103934665603u;
    for (int i = 0; i < WEFT_N_OPS; i++) {
        const char *parts[] = {weft_ops[i].name, weft_ops[i].inputs, weft_ops[i].outputs, weft_ops[i].attrs, weft_ops[i].dtypes};
        for (size_t k = 0; k < 5; k++)
            for (const char *p = parts[k];; p++) {
                h = (h ^ (uint8_t)*p) * 1099511628211u;
                if (!*p) break;
            }
    }
    return h;
}
