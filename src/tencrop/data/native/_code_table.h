/* Tables of Huffman codes: one access gives a coefficient's run, value and number of bits. Included by _huffman.h. */
#include <stdint.h>
#include <string.h>

/* LOOKUP_BITS: of a table access. MOST_BITS: of a code and its value. INCOMPLETE: flag of an entry whose value is not in
 * the table. END_OF_BLOCK, NO_CODE: what stands for the run where there is no coefficient; both exceed a block. */
enum { LOOKUP_BITS = 10, MOST_BITS = 32, INCOMPLETE = 0x80, NO_CODE = 64, END_OF_BLOCK = 128 };

/* An entry is value << 16 | run << 8 | bits: zeros before the coefficient, and bits of code and value together. With
 * INCOMPLETE it is size << 16 | run << 8 | INCOMPLETE | bits of the code; the value's `size` bits follow. 0: a code of
 * more than LOOKUP_BITS bits, or none. */
typedef struct {
    uint32_t entries[1 << LOOKUP_BITS];
    int32_t end_code[17]; /* one more than the last code of each length */
    int32_t offset[17];   /* from a code of each length to its index in `symbols` */
    const uint8_t *symbols;
    int is_dc;
} CodeTable;

/* The value of `size` bits (ITU-T T.81, F.2.2.1). */
static inline int extend(int bits, int size)
{
    return bits < 1 << (size - 1) ? bits - (1 << size) + 1 : bits;
}

static inline uint32_t entry_of(int value, uint32_t run, int num_bits)
{
    return (uint32_t)value << 16 | run << 8 | (uint32_t)num_bits;
}

static uint32_t incomplete_entry(const CodeTable *table, uint8_t symbol, int code_bits)
{
    int size = table->is_dc ? symbol : symbol & 15;
    uint32_t run = table->is_dc ? 0 : symbol >> 4;
    if (size > 0)
        return entry_of(size, run, code_bits | INCOMPLETE);
    return entry_of(0, table->is_dc || run == 15 ? run : END_OF_BLOCK, code_bits);
}

/* Fill the 2^free_bits entries that begin with the code of `incomplete`. */
static void fill_entries(uint32_t *entries, int free_bits, uint32_t incomplete)
{
    int size = incomplete & INCOMPLETE ? (int)(incomplete >> 16) : 0;
    int num_bits = (int)(incomplete & (INCOMPLETE - 1)) + size;
    for (int i = 0; i < 1 << free_bits; i++)
        entries[i] = size == 0 || size > free_bits
                         ? incomplete
                         : entry_of(extend(i >> (free_bits - size), size), incomplete >> 8 & 0xFF, num_bits);
}

/* `codes` has passed libjpeg's checks. */
static void table_build(CodeTable *table, const JHUFF_TBL *codes, int is_dc)
{
    int code = 0, index = 0;
    memset(table->entries, 0, sizeof table->entries);
    table->symbols = codes->huffval;
    table->is_dc = is_dc;
    for (int length = 1; length <= 16; length++, code <<= 1) {
        table->offset[length] = index - code;
        for (int i = 0; i < codes->bits[length]; i++, index++, code++) {
            int free_bits = LOOKUP_BITS - length;
            if (free_bits >= 0)
                fill_entries(table->entries + (code << free_bits), free_bits,
                             incomplete_entry(table, table->symbols[index], length));
        }
        table->end_code[length] = code;
    }
}

/* The entry for `bits` where the table has none, or an incomplete one. */
static __attribute__((noinline)) uint32_t complete_entry(const CodeTable *table, uint64_t bits, uint32_t entry)
{
    for (int length = LOOKUP_BITS + 1; entry == 0 && length <= 16; length++) {
        int32_t code = (int32_t)(bits >> (64 - length));
        if (code < table->end_code[length])
            entry = incomplete_entry(table, table->symbols[code + table->offset[length]], length);
    }
    if (entry == 0)
        return entry_of(0, NO_CODE, 0);
    if (!(entry & INCOMPLETE))
        return entry;
    int size = (int)(entry >> 16), code_bits = (int)(entry & (INCOMPLETE - 1));
    int value_bits = (int)(bits << code_bits >> (64 - size));
    return entry_of(extend(value_bits, size), entry >> 8 & 0xFF, code_bits + size);
}
