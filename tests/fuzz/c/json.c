// json.c: libFuzzer's way into the reader of settings: any bytes are a JSON text, whose items are walked as
// Lua walks them. tests/fuzz/libfuzzer_spec.lua builds and runs it.
#include <stdint.h>
#include <stdlib.h>

#include "weft.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

// The item after the one at `at` and all that is in it.
static int64_t walk(const weft_json_item *items, int64_t count, int64_t at, uint64_t *sum) {
    if (at >= count) abort();
    const weft_json_item *item = &items[at++];
    switch (item->kind) {
    case WEFT_JSON_STRING:
        for (int64_t i = 0; i < item->size; i++) *sum += (uint64_t)item->text[i];
        break;
    case WEFT_JSON_ARRAY:
        for (int64_t i = 0; i < item->size; i++) at = walk(items, count, at, sum);
        break;
    case WEFT_JSON_OBJECT:
        for (int64_t i = 0; i < 2 * item->size; i++) at = walk(items, count, at, sum);
        break;
    default: *sum += item->number != 0;
    }
    return at;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    weft_json *json = weft_json_parse((const char *)data, (int64_t)size);
    if (!json) {
        if (weft_error()[0] == '\0') abort();  // a refusal says why
        return 0;
    }
    volatile uint64_t kept = 0;
    uint64_t sum = 0;
    if (walk(weft_json_items(json), weft_json_count(json), 0, &sum) != weft_json_count(json)) abort();
    kept += sum;
    weft_json_free(json);
    return 0;
}
