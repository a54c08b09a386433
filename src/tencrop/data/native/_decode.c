/* Decodes, resizes and flips crop boxes of stored images into the slots of a batch, on several threads.
 *
 * decoder.py calls this through ctypes, which releases the GIL. Of a JPEG only the rows and columns of the box are
 * transformed to pixels, and reading stops after the box's last row; the pixels still equal those of a full decode
 * (accurate integer DCT, smooth chroma upsampling). Every row goes straight through the resize of _resample.h into its
 * slot, so no image is ever held whole and the working set stays in the cache.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "_jpeg.h"
#include "_resample.h"
#include "_intervals.h"
#include "_huffman.h"

#ifndef LIBJPEG_DECIDES /* the tests also build without, to see that no sound image is decoded twice */
#define LIBJPEG_DECIDES 1
#endif

enum { JPEG, RAW }; /* modes of a payload, as in beton.py */
/* CHROMA_MARGIN: columns beside the box that smooth chroma upsampling reads; see columns_to_decode. */
enum { CHROMA_MARGIN = 2, MIN_COLUMNS = 16, MAX_THREADS = 256 };

/* One sample. decoder.py declares the same fields as a NumPy dtype: change both together. */
typedef struct {
    const uint8_t *payload;
    uint64_t payload_bytes;
    uint8_t *slot;                   /* where the output goes */
    int64_t slot_stride;             /* bytes from one row to the next */
    int32_t slot_height, slot_width; /* pixels beyond the output size become 0 */
    int32_t mode, height, width;     /* as stored */
    int32_t top, left, box_height, box_width;
    int32_t out_height, out_width;
    int32_t mirrored;
} Sample;

/* What a thread needs for itself, reused from sample to sample. */
typedef struct {
    Reader reader;
    Resampler resampler;
    Gathered gathered;
    Huffman huffman;
    void *rows; /* decoded source rows */
    size_t rows_capacity;
} Worker;

typedef struct {
    const Sample *samples;
    int num_samples, filter;
    atomic_int next; /* sample that the next free thread takes: images differ much in cost, so no fixed shares */
    pthread_mutex_t lock; /* guards the fields below */
    int failed;           /* the first sample that could not be decoded, or -1 */
    char *message;
} Batch;

static int worker_begin(Worker *worker)
{
    if (setjmp(worker->reader.escape))
        return 0;
    reader_begin(&worker->reader);
    return 1;
}

static void worker_free(Worker *worker)
{
    jpeg_destroy_decompress(&worker->reader.jpeg);
    resampler_free(&worker->resampler);
    gathered_free(&worker->gathered);
    huffman_free(&worker->huffman);
    free(worker->rows);
    free(worker);
}

static Worker *worker_new(void)
{
    Worker *worker = calloc(1, sizeof *worker);
    if (worker && !worker_begin(worker)) {
        worker_free(worker);
        return NULL;
    }
    return worker;
}

static uint8_t *reserve_rows(Worker *worker, size_t bytes)
{
    if (!reserve(&worker->rows, &worker->rows_capacity, bytes))
        fail(&worker->reader, "out of memory");
    return worker->rows;
}

/* The columns of the box plus a margin. Smooth chroma upsampling reads neighbors, so the outermost decoded columns may
 * differ from a full decode; and in a very narrow strip libjpeg does not smooth at all. Both would change pixels of the
 * box, depending on its position. */
static void columns_to_decode(const Sample *sample, JDIMENSION *left, JDIMENSION *width)
{
    int first = sample->left - CHROMA_MARGIN, last = sample->left + sample->box_width + CHROMA_MARGIN;
    last = last < first + MIN_COLUMNS ? first + MIN_COLUMNS : last;
    last = last > sample->width ? sample->width : last;
    first = first > last - MIN_COLUMNS ? last - MIN_COLUMNS : first;
    first = first < 0 ? 0 : first;
    *left = (JDIMENSION)first;
    *width = (JDIMENSION)(last - first);
}

/* Reads the header of the sample's JPEG. If restart markers allow it, replaces the JPEG in *sample by the part that the
 * box needs, and reads the header of that. */
