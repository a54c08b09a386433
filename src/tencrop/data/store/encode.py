"""Encodes an image file for the store: its own bytes if they can be used as they are, else a new JPEG or raw RGB."""

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
from tencrop.data.native.index import indexed_jpeg
from tencrop.data.native.reduce import JpegHeader, denominator, jpeg_header, reduced_image, reduced_jpeg
from tencrop.data.sampling.geometry import MAX_PIXELS, stored_size
from tencrop.data.sampling.rng import Stream, uniforms
from tencrop.data.store.beton import JPEG, MAX_PAYLOAD_BYTES, RAW, EncodedSample

# Kinds of image files. The file table stores the index, so append only. A damaged JPEG is one that Pillow decodes to
# the end although libjpeg warns of stray or missing data: ImageNet has such files, and papers trained on them.
KINDS = ("jpeg", "gray jpeg", "cmyk jpeg", "png", "other", "damaged jpeg", "raw")  # raw: in an adopted .beton file
PLAIN_KINDS = ("jpeg", "gray jpeg")  # libjpeg decodes these to RGB, so their bytes can be stored
STORE_FILTER = Image.Resampling.BILINEAR  # for reducing images; Pillow's filters are antialiased
# The formats that are accepted. Some of Pillow's other plugins run programs (Ghostscript for EPS), and some exist only
# if a library is installed: which images a data set has would depend on the machine.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP")
Image.MAX_IMAGE_PIXELS = None  # replaced by MAX_PIXELS: Pillow's limit is lower, global, and unknown to our C decoder
ENCODING = 2  # version of `encode`: increase it when the same file gives other bytes


class Undecodable(ValueError):
    """The bytes are not a complete image in one of FORMATS; the message is the reason."""


class EncodedFile(NamedTuple):
    """An image file, encoded for the store."""

    sample: EncodedSample
    payload_sha256: bytes
    height: int  # of the original
    width: int
    pixels: npt.NDArray[np.uint8] | None  # [h, w, 3], RGB: the original, reduced as in native/reduce.py
    kind: str  # one of KINDS
    num_bytes: int  # of the file
    sha256: bytes  # of the file


def encode(
    content: bytes, label: int, options: StoreOptions, *, index: int = 0, with_pixels: bool = True
) -> EncodedFile:
    """Encode an image file with these store options; `index` is its sample index in the split.

    mode=jpeg: the file's own bytes if it is an undamaged RGB or grayscale JPEG of the wanted size; a JPEG of
    `options.quality` (4:2:0, libjpeg's default) if it must be resized; raw RGB for anything else, so that nothing is
    lost. mode=jpeg_indexed: the same with restart markers in the JPEGs (native/index.py). mode=raw: RGB.
    mode=proportion: JPEG or raw, by a draw.
    with_pixels: also return the reduced pixels, for the color statistics. Without them a JPEG is still read to its end,
    at an eighth of its size, to find damage. Raises Undecodable.
    """
    sha256 = hashlib.sha256(content).digest()
    header, pixels = _read_plain_jpeg(content, with_pixels=with_pixels)
    if header is not None:
        kind = {1: "gray jpeg", 3: "jpeg"}[header.num_components]
        size, opened = (header.height, header.width), None
    else:
        opened, kind = open_image(content)
        kind = "damaged jpeg" if kind in PLAIN_KINDS else kind  # if Pillow fails too, to_rgb raises below
        size = opened.height, opened.width
    height, width = stored_size(*size, short_side=options.short_side, max_side=options.max_side)
    if max(height, width, *size) >= 1 << 16:  # the format has 16 bits for a length
        raise Undecodable(f"{size[1]} x {size[0]} pixels are more than a .beton file can hold")
    as_jpeg = is_jpeg(index, options)
    if as_jpeg and header is not None and (height, width) == size:
        payload, mode = content, JPEG
    else:
        image = to_rgb(opened or open_image(content)[0])
        pixels = reduced_image(image) if pixels is None and with_pixels else pixels
        payload, mode = _payload(image, height, width, as_jpeg, options.quality)
    if mode == JPEG and options.mode == "jpeg_indexed":
        with contextlib.suppress(DecodeError):  # a JPEG that cannot be baseline keeps its bytes: slower, equal pixels
            payload = indexed_jpeg(payload)
    sample = EncodedSample(payload, mode, height, width, label)
    payload_sha256 = sha256 if payload is content else hashlib.sha256(payload).digest()
    if len(sample.payload) > MAX_PAYLOAD_BYTES:
        raise Undecodable(f"{width} x {height} pixels are more than a .beton file can hold")
    return EncodedFile(sample, payload_sha256, *size, pixels, kind, len(content), sha256)


