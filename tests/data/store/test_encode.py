import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from tencrop.config import StoreOptions, UserError
from tencrop.data.sampling.geometry import MAX_PIXELS
from tencrop.data.store.beton import JPEG, RAW
from tencrop.data.store.encode import Undecodable, decode_rgb, encode, open_image
from typed import present

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
    assert present(encoded.pixels).shape == (100, 150, 3)


@pytest.mark.parametrize("short_side", [None, 64])
def test_an_indexed_store_has_the_pixels_of_a_jpeg_store(image, short_side):
    content = saved(image, "JPEG")
    plain, indexed = (
        encode(content, 3, StoreOptions(mode=mode, short_side=short_side, max_side=None, quality=95))
        for mode in ("jpeg", "jpeg_indexed")
    )
    assert b"\xff\xdd\x00\x04" in indexed.sample.payload and b"\xff\xdd\x00\x04" not in plain.sample.payload
    before, after = (np.asarray(decode_rgb(one.sample.payload)) for one in (plain, indexed))
    assert np.array_equal(before, after)
    assert indexed.sha256 == plain.sha256 == hashlib.sha256(content).digest()
    assert indexed.payload_sha256 == hashlib.sha256(indexed.sample.payload).digest()


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


RAMP = np.linspace(0, 65535, 32 * 32).reshape(32, 32)


def tiff_of_12_bits(values: np.ndarray) -> bytes:
    """Two values in three bytes; Pillow reads such files but cannot write them."""
    first, second = values.reshape(-1, 2).astype(int).T
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1).astype(np.uint8)
    content = saved(Image.fromarray(packed.reshape(values.shape[0], -1)), "TIFF")
    tags = {256: values.shape[1], 258: 12}
    entries = int.from_bytes(content[4:8], "little")
    for place in range(entries + 2, entries + 2 + 12 * int.from_bytes(content[entries : entries + 2], "little"), 12):
        if (tag := int.from_bytes(content[place : place + 2], "little")) in tags:
            size = 2 if content[place + 2] == 3 else 4
            content = content[: place + 8] + tags[tag].to_bytes(size, "little") + content[place + 8 + size :]
    return content


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (saved(Image.fromarray(RAMP.astype(np.uint16)), "TIFF"), RAMP.astype(int) >> 8),
        (saved(Image.fromarray(RAMP.astype(np.int32)), "TIFF"), RAMP.astype(int) >> 8),
        (b"P5 32 32 65535\n" + RAMP.astype(">u2").tobytes(), RAMP.astype(int) >> 8),
        (b"P5 32 32 1023\n" + (RAMP / 64.1).astype(">u2").tobytes(), (RAMP / 64.1).astype(int) * 65535 / 1023 // 256),
        (saved(Image.fromarray((RAMP / 65535).astype(np.float32)), "TIFF"), np.rint(RAMP / 257)),
        (tiff_of_12_bits(RAMP.astype(int) >> 4), RAMP.astype(int) >> 8),
    ],
    ids=["uint16 TIFF", "int32 TIFF", "16-bit PGM", "10-bit PGM", "float TIFF", "12-bit TIFF"],
)
def test_deep_gray_is_scaled_and_not_clipped(content, expected):
    decoded = np.asarray(decode_rgb(content))
    assert np.abs(decoded[..., 0] - expected).max() <= (1 if content[:2] == b"P5" else 0)  # Pillow scales PGM, rounded
    assert (decoded == decoded[..., :1]).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (255 * RAMP / 65535, "floats outside of 0 to 1"),
        (np.full((4, 4), np.nan), "floats outside of 0 to 1"),
        (RAMP.astype(np.int32) - 1, "integers outside of 0 to 65,535"),
        (RAMP.astype(np.int32) + 1, "integers outside of 0 to 65,535"),
        ((RAMP / 257).astype(np.uint16), "so small that the image would be black"),
        (RAMP / 65535 / 1000, "so small that the image would be black"),
    ],
)
def test_deep_gray_of_an_unknown_range_is_refused(values, message):
    values = values.astype(np.float32) if values.dtype == float else values
    with pytest.raises(Undecodable, match=message):
        decode_rgb(saved(Image.fromarray(values), "TIFF"))


def test_signed_16_bits_are_refused():
    content = saved(Image.fromarray(RAMP.astype(np.int32)), "TIFF", tiffinfo={339: 2})
    content = content.replace(b"\x02\x01\x03\x00\x01\x00\x00\x00\x20\x00", b"\x02\x01\x03\x00\x01\x00\x00\x00\x10\x00")
    with pytest.raises(Undecodable, match="gray of more than 8 bits that is signed"):
        decode_rgb(content)


@pytest.mark.parametrize("name", ["EPS", "TGA", "PCX", "ICO"])
def test_only_listed_formats_are_opened(image, name):
    """Pillow would start Ghostscript for the first; which of the others it has depends on its version."""
    content = saved(image.resize((32, 32)), name)
    with pytest.raises(
        Undecodable, match=r"^not an image of a format that is read: JPEG, PNG, GIF, BMP, PPM, TIFF, WEBP"
    ):
        open_image(content)


def with_size(jpeg: bytes, height: int, width: int) -> bytes:
    """The JPEG with another size in its header."""
    place = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:place] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + jpeg[place + 4 :]


def test_one_limit_of_pixels_for_every_reader(image):
    """For an unchanged store, a reduced one, and the reference loader; Pillow's own limit is 179 million."""
    content = saved(image, "JPEG")
    assert open_image(with_size(content, 12_500, 15_000))[0].size == (15_000, 12_500)
    assert open_image(with_size(content, 1 << 14, MAX_PIXELS >> 14))[0].height == 1 << 14
    large, sentence = (
        with_size(content, 1 << 14, (MAX_PIXELS >> 14) + 1),
        "16385 x 16384 pixels are more than 268,435,456",
    )
    for options in (ORIGINAL, StoreOptions(mode="jpeg", short_side=None, max_side=500, quality=95)):
        with pytest.raises(Undecodable, match=sentence):
            encode(large, 0, options)
    with pytest.raises(Undecodable, match=sentence):
        decode_rgb(large)


def test_orientation_is_ignored(image):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    encoded = encode(saved(image, "JPEG", exif=exif.tobytes()), 0, ORIGINAL)
    assert (encoded.sample.height, encoded.sample.width) == (100, 150)


def test_damage_that_pillow_ignores_is_stored_as_pixels(image):
    """The end of the image data is removed before the end marker: the loader's decoder refuses that."""
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
