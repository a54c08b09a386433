/* Reading a JPEG through libjpeg: what counts as damage, and how an error is left. Included by _decode.c and _reduce.c,
 * so that what is stored as a JPEG is one that training can read.
 *
 * Whoever calls libjpeg or `fail` has called setjmp(reader->escape) before; the reason is in reader->message then.
 */
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>

#include <jpeglib.h>
#include <jerror.h>

typedef struct {
    struct jpeg_decompress_struct jpeg;
    struct jpeg_error_mgr errors;
    jmp_buf escape;
    char message[JMSG_LENGTH_MAX];
} Reader;

static void fail(Reader *reader, const char *message)
{
    snprintf(reader->message, sizeof reader->message, "%s", message);
    longjmp(reader->escape, 1);
}

static void on_error(j_common_ptr jpeg)
{
    Reader *reader = jpeg->client_data;
    jpeg->err->format_message(jpeg, reader->message);
    longjmp(reader->escape, 1);
}

/* libjpeg goes on after damage with a warning and gray blocks; here that is an error. Harmless ones pass. */
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

/* `reader` is all zero. jpeg_destroy_decompress ends it, where this fails too. */
static void reader_begin(Reader *reader)
{
    reader->jpeg.err = jpeg_std_error(&reader->errors);
    reader->errors.error_exit = on_error;
    reader->errors.emit_message = on_warning;
    reader->jpeg.client_data = reader; /* jpeg_create_decompress keeps it */
    jpeg_create_decompress(&reader->jpeg);
}

static void read_header(Reader *reader, const uint8_t *content, uint64_t num_bytes)
{
    jpeg_mem_src(&reader->jpeg, content, (unsigned long)num_bytes);
    jpeg_read_header(&reader->jpeg, TRUE);
}

/* After the header: RGB, by the accurate transform. */
static void ask_for_rgb(Reader *reader)
{
    if (reader->jpeg.num_components != 1 && reader->jpeg.num_components != 3)
        fail(reader, "a JPEG of neither RGB nor grayscale");
    reader->jpeg.out_color_space = JCS_RGB; /* grayscale is repeated */
    reader->jpeg.dct_method = JDCT_ISLOW;
}
