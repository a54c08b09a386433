"""Counter-based random numbers: every draw is a pure function of (seed, epoch, sample index, view, stream).

All randomness of the data comes from here: sampling, augmentation and mixing. There is no generator state, so a draw
does not depend on threads, workers, ranks, batch size or interruptions, and a checkpoint has none to save.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

UInt64 = npt.NDArray[np.uint64]
Float64 = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
View = int | Index  # copy number under repeated augmentation: one for all samples, or one each
HASH_BLOCK = 1 << 16  # samples hashed at a time; their temporary arrays of 10 MB stay in the cache


class Stream(IntEnum):
    """What a draw is used for. Append only: two choices with the same number would be correlated."""

    ORDER = 0  # the hash that orders an epoch
    MINIVAL = 1  # the hash that selects the minival
    CROP = 2  # the crop's box
    FLIP = 3  # whether the image is flipped
    PCA = 4  # RGB noise along the principal components
    JITTER = 5  # brightness, contrast, saturation, hue and their order
    MIX = 6  # keyed by mixing group: whether it is mixed, how, lambda, the pasted box
    RANDAUGMENT = 7  # operations, whether they are applied, their signs
    RANDAUGMENT_LEVEL = 8  # their magnitudes
    ERASE = 9  # whether a rectangle is erased, and which
    ERASE_NOISE = 10  # offset of an image's noise in the run's noise table
    NOISE_TABLE = 11  # that table; keyed by block, not by sample
    STORE = 12  # JPEG or raw pixels in a store of both; seed 0, epoch 0
    CUTOUT = 13  # centers of the squares that RandAugment cuts out


def uniforms(*, seed: int, index: Index, epoch: int, view: View = 0, stream: Stream, count: int) -> Float64:
    """`count` uniforms on [0, 1) for each sample, float64 [N, count]."""
    return as_uniforms(random_uint64(seed=seed, index=index, epoch=epoch, view=view, stream=stream, count=count))


def as_uniforms(draw: UInt64) -> Float64:
    """Uniforms on [0, 1) from 64-bit draws: the top 53 bits times 2**-53, as a contiguous float64 array."""
    # A float64 has 53 bits of precision: with more, values near 1 would round up to 1 itself.
    # Contiguous, because NumPy may use a differently rounded loop of log, exp or sqrt for strided input.
    return np.ascontiguousarray((draw >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def normals(*, seed: int, index: Index, epoch: int, view: View = 0, stream: Stream, count: int) -> Float64:
    """`count` standard normals for each sample, float64 [N, count], by Box and Muller (1958).

    Draws 2k and 2k + 1 (u and v, uniform on [0, 1)) give normals 2k and 2k + 1:
    r cos(2 pi v) and r sin(2 pi v) with r = sqrt(-2 log(1 - u)).
    """
    # Box-Muller uses a fixed number of draws for each normal; the faster ziggurat method rejects some.
    num_pairs = (count + 1) // 2
    pairs = random_uint64(seed=seed, index=index, epoch=epoch, view=view, stream=stream, count=2 * num_pairs)
    u, v = (as_uniforms(pairs[:, part::2]) for part in (0, 1))
    radius, angle = np.sqrt(-2.0 * np.log1p(-u)), 2.0 * np.pi * v
    values = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return values.reshape(len(index), 2 * num_pairs)[:, :count]


def hashes(*, seed: int, index: Index, epoch: int, stream: Stream) -> UInt64:
    """One 64-bit hash for each sample, uint64 [N]: its first draw. Sorting by it shuffles the samples."""
    # In blocks: a draw takes 150 bytes of temporary memory, which would be 2 GB a rank for 14 million samples.
    index = np.asarray(index)
    found = np.empty(len(index), np.uint64)
    for start in range(0, len(index), HASH_BLOCK):
        block = slice(start, start + HASH_BLOCK)
        found[block] = random_uint64(seed=seed, index=index[block], epoch=epoch, stream=stream, count=1)[:, 0]
    return found


def random_uint64(*, seed: int, index: Index, epoch: int, view: View = 0, stream: Stream, count: int) -> UInt64:
    """`count` draws of 64 bits for each sample, uint64 [N, count].

    Key: the seed, its low 32 bits first. Counter words: sample index, epoch, (view << 16 | stream), block b.
    Words (w0, w1, w2, w3) of block b give draws 2b = w0 << 32 | w1 and 2b + 1 = w2 << 32 | w3.
    """
    # This layout is fixed for ever: changing it changes every training run.
    index = np.asarray(index)
    assert index.ndim == 1 and np.issubdtype(index.dtype, np.integer), "index: a vector of integers"
    view = np.asarray(view)
    assert 0 <= epoch < 2**32 and 0 <= stream < 2**16
    assert view.size == 0 or (view.min() >= 0 and view.max() < 2**16)
    assert index.size == 0 or (index.min() >= 0 and index.max() < 2**32), "a sample index has 32 bits"
    num_blocks = (count + 1) // 2
    counter = np.empty((len(index), num_blocks, 4), np.uint32)
    counter[..., 0] = index[:, None]
    counter[..., 1] = epoch
    counter[..., 2] = (view << 16 | int(stream))[..., None]
    counter[..., 3] = np.arange(num_blocks)
    words = philox4x32(counter.reshape(-1, 4), seed).astype(np.uint64)
    pairs = words[:, 0::2] << np.uint64(32) | words[:, 1::2]
    return pairs.reshape(len(index), 2 * num_blocks)[:, :count]


def integers_below(draw: UInt64, n: npt.ArrayLike) -> Index:
    """Integers in [0, n), int64, from 64-bit draws: floor(draw * n / 2**64), exactly. `n` broadcasts, 1 <= n < 2**32.

    The probability of a value differs from 1 / n by less than 2**-64.
    """
    # Multiply and shift instead of a modulo with rejection: one draw for each integer. NumPy has no 128-bit product,
    # so it is assembled from two 32-bit halves.
    limit = np.asarray(n, np.uint64)
    assert limit.size == 0 or (limit.min() >= 1 and limit.max() < 2**32)
    high, low = draw >> np.uint64(32), draw & np.uint64(0xFFFFFFFF)
    return ((high * limit + (low * limit >> np.uint64(32))) >> np.uint64(32)).astype(np.int64)


def philox4x32(counter: npt.NDArray[np.uint32], key: int) -> npt.NDArray[np.uint32]:
    """Philox4x32-10 of counters uint32 [N, 4] under a 64-bit key: uint32 [N, 4].

    Salmon, Moraes, Dror and Shaw: Parallel random numbers: as easy as 1, 2, 3 (SC11), section 3.3.
    """
    # Not NumPy's own Philox: that is 4x64 with a sequential state; this one evaluates any counters in one vectorized
    # call. The constants are the paper's multipliers and Weyl increments.
    assert 0 <= key < 2**64
    word = np.uint64(0xFFFFFFFF)
    c0, c1, c2, c3 = (counter[:, i].astype(np.uint64) for i in range(4))
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (
            p1 >> np.uint64(32) ^ c1 ^ np.uint64(k0),
            p1 & word,
            p0 >> np.uint64(32) ^ c3 ^ np.uint64(k1),
            p0 & word,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)
