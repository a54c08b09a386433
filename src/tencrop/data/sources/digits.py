"""The 1,797 handwritten digits of scikit-learn as a source: data that need no download.

They are real scans (UCI "Optical Recognition of Handwritten Digits", test part) of 8 x 8 pixels with values 0 to 16.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from functools import cached_property

import numpy as np
from PIL import Image

from tencrop.data.sources.source import GENERATED, SourceFile, SourceLocation

NUM_DIGITS, NUM_TRAIN = 1797, 1297


def permutation() -> list[int]:
    """The fixed shuffle of the 1,797 digits: the first 1,297 are for training, the other 500 for evaluation."""
    # Sorted by a hash of their number, which does not change with the version of a library's random generator.
    return sorted(range(NUM_DIGITS), key=lambda number: hashlib.sha256(b"digit %d" % number).digest())


def digit_image(values: np.ndarray) -> Image.Image:
    """Convert 8 x 8 values of 0 to 16 to a 32 x 32 RGB image with three equal channels.

    A value v becomes round(255 v / 16); the image is resized to 28 x 28 (bilinear) and padded with two pixels of
    background (0) on every side, as in LeCun et al. 1998 (section II.B).
    """
    pixels = np.rint(255 * values / 16).astype(np.uint8)
    inner = Image.fromarray(pixels).resize((28, 28), Image.Resampling.BILINEAR)
    padded = Image.new("L", (32, 32), 0)
    padded.paste(inner, (2, 2))
    return padded.convert("RGB")


class DigitsSource:
    """The digits as PNG files generated in memory; a name is DIGIT/NUMBER, with scikit-learn's number."""

    def __init__(self) -> None:
        order = permutation()
        self.location = SourceLocation(None, {"train": "train", "val": "val"}, {"train": GENERATED, "val": GENERATED})
        self.classes = [str(digit) for digit in range(10)]
        self.left_out: dict[str, Counter[str]] = {}
        self.files = {"train": self._files(order[:NUM_TRAIN]), "val": self._files(order[NUM_TRAIN:])}

    def read(self, split: str, file: SourceFile) -> bytes:
        number = int(file.name.split("/")[1].removesuffix(".png"))
        buffer = io.BytesIO()
        # Level 1: the store decodes it at once, so its size does not matter. PNG loses nothing.
        digit_image(self._digits.images[number]).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def published_md5(self) -> dict[str, str]:
        return {}

    def _files(self, numbers: list[int]) -> list[SourceFile]:
        names = sorted((int(self._digits.target[number]), f"{number:04d}.png") for number in numbers)
        # Size 0: unknown before the image is generated.
        return [SourceFile(f"{label}/{name}", label, 0) for label, name in names]

    @cached_property
    def _digits(self):
        from sklearn.datasets import load_digits  # imported late: takes a second

        return load_digits()