static void read_part(Worker *worker, Sample *sample)
{
    struct jpeg_decompress_struct *jpeg = &worker->reader.jpeg;
    Gathered *gathered = &worker->gathered;
    int mcu_height, interval_width;

    read_header(&worker->reader, sample->payload, sample->payload_bytes);
    if ((int)jpeg->image_height != sample->height || (int)jpeg->image_width != sample->width)
        fail(&worker->reader, "the JPEG's size is not the one in the store's table");
    size_t scan = (size_t)(jpeg->src->next_input_byte - sample->payload);
    size_t frame = frame_header(sample->payload, scan);
    if (frame == 0 || sample->payload_bytes > UINT32_MAX || !rows_begin_intervals(jpeg, &mcu_height, &interval_width))
        return;
    Intervals rows = intervals_of_box(sample->height, mcu_height, sample->top, sample->box_height);
    Intervals columns = intervals_of_box(sample->width, interval_width, sample->left, sample->box_width);
    while (columns.first > 0 && pixels_of(&columns, sample->width) < MIN_GATHERED)
        columns.first--;
    if (rows.end - rows.first == rows.num && columns.end - columns.first == columns.num)
        return;
    int num_intervals = rows.end * columns.num;
    if (!reserve(&gathered->starts, &gathered->starts_capacity, (num_intervals + 1) * sizeof(uint32_t)) ||
        !reserve(&gathered->bytes, &gathered->bytes_capacity, sample->payload_bytes))
        fail(&worker->reader, "out of memory");
    if (!find_intervals(sample->payload, sample->payload_bytes, scan, gathered->starts, num_intervals))
        return; /* damage, which decoding the whole file reports */
    int height = pixels_of(&rows, sample->height), width = pixels_of(&columns, sample->width);
    sample->payload_bytes =
        write_part(gathered->bytes, sample->payload, frame, gathered->starts, &rows, &columns, height, width);
    sample->payload = gathered->bytes;
    sample->top -= rows.first * rows.size;
    sample->left -= columns.first * columns.size;
    sample->height = height, sample->width = width;
    jpeg_abort_decompress(jpeg);
    read_header(&worker->reader, sample->payload, sample->payload_bytes);
}

static void decode_jpeg(Worker *worker, const Sample *stored)
{
    struct jpeg_decompress_struct *jpeg = &worker->reader.jpeg;
    Sample part = *stored, *sample = &part;

    read_part(worker, sample);
    ask_for_rgb(&worker->reader);
    jpeg_start_decompress(jpeg);
    if (!huffman_begin(&worker->huffman, jpeg))
        fail(&worker->reader, "out of memory");

    JDIMENSION left, width;
    columns_to_decode(sample, &left, &width);
    if (width < jpeg->output_width)
        jpeg_crop_scanline(jpeg, &left, &width); /* moves `left` down to a block boundary and widens accordingly */
    if (sample->top > 0)
        jpeg_skip_scanlines(jpeg, sample->top); /* Huffman decoding only, which _intervals.h makes unnecessary */

    /* libjpeg-turbo bypasses the cache when it writes rows aligned to 16 or 32 bytes, and we read them right away: so
     * misalign every row by 8 bytes. */
    size_t row_bytes = (3 * (size_t)width + bytes_behind_rows(&worker->resampler)) / 64 * 64 + 64;
    uint8_t *decoded = reserve_rows(worker, ROWS_AT_ONCE * row_bytes + 64);
    decoded += (64 + 8 - (uintptr_t)decoded % 64) % 64;
    size_t offset = 3 * (size_t)(sample->left - left);
    for (int y = 0; y < sample->box_height && !resampler_done(&worker->resampler);) {
        int num_rows = 0, wanted = sample->box_height - y < ROWS_AT_ONCE ? sample->box_height - y : ROWS_AT_ONCE;
        JSAMPROW targets[ROWS_AT_ONCE];
        const uint8_t *rows[ROWS_AT_ONCE];
        for (int i = 0; i < wanted; i++) {
            targets[i] = decoded + i * row_bytes;
            rows[i] = targets[i] + offset;
        }
        while (num_rows < wanted) { /* libjpeg may return fewer rows than asked for */
            int num_read = jpeg_read_scanlines(jpeg, targets + num_rows, wanted - num_rows);
            if (num_read == 0)
                fail(&worker->reader, "the JPEG ends before its last row");
            num_rows += num_read;
        }
        resampler_push(&worker->resampler, rows, num_rows);
        y += num_rows;
    }
    jpeg_abort_decompress(jpeg); /* not jpeg_finish_decompress, which requires all rows */
}

static void decode_raw(Worker *worker, const Sample *sample)
{
    uint64_t stride = 3 * (uint64_t)sample->width;
    if (sample->payload_bytes != stride * sample->height)
        fail(&worker->reader, "the payload is not of height x width x 3 bytes");
    size_t row_bytes = 3 * (size_t)sample->box_width, behind = bytes_behind_rows(&worker->resampler);
    uint8_t *copies = reserve_rows(worker, ROWS_AT_ONCE * (row_bytes + behind));
    for (int y = 0; y < sample->box_height && !resampler_done(&worker->resampler); y += ROWS_AT_ONCE) {
        int num_rows = sample->box_height - y < ROWS_AT_ONCE ? sample->box_height - y : ROWS_AT_ONCE;
        const uint8_t *rows[ROWS_AT_ONCE];
        for (int i = 0; i < num_rows; i++) {
            uint64_t start = (sample->top + y + i) * stride + 3 * (uint64_t)sample->left;
            rows[i] = sample->payload + start; /* no copy: the resize reads the mapped file */
            /* The resize reads a few bytes past each row: copy the last rows to where that is safe. */
            if (start + row_bytes + behind > sample->payload_bytes)
                rows[i] = memcpy(copies + i * (row_bytes + behind), rows[i], row_bytes);
        }
        resampler_push(&worker->resampler, rows, num_rows);
    }
}

