// weft_io.h: the part of weft.h about files, pictures and text. Included by weft.h.

// --- files and text
weft_status weft_file_write(const char *path, const void *data, int64_t n);  // whole, or not at all
int64_t weft_utf8_check(const char *text, int64_t n);  // first malformed byte's position, or -1
int weft_regex_full(const char *pattern, const char *text);  // 1: all of text matches, 0: not, -1: error

// --- safetensors. A reader maps the file; tensors share the map (copy on write: the file never
// changes) and stay valid after weft_safetensors_close. Do not truncate a file that is open here:
// touching pages that are gone kills the process. Replacing it by rename is safe.
typedef struct weft_file weft_file;
weft_file *weft_safetensors_open(const char *path);
void weft_safetensors_close(weft_file *file);
int64_t weft_safetensors_count(const weft_file *file);
int64_t weft_safetensors_find(const weft_file *file, const char *name);       // -1 when absent
const char *weft_safetensors_name(const weft_file *file, int64_t i);
const char *weft_safetensors_dtype_name(const weft_file *file, int64_t i);    // as the file spells it
int weft_safetensors_dtype(const weft_file *file, int64_t i);                 // -1: cannot be loaded
int weft_safetensors_ndim(const weft_file *file, int64_t i);
const int64_t *weft_safetensors_shape(const weft_file *file, int64_t i);
int64_t weft_safetensors_nbytes(const weft_file *file, int64_t i);
int64_t weft_safetensors_n_meta(const weft_file *file);
const char *weft_safetensors_meta_key(const weft_file *file, int64_t i);
const char *weft_safetensors_meta_value(const weft_file *file, int64_t i);
weft_tensor *weft_safetensors_tensor(weft_file *file, int64_t i);
weft_status weft_safetensors_write(const char *path, int64_t n, const char *const *names,
                                   weft_tensor *const *tensors, int64_t n_meta,
                                   const char *const *keys, const char *const *values);

// --- JSON, flattened: a value, then what it holds. An array is followed by `size` values, an
// object by `size` pairs of a string and a value; a string has `size` bytes at text.
typedef enum weft_json_kind {
    WEFT_JSON_NULL = 0, WEFT_JSON_FALSE = 1, WEFT_JSON_TRUE = 2, WEFT_JSON_NUMBER = 3,
    WEFT_JSON_STRING = 4, WEFT_JSON_ARRAY = 5, WEFT_JSON_OBJECT = 6
} weft_json_kind;
typedef struct weft_json_item {
    int32_t kind, reserved;
    double number;
    const char *text;
    int64_t size;
} weft_json_item;
typedef struct weft_json weft_json;
weft_json *weft_json_parse(const char *text, int64_t n);
weft_json *weft_json_read(const char *path);
const weft_json_item *weft_json_items(const weft_json *json);
int64_t weft_json_count(const weft_json *json);
void weft_json_free(weft_json *json);

// --- pictures: uint8 tensors [height, width, 3]
typedef struct weft_image_options {
    bool ignore_orientation;          // leave the picture as it is stored, whatever EXIF says
    bool drop_alpha;                  // take the colours behind alpha as they are
    uint8_t background[3];            // what alpha lets through
    int64_t max_pixels;               // refused above this; 0: about 179 million
} weft_image_options;
typedef enum weft_filter { WEFT_BICUBIC = 0, WEFT_BILINEAR = 1 } weft_filter;
weft_tensor *weft_image_decode(const void *data, int64_t n, const weft_image_options *options);
weft_tensor *weft_image_load(const char *path, const weft_image_options *options);  // NULL: white
weft_tensor *weft_image_resize(const weft_tensor *image, int64_t h, int64_t w, int filter);
weft_tensor *weft_image_resize_shortest(const weft_tensor *image, int64_t edge, int filter);
weft_tensor *weft_image_crop(const weft_tensor *image, int64_t y, int64_t x, int64_t h, int64_t w);
weft_tensor *weft_image_center_crop(const weft_tensor *image, int64_t h, int64_t w);
weft_tensor *weft_image_normalize(const weft_tensor *image, const double *mean, const double *std,
                                  bool flip);  // float32 [3, height, width]
weft_status weft_image_paste(weft_tensor *canvas, const weft_tensor *image, int64_t y, int64_t x);
weft_status weft_image_text(weft_tensor *canvas, int64_t y, int64_t x, const char *text, int64_t n,
                            int scale, const uint8_t *color);
weft_status weft_image_write_png(const char *path, const weft_tensor *image);

// --- folders, clocks, checksums
weft_status weft_make_dirs(const char *path);         // with its parents; fine when it is there
int weft_path_kind(const char *path);                 // 0 nothing, 1 file, 2 folder
int64_t weft_file_size(const char *path);             // bytes, -1 when missing
char *weft_list_dir(const char *path);                // names, sorted, a line each; weft_free_text
void weft_free_text(char *text);
weft_status weft_remove_dir(const char *path);        // a folder of plain files
weft_status weft_remove_file(const char *path);       // fine when it is not there
weft_status weft_rename_dir(const char *from, const char *to);  // synced to disk before and after
weft_status weft_append_text(const char *path, const char *text);
weft_status weft_truncate_file(const char *path, int64_t n);
int64_t weft_disk_free(const char *path);             // bytes, -1 when unknown
double weft_clock(void);                              // seconds since some start
void weft_sleep(double seconds);
double weft_peak_rss(void);                           // MiB of this process at its largest
bool weft_is_terminal(int fd);
uint64_t weft_hash_bytes(const void *data, int64_t n, uint64_t seed);
typedef struct weft_hash { uint64_t h; int32_t held; uint8_t rest[8]; } weft_hash;
void weft_hash_begin(weft_hash *h, int64_t total, uint64_t seed);  // the same over pieces, total bytes in all
void weft_hash_add(weft_hash *h, const void *data, int64_t n);
uint64_t weft_hash_end(const weft_hash *h);
uint64_t weft_checksum(const weft_tensor *t, uint64_t seed);  // of the values, in row-major order

