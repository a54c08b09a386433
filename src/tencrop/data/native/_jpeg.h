/* Reading a JPEG through libjpeg: what counts as damage, and how errors are reported. Included by _decode.c (training)
 * and _reduce.c (preparation), so that preparation accepts exactly the JPEGs that training can read.
 *
 * Before calling libjpeg or `fail`, call setjmp(reader->escape): an error jumps there with the reason in
 * reader->message. libjpeg's own default would end the process.
 */
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

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

/* After damage libjpeg continues with a warning and gray blocks, on which a network would silently train. The warnings
 * below mean damaged pixels and are errors here; the others are harmless. */
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

/* `reader` must be all zero. Free it with jpeg_destroy_decompress, also if this fails. */
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
    struct jpeg_decompress_struct *jpeg = &reader->jpeg;
    /* An image without tables (of Motion JPEG) has the standard ones. libjpeg would use those of the image before; it
     * frees them with the reader. */
    memset(jpeg->quant_tbl_ptrs, 0, sizeof jpeg->quant_tbl_ptrs);
    memset(jpeg->dc_huff_tbl_ptrs, 0, sizeof jpeg->dc_huff_tbl_ptrs);
    memset(jpeg->ac_huff_tbl_ptrs, 0, sizeof jpeg->ac_huff_tbl_ptrs);
    jpeg_mem_src(jpeg, content, (unsigned long)num_bytes);
    jpeg_read_header(jpeg, TRUE);
}

/* Call after read_header. Requests RGB by the accurate DCT, which Pillow uses too. */
static inline void ask_for_rgb(Reader *reader)
{
    if (reader->jpeg.num_components != 1 && reader->jpeg.num_components != 3)
        fail(reader, "a JPEG of neither RGB nor grayscale");
    reader->jpeg.out_color_space = JCS_RGB; /* grayscale is repeated in all three channels */
    reader->jpeg.dct_method = JDCT_ISLOW;
}
