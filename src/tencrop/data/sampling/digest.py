"""Order-independent 128-bit digest of the samples consumed so far: equal digests mean the same samples and positions.

The loaders hash every sample in their threads: its index, label and whole plan, and on request its pixels. The data
module adds the hashes up, each multiplied by its position in the run. A sum does not depend on how ranks, micro-batches
and interruptions partition the samples, so the digests of two layouts of the same run are equal. Metrics log it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

WORDS = 2  # 64-bit words in a hash


def sample_hashes(fields: Iterable[npt.NDArray], images: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.int64]:
    """First 128 bits of the SHA-256 of each of B samples, int64 [B, 2]; with `images` int64 [B, 4], two more words for
    the pixels.

    `fields` are arrays [B, ...]; a sample's hash covers its bytes in all of them, in order.
    """
    # The plans of 256 samples take 0.4 ms, their pixels (224 x 224) 45 ms of one core: hence only on request.
    rows = np.concatenate([_bytes_of_samples(field) for field in fields], axis=1)
    parts = [rows] if images is None else [rows, _bytes_of_samples(images)]
    words = [np.frombuffer(b"".join(_hash(row) for row in part), "<i8").reshape(-1, WORDS) for part in parts]
    return np.concatenate(words, axis=1)


class Digest:
    """Running sum of hashes, each word modulo 2^64. Every rank holds its own; the digest is the sum over the ranks."""

    def __init__(self) -> None:
        self.sums = torch.zeros(2 * WORDS, dtype=torch.int64)  # two words for the plans, two for the pixels
        self._words = self.sums.numpy().view(np.uint64)  # the same memory; torch has no arithmetic modulo 2^64

    def add(self, hashes: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]) -> None:
        """Add samples; `positions` int64 [B] are their positions in the run: how many samples come before each."""
        # Multiplying by an odd number is invertible modulo 2^64, so no bit of a hash is lost; and since factors differ,
        # exchanging two samples changes the sum.
        factors = 2 * positions.astype(np.uint64) + np.uint64(1)
        self._words[: hashes.shape[1]] += factors @ hashes.view(np.uint64)


def digest_text(sums: Tensor) -> dict[str, str]:
    """The digests to log, from the sums over all ranks: 32 hexadecimal digits each; of pixels only if hashed."""
    words = [f"{int(word) % 2**64:016x}" for word in sums]
    digests = {"data_digest": "".join(words[:WORDS])}
    if sums[WORDS:].any():
        digests["pixel_digest"] = "".join(words[WORDS:])
    return digests


def _bytes_of_samples(field: npt.NDArray) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(field).reshape(len(field), -1).view(np.uint8)


def _hash(row: npt.NDArray[np.uint8]) -> bytes:
    return hashlib.sha256(row.data).digest()[: 8 * WORDS]
