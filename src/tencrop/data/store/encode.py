"""One image file to what a store keeps of it: its own bytes where they will do, else JPEG or RGB. Called by prepare."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT, TiffImageFile

from tencrop.config import StoreOptions
from tencrop.data.native.decoder import DecodeError
from tencrop.data.native.reduce import JpegHeader, denominator, jpeg_header, reduced_image, reduced_jpeg
from tencrop.data.sampling.geometry import MAX_PIXELS, stored_size
from tencrop.data.sampling.rng import Stream, uniforms
from tencrop.data.store.beton import JPEG, MAX_PAYLOAD_BYTES, RAW, EncodedSample

# What a file turned out to be; the table of files keeps the index. A damaged JPEG is one that Pillow decodes to the
# end and libjpeg warns of (stray or missing data): such files are in ImageNet and papers trained on them.
KINDS = ("jpeg", "gray jpeg", "cmyk jpeg", "png", "other", "damaged jpeg", "raw")  # raw: of an adopted .beton file
PLAIN_KINDS = ("jpeg", "gray jpeg")  # a decoder of JPEG makes RGB of these, so their bytes can be stored
STORE_FILTER = Image.Resampling.BILINEAR  # of a reduced store; Pillow's, so antialiased
# The decoders that a file may choose by its first bytes. Of the others that Pillow has, some run programs (Ghostscript
# for EPS) and some appear only where a library is installed: which images exist would depend on the machine.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP")
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit is lower, holds for it alone, and can be set in no other way
ENCODING = 2  # counts up where `encode` makes something else of the same file


class Undecodable(ValueError):
    """The bytes are not a whole image of a format that Pillow reads; the message is the reason."""


class EncodedFile(NamedTuple):
    """A file as it goes into a store."""

    sample: EncodedSample
    payload_sha256: bytes
    height: int  # of the original
    width: int
    pixels: npt.NDArray[np.uint8] | None  # [h, w, 3], RGB: the original at the reduced size of `reduce`
    kind: str  # of KINDS
    num_bytes: int  # of the file
    sha256: bytes  # of the file


def encode(
    content: bytes, label: int, options: StoreOptions, *, index: int = 0, with_pixels: bool = True
) -> EncodedFile:
    """What a store of these options keeps of an encoded image; `index` is its rank in the split. Without pixels a JPEG
    is read to its end all the same, at an eighth of its size.

    mode=jpeg: the file's own bytes if it is an RGB or grayscale JPEG of the wanted size, and libjpeg reads it to the
    end without complaint; a JPEG of `options.quality` (4:2:0, as libjpeg's default) if it is resized; raw RGB for
    anything else, so that nothing is lost. mode=raw: RGB. mode=proportion: one of the two. Raises Undecodable.
    """
    sha256 = hashlib.sha256(content).digest()
    header, pixels = _read_plain_jpeg(content, with_pixels=with_pixels)
    if header is not None:
        kind = {1: "gray jpeg", 3: "jpeg"}[header.num_components]
        size, opened = (header.height, header.width), None
    else:
        opened, kind = open_image(content)
        kind = "damaged jpeg" if kind in PLAIN_KINDS else kind  # unless Pillow cannot decode it either
        size = opened.height, opened.width
    height, width = stored_size(*size, short_side=options.short_side, max_side=options.max_side)
    if max(height, width, *size) >= 1 << 16:
        raise Undecodable(f"{size[1]} x {size[0]} pixels are more than a .beton file can hold")
    as_jpeg = is_jpeg(index, options)
    if as_jpeg and header is not None and (height, width) == size:
        sample, payload_sha256 = EncodedSample(content, JPEG, height, width, label), sha256
    else:
        image = to_rgb(opened or open_image(content)[0])
        pixels = reduced_image(image) if pixels is None and with_pixels else pixels
        sample = EncodedSample(*_payload(image, height, width, as_jpeg, options.quality), height, width, label)
        payload_sha256 = hashlib.sha256(sample.payload).digest()
    if len(sample.payload) > MAX_PAYLOAD_BYTES:
        raise Undecodable(f"{width} x {height} pixels are more than a .beton file can hold")
    return EncodedFile(sample, payload_sha256, *size, pixels, kind, len(content), sha256)


def is_jpeg(index: int, options: StoreOptions) -> bool:
    """Whether the image of this rank is to be kept as JPEG; of a mixed store a draw says it, the same in every run."""
    if options.mode != "proportion":
        return options.mode == "jpeg"
    assert options.jpeg_fraction is not None
    draw = uniforms(seed=0, index=np.array([index]), epoch=0, stream=Stream.STORE, count=1)
    return bool(draw[0, 0] < options.jpeg_fraction)


def decode_rgb(content: bytes) -> Image.Image:
    """An image file of any format as RGB, as Pillow decodes it: what the reference loader applies to originals."""
    return to_rgb(open_image(content)[0])


def open_image(content: bytes) -> tuple[Image.Image, str]:
    """The image, its header read and its pixels not yet, and its kind. Raises Undecodable."""
    with _pillows_errors():
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    _check_num_pixels(image.height, image.width)
    if image.format in ("JPEG", "MPO"):  # MPO: JPEG with further pictures behind, which decoders do not look at
        return image, {"RGB": "jpeg", "L": "gray jpeg", "CMYK": "cmyk jpeg"}[image.mode]
    return image, "png" if image.format == "PNG" else "other"


def to_rgb(image: Image.Image) -> Image.Image:
    """The first frame as RGB; orientation tags are ignored [6]. Raises Undecodable for anything but a whole image.

    Grayscale is repeated; CMYK, palettes and transparency go through Pillow's convert, as torchvision's loader does;
    grayscale of more than 8 bits is scaled.
    """
    with _pillows_errors():
        image.load()
        if image.mode.startswith("I") or image.mode == "F":
            image = Image.fromarray(_eight_bits(image))
        return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Deep grayscale, uint8 [height, width]: integers of 0 to 65,535 keep their upper 8 bits, floats are of 0 to 1.

    Pillow's convert cuts all values off at 255, which makes such an image white or black. Raises Undecodable where
    the range of the values is another one, so that what is white cannot be known.
    """
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    num_bits, is_signed = tags.get(BITSPERSAMPLE, (16,))[0], tags.get(SAMPLEFORMAT, (1,))[0] == 2
    if tags.get(PHOTOMETRIC_INTERPRETATION) == 0 or (num_bits == 16 and is_signed):
        raise Undecodable("gray of more than 8 bits that is signed, or in which 0 is white; save it with 8 bits")
    values = np.asarray(image)
    if image.mode == "F":
        if not (values.min() >= 0 and values.max() <= 1):  # nor where one is no number
            raise Undecodable("its pixels are floats that are not all of 0 to 1; save it with 8 bits")
        pixels = np.rint(255 * values)
    else:
        if values.min() < 0 or values.max() >= 1 << 16:
            raise Undecodable("its pixels are integers that are not all of 0 to 65,535; save it with 8 bits")
        pixels = values >> (num_bits - 8 if num_bits < 16 else 8)
    if values.any() and not pixels.any():
        raise Undecodable("its deep gray values are so small that it would be black; save it with 8 bits")
    return pixels.astype(np.uint8)


def _check_num_pixels(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise Undecodable(f"{width} x {height} pixels are more than {MAX_PIXELS:,}")


def _read_plain_jpeg(content: bytes, *, with_pixels: bool) -> tuple[JpegHeader | None, npt.NDArray[np.uint8] | None]:
    """Header and reduced pixels of an undamaged JPEG of RGB or gray; (None, None) for all else."""
    if not content.startswith(b"\xff\xd8\xff"):
        return None, None
    try:
        header = jpeg_header(content)
        if header.num_components not in (1, 3):
            return None, None
        _check_num_pixels(header.height, header.width)
        pixels = reduced_jpeg(content, header, denominator(header.height, header.width) if with_pixels else 8)
    except DecodeError:
        return None, None
    return header, pixels if with_pixels else None


def _payload(image: Image.Image, height: int, width: int, as_jpeg: bool, quality: int) -> tuple[bytes, int]:
    """An RGB image at its stored size; one that keeps its size is not compressed: that would lose something."""
    if image.size == (width, height):
        return image.tobytes(), RAW
    stored = image.resize((width, height), STORE_FILTER)
    if not as_jpeg:
        return stored.tobytes(), RAW
    buffer = io.BytesIO()
    stored.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue(), JPEG


@contextlib.contextmanager
def _pillows_errors() -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise Undecodable(f"not an image of a format that is read: {', '.join(FORMATS)}") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        reason = re.sub(r" (object )?at 0x[0-9a-f]+", "", str(error))  # the manifest keeps it, the same every time
        raise Undecodable(reason or type(error).__name__) from error
