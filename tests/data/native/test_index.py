"""JPEGs with restart markers: the same pixels at every box, decoded from the intervals of the box alone."""

import io
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tencrop.data.native.decoder import DecodeError, decode_batch
from tencrop.data.native.index import INTERVAL, indexed_jpeg
from tencrop.data.store.beton import JPEG

KINDS: dict[str, tuple[str, dict]] = {
    "4:2:0": ("RGB", {}),
    "4:2:2": ("RGB", {"subsampling": "4:2:2"}),
    "4:4:4": ("RGB", {"subsampling": "4:4:4"}),
    "progressive": ("RGB", {"progressive": True}),
    "gray": ("L", {}),
}


def jpeg(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def decode(content: bytes, image_size, box) -> np.ndarray:
    """The box, uint8 [h, w, 3], at its own size."""
    pixels = np.zeros((1, *box[2:], 3), np.uint8)
    decode_batch(
        pixels, np.frombuffer(content, np.uint8), pointers=np.zeros(1, np.uint64),
        payload_bytes=np.array([len(content)], np.uint64), modes=np.array([JPEG], np.uint8),
        stored_sizes=np.array([image_size], np.int32), boxes=np.array([box], np.int32),
        sizes=np.array([box[2:]], np.int32), flips=np.zeros(1, bool), filter="bilinear", num_threads=1,
    )  # fmt: skip
    return pixels[0]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_box_has_the_pixels_of_the_original(photographs, kind, data):
    mode, options = KINDS[kind]
    height, width = data.draw(st.integers(1, 150), "height"), data.draw(st.integers(1, 150), "width")
    image = photographs["china"].crop((200, 150, 200 + width, 150 + height)).convert(mode)
    box_height, box_width = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    top, left = data.draw(st.integers(0, height - box_height)), data.draw(st.integers(0, width - box_width))
    content = jpeg(image, **options)
    whole = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    pixels = decode(indexed_jpeg(content), (height, width), (top, left, box_height, box_width))
    assert np.array_equal(pixels, whole[top : top + box_height, left : left + box_width])


def test_other_programs_see_the_same_image_and_its_metadata(photographs):
    exif = Image.Exif()
    exif[0x010E] = "a pagoda"
    content = jpeg(photographs["china"], exif=exif, icc_profile=b"a profile", comment=b"a comment")
    before, after = (Image.open(io.BytesIO(data)) for data in (content, indexed_jpeg(content)))
    assert np.array_equal(np.asarray(before), np.asarray(after))
    assert after.getexif()[0x010E] == "a pagoda"
    assert (after.info["icc_profile"], after.info["comment"]) == (b"a profile", b"a comment")
    assert indexed_jpeg(content).count(b"JFIF\0") == content.count(b"JFIF\0") == 1


@pytest.mark.parametrize(("width", "interval"), [(640, 4), (640 - 16, 3), (31 * 16, 1), (1, 1)])
def test_every_row_of_blocks_begins_an_interval(photographs, width, interval):
    """The MCUs of 4:2:0 have 16 x 16 pixels."""
    content = indexed_jpeg(jpeg(photographs["china"].resize((width, 64))))
    [found] = re.findall(rb"\xff\xdd\x00\x04(..)", content, re.DOTALL)
    assert int.from_bytes(found, "big") == interval <= INTERVAL
    assert len(re.findall(rb"\xff[\xd0-\xd7]", content)) == 4 * -(-width // 16) // interval - 1


def test_only_the_intervals_of_the_box_are_read(photographs):
    """Damage in the upper left corner stops the decoding of a box there, but not of one elsewhere."""
    content = bytearray(indexed_jpeg(jpeg(photographs["china"])))
    width, height = photographs["china"].size
    first, second = [match.end() for match in re.finditer(rb"\xff[\xd0-\xd7]", content)][:2]
    whole = decode(bytes(content), (height, width), (0, 0, height, width))
    num_bytes = (second - 2 - first) // 2 * 2
    content[first : first + num_bytes] = b"\xff\0" * (num_bytes // 2)  # ones: no Huffman code
    with pytest.raises(DecodeError):
        decode(bytes(content), (height, width), (0, 64, 50, 60))
    for box in ((200, 64, 50, 60), (0, 300, 50, 60)):
        top, left, box_height, box_width = box
        pixels = decode(bytes(content), (height, width), box)
        assert np.array_equal(pixels, whole[top : top + box_height, left : left + box_width])


def test_a_missing_marker_is_damage(photographs):
    content = bytearray(indexed_jpeg(jpeg(photographs["china"])))
    width, height = photographs["china"].size
    marker = next(re.finditer(rb"\xff[\xd0-\xd7]", content)).start()
    content[marker : marker + 2] = b"\0\0"
    with pytest.raises(DecodeError):
        decode(bytes(content), (height, width), (height - 50, 0, 50, 60))


def test_a_damaged_file_is_refused(photographs):
    with pytest.raises(DecodeError):
        indexed_jpeg(jpeg(photographs["china"])[:5000])
    with pytest.raises(DecodeError):
        indexed_jpeg(b"GIF89a")


def test_a_progressive_file_without_its_last_scans_is_refused(photographs):
    """Decoders smooth its blocks, as they would not in a baseline file of the same coefficients."""
    content = jpeg(photographs["china"], progressive=True)
    scans = [match.start() for match in re.finditer(rb"\xff\xda", content)]
    with pytest.raises(DecodeError, match="last scans"):
        indexed_jpeg(content[: scans[3]] + b"\xff\xd9")
    indexed_jpeg(content)


def segment(marker: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body


def test_a_coefficient_that_baseline_cannot_code_is_refused_however_long_the_metadata():
    """An error after the buffer has grown: it was freed twice. One gray block with an AC coefficient of 2047."""
    metadata = segment(0xE1, bytes(60_000)) * 3
    tables = segment(0xDB, b"\0" + b"\1" * 64)
    frame = segment(0xC0, bytes([8, 0, 8, 0, 8, 1, 1, 0x11, 0]))
    dc = segment(0xC4, b"\x00\x01" + bytes(15), b"\x00")  # one code, 0: no difference
    ac = segment(0xC4, b"\x10\x01\x01" + bytes(14), b"\x0b\x00")  # 0: eleven bits follow; 10: end of the block
    scan = segment(0xDA, bytes([1, 1, 0, 0, 63, 0])) + b"\x3f\xfd"  # 0, 0 and 2047, 10, a bit of padding
    for extra in (b"", metadata):
        with pytest.raises(DecodeError, match="coefficient"):
            indexed_jpeg(b"\xff\xd8" + extra + tables + frame + dc + ac + scan + b"\xff\xd9")