def is_jpeg(index: int, options: StoreOptions) -> bool:
    """Whether this sample is stored as JPEG. In a mixed store a counter-based draw decides, the same in every run."""
    if options.mode != "proportion":
        return options.mode in ("jpeg", "jpeg_indexed")
    assert options.jpeg_fraction is not None
    draw = uniforms(seed=0, index=np.array([index]), epoch=0, stream=Stream.STORE, count=1)
    return bool(draw[0, 0] < options.jpeg_fraction)


def decode_rgb(content: bytes) -> Image.Image:
    """Decode an image file of any accepted format to RGB with Pillow."""
    return to_rgb(open_image(content)[0])


def open_image(content: bytes) -> tuple[Image.Image, str]:
    """Open an image without decoding its pixels; returns it and its kind. Raises Undecodable."""
    with _pillows_errors():
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    _check_num_pixels(image.height, image.width)
    if image.format in ("JPEG", "MPO"):  # MPO: a JPEG followed by further pictures, which decoders ignore
        return image, {"RGB": "jpeg", "L": "gray jpeg", "CMYK": "cmyk jpeg"}[image.mode]
    return image, "png" if image.format == "PNG" else "other"


def to_rgb(image: Image.Image) -> Image.Image:
    """Decode the first frame as RGB. Raises Undecodable for anything but a complete image.

    Grayscale is repeated in all channels; CMYK, palettes and transparency go through Pillow's convert, as in
    torchvision's loader; grayscale of more than 8 bits is scaled. EXIF orientation is ignored: torchvision, and so
    every published ImageNet result, ignores it too.
    """
    with _pillows_errors():
        image.load()
        if image.mode.startswith("I") or image.mode == "F":
            image = Image.fromarray(_eight_bits(image))
        return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Grayscale of more than 8 bits as uint8 [height, width]: integers in [0, 65535] keep their upper 8 bits, floats
    must be in [0, 1].

    Raises Undecodable for values in any other range, in which white is not defined.
    """
    # Not Pillow's convert: it clips all values at 255, which makes most such images white.
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    num_bits, is_signed = tags.get(BITSPERSAMPLE, (16,))[0], tags.get(SAMPLEFORMAT, (1,))[0] == 2
    if tags.get(PHOTOMETRIC_INTERPRETATION) == 0 or (num_bits == 16 and is_signed):
        raise Undecodable("gray of more than 8 bits that is signed, or in which 0 is white; save it with 8 bits")
    values = np.asarray(image)
    if image.mode == "F":
        if not (values.min() >= 0 and values.max() <= 1):  # written so that NaN fails too
            raise Undecodable("its pixels are floats outside of 0 to 1; save it with 8 bits")
        pixels = np.rint(255 * values)
    else:
        if values.min() < 0 or values.max() >= 1 << 16:
            raise Undecodable("its pixels are integers outside of 0 to 65,535; save it with 8 bits")
        pixels = values >> (num_bits - 8 if num_bits < 16 else 8)  # a TIFF may have 10 or 12 bits
    if values.any() and not pixels.any():
        raise Undecodable("its gray values are so small that the image would be black; save it with 8 bits")
    return pixels.astype(np.uint8)


def _check_num_pixels(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise Undecodable(f"{width} x {height} pixels are more than {MAX_PIXELS:,}")


def _read_plain_jpeg(content: bytes, *, with_pixels: bool) -> tuple[JpegHeader | None, npt.NDArray[np.uint8] | None]:
    """Header and reduced pixels of an undamaged RGB or grayscale JPEG; (None, None) for anything else."""
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
    """(payload, mode) of an RGB image at its stored size."""
    # An image that keeps its size was not a plain JPEG; compressing it now would lose quality, so it stays raw.
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
        # Without memory addresses: the manifest keeps the reason, and must be the same in every run.
        reason = re.sub(r" (object )?at 0x[0-9a-f]+", "", str(error))
        raise Undecodable(reason or type(error).__name__) from error
