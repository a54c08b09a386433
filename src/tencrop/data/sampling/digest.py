"""What a run has seen so far, in 128 bits: two runs with the same digest saw the same samples in the same places.

The loaders hash every sample (its index, label, box, flip and all else that was planned for it, and its pixels where
asked), in their threads. The data module sums the hashes up, each multiplied by its place in the run: a sum does not
care how ranks, micro-batches and interruptions cut the samples, so neither does the digest. Metrics logs it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

WORDS = 2  # 64-bit words of a hash


def sample_hashes(fields: Iterable[npt.NDArray], images: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.int64]:
    """The first 128 bits of the SHA-256 of each of B samples, int64 [B, 2]; with `images` [B, 4], theirs behind.

    `fields` are arrays [B, ...]: a sample's row is its bytes in all of them, in their order.
    """
    rows = np.concatenate([_bytes_of_samples(field) for field in fields], axis=1)
    parts = [rows] if images is None else [rows, _bytes_of_samples(images)]
    words = [np.frombuffer(b"".join(_hash(row) for row in part), "<i8").reshape(-1, WORDS) for part in parts]
    return np.concatenate(words, axis=1)


class Digest:
    """The running sum, modulo 2^64 a word. Several ranks hold one each, whose sum counts."""

    def __init__(self) -> None:
        self.sums = torch.zeros(2 * WORDS, dtype=torch.int64)  # of the plans, of the pixels

    def add(self, hashes: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]) -> None:
        """Count samples in: `positions` int64 [B] is how many of the run come before each of them.

        Odd factors lose nothing of a hash, and exchanging two different samples changes the sum.
        """
        factors = 2 * positions.astype(np.uint64) + np.uint64(1)
        total = (hashes.view(np.uint64) * factors[:, None]).sum(axis=0, dtype=np.uint64)
        self.sums[: len(total)] += torch.from_numpy(total.view(np.int64))


def digest_text(sums: Tensor) -> dict[str, str]:
    """What is logged of the sums over all ranks: 32 hexadecimal digits each; pixels only where they were hashed."""
    words = [f"{int(word) % 2**64:016x}" for word in sums]
    digests = {"data_digest": "".join(words[:WORDS])}
    if sums[WORDS:].any():
        digests["pixel_digest"] = "".join(words[WORDS:])
    return digests


def _bytes_of_samples(field: npt.NDArray) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(field).reshape(len(field), -1).view(np.uint8)


def _hash(row: npt.NDArray[np.uint8]) -> bytes:
    return hashlib.sha256(row.data).digest()[: 8 * WORDS]
