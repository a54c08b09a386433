/* Pillow's antialiased resize, row by row, bit for bit: the box of an image goes in from top to bottom, finished
 * rows come out as soon as their last source row has come in. Included by _decode.c only.
 *
 * Pillow (src/libImaging/Resample.c) resizes in two passes, each with the filter stretched to the scale, weights
 * rounded to multiples of 2^-22, sums in 32 bits rounded to 8. The horizontal pass comes first, as in every Pillow
 * before 13 (which now and then swaps them; reference.py asks for one pass at a time). Here a weight w * 2^22 is
 * split into high * 2^15 + low, two int16 that fit multiply-and-add instructions; the sum modulo 2^32 is the same.
 * Only the rows that the next output row needs are kept (a few kB, so they stay in the cache), and a mirror image
 * costs nothing: the weights of the output columns are laid out in reverse.
 *
 * A row is RGB, 3 bytes a pixel. Source rows need SLACK readable bytes behind them.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef HAVE_AVX2_CODE /* the tests compile it away, to compare */
#if defined(__x86_64__) && defined(__GNUC__)
#define HAVE_AVX2_CODE 1
#else
#define HAVE_AVX2_CODE 0
#endif
#endif
#if HAVE_AVX2_CODE
#include <immintrin.h>
#endif

enum { NEAREST, BOX, BILINEAR, BICUBIC }; /* as in decoder.py */
enum { SLACK = 64, PRECISION_BITS = 22, LOW_BITS = 15, COLUMNS_AT_ONCE = 4, ROWS_AT_ONCE = 2 };

/* The weights of two neighbouring source pixels: high * 2^15 + low, in units of 2^-22. */
typedef struct {
    int16_t high[2], low[2];
} Pair;

/* One direction of a resize: output i is the weighted sum of the sources start[i] ... end[i] - 1. */
typedef struct {
    int in_size, out_size, num_pairs;
    int32_t *start, *end; /* both of out_size, rounded up to COLUMNS_AT_ONCE; what is beyond has weight 0 */
    Pair *weights;        /* [that][num_pairs], 0 where there is no source */
    double *scratch;      /* the weights of one output, before rounding */
    void *memory;
    size_t capacity;
} Axis;

typedef struct {
    Axis columns, rows;
    int rows_in, rows_out;
    uint8_t *ring; /* the last `ring_rows` source rows, resized horizontally */
    int ring_rows;
    size_t ring_stride, capacity;
    void *memory;
    const uint8_t **window; /* the rows that the next output row sums up */
    uint8_t *out;
    ptrdiff_t out_stride;
    int mirrored;
} Resampler;

/* ---------------------------------------------------------------- weights */

static double filter_weight(int filter, double x)
{
    x = filter == BOX ? x : fabs(x);
    switch (filter) {
    case BOX:
        return x > -0.5 && x <= 0.5 ? 1.0 : 0.0;
    case BILINEAR:
        return x < 1.0 ? 1.0 - x : 0.0;
    default: /* Keys' cubic with a = -0.5 */
        if (x < 1.0)
            return ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1;
        return x < 2.0 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0.0;
    }
}

static int reserve(void **memory, size_t *capacity, size_t bytes)
{
    if (bytes > *capacity) {
        free(*memory);
        *memory = malloc(bytes);
        *capacity = *memory ? bytes : 0;
    }
    return *memory != NULL;
}

