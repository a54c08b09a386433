"""Color statistics of the training split: RGB mean and standard deviation, covariance with its axes, mean image.

AlexNet, ZFNet and ResNet subtract the mean image or the mean color; AlexNet's PCA noise needs the principal axes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tencrop.config.schema import MEAN_IMAGE_SIDE
from tencrop.data.native.decoder import decode_batch
from tencrop.data.native.reduce import MIN_SIDE, color_sums
from tencrop.data.sampling.geometry import central_square
from tencrop.data.store.beton import RAW

SIDE = MEAN_IMAGE_SIDE
# Splits of more than 100,000 images use every fourth image only. Preparation is then 2.2 times as fast as stock ffcv's
# writer instead of 1.6 times (`python bench/writing.py`).
SAMPLED_ABOVE, SAMPLED_EVERY = 100_000, 4
# Recorded in the manifest: what the statistics are of.
PIXELS = (
    "every pixel of the central square of {images}, 256 x 256 where the original's is that large or"
    f" larger. Images are seen at 1, 1/2, 1/4 or 1/8 of their size, the least that keeps {MIN_SIDE} pixels on the"
    " shorter side (JPEG: DCT scaling; others: means of blocks), and the square is brought to 256 x 256 from there"
    " (bilinear, antialiased). sRGB values of [0, 255]"
)


def sampled_every(num_images: int) -> int:
    """N, where one image in N (by sample index) counts in the statistics of a split of this size."""
    # ImageNet's mean image then deviates by about 70 / sqrt(320,000) = 0.12 gray levels (standard deviation 70).
    return SAMPLED_EVERY if num_images > SAMPLED_ABOVE else 1


class ColorSums:
    """Sums over images in exact integers, so the result does not depend on their order or the number of threads."""

    # int64 is enough for the sums of squares of 2.1 billion images of 256 x 256 pixels.

    def __init__(self, every: int = 1) -> None:
        self.every = every  # recorded only: one image in `every` was added
        self.num_images = 0
        self.num_pixels = 0
        self.color = np.zeros(9, np.int64)  # r, g, b and the products rr, rg, rb, gg, gb, bb
        self.image = np.zeros((SIDE, SIDE, 3), np.int64)

    def add(self, pixels: npt.NDArray[np.uint8], height: int, width: int) -> None:
        """Add an image of `height` x `width`, given at a reduced size: uint8 [reduced height, reduced width, 3]."""
        top, left, side, _ = central_square(*pixels.shape[:2])
        filled = _resized_square(pixels, top, left, side)
        # The color of a small image is counted at its own size: enlarging it would give it more weight than it has.
        square = filled if min(height, width) >= SIDE else pixels[top : top + side, left : left + side]
        self.num_images += 1
        self.num_pixels += square.shape[0] * square.shape[1]
        self.color += color_sums(square)
        self.image += filled

    def merge(self, other: ColorSums) -> None:
        """Add the sums of `other`."""
        self.num_images += other.num_images
        self.num_pixels += other.num_pixels
        self.color += other.color
        self.image += other.image

    def statistics(self) -> dict[str, Any]:
        """For the manifest, on [0, 255]: mean, std, covariance, eigenvalues (variances, descending), eigenvectors.

        Eigenvectors are the columns of their matrix. Covariances are divided by the number of pixels.
        """
        assert self.num_images > 0
        count = self.num_pixels
        sums = self.color.astype(object)  # Python integers: the products below exceed 64 bits
        color, products = sums[:3], sums[[3, 4, 5, 4, 6, 7, 5, 7, 8]].reshape(3, 3)
        # E[x y] - E[x] E[y] in exact integers: in floats the difference would cancel digits.
        covariance = ((count * products - np.outer(color, color)) / count**2).astype(np.float64)
        eigenvalues, eigenvectors = np.linalg.eigh(covariance)
        # eigh sorts in ascending order; rounding can make the variance of gray images slightly negative.
        eigenvalues, eigenvectors = np.maximum(eigenvalues[::-1], 0.0), eigenvectors[:, ::-1]
        # LAPACK may return an eigenvector or its negative. Make the largest component positive on every machine.
        largest = np.abs(eigenvectors).argmax(axis=0)
        eigenvectors = eigenvectors * np.sign(eigenvectors[largest, range(3)])
        return {
            "mean": (color / count).tolist(),
            "std": np.sqrt(np.diag(covariance)).tolist(),
            "covariance": covariance.tolist(),
            "eigenvalues": eigenvalues.tolist(),
            "eigenvectors": eigenvectors.tolist(),
            "num_images": self.num_images,
            "num_pixels": count,
            "pixels": PIXELS.format(
                images="every training image" if self.every == 1 else f"one in {self.every} training images"
            ),
        }

    def mean_image(self) -> np.ndarray:
        """float32 [256, 256, 3]: mean of the central squares, each resized to 256 x 256 (enlarged if smaller)."""
        return (self.image / self.num_images).astype(np.float32)


def _resized_square(pixels: npt.NDArray[np.uint8], top: int, left: int, side: int) -> npt.NDArray[np.uint8]:
    """The square resized to 256 x 256 (bilinear, antialiased)."""
    # The C decoder on raw pixels: the result of Pillow's crop and resize in a third of the time.
    content = np.ascontiguousarray(pixels).reshape(-1)
    filled = np.empty((1, SIDE, SIDE, 3), np.uint8)
    decode_batch(
        filled,
        content,
        pointers=np.zeros(1, np.uint64),
        payload_bytes=np.array([content.size], np.uint64),
        modes=np.array([RAW], np.uint8),
        stored_sizes=np.array([pixels.shape[:2]], np.int32),
        boxes=np.array([[top, left, side, side]], np.int32),
        sizes=np.array([[SIDE, SIDE]], np.int32),
        flips=np.zeros(1, bool),
        filter="bilinear",
        num_threads=1,
    )
    return filled[0]
