"""Colour statistics of a training split: RGB mean, covariance with its axes, mean image. Called by prepare.

AlexNet, ZFNet and ResNet subtract the mean image or the mean; AlexNet's colour noise needs the covariance's axes.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from PIL import Image

from tencrop.data.geometry import central_square

SIDE = 256  # pixels, of the mean image
PIXELS = (
    "every pixel of the central square of every training image as decoded, the square reduced to 256 x 256 where"
    " larger (bilinear, antialiased); sRGB values of [0, 255]"
)


class ColourSums:
    """Exact integer sums over images. Adding commutes, so the result depends on no order and no number of threads.

    int64 holds the sums of squares of 2.1 billion images.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.num_images = 0
        self.num_pixels = 0
        self.colour = np.zeros(3, np.int64)
        self.products = np.zeros((3, 3), np.int64)
        self.image = np.zeros((SIDE, SIDE, 3), np.int64)

    def add(self, image: Image.Image) -> None:
        """Count an RGB image of any size; may be called from several threads at once."""
        top, left, side, _ = central_square(image.height, image.width)
        # not resize(box=...), which lets pixels outside the box into its border
        whole = image.crop((left, top, left + side, top + side))
        filled = np.asarray(whole.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        square = filled if side >= SIDE else np.asarray(whole)
        channels = np.ascontiguousarray(square.reshape(-1, 3).T, dtype=np.int64)
        products = channels @ channels.T  # in integers: no BLAS, no rounding
        with self._lock:
            self.num_images += 1
            self.num_pixels += channels.shape[1]
            self.colour += channels.sum(axis=1)
            self.products += products
            self.image += filled

    def statistics(self) -> dict[str, Any]:
        """For the manifest, on [0, 255]: mean, std, covariance, eigenvalues (variances, descending), eigenvectors.

        The eigenvectors are the columns; of each, the component of largest magnitude is positive. Divisor: the
        number of pixels.
        """
        assert self.num_images > 0
        count = self.num_pixels
        colour, products = self.colour.astype(object), self.products.astype(object)  # Python's integers: no overflow
        covariance = ((count * products - np.outer(colour, colour)) / count**2).astype(np.float64)
        eigenvalues, eigenvectors = np.linalg.eigh(covariance)
        eigenvalues, eigenvectors = np.maximum(eigenvalues[::-1], 0.0), eigenvectors[:, ::-1]
        largest = np.abs(eigenvectors).argmax(axis=0)
        eigenvectors = eigenvectors * np.sign(eigenvectors[largest, range(3)])
        return {
            "mean": (self.colour / count).tolist(),
            "std": np.sqrt(np.diag(covariance)).tolist(),
            "covariance": covariance.tolist(),
            "eigenvalues": eigenvalues.tolist(),
            "eigenvectors": eigenvectors.tolist(),
            "num_images": self.num_images,
            "num_pixels": count,
            "pixels": PIXELS,
        }

    def mean_image(self) -> np.ndarray:
        """float32 [256, 256, 3]: mean of the central squares, each resized to 256 x 256 (enlarged where smaller)."""
        return (self.image / self.num_images).astype(np.float32)
