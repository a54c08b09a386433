"""Test images and drawings as data: URLs of an HTML page, for figures.py and comparison_html.py."""

from __future__ import annotations

import base64
import hashlib
import io
from typing import NamedTuple

from PIL import Image

from tencrop.data.store.encode import decode_rgb

PICTURE_PIXELS = 224  # maximum shorter side of a test image: scikit-learn's china.jpg then takes 21 kB rather than 83
JPEG_QUALITY = 85


class Picture(NamedTuple):
    """A test image on a page."""

    url: str  # a data: URL
    is_small: bool  # enlarged pixel by pixel by the browser


def image_picture(file: bytes) -> Picture:
    """The picture of an image file, reduced to PICTURE_PIXELS. Raises Undecodable if it cannot be decoded."""
    picture = decode_rgb(file)
    # digits and CIFAR stay PNG, since JPEG smears 32 × 32 pixels
    is_small = min(picture.size) < PICTURE_PIXELS / 2
    if min(picture.size) > PICTURE_PIXELS:
        scale = PICTURE_PIXELS / min(picture.size)
        picture = picture.resize(
            (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC
        )
    return Picture(data_url(picture, photographic=not is_small), is_small)


def fixed_order(index: int) -> bytes:
    """The key by which images are sorted before some are chosen for a page: a fixed hash of an image's index."""
    # A hash rather than a random draw or the first images: the choice cannot be tuned to look good, it is the same for
    # every network, and validation images are sorted by class, so the first eight would show one class.
    return hashlib.sha256(b"panel %d" % index).digest()


def data_url(picture: Image.Image, *, photographic: bool = False) -> str:
    """The picture as a data: URL, as JPEG where `photographic`, else as PNG."""
    buffer = io.BytesIO()
    if photographic:
        picture.convert("RGB").save(buffer, "JPEG", quality=JPEG_QUALITY)
    else:
        picture.save(buffer, "PNG", optimize=True)
    kind = "jpeg" if photographic else "png"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
