/* Huffman decoding of baseline JPEGs in place of libjpeg's. Included by _decode.c only.
 *
 * libjpeg spends 60% of a crop's time in it (perf record of decode_batch), because it reads the code and then the value of a
 * coefficient, each with branches that depend on the data. Here one table access gives the run, the value and the number
 * of bits of most coefficients (as in stb_image.h). The inverse DCT and all after it remain libjpeg's.
 *
 * Anything irregular (a bad code, a marker out of place, the end of the file) is an error here. The caller then decodes
 * the image again with libjpeg's own function, so that libjpeg alone decides what is damage.
 */
#include <stdint.h>
#include <string.h>

/* jpegint.h declares the methods of libjpeg's modules. Debian installs it; without it, libjpeg decodes by itself. */
#ifndef HAVE_HUFFMAN_CODE /* the tests also build without */
#if __has_include(<jpegint.h>)
#define HAVE_HUFFMAN_CODE 1
#else
#define HAVE_HUFFMAN_CODE 0
#endif
#endif

#if HAVE_HUFFMAN_CODE
#include <jpegint.h>

#include "_code_table.h"

enum { ENTRIES_A_REFILL = 3 }; /* the first may take MOST_BITS of 56 bits, and leaves enough for two accesses */

/* `bits` holds the next num_bits bits from its top; below them may be some that the next refill sets again. */
typedef struct {
    const uint8_t *next;
    uint64_t bits;
    int num_bits;
} BitReader;

/* What the blocks of an MCU are decoded with. */
typedef struct {
    const CodeTable *dc, *ac;
    int *last_dc; /* of the component */
} BlockCode;

typedef struct {
    struct jpeg_entropy_decoder methods; /* first, so that libjpeg's pointer to it is a pointer to this */
    BitReader reader;
    void *unstuffed; /* the bytes of the restart interval, or of the whole scan */
    const uint8_t *interval_end;         /* in `unstuffed` */
    const uint8_t *file_next, *file_end; /* the marker behind the interval; the end of the file */
    size_t unstuffed_capacity;
    BlockCode blocks[D_MAX_BLOCKS_IN_MCU];
    int last_dc[MAX_COMPS_IN_SCAN];
    unsigned num_before_restart, next_restart;
    int is_off; /* libjpeg decodes */
    JBLOCK discarded;
    CodeTable dc[NUM_HUFF_TBLS], ac[NUM_HUFF_TBLS];
} Huffman;

/* ---------------------------------------------------------------- the bits of the scan */

/* Copy the bytes up to the next marker, without the zeros that are stuffed behind each 0xFF, and begin to read there.
 * Returns 0 if no marker follows at once. */
static int interval_begin(Huffman *huffman)
{
    uint8_t *target = huffman->unstuffed;
    const uint8_t *next = huffman->file_next;
    huffman->reader = (BitReader){.next = target};
    for (;;) {
        const uint8_t *found = memchr(next, 0xFF, (size_t)(huffman->file_end - next));
        if (!found || found + 1 == huffman->file_end || found[1] == 0xFF) /* fill bytes, which the file may end with */
            return 0;
        memcpy(target, next, (size_t)(found - next));
        target += found - next;
        next = found;
        if (found[1] != 0)
            break;
        *target++ = 0xFF;
        next += 2;
    }
    huffman->file_next = next;
    huffman->interval_end = target;
    return 1;
}

static inline int64_t num_unread_bits(const BitReader *reader, const uint8_t *end)
{
    return 8 * (int64_t)(end - reader->next) + reader->num_bits;
}

/* Have at least 56 bits, without a branch, which would be mispredicted often (Giesen 2018, "Reading bits in far too many
 * ways (part 2)", variant 4). */
static inline void refill(BitReader *reader)
{
    uint64_t bytes;
    memcpy(&bytes, reader->next, sizeof bytes);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    bytes = __builtin_bswap64(bytes);
#endif
    reader->bits |= bytes >> reader->num_bits;
    reader->next += (63 - reader->num_bits) / 8;
    reader->num_bits |= 56;
}

/* The entry for the next bits, of which there must be LOOKUP_BITS, and go behind them. */
static inline uint32_t take_entry(BitReader *reader, const CodeTable *table)
{
    uint32_t entry = table->entries[reader->bits >> (64 - LOOKUP_BITS)];
    if (__builtin_expect(entry == 0 || entry & INCOMPLETE, 0)) {
        refill(reader);
        entry = complete_entry(table, reader->bits, entry);
    }
    reader->bits <<= entry & 63;
    reader->num_bits -= (int)(entry & 63);
    return entry;
}

/* ---------------------------------------------------------------- blocks */