static void axis_set(Axis *axis, int output, int num_taps)
{
    Pair *weights = axis->weights + (size_t)output * axis->num_pairs;
    memset(weights, 0, axis->num_pairs * sizeof(Pair));
    for (int tap = 0; tap < num_taps; tap++) {
        double scaled = axis->scratch[tap] * (1 << PRECISION_BITS);
        int32_t weight = (int32_t)(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
        weights[tap / 2].high[tap % 2] = (int16_t)(weight >> LOW_BITS);
        weights[tap / 2].low[tap % 2] = (int16_t)(weight & ((1 << LOW_BITS) - 1));
    }
}

/* The weights of a resize from in_size to out_size; returns 0 when memory is short. */
static int axis_build(Axis *axis, int in_size, int out_size, int filter, int mirrored)
{
    static const double radius[] = {0.0, 0.5, 1.0, 2.0};
    const double scale = (double)in_size / out_size, stretch = scale < 1.0 ? 1.0 : scale, inverse = 1.0 / stretch;
    const double support = radius[filter] * stretch;
    const int padded = (out_size + COLUMNS_AT_ONCE - 1) / COLUMNS_AT_ONCE * COLUMNS_AT_ONCE;
    const int max_taps = filter == NEAREST ? 1 : (int)ceil(support) * 2 + 1;
    double nearest = scale * 0.5;

    axis->in_size = in_size;
    axis->out_size = out_size;
    if (!reserve(&axis->memory, &axis->capacity,
                 (max_taps + 1) * sizeof(double) + (size_t)padded * (2 * sizeof(int32_t) + (max_taps + 1) / 2 * sizeof(Pair))))
        return 0;
    axis->scratch = axis->memory;
    axis->start = (int32_t *)(axis->scratch + max_taps + 1);
    axis->end = axis->start + padded;
    axis->weights = (Pair *)(axis->end + padded);

    int most = 1;
    memset(axis->start, 0, 2 * (size_t)padded * sizeof(int32_t));
    for (int i = 0; i < out_size; i++) {
        const double center = (i + 0.5) * scale;
        int start = (int)(center - support + 0.5), end = (int)(center + support + 0.5);
        if (filter == NEAREST) { /* Pillow adds up the positions, so they round as they do there */
            start = (int)nearest < in_size ? (int)nearest : in_size - 1;
            end = start + 1;
            nearest += scale;
        }
        const int output = mirrored ? out_size - 1 - i : i;
        axis->start[output] = start < 0 ? 0 : start;
        axis->end[output] = end > in_size ? in_size : end;
        const int num_taps = axis->end[output] - axis->start[output];
        most = num_taps > most ? num_taps : most;
    }
    axis->num_pairs = (most + 1) / 2;
    for (int i = 0; i < padded; i++) {
        const int output = mirrored && i < out_size ? out_size - 1 - i : i;
        const int num_taps = axis->end[output] - axis->start[output];
        double sum = 0.0;
        for (int tap = 0; tap < num_taps; tap++) {
            const double offset = tap + axis->start[output] - (i + 0.5) * scale + 0.5;
            axis->scratch[tap] = filter == NEAREST ? 1.0 : filter_weight(filter, offset * inverse);
            sum += axis->scratch[tap];
        }
        for (int tap = 0; sum != 0.0 && tap < num_taps; tap++)
            axis->scratch[tap] /= sum;
        axis_set(axis, output, num_taps);
    }
    return 1;
}

/* ---------------------------------------------------------------- the two passes, in plain C */

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

/* ---------------------------------------------------------------- the same with AVX2 */

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

/* Two rows, one in either half of a register; of either, two source pixels at a time as int16 (r0 r1 g0 g1 b0 b1 0 0).
 * Writes whole groups of 4 columns and 4 bytes more. */
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

/* The common counts of weights as constants, so that the loop over them is unrolled. */
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

/* 16 bytes of the row at a time (size >= 16; the last 16 may overlap), the source rows in pairs. */
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

/* ---------------------------------------------------------------- the stream of rows */

/* Begin a resize of in_height x in_width to out_height x out_width at `out`; returns 0 when memory is short. */
static int resampler_begin(Resampler *r, int in_height, int in_width, int out_height, int out_width, int filter,
                           int mirrored, uint8_t *out, ptrdiff_t out_stride)
{
    if (!axis_build(&r->columns, in_width, out_width, filter, mirrored) ||
        !axis_build(&r->rows, in_height, out_height, filter, 0))
        return 0;
    r->rows_in = r->rows_out = 0;
    r->out = out;
    r->out_stride = out_stride;
    r->mirrored = mirrored;
    r->ring_rows = 2 * r->rows.num_pairs + ROWS_AT_ONCE;
    r->ring_stride = 3 * (size_t)out_width + SLACK;
    size_t window_bytes = (size_t)r->ring_rows * sizeof(*r->window);
    if (!reserve(&r->memory, &r->capacity, window_bytes + (size_t)r->ring_rows * r->ring_stride))
        return 0;
    r->window = r->memory;
    r->ring = (uint8_t *)r->memory + window_bytes;
    return 1;
}

static int resampler_done(const Resampler *r)
{
    return r->rows_out == r->rows.out_size;
}

static uint8_t *ring_row(const Resampler *r, int row)
{
    return r->ring + (size_t)(row % r->ring_rows) * r->ring_stride;
}

static void copy_row(const uint8_t *row, uint8_t *out, int width, int mirrored)
{
    if (!mirrored) {
        memcpy(out, row, 3 * (size_t)width);
        return;
    }
    for (const uint8_t *pixel = row + 3 * (size_t)width; width-- > 0; out += 3) {
        pixel -= 3;
        out[0] = pixel[0], out[1] = pixel[1], out[2] = pixel[2];
    }
}

static void emit_rows(Resampler *r)
{
    const size_t row_bytes = 3 * (size_t)r->columns.out_size;
    for (; !resampler_done(r) && r->rows.end[r->rows_out] <= r->rows_in; r->rows_out++) {
        const int start = r->rows.start[r->rows_out], num_taps = r->rows.end[r->rows_out] - start;
        uint8_t *out = r->out + r->rows_out * r->out_stride;
        if (r->rows.in_size == r->rows.out_size) {
            memcpy(out, ring_row(r, r->rows_out), row_bytes);
            continue;
        }
        for (int tap = 0; tap < num_taps; tap++)
            r->window[tap] = ring_row(r, start + tap);
        merge_rows(r->window, r->rows.weights + (size_t)r->rows_out * r->rows.num_pairs, num_taps, out, row_bytes);
    }
}

/* Take the next one or two source rows (ROWS_AT_ONCE). */
static void resampler_push(Resampler *r, const uint8_t *const *rows, int num_rows)
{
    const uint8_t *ins[ROWS_AT_ONCE];
    uint8_t *outs[ROWS_AT_ONCE];
    for (int i = 0; i < ROWS_AT_ONCE; i++) {
        const int k = i < num_rows ? i : 0;
        ins[i] = rows[k];
        outs[i] = ring_row(r, r->rows_in + k);
    }
    r->rows_in += num_rows;
    if (r->rows_in <= r->rows.start[r->rows_out]) /* of no use to the nearest filter */
        return;
    if (r->columns.in_size == r->columns.out_size)
        for (int i = 0; i < num_rows; i++)
            copy_row(ins[i], outs[i], r->columns.out_size, r->mirrored);
    else
        resize_rows(&r->columns, ins, outs);
    emit_rows(r);
}

static void resampler_free(Resampler *r)
{
    free(r->columns.memory);
    free(r->rows.memory);
    free(r->memory);
}
