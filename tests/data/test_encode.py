import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from tencrop.config import StoreOptions, UserError
from tencrop.data.beton import JPEG, RAW
from tencrop.data.encode import Undecodable, decode_rgb, encode

ORIGINAL = StoreOptions(mode="jpeg", short_side=None, max_side=None, quality=95)


@pytest.fixture(scope="module")
def image(photographs) -> Image.Image:
    return photographs["china"].crop((100, 50, 250, 150))  # 150 x 100


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_plain_jpegs_keep_their_bytes(image, mode):
    content = saved(image.convert(mode), "JPEG")
    encoded = encode(content, 3, ORIGINAL)
    assert encoded.sample == (content, JPEG, 100, 150, 3)
    assert encoded.sha256 == encoded.payload_sha256 == hashlib.sha256(content).digest()
    assert encoded.kind == {"RGB": "jpeg", "L": "gray jpeg"}[mode]
    assert encoded.pixels.shape == (100, 150, 3)


@pytest.mark.parametrize(
    ("mode", "file_format", "kind"),
    [
        ("CMYK", "JPEG", "cmyk jpeg"),
        ("RGB", "PNG", "png"),
        ("RGBA", "PNG", "png"),
        ("P", "PNG", "png"),
        ("L", "BMP", "other"),
        ("RGB", "WEBP", "other"),
    ],
)
def test_anything_else_is_stored_as_pixels(image, mode, file_format, kind):
    content = saved(image.convert(mode), file_format)
    encoded = encode(content, 3, ORIGINAL)
    assert encoded.sample[1:] == (RAW, 100, 150, 3)
    assert encoded.kind == kind
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert encoded.sample.payload == expected.tobytes()
    assert encoded.payload_sha256 == hashlib.sha256(expected.tobytes()).digest()
    assert encoded.sha256 == hashlib.sha256(content).digest()
    assert encoded.num_bytes == len(content)


def test_raw_mode_stores_pixels(image):
    content = saved(image, "JPEG")
    encoded = encode(content, 0, StoreOptions(mode="raw", short_side=None, max_side=None, quality=95))
    assert encoded.sample.mode == RAW
    assert encoded.sample.payload == np.asarray(Image.open(io.BytesIO(content))).tobytes()


def test_reduced_store(image):
    """Bilinear and antialiased as Pillow's; JPEG of the quality asked for; never enlarged."""
    content = saved(image, "PNG")
    small = image.resize((75, 50), Image.Resampling.BILINEAR)
    raw = encode(content, 0, StoreOptions(mode="raw", short_side=50, max_side=None, quality=95))
    assert raw.sample == (np.asarray(small).tobytes(), RAW, 50, 75, 0)
    assert (raw.height, raw.width) == (100, 150)
    jpeg = encode(content, 0, StoreOptions(mode="jpeg", short_side=50, max_side=None, quality=80))
    assert jpeg.sample == (saved(small, "JPEG", quality=80), JPEG, 50, 75, 0)
    assert encode(content, 0, StoreOptions(mode="jpeg", short_side=None, max_side=60, quality=80)).sample.width == 60
    same = encode(saved(image, "JPEG"), 0, StoreOptions(mode="jpeg", short_side=100, max_side=150, quality=80))
    assert same.sample.payload == saved(image, "JPEG")


def test_sixteen_bits_keep_the_upper_eight():
    values = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    decoded = decode_rgb(saved(Image.fromarray(values), "PNG"))
    assert np.array_equal(np.asarray(decoded)[..., 0], values >> 8)


def test_orientation_is_ignored(image):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    encoded = encode(saved(image, "JPEG", exif=exif.tobytes()), 0, ORIGINAL)
    assert (encoded.sample.height, encoded.sample.width) == (100, 150)


def test_damage_that_pillow_passes_over_is_stored_as_pixels(image):
    """The end of the image's data is cut out and the end-of-image marker put back: the loader's decoder refuses it."""
    content = saved(image, "JPEG")
    content = content[: len(content) * 3 // 4] + b"\xff\xd9"
    encoded = encode(content, 0, ORIGINAL)
    assert encoded.kind == "damaged jpeg"
    assert encoded.sample.mode == RAW
    assert encoded.sample.payload == Image.open(io.BytesIO(content)).tobytes()


@pytest.mark.parametrize("damage", ["cut", "half", "empty", "text", "cut png", "header only"])
def test_undecodable(image, damage):
    jpeg, png = saved(image, "JPEG"), saved(image, "PNG")
    content = {
        "cut": jpeg[:-20],
        "half": jpeg[: len(jpeg) // 2],
        "empty": b"",
        "text": b"<html>404 Not Found</html>",
        "cut png": png[: len(png) // 2],
        "header only": jpeg[:20],
    }[damage]
    with pytest.raises(Undecodable) as caught:
        encode(content, 0, ORIGINAL)
    assert str(caught.value)


def test_image_that_no_beton_can_hold():
    content = saved(Image.new("RGB", (65_536, 1)), "PNG")
    with pytest.raises(Undecodable, match="65536 x 1 pixels are more than"):
        encode(content, 0, ORIGINAL)


def test_a_mixed_store_needs_its_share(composed):
    assert composed("data.store.mode=proportion", "data.store.jpeg_fraction=0.5").data.store.jpeg_fraction == 0.5
    with pytest.raises(UserError, match=r"data\.store\.jpeg_fraction: data\.store\.mode=proportion needs a value"):
        composed("data.store.mode=proportion")
    with pytest.raises(UserError, match=r"data\.store\.jpeg_fraction=0\.5: data\.store\.mode=jpeg does not use it"):
        composed("data.store.jpeg_fraction=0.5")