/* Decode the coefficients of a block, which holds zeros before. Returns 0 if they are irregular. */
static inline int decode_block(BitReader *reader, const BlockCode *code, JCOEF *block)
{
    static const uint8_t zigzag[DCTSIZE2] = {
        0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48,
        41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23,
        30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63};
    refill(reader);
    uint32_t entry = take_entry(reader, code->dc);
    int dc = *code->last_dc += (int16_t)(entry >> 16);
    if (entry >> 8 & NO_CODE || dc != (int16_t)dc)
        return 0;
    block[0] = (JCOEF)dc;
    for (uint32_t k = 1;;) {
        refill(reader);
        for (int i = 0; i < ENTRIES_A_REFILL; i++, k++) {
            entry = take_entry(reader, code->ac);
            k += entry >> 8 & 0xFF;
            if (k >= DCTSIZE2)
                return k >= END_OF_BLOCK;
            block[zigzag[k]] = (JCOEF)(entry >> 16);
            if (k == DCTSIZE2 - 1)
                return 1;
        }
    }
}

/* Go to the next restart interval; returns 0 if it does not follow at once. */
static int next_interval(Huffman *huffman, unsigned interval)
{
    if (num_unread_bits(&huffman->reader, huffman->interval_end) >= 8 ||
        huffman->file_next[1] != JPEG_RST0 + huffman->next_restart)
        return 0;
    huffman->file_next += 2;
    huffman->next_restart = (huffman->next_restart + 1) % 8;
    huffman->num_before_restart = interval;
    memset(huffman->last_dc, 0, sizeof huffman->last_dc);
    return interval_begin(huffman);
}

/* Stands for libjpeg's method of this name: decode the next MCU into `blocks`, or skip it if that is NULL. */
static boolean decode_mcu(j_decompress_ptr jpeg, JBLOCKROW *blocks)
{
    Huffman *huffman = (Huffman *)jpeg->entropy;
    int is_regular = 1;
    if (jpeg->restart_interval > 0) {
        is_regular = huffman->num_before_restart > 0 || next_interval(huffman, jpeg->restart_interval);
        huffman->num_before_restart--;
    }
    BitReader reader = huffman->reader; /* a local copy, which the compiler can hold in registers */
    for (int i = 0; is_regular && i < jpeg->blocks_in_MCU; i++)
        is_regular = decode_block(&reader, huffman->blocks + i, blocks ? blocks[i][0] : huffman->discarded);
    huffman->reader = reader;
    if (!is_regular || num_unread_bits(&reader, huffman->interval_end) < 0)
        fail(jpeg->client_data, "irregular entropy code");
    return TRUE;
}

static void build_tables(Huffman *huffman, j_decompress_ptr jpeg)
{
    for (int i = 0; i < jpeg->comps_in_scan; i++) {
        const jpeg_component_info *info = jpeg->cur_comp_info[i];
        table_build(huffman->dc + info->dc_tbl_no, jpeg->dc_huff_tbl_ptrs[info->dc_tbl_no], 1);
        table_build(huffman->ac + info->ac_tbl_no, jpeg->ac_huff_tbl_ptrs[info->ac_tbl_no], 0);
    }
    for (int i = 0; i < jpeg->blocks_in_MCU; i++) {
        int component = jpeg->MCU_membership[i];
        const jpeg_component_info *info = jpeg->cur_comp_info[component];
        huffman->blocks[i] = (BlockCode){.dc = huffman->dc + info->dc_tbl_no,
                                         .ac = huffman->ac + info->ac_tbl_no,
                                         .last_dc = huffman->last_dc + component};
    }
}

/* Have libjpeg decode its MCUs by the functions above, if the scan is the only one of a baseline JPEG; call after
 * jpeg_start_decompress. Returns 0 when memory is short. */
static int huffman_begin(Huffman *huffman, j_decompress_ptr jpeg)
{
    /* A damaged MCU is noticed at its end, up to so many bytes behind the interval. */
    const size_t slack = D_MAX_BLOCKS_IN_MCU * DCTSIZE2 * MOST_BITS / 8 + sizeof(uint64_t);
    if (huffman->is_off || jpeg->arith_code || jpeg->progressive_mode || jpeg_has_multiple_scans(jpeg) ||
        jpeg->Se != DCTSIZE2 - 1) /* a lossless JPEG */
        return 1;
    if (!reserve(&huffman->unstuffed, &huffman->unstuffed_capacity, jpeg->src->bytes_in_buffer + slack))
        return 0;
    huffman->file_next = jpeg->src->next_input_byte;
    huffman->file_end = huffman->file_next + jpeg->src->bytes_in_buffer;
    memset(huffman->last_dc, 0, sizeof huffman->last_dc);
    huffman->num_before_restart = jpeg->restart_interval;
    huffman->next_restart = 0;
    if (!interval_begin(huffman))
        return 1;
    build_tables(huffman, jpeg);
    huffman->methods = *jpeg->entropy;
    huffman->methods.decode_mcu = decode_mcu;
    jpeg->entropy = &huffman->methods;
    return 1;
}

static void huffman_free(Huffman *huffman)
{
    free(huffman->unstuffed);
}
#else
typedef struct {
    int is_off;
} Huffman;

static int huffman_begin(Huffman *huffman, j_decompress_ptr jpeg)
{
    (void)huffman, (void)jpeg;
    return 1;
}

static void huffman_free(Huffman *huffman)
{
    (void)huffman;
}
#endif