static void clear_padding(const Sample *sample)
{
    size_t used = 3 * (size_t)sample->out_width, row_bytes = 3 * (size_t)sample->slot_width;
    for (int y = 0; y < sample->slot_height; y++) {
        size_t first = y < sample->out_height ? used : 0;
        memset(sample->slot + y * sample->slot_stride + first, 0, row_bytes - first);
    }
}

/* Returns 1, or 0 with the reason in worker->reader.message. */
static int try_sample(Worker *worker, const Sample *sample, int filter)
{
    if (setjmp(worker->reader.escape)) {
        jpeg_abort_decompress(&worker->reader.jpeg);
        return 0;
    }
    if (!resampler_begin(&worker->resampler, sample->box_height, sample->box_width, sample->out_height,
                         sample->out_width, filter, sample->mirrored, sample->slot, sample->slot_stride))
        fail(&worker->reader, "out of memory");
    if (sample->mode == JPEG)
        decode_jpeg(worker, sample);
    else
        decode_raw(worker, sample);
    clear_padding(sample);
    return 1;
}

/* The same. What _huffman.h finds irregular, libjpeg decodes again, and decides whether it is damage. */
static int decode_sample(Worker *worker, const Sample *sample, int filter)
{
    for (int by_libjpeg = 0; by_libjpeg <= LIBJPEG_DECIDES; by_libjpeg++) {
        worker->huffman.is_off = by_libjpeg;
        if (try_sample(worker, sample, filter))
            return 1;
    }
    return 0;
}

static void *decode_samples(void *argument)
{
    Batch *batch = argument;
    Worker *worker = worker_new();
    int i; /* without memory for a worker, the loop still takes samples, to report them as failed */
    while ((i = atomic_fetch_add(&batch->next, 1)) < batch->num_samples) {
        if (worker && decode_sample(worker, batch->samples + i, batch->filter))
            continue;
        pthread_mutex_lock(&batch->lock);
        if (batch->failed < 0 || i < batch->failed) { /* the first sample, so that the error is reproducible */
            batch->failed = i;
            snprintf(batch->message, JMSG_LENGTH_MAX, "%s", worker ? worker->reader.message : "out of memory");
        }
        pthread_mutex_unlock(&batch->lock);
    }
    if (worker)
        worker_free(worker);
    return NULL;
}

/* Decode all samples. Returns -1, or the first sample that failed with the reason in `message` (JMSG_LENGTH_MAX). The
 * calling thread works too, and if a thread cannot be started the others do its share. */
int32_t tencrop_decode(const Sample *samples, int32_t num_samples, int32_t filter, int32_t num_threads, char *message)
{
    Batch batch = {.samples = samples, .num_samples = num_samples, .filter = filter, .failed = -1, .message = message};
    pthread_t threads[MAX_THREADS];
    int num_started = 0;

    if (num_threads > MAX_THREADS)
        num_threads = MAX_THREADS;
    if (num_threads > num_samples)
        num_threads = num_samples;
    pthread_mutex_init(&batch.lock, NULL);
    while (num_started < num_threads - 1 &&
           pthread_create(&threads[num_started], NULL, decode_samples, &batch) == 0)
        num_started++;
    decode_samples(&batch);
    for (int i = 0; i < num_started; i++)
        pthread_join(threads[i], NULL);
    pthread_mutex_destroy(&batch.lock);
    return batch.failed;
}

/* Whether this build decodes Huffman codes itself, which needs libjpeg's header jpegint.h. */
const int32_t tencrop_decodes_huffman = HAVE_HUFFMAN_CODE;

/* Ask the kernel to read parts of a mapped file: part i is the num_bytes[i] bytes from pointers[i] on. Does not wait.
 * Errors are ignored: without read-ahead the decoder merely waits for the bytes itself. */
void tencrop_read_ahead(const uint8_t *data, const uint64_t *pointers, const uint64_t *num_bytes, int32_t num_parts)
{
    const uintptr_t page_size = (uintptr_t)sysconf(_SC_PAGESIZE);
    for (int i = 0; i < num_parts; i++) {
        uintptr_t start = (uintptr_t)data + pointers[i], page = start / page_size * page_size;
        posix_madvise((void *)page, num_bytes[i] + (start - page), POSIX_MADV_WILLNEED);
    }
}
