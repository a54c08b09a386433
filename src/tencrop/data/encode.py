"""One image file to what a store keeps of it: its own bytes where they will do, else JPEG or RGB. Called by prepare."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from tencrop.config import StoreOptions
from tencrop.data.beton import JPEG, MAX_PAYLOAD_BYTES, RAW, EncodedSample
from tencrop.data.decoder import DecodeError, decode_jpeg
from tencrop.data.geometry import stored_size

# What a file turned out to be; the table of files keeps the index. A damaged JPEG is one that Pillow decodes to the
# end and libjpeg warns of (stray or missing data): such files are in ImageNet and papers trained on them.
KINDS = ("jpeg", "gray jpeg", "cmyk jpeg", "png", "other", "damaged jpeg")
PLAIN_KINDS = ("jpeg", "gray jpeg")  # a decoder of JPEG makes RGB of these, so their bytes can be stored
STORE_FILTER = Image.Resampling.BILINEAR  # of a reduced store; Pillow's, so antialiased


class Undecodable(ValueError):
    """The bytes are not a whole image of a format that Pillow reads; the message is the reason."""


class EncodedFile(NamedTuple):
    """A file as it goes into a store."""

    sample: EncodedSample
    payload_sha256: bytes
    image: Image.Image  # RGB, original size
    kind: str  # of KINDS
    num_bytes: int  # of the file
    sha256: bytes  # of the file


def encode(content: bytes, label: int, options: StoreOptions) -> EncodedFile:
    """What a store of these options keeps of an encoded image.

    mode=jpeg: the file's own bytes if it is an RGB or grayscale JPEG of the wanted size, and the loader's decoder
    can read it; a JPEG of `options.quality` (4:2:0, as libjpeg's default) if it is resized; raw RGB for anything
    else, so that nothing is lost. mode=raw: RGB. Raises Undecodable.
    """
    sha256 = hashlib.sha256(content).digest()
    header, kind = open_image(content)
    height, width = stored_size(header.height, header.width, short_side=options.short_side, max_side=options.max_side)
    if max(height, width) >= 1 << 16:
        raise Undecodable(f"{width} x {height} pixels are more than a .beton file can hold")
    same_size = (height, width) == (header.height, header.width)
    if options.mode == "jpeg" and same_size and kind in PLAIN_KINDS:
        try:
            image = Image.fromarray(decode_jpeg(content))
            sample = EncodedSample(content, JPEG, height, width, label)
            return EncodedFile(sample, sha256, image, kind, len(content), sha256)
        except DecodeError:
            kind = "damaged jpeg"  # unless Pillow cannot decode it either
    image = to_rgb(header)
    stored = image if same_size else image.resize((width, height), STORE_FILTER)
    if options.mode == "jpeg" and not same_size:
        buffer = io.BytesIO()
        stored.save(buffer, "JPEG", quality=options.quality, subsampling="4:2:0")
        sample = EncodedSample(buffer.getvalue(), JPEG, height, width, label)
    else:
        sample = EncodedSample(stored.tobytes(), RAW, height, width, label)
    if len(sample.payload) > MAX_PAYLOAD_BYTES:
        raise Undecodable(f"{width} x {height} pixels are more than a .beton file can hold")
    return EncodedFile(sample, hashlib.sha256(sample.payload).digest(), image, kind, len(content), sha256)


def decode_rgb(content: bytes) -> Image.Image:
    """An image file of any format as RGB, as Pillow decodes it: what the reference loader applies to originals."""
    return to_rgb(open_image(content)[0])


def open_image(content: bytes) -> tuple[Image.Image, str]:
    """The image, its header read and its pixels not yet, and its kind. Raises Undecodable."""
    with _pillows_errors():
        image = Image.open(io.BytesIO(content))
    if image.format in ("JPEG", "MPO"):  # MPO: JPEG with further pictures behind, which decoders do not look at
        return image, {"RGB": "jpeg", "L": "gray jpeg", "CMYK": "cmyk jpeg"}[image.mode]
    return image, "png" if image.format == "PNG" else "other"


def to_rgb(image: Image.Image) -> Image.Image:
    """The first frame as RGB; orientation tags are ignored [6]. Raises Undecodable for anything but a whole image.

    Grayscale is repeated; CMYK, palettes and transparency go through Pillow's convert, as torchvision's loader does;
    16-bit grayscale keeps its upper 8 bits.
    """
    with _pillows_errors():
        image.load()
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


@contextlib.contextmanager
def _pillows_errors() -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise Undecodable(str(error) or type(error).__name__) from error
