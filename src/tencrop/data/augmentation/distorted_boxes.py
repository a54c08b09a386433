"""TensorFlow's random crop, `sample_distorted_bounding_box`, in which Inception, EfficientNet and ViT are trained.

Called by plan.py. Box arrays are int64 [B, 4]: top, left, height, width in pixels of the stored images.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tencrop.data.sampling.rng import Float64, Index, as_uniforms, integers_below


def random_sized_tf_boxes(
    height: Index,
    width: Index,
    draw: npt.NDArray[np.uint64],
    *,
    area: list[float],
    aspect: list[float],
    min_object_covered: float,
) -> Index:
    """Boxes int64 [B, 4] by TensorFlow's algorithm (kernels/image/sample_distorted_bounding_box_op.cc).

    The aspect ratio (width / height) is uniform over `aspect`. Then the height is uniform over the heights that give an
    area in `area` (fractions of the image) and fit into it, so that small areas are more frequent than in torchvision's
    crop. The first attempt that fits and covers at least `min_object_covered` of the image is taken; if none does, the
    whole image. Attempt a uses draws 4a (aspect), 4a + 1 (height), 4a + 2 (top) and 4a + 3 (left) of `draw`, uint64
    [B, 4A] for A attempts. EfficientNet makes 10 attempts, TensorFlow's default is 100: they differ only for images
    whose own aspect ratio is close to the last one that can hold a box (1:17 for an area of 0.08).
    """
    image_height, image_width = height[:, None], width[:, None]
    num_pixels = image_height * image_width
    ratio = aspect[0] + (aspect[1] - aspect[0]) * as_uniforms(draw[:, 0::4])
    box_height = _uniform_heights(image_height, image_width, ratio, draw[:, 1::4], area=area)
    # Rounding can put the area just outside its range. As in TensorFlow, one row more is tried, then one row less.
    box_height = box_height + (box_height * _widths(box_height, ratio) < area[0] * num_pixels)
    box_height = box_height - (box_height * _widths(box_height, ratio) > area[1] * num_pixels)
    box_width = _widths(box_height, ratio)
    fits = (box_height > 0) & (box_height <= image_height) & (box_width > 0) & (box_width <= image_width)
    box_pixels = box_height * box_width
    fits &= (box_pixels >= area[0] * num_pixels) & (box_pixels <= area[1] * num_pixels)
    fits &= box_pixels / num_pixels >= min_object_covered
    # TensorFlow never puts a smaller box at the very last position: its range lacks the + 1.
    top = integers_below(draw[:, 2::4], np.where(fits, np.maximum(image_height - box_height, 1), 1))
    left = integers_below(draw[:, 3::4], np.where(fits, np.maximum(image_width - box_width, 1), 1))
    first = fits.argmax(axis=1)[:, None, None]
    box = np.take_along_axis(np.stack([top, left, box_height, box_width], axis=2), first, axis=1)[:, 0]
    whole = np.stack([np.zeros_like(height), np.zeros_like(width), height, width], axis=1)
    return np.where(np.any(fits, axis=1, keepdims=True), box, whole)


def _uniform_heights(
    image_height: Index, image_width: Index, ratio: Float64, draw: npt.NDArray[np.uint64], *, area: list[float]
) -> Index:
    """Heights uniform between those of the least and of the largest box of the aspect ratios [B, A]."""
    num_pixels = image_height * image_width
    low, high = (np.rint(np.sqrt(limit * num_pixels / ratio)).astype(np.int64) for limit in area)
    # The tallest box whose rounded width fits; the constant is TensorFlow's.
    widest = ((image_width + 0.5 - 1e-7) / ratio).astype(np.int64)
    high = np.where(_widths(high, ratio) > image_width, widest, high)
    high = np.minimum(high - (_widths(high, ratio) > image_width), image_height)
    low = np.minimum(low, high)
    return low + integers_below(draw, high - low + 1)


def _widths(height: Index, ratio: Float64) -> Index:
    return np.rint(height * ratio).astype(np.int64)
