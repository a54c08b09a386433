/* Pillow's antialiased resize as a stream, bit for bit: source rows are pushed from top to bottom, and an output row is
 * written as soon as its last source row has arrived. Included by _decode.c only.
 *
 * Pillow (src/libImaging/Resample.c) resizes in two passes. Each stretches the filter to the scale, rounds weights to
 * multiples of 2^-22, sums in 32 bits and rounds to 8. The horizontal pass comes first, as in every Pillow before 13
 * (which sometimes swaps them; reference.py requests one pass at a time). Only the rows that the next output row needs
 * are kept: a few kB, which stay in the cache. A horizontal flip is free: the weights of the output columns are stored
 * in reverse.
 *
 * A row is RGB, 3 bytes a pixel. Source rows need `bytes_behind_rows` readable bytes after their end.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "_passes.h"

enum { NEAREST, BOX, BILINEAR, BICUBIC }; /* as in decoder.py */

typedef struct {
    Axis columns, rows;
    int rows_in, rows_out;
    uint8_t *ring; /* ring buffer of the last `ring_rows` source rows, resized horizontally */
    int ring_rows;
    size_t ring_stride, capacity;
    void *memory;
    const uint8_t **window; /* the rows that the next output row is a sum of */
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

/* Grow a buffer to `bytes`, discarding its contents; returns 0 when memory is short. */
static int reserve(void **memory, size_t *capacity, size_t bytes)
{
    if (bytes > *capacity) {
        free(*memory);
        *memory = malloc(bytes);
        *capacity = *memory ? bytes : 0;
    }
    return *memory != NULL;
}

/* Round the weights in axis->scratch as Pillow does (halves away from zero) and split them into pairs. */
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
        if (filter == NEAREST) { /* Pillow accumulates the position; i * scale would round differently */
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
    r->ring_rows = 2 * r->rows.num_pairs + ROWS_AT_ONCE; /* the taps of one output row, and the rows being pushed */
    r->ring_stride = 3 * (size_t)out_width + SLACK;
    size_t window_bytes = (size_t)r->ring_rows * sizeof(*r->window);
    if (!reserve(&r->memory, &r->capacity, window_bytes + (size_t)r->ring_rows * r->ring_stride))
        return 0;
    r->window = r->memory;
    r->ring = (uint8_t *)r->memory + window_bytes;
    return 1;
}

/* Bytes that the horizontal pass reads past a source row, with weight 0: every output reads the same number of pairs,
 * so that the inner loop has no condition. */
static size_t bytes_behind_rows(const Resampler *r)
{
    return SLACK + 6 * (size_t)r->columns.num_pairs;
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
    for (int i = 0; i < ROWS_AT_ONCE; i++) { /* a single row is processed twice, as both rows of the pair */
        const int k = i < num_rows ? i : 0;
        ins[i] = rows[k];
        outs[i] = ring_row(r, r->rows_in + k);
    }
    r->rows_in += num_rows;
    if (r->rows_in <= r->rows.start[r->rows_out]) /* the nearest filter skips these rows */
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
