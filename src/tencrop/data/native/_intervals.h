/* Jumping inside a JPEG with restart markers: gathers the intervals that a crop box needs. Included by _decode.c.
 *
 * A restart interval is a few blocks (MCUs) that can be decoded without those before. _index.c writes JPEGs in which
 * every row of blocks begins one. The intervals of the box, behind a copy of the header with the size of that part, are
 * a JPEG of its own with the same coefficients. Without this the decoder reads the entropy code of all blocks above the
 * box and beside it; `python bench/loading.py` on a store of either mode shows what it saves.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* GATHER_MARGIN: pixels around the box that smooth chroma upsampling reads, in both directions. MIN_GATHERED: libjpeg
 * does not smooth a narrower image, which would change pixels. */
enum { GATHER_MARGIN = 2, MIN_GATHERED = 16, RST0 = 0xD0, SOF0 = 0xC0, SOF1 = 0xC1, SOS = 0xDA, EOI = 0xD9 };

typedef struct {
    void *bytes, *starts; /* the gathered JPEG; where each interval begins in the file */
    size_t bytes_capacity, starts_capacity;
} Gathered;

/* The intervals along one axis: `size` pixels each, `num` of them, those that are needed from `first` to `end`. */
typedef struct {
    int size, num, first, end;
} Intervals;

static void gathered_free(Gathered *gathered)
{
    free(gathered->bytes);
    free(gathered->starts);
}

static Intervals intervals_of_box(int length, int size, int start, int box_length)
{
    Intervals needed = {.size = size, .num = (length + size - 1) / size};
    needed.first = start > GATHER_MARGIN ? (start - GATHER_MARGIN) / size : 0;
    needed.end = (start + box_length + GATHER_MARGIN + size - 1) / size;
    needed.end = needed.end > needed.num ? needed.num : needed.end;
    return needed;
}

static int pixels_of(const Intervals *intervals, int length)
{
    int end = intervals->end * intervals->size;
    return (end < length ? end : length) - intervals->first * intervals->size;
}

/* Whether all rows of blocks begin an interval, in the one scan of a baseline JPEG; call after read_header. */
static int rows_begin_intervals(const struct jpeg_decompress_struct *jpeg, int *mcu_height, int *interval_width)
{
    int is_interleaved = jpeg->num_components > 1; /* the MCU of a single component is one block of 8 x 8 */
    int mcu_width = is_interleaved ? 8 * jpeg->max_h_samp_factor : 8;
    if (jpeg->restart_interval == 0 || jpeg->progressive_mode || jpeg->arith_code ||
        jpeg->comps_in_scan != jpeg->num_components)
        return 0;
    *mcu_height = is_interleaved ? 8 * jpeg->max_v_samp_factor : 8;
    *interval_width = mcu_width * (int)jpeg->restart_interval;
    return (jpeg->image_width + mcu_width - 1) / mcu_width % jpeg->restart_interval == 0;
}

/* Where the frame header begins in the first `num_bytes` bytes; 0 if the markers before the scan are not contiguous. */
static size_t frame_header(const uint8_t *content, size_t num_bytes)
{
    size_t frame = 0;
    for (size_t at = 2; at + 9 <= num_bytes && content[at] == 0xFF; at += 2 + (content[at + 2] << 8 | content[at + 3])) {
        if (content[at + 1] == SOF0 || content[at + 1] == SOF1)
            frame = at;
        if (content[at + 1] == SOS)
            return frame;
    }
    return 0;
}

/* Find the first `num` intervals from `at` on; starts[num] is where the next one would begin. Returns 0 if a marker is
 * missing or out of order. */
static int find_intervals(const uint8_t *content, size_t num_bytes, size_t at, uint32_t *starts, int num)
{
    starts[0] = (uint32_t)at;
    for (int i = 1; i <= num;) {
        const uint8_t *found = at < num_bytes ? memchr(content + at, 0xFF, num_bytes - at) : NULL;
        if (!found || found + 1 >= content + num_bytes)
            return 0;
        at = (size_t)(found - content) + 1;
        if (content[at] == 0 || content[at] == 0xFF) /* a stuffed byte of the entropy code, or fill before a marker */
            continue;
        if (content[at] != RST0 + (i - 1) % 8 && !(content[at] == EOI && i == num))
            return 0;
        starts[i++] = (uint32_t)++at;
    }
    return 1;
}

/* Write the JPEG of rows x columns to `target`, which has room for the whole file; returns its number of bytes. */
static size_t write_part(uint8_t *target, const uint8_t *content, size_t frame, const uint32_t *starts,
                         const Intervals *rows, const Intervals *columns, int height, int width)
{
    size_t used = starts[0];
    int num_gathered = 0;
    memcpy(target, content, used);
    uint8_t *size = target + frame + 5; /* behind the marker, the length and the precision */
    size[0] = (uint8_t)(height >> 8), size[1] = (uint8_t)height;
    size[2] = (uint8_t)(width >> 8), size[3] = (uint8_t)width;
    for (int row = rows->first; row < rows->end; row++) {
        for (int column = columns->first; column < columns->end; column++) {
            const uint32_t *start = starts + (size_t)row * columns->num + column;
            size_t length = start[1] - start[0]; /* with the marker behind */
            memcpy(target + used, content + start[0], length);
            used += length;
            target[used - 1] = (uint8_t)(RST0 + num_gathered++ % 8); /* libjpeg expects them in order */
        }
    }
    target[used - 1] = EOI;
    return used;
}
