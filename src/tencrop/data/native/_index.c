/* Rewrites a JPEG with restart markers, so that the decoder can jump (_intervals.h). For preparation.
 *
 * index.py calls this through ctypes. The coefficients are copied, so every decoder sees the same pixels.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "_jpeg.h"

enum { MOST_BYTES = 0xFFFF };

typedef struct {
    struct jpeg_compress_struct jpeg;
    struct jpeg_destination_mgr destination;
    uint8_t *bytes;
    size_t num_bytes, capacity;
} Writer;

/* A destination in memory. jpeg_mem_dest does not say where its bytes are before the end: after an error they could not
 * be freed. */
static void grow(Writer *writer)
{
    size_t filled = writer->capacity, capacity = filled ? 2 * filled : 1 << 16;
    uint8_t *bytes = realloc(writer->bytes, capacity);
    if (!bytes)
        fail(writer->jpeg.client_data, "out of memory");
    writer->bytes = bytes;
    writer->capacity = capacity;
    writer->destination.next_output_byte = bytes + filled;
    writer->destination.free_in_buffer = capacity - filled;
}

static void start_destination(j_compress_ptr jpeg)
{
    grow((Writer *)jpeg); /* `jpeg` is the first member of Writer */
}

static boolean empty_buffer(j_compress_ptr jpeg)
{
    grow((Writer *)jpeg); /* called when the buffer is full, whatever free_in_buffer says */
    return TRUE;
}

static void end_destination(j_compress_ptr jpeg)
{
    Writer *writer = (Writer *)jpeg;
    writer->num_bytes = writer->capacity - writer->destination.free_in_buffer;
}

static void write_to_memory(Writer *writer)
{
    writer->destination.init_destination = start_destination;
    writer->destination.empty_output_buffer = empty_buffer;
    writer->destination.term_destination = end_destination;
    writer->jpeg.dest = &writer->destination;
}

/* libjpeg smooths the blocks of a progressive JPEG whose last scans are missing. A baseline JPEG of the same
 * coefficients would have other pixels. */
static void require_all_scans(Reader *reader)
{
    for (int component = 0; reader->jpeg.progressive_mode && component < reader->jpeg.num_components; component++)
        for (int i = 0; i < DCTSIZE2; i++)
            if (reader->jpeg.coef_bits[component][i] != 0)
                fail(reader, "a progressive JPEG without its last scans");
}

/* The MCUs of an interval: at most `most`, and a divisor of those of a row, so that every row begins an interval. */
static unsigned interval_of(const struct jpeg_decompress_struct *jpeg, int most)
{
    unsigned mcu_width = jpeg->num_components > 1 ? 8 * (unsigned)jpeg->max_h_samp_factor : 8;
    unsigned per_row = (jpeg->image_width + mcu_width - 1) / mcu_width, interval = (unsigned)most;
    while (per_row % interval)
        interval--;
    return interval;
}

/* Copy comments and application data (EXIF, ICC profiles), except for what jpeg_write_coefficients writes itself. */
static void copy_markers(const Reader *reader, Writer *writer)
{
    for (jpeg_saved_marker_ptr marker = reader->jpeg.marker_list; marker; marker = marker->next) {
        int is_jfif = marker->marker == JPEG_APP0 && marker->data_length >= 5 && !memcmp(marker->data, "JFIF", 5);
        int is_adobe = marker->marker == JPEG_APP0 + 14 && marker->data_length >= 5 && !memcmp(marker->data, "Adobe", 5);
        if ((is_jfif && writer->jpeg.write_JFIF_header) || (is_adobe && writer->jpeg.write_Adobe_marker))
            continue;
        jpeg_write_marker(&writer->jpeg, marker->marker, marker->data, marker->data_length);
    }
}

static int rewrite(Reader *reader, Writer *writer, const uint8_t *content, uint64_t num_bytes, int most)
{
    if (setjmp(reader->escape))
        return 0;
    reader_begin(reader);
    writer->jpeg.err = &reader->errors;
    writer->jpeg.client_data = reader;
    jpeg_create_compress(&writer->jpeg);
    jpeg_save_markers(&reader->jpeg, JPEG_COM, MOST_BYTES);
    for (int i = 0; i < 16; i++)
        jpeg_save_markers(&reader->jpeg, JPEG_APP0 + i, MOST_BYTES);
    read_header(reader, content, num_bytes);
    jvirt_barray_ptr *coefficients = jpeg_read_coefficients(&reader->jpeg);
    require_all_scans(reader);
    write_to_memory(writer);
    jpeg_copy_critical_parameters(&reader->jpeg, &writer->jpeg);
    writer->jpeg.optimize_coding = TRUE; /* makes up for part of the markers' bytes */
    writer->jpeg.restart_interval = interval_of(&reader->jpeg, most);
    jpeg_write_coefficients(&writer->jpeg, coefficients);
    copy_markers(reader, writer);
    jpeg_finish_compress(&writer->jpeg);
    return 1;
}

/* Rewrite a JPEG as baseline with an interval of at most `most` MCUs. Returns the number of bytes of *result, which
 * tencrop_free frees, or 0 with the reason in `message` (JMSG_LENGTH_MAX). */
uint64_t tencrop_index(const uint8_t *content, uint64_t num_bytes, int32_t most, uint8_t **result, char *message)
{
    /* On the heap: after a longjmp, changed variables of this frame would be undefined. */
    Reader *reader = calloc(1, sizeof *reader);
    Writer *writer = calloc(1, sizeof *writer);
    uint64_t size = 0;
    if (!reader || !writer) {
        snprintf(message, JMSG_LENGTH_MAX, "out of memory");
    } else {
        if (rewrite(reader, writer, content, num_bytes, most)) {
            size = writer->num_bytes;
            *result = writer->bytes;
        } else {
            snprintf(message, JMSG_LENGTH_MAX, "%s", reader->message);
            free(writer->bytes);
        }
        jpeg_destroy_compress(&writer->jpeg);
        jpeg_destroy_decompress(&reader->jpeg);
    }
    free(reader);
    free(writer);
    return size;
}

void tencrop_free(void *bytes)
{
    free(bytes);
}