// --- other processes, and locks that end with the process that holds them
int weft_lock_take(const char *path);  // a descriptor; -1: another holds it; -2: failed
void weft_lock_drop(int fd);
// Starts words[0] (NULL ends the list), its output appended to a file; it inherits the descriptor
// `keep` (-1: none). Its id, or 0.
int64_t weft_process_start(const char *const *words, const char *output, int keep);
int weft_process_poll(int64_t pid);  // -1: it runs; else its exit code, 128 + N after signal N
weft_status weft_process_stop(int64_t pid);  // SIGTERM

// --- tokenizers: byte-level BPE. Buffers that are returned are freed with weft_buffer_free.
typedef struct weft_tokenizer weft_tokenizer;
typedef struct weft_bpe_trainer weft_bpe_trainer;
weft_tokenizer *weft_tokenizer_load(const char *path);       // a Hugging Face tokenizer.json
weft_tokenizer *weft_tokenizer_parse(const char *text, int64_t n, const char *name);
void weft_tokenizer_free(weft_tokenizer *t);
weft_status weft_tokenizer_save(const weft_tokenizer *t, const char *path);
int64_t weft_tokenizer_size(const weft_tokenizer *t);        // the largest id + 1
int64_t weft_tokenizer_id(const weft_tokenizer *t, const char *token, int64_t n);  // -1 when absent
const char *weft_tokenizer_token(const weft_tokenizer *t, int64_t id, int64_t *n);  // NULL when absent
bool weft_tokenizer_is_special(const weft_tokenizer *t, int64_t id);
int64_t *weft_tokenizer_encode(const weft_tokenizer *t, const char *text, int64_t n, int64_t *n_out);
char *weft_tokenizer_decode(const weft_tokenizer *t, const int64_t *ids, int64_t n, bool skip_special,
                            int64_t *n_out);
void weft_buffer_free(void *buffer);
weft_bpe_trainer *weft_bpe_trainer_new(void);
weft_status weft_bpe_trainer_feed(weft_bpe_trainer *trainer, const char *text, int64_t n);
weft_tokenizer *weft_bpe_trainer_finish(weft_bpe_trainer *trainer, int64_t vocab_size,
                                        int64_t min_count, const char *const *specials,
                                        int64_t n_specials);
void weft_bpe_trainer_free(weft_bpe_trainer *trainer);

// --- the loader: threads that decode pictures ahead of the step
typedef struct weft_plan_item {
    const char *path;
    int64_t crop_y, crop_x, crop_h, crop_w;  // cut out first; crop_h 0: nothing is
    int64_t resize_h, resize_w;       // then resized; resize_w 0: resize_h is the short edge; both 0: not
    int32_t filter;                   // a weft_filter
    bool flip;                        // mirrored, at the end
    // the middle is cut out, or padded with black, to the loader's size; that is what is kept. Then this
    // window of it is resized to that size again; window_h 0: nothing is
    int64_t window_y, window_x, window_h, window_w;
} weft_plan_item;
typedef struct weft_loader weft_loader;
weft_loader *weft_loader_new(int threads, int64_t depth, int64_t h, int64_t w, const double *mean,
                             const double *std, const weft_image_options *options,
                             int64_t cache_bytes);
void weft_loader_free(weft_loader *loader);
// Plans a batch: a ticket, or 0. At most `depth` batches are under way.
int64_t weft_loader_submit(weft_loader *loader, const weft_plan_item *items, int64_t n);
// Waits for a batch: float32 [n,3,h,w]. A picture that could not be read is 0 in every pixel.
weft_tensor *weft_loader_take(weft_loader *loader, int64_t ticket);
// What a device needs to finish pictures itself (`pictures` of the operator table): their bytes as decoded,
// or at their final size where the cache holds them.
typedef struct weft_raw_batch {
    weft_tensor *bytes, *plan, *taps; // uint8 [..], int64 [n,12], int32 [..]
    int64_t rows;                     // the most that a picture has
} weft_raw_batch;
weft_status weft_loader_raw(weft_loader *loader, bool on);   // before the first plan: batches are taken raw
weft_status weft_loader_take_raw(weft_loader *loader, int64_t ticket, weft_raw_batch *out);
weft_tensor *weft_loader_table(const weft_loader *loader);   // float32 [3,256]: what a byte becomes
const char *weft_loader_message(const weft_loader *loader, int64_t i);  // of the batch taken last; or NULL
double weft_loader_waited(const weft_loader *loader);  // seconds spent waiting in take
int64_t weft_loader_cache_used(weft_loader *loader);   // bytes
int64_t weft_loader_cache_hits(weft_loader *loader);
weft_status weft_catch_stop(bool on);  // SIGINT and SIGTERM raise a flag; a second one ends the process
bool weft_stop_requested(void);
