/* Decodes a JPEG at 1/2, 1/4 or 1/8 of its size, to the end of the file, and sums colors. For preparation.
 *
 * reduce.py calls this through ctypes. Every coefficient is read, so damage and missing data are found as in a full
 * decode; only the transform to pixels is smaller (libjpeg's DCT scaling).
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "_jpeg.h"

enum { ROWS_AT_ONCE = 16 };

static int begin(Reader *reader, const uint8_t *content, uint64_t num_bytes)
{
    memset(reader, 0, sizeof *reader);
    if (setjmp(reader->escape))
        return 0;
    reader_begin(reader);
    read_header(reader, content, num_bytes);
    return 1;
}

static int read_reduced(Reader *reader, int32_t denominator, uint8_t *pixels, int32_t height, int32_t width)
{
    struct jpeg_decompress_struct *jpeg = &reader->jpeg;
    if (setjmp(reader->escape))
        return 0;
    ask_for_rgb(reader);
    jpeg->scale_num = 1;
    jpeg->scale_denom = (unsigned)denominator;
    jpeg_start_decompress(jpeg);
    if ((int32_t)jpeg->output_height != height || (int32_t)jpeg->output_width != width)
        fail(reader, "the reduced JPEG has another size than expected");
    while (jpeg->output_scanline < jpeg->output_height) {
        JSAMPROW rows[ROWS_AT_ONCE];
        for (JDIMENSION i = 0; i < ROWS_AT_ONCE; i++)
            rows[i] = pixels + (size_t)(jpeg->output_scanline + i) * width * 3;
        jpeg_read_scanlines(jpeg, rows, ROWS_AT_ONCE); /* stops at the last row, so the pointers beyond are unused */
    }
    return 1;
}

static int32_t end(Reader *reader, int is_done, char *message)
{
    if (!is_done)
        snprintf(message, JMSG_LENGTH_MAX, "%s", reader->message);
    jpeg_destroy_decompress(&reader->jpeg);
    return is_done;
}

/* Read height, width and number of components. Returns 1, or 0 with the reason in `message` (JMSG_LENGTH_MAX). */
int32_t tencrop_jpeg_header(const uint8_t *content, uint64_t num_bytes, int32_t facts[3], char *message)
{
    Reader reader;
    int is_done = begin(&reader, content, num_bytes);
    if (is_done) {
        facts[0] = (int32_t)reader.jpeg.image_height;
        facts[1] = (int32_t)reader.jpeg.image_width;
        facts[2] = reader.jpeg.num_components;
    }
    return end(&reader, is_done, message);
}

/* Decode an RGB or grayscale JPEG at 1/denominator of its size into uint8 [height][width][3] (lengths divided and
 * rounded up). Returns 1, or 0 with the reason in `message` (JMSG_LENGTH_MAX). */
int32_t tencrop_jpeg_reduced(const uint8_t *content, uint64_t num_bytes, int32_t denominator, uint8_t *pixels,
                             int32_t height, int32_t width, char *message)
{
    Reader reader;
    int is_done = begin(&reader, content, num_bytes) && read_reduced(&reader, denominator, pixels, height, width);
    return end(&reader, is_done, message);
}

/* Sums over uint8 pixels of three channels: r, g, b, and the products rr, rg, rb, gg, gb, bb. */
__attribute__((target_clones("avx2", "default"))) /* integer sums, so both versions give the same result */
void tencrop_color_sums(const uint8_t *pixels, int32_t height, int32_t width, int64_t stride, int64_t sums[9])
{
    memset(sums, 0, 9 * sizeof *sums);
    for (int32_t y = 0; y < height; y++) {
        const uint8_t *pixel = pixels + y * stride;
        uint32_t row[9] = {0}; /* 65,535 x 255 x 255 fits in 32 bits; 64-bit sums would halve the vector width */
        for (int32_t x = 0; x < width; x++, pixel += 3) {
            uint32_t r = pixel[0], g = pixel[1], b = pixel[2];
            row[0] += r, row[1] += g, row[2] += b;
            row[3] += r * r, row[4] += r * g, row[5] += r * b;
            row[6] += g * g, row[7] += g * b, row[8] += b * b;
        }
        for (int i = 0; i < 9; i++)
            sums[i] += row[i];
    }
}
