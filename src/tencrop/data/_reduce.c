/* A JPEG at a half, a quarter or an eighth of its size, read to its end; and the colour sums of pixels.
 *
 * Called through ctypes by reduce.py while data are prepared. Every coefficient of the file is read, so damage and
 * missing data are found as in a full decode; only the transform to pixels is smaller (libjpeg's DCT scaling).
 */
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

enum { ROWS_AT_ONCE = 16 };

typedef struct {
    struct jpeg_error_mgr errors;
    struct jpeg_decompress_struct jpeg;
    jmp_buf escape;
    char *message; /* JMSG_LENGTH_MAX */
} Reader;

static void on_error(j_common_ptr jpeg)
{
    Reader *reader = jpeg->client_data;
    jpeg->err->format_message(jpeg, reader->message);
    longjmp(reader->escape, 1);
}

/* The same warnings as in _decode.c are errors: what is stored as a JPEG must be one that training can read. */
static void on_warning(j_common_ptr jpeg, int level)
{
    switch (level < 0 ? jpeg->err->msg_code : 0) {
    case JWRN_ARITH_BAD_CODE:
    case JWRN_HIT_MARKER:
    case JWRN_HUFF_BAD_CODE:
    case JWRN_JPEG_EOF:
    case JWRN_MUST_RESYNC:
        on_error(jpeg);
    }
}

static void reader_begin(Reader *reader, const uint8_t *content, uint64_t num_bytes)
{
    jpeg_create_decompress(&reader->jpeg);
    jpeg_mem_src(&reader->jpeg, content, (unsigned long)num_bytes);
    jpeg_read_header(&reader->jpeg, TRUE);
}

static void reader_open(Reader *reader, char *message)
{
    memset(reader, 0, sizeof *reader);
    reader->message = message;
    reader->jpeg.err = jpeg_std_error(&reader->errors);
    reader->errors.error_exit = on_error;
    reader->errors.emit_message = on_warning;
    reader->jpeg.client_data = reader;
}

/* Height, width and number of components; 1, or 0 with the reason in `message`. */
int32_t tencrop_jpeg_header(const uint8_t *content, uint64_t num_bytes, int32_t facts[3], char *message)
{
    Reader reader;
    reader_open(&reader, message);
    if (setjmp(reader.escape)) {
        jpeg_destroy_decompress(&reader.jpeg);
        return 0;
    }
    reader_begin(&reader, content, num_bytes);
    facts[0] = (int32_t)reader.jpeg.image_height;
    facts[1] = (int32_t)reader.jpeg.image_width;
    facts[2] = reader.jpeg.num_components;
    jpeg_destroy_decompress(&reader.jpeg);
    return 1;
}

/* All rows of an RGB or grayscale JPEG at 1/denominator of its size, into uint8 [height][width][3] (lengths divided
 * and rounded up); 1, or 0 with the reason in `message`. */
int32_t tencrop_jpeg_reduced(const uint8_t *content, uint64_t num_bytes, int32_t denominator, uint8_t *pixels,
                             int32_t height, int32_t width, char *message)
{
    Reader reader;
    struct jpeg_decompress_struct *jpeg = &reader.jpeg;
    reader_open(&reader, message);
    if (setjmp(reader.escape)) {
        jpeg_destroy_decompress(jpeg);
        return 0;
    }
    reader_begin(&reader, content, num_bytes);
    jpeg->out_color_space = JCS_RGB; /* grayscale is repeated */
    jpeg->dct_method = JDCT_ISLOW;
    jpeg->scale_num = 1;
    jpeg->scale_denom = (unsigned)denominator;
    jpeg_start_decompress(jpeg);
    if ((int32_t)jpeg->output_height != height || (int32_t)jpeg->output_width != width) {
        snprintf(message, JMSG_LENGTH_MAX, "the reduced JPEG has another size than expected");
        longjmp(reader.escape, 1);
    }
    while (jpeg->output_scanline < jpeg->output_height) {
        JSAMPROW rows[ROWS_AT_ONCE];
        for (JDIMENSION i = 0; i < ROWS_AT_ONCE; i++)
            rows[i] = pixels + (size_t)(jpeg->output_scanline + i) * width * 3;
        jpeg_read_scanlines(jpeg, rows, ROWS_AT_ONCE); /* never more rows than there are */
    }
    jpeg_destroy_decompress(jpeg);
    return 1;
}

/* Sums over uint8 pixels of three channels: r, g, b, and the products rr, rg, rb, gg, gb, bb. */
__attribute__((target_clones("avx2", "default"))) /* integers: the same sums */
void tencrop_colour_sums(const uint8_t *pixels, int32_t height, int32_t width, int64_t stride, int64_t sums[9])
{
    memset(sums, 0, 9 * sizeof *sums);
    for (int32_t y = 0; y < height; y++) {
        const uint8_t *pixel = pixels + y * stride;
        uint32_t row[9] = {0}; /* 65,535 pixels of 255 x 255 fit */
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
