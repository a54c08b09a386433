/* The two passes of a resize: rows to fewer or more columns, and several rows to one row. Included by _resample.h.
 *
 * Both are sums of sources times weights. A weight is a multiple of 2^-22, split into high * 2^15 + low: two int16
 * values for AVX2's multiply-and-add instruction, which has no 32-bit form (plain C elsewhere). The sum modulo 2^32 equals
 * Pillow's bit for bit, because modular addition does not depend on the order.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef HAVE_AVX2_CODE /* the tests also build without it, to compare the two */
#if defined(__x86_64__) && defined(__GNUC__)
#define HAVE_AVX2_CODE 1
#else
#define HAVE_AVX2_CODE 0
#endif
#endif
#if HAVE_AVX2_CODE
#include <immintrin.h>
#endif

/* SLACK: bytes that vector loads and stores may touch past a row. PRECISION_BITS: Pillow's, of a weight's fraction. */
enum { SLACK = 64, PRECISION_BITS = 22, LOW_BITS = 15, COLUMNS_AT_ONCE = 4, ROWS_AT_ONCE = 2 };

/* The weights of two neighboring source pixels: high * 2^15 + low, in units of 2^-22. */
typedef struct {
    int16_t high[2], low[2];
} Pair;

/* One direction of a resize: output i is the weighted sum of the sources start[i] ... end[i] - 1. */
typedef struct {
    int in_size, out_size, num_pairs;
    int32_t *start, *end; /* [out_size rounded up to COLUMNS_AT_ONCE]; outputs beyond out_size have weight 0 */
    Pair *weights;        /* [the same][num_pairs], 0 where an output has fewer sources */
    double *scratch;      /* the weights of one output, before rounding */
    void *memory;
    size_t capacity;
} Axis;

/* ---------------------------------------------------------------- in plain C */

static uint8_t rounded(uint32_t sum)
{
    int32_t value = (int32_t)sum >> PRECISION_BITS;
    return value < 0 ? 0 : value > 255 ? 255 : (uint8_t)value;
}

static uint32_t weight_of(const Pair *weights, int tap)
{
    const Pair *pair = weights + tap / 2;
    return ((uint32_t)(int32_t)pair->high[tap % 2] << LOW_BITS) + (uint32_t)pair->low[tap % 2];
}

static void resize_rows_plain(const Axis *axis, const uint8_t *const rows[ROWS_AT_ONCE], uint8_t *const outs[ROWS_AT_ONCE])
{
    for (int i = 0; i < ROWS_AT_ONCE; i++) {
        uint8_t *out = outs[i];
        for (int x = 0; x < axis->out_size; x++, out += 3) {
            const Pair *weights = axis->weights + (size_t)x * axis->num_pairs;
            const uint8_t *pixel = rows[i] + 3 * (size_t)axis->start[x];
            uint32_t sum[3] = {1u << (PRECISION_BITS - 1), 1u << (PRECISION_BITS - 1), 1u << (PRECISION_BITS - 1)};
            for (int tap = 0; tap < axis->end[x] - axis->start[x]; tap++, pixel += 3)
                for (int c = 0; c < 3; c++)
                    sum[c] += pixel[c] * weight_of(weights, tap);
            for (int c = 0; c < 3; c++)
                out[c] = rounded(sum[c]);
        }
    }
}

static void merge_rows_plain(const uint8_t *const *rows, const Pair *weights, int num_taps, uint8_t *out, size_t size)
{
    for (size_t x = 0; x < size; x++) {
        uint32_t sum = 1u << (PRECISION_BITS - 1);
        for (int tap = 0; tap < num_taps; tap++)
            sum += rows[tap][x] * weight_of(weights, tap);
        out[x] = rounded(sum);
    }
}

/* ---------------------------------------------------------------- with AVX2 */

#if HAVE_AVX2_CODE
#define AVX2 __attribute__((target("avx2")))

static int32_t load_two(const int16_t *values)
{
    int32_t both;
    memcpy(&both, values, sizeof both);
    return both;
}

AVX2 static __m256i load_rows(const uint8_t *first, const uint8_t *second)
{
    __m256i low = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)first));
    return _mm256_inserti128_si256(low, _mm_loadu_si128((const __m128i *)second), 1);
}

/* Two rows at once, one in each half of a register. Each step takes two source pixels of a row as int16
 * (r0 r1 g0 g1 b0 b1 0 0), so that one multiply-and-add sums both. Writes whole groups of 4 columns plus 4 bytes. */
AVX2 static inline __attribute__((always_inline)) void resize_rows_by(const int num_pairs, const Axis *axis,
                                                                      const uint8_t *const rows[2],
                                                                      uint8_t *const outs[2])
{
    const __m128i spread_half = _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1);
    const __m128i close_half = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
    const __m256i spread = _mm256_broadcastsi128_si256(spread_half), close = _mm256_broadcastsi128_si256(close_half);
    const __m256i half = _mm256_set1_epi32(1 << (PRECISION_BITS - 1));
    const Pair *weights = axis->weights;
    const uint8_t *row0 = rows[0], *row1 = rows[1];
    uint8_t *first = outs[0], *second = outs[1];

    for (int x = 0; x < axis->out_size; x += COLUMNS_AT_ONCE, first += 12, second += 12) {
        __m256i sums[COLUMNS_AT_ONCE];
        for (int column = 0; column < COLUMNS_AT_ONCE; column++) {
            size_t offset = 3 * (size_t)axis->start[x + column];
            __m256i high = _mm256_setzero_si256(), low = half;
            for (int pair = 0; pair < num_pairs; pair++, weights++, offset += 6) {
                __m256i values = _mm256_shuffle_epi8(load_rows(row0 + offset, row1 + offset), spread);
                high = _mm256_add_epi32(high, _mm256_madd_epi16(values, _mm256_set1_epi32(load_two(weights->high))));
                low = _mm256_add_epi32(low, _mm256_madd_epi16(values, _mm256_set1_epi32(load_two(weights->low))));
            }
            sums[column] = _mm256_srai_epi32(_mm256_add_epi32(low, _mm256_slli_epi32(high, LOW_BITS)), PRECISION_BITS);
        }
        __m256i pixels = _mm256_packus_epi16(_mm256_packs_epi32(sums[0], sums[1]), _mm256_packs_epi32(sums[2], sums[3]));
        pixels = _mm256_shuffle_epi8(pixels, close);
        _mm_storeu_si128((__m128i *)first, _mm256_castsi256_si128(pixels));
        _mm_storeu_si128((__m128i *)second, _mm256_extracti128_si256(pixels, 1));
    }
}

/* The most common numbers of weights as constants, so that the compiler unrolls the loop over them. */
AVX2 static void resize_rows_avx2(const Axis *axis, const uint8_t *const rows[2], uint8_t *const outs[2])
{
    switch (axis->num_pairs) {
    case 1:
        resize_rows_by(1, axis, rows, outs);
        break;
    case 2:
        resize_rows_by(2, axis, rows, outs);
        break;
    case 3:
        resize_rows_by(3, axis, rows, outs);
        break;
    default:
        resize_rows_by(axis->num_pairs, axis, rows, outs);
    }
}

/* 16 bytes of the row at a time, the source rows in pairs. Needs size >= 16: the last step overlaps the one before
 * instead of handling a remainder. */
AVX2 static void merge_rows_avx2(const uint8_t *const *rows, const Pair *weights, int num_taps, uint8_t *out, size_t size)
{
    const __m256i half = _mm256_set1_epi32(1 << (PRECISION_BITS - 1));

    for (size_t x = 0;; x = x + 32 < size ? x + 16 : size - 16) {
        __m256i high0 = _mm256_setzero_si256(), high1 = high0, low0 = half, low1 = half;
        for (int tap = 0; tap < num_taps; tap += 2) {
            const uint8_t *second = rows[tap + 1 < num_taps ? tap + 1 : tap];
            __m256i a = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(rows[tap] + x)));
            __m256i b = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(second + x)));
            __m256i ab0 = _mm256_unpacklo_epi16(a, b), ab1 = _mm256_unpackhi_epi16(a, b);
            __m256i high = _mm256_set1_epi32(load_two(weights[tap / 2].high));
            __m256i low = _mm256_set1_epi32(load_two(weights[tap / 2].low));
            high0 = _mm256_add_epi32(high0, _mm256_madd_epi16(ab0, high));
            high1 = _mm256_add_epi32(high1, _mm256_madd_epi16(ab1, high));
            low0 = _mm256_add_epi32(low0, _mm256_madd_epi16(ab0, low));
            low1 = _mm256_add_epi32(low1, _mm256_madd_epi16(ab1, low));
        }
        low0 = _mm256_srai_epi32(_mm256_add_epi32(low0, _mm256_slli_epi32(high0, LOW_BITS)), PRECISION_BITS);
        low1 = _mm256_srai_epi32(_mm256_add_epi32(low1, _mm256_slli_epi32(high1, LOW_BITS)), PRECISION_BITS);
        __m256i words = _mm256_packs_epi32(low0, low1);
        words = _mm256_permute4x64_epi64(_mm256_packus_epi16(words, words), 0x08);
        _mm_storeu_si128((__m128i *)(out + x), _mm256_castsi256_si128(words));
        if (x + 16 >= size)
            return;
    }
}
#endif

static void resize_rows(const Axis *axis, const uint8_t *const rows[ROWS_AT_ONCE], uint8_t *const outs[ROWS_AT_ONCE])
{
#if HAVE_AVX2_CODE
    if (__builtin_cpu_supports("avx2")) {
        resize_rows_avx2(axis, rows, outs);
        return;
    }
#endif
    resize_rows_plain(axis, rows, outs);
}

static void merge_rows(const uint8_t *const *rows, const Pair *weights, int num_taps, uint8_t *out, size_t size)
{
#if HAVE_AVX2_CODE
    if (__builtin_cpu_supports("avx2") && size >= 16) {
        merge_rows_avx2(rows, weights, num_taps, out, size);
        return;
    }
#endif
    merge_rows_plain(rows, weights, num_taps, out, size);
}
