import io

import numpy as np
import pytest
from PIL import Image

from tencrop.data.native.decoder import DecodeError
from tencrop.data.native.reduce import color_sums, denominator, jpeg_header, reduced_image, reduced_jpeg


def jpeg(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1, 1), 1),
        ((255, 400), 1),
        ((256, 256), 2),
        ((511, 999), 2),
        ((512, 700), 4),
        ((1024, 2000), 8),
        ((9000, 9000), 8),
    ],
)
def test_the_shorter_side_keeps_128_pixels(size, expected):
    assert denominator(*size) == expected


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": "4:4:4"}, {"quality": 30}])
@pytest.mark.parametrize("size", [(640, 427), (1100, 1030), (130, 200), (257, 301)])
def test_pixels_are_those_of_libjpegs_scaling(photographs, mode, options, size):
    """Pillow's draft mode requests the same scaling."""
    content = jpeg(photographs["china"].resize(size).convert(mode), **options)
    header = jpeg_header(content)
    assert tuple(header) == (size[1], size[0], {"RGB": 3, "L": 1}[mode])
    divisor = denominator(size[1], size[0])
    reduced = reduced_jpeg(content, header, divisor)
    assert reduced.shape == (-(-size[1] // divisor), -(-size[0] // divisor), 3)
    expected = Image.open(io.BytesIO(content))
    expected.draft(None, (size[0] // divisor, size[1] // divisor))
    assert np.abs(reduced.astype(int) - np.asarray(expected.convert("RGB"))).max() <= 1


def test_sums(photographs):
    pixels = np.asarray(photographs["flower"])
    channels = pixels.reshape(-1, 3).astype(object)
    products = [channels[:, i] @ channels[:, j] for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))]
    assert color_sums(pixels).tolist() == [*channels.sum(axis=0), *products]
    part = pixels[3:77, 5:60]
    assert color_sums(part).tolist() == color_sums(part.copy()).tolist()
    white = np.full((2, 65_535, 3), 255, np.uint8)
    assert color_sums(white).tolist() == [255 * 2 * 65_535] * 3 + [255**2 * 2 * 65_535] * 6


def test_other_formats_are_reduced_by_block_means(photographs):
    image = photographs["china"]
    assert np.array_equal(reduced_image(image), np.asarray(image.reduce(2)))
    assert reduced_image(image.resize((100, 90))).shape == (90, 100, 3)


@pytest.mark.parametrize("mode", ["baseline", "progressive"])
def test_damage_is_noticed_as_in_a_full_decode(photographs, mode, decode_jpeg):
    """Truncated or with a flipped bit: a JPEG that the loader's decoder refuses is refused at 1/2 and 1/8 too."""
    content = jpeg(photographs["flower"], progressive=mode == "progressive")
    header = jpeg_header(content)
    generator = np.random.default_rng(0)
    spoiled = [
        content[:length] + end for length in range(700, len(content), len(content) // 20) for end in (b"", b"\xff\xd9")
    ]
    for _ in range(100):
        flipped = bytearray(content)
        flipped[generator.integers(700, len(content))] ^= 1 << generator.integers(8)
        spoiled.append(bytes(flipped))
    num_refused = 0
    for damaged in spoiled:
        refused = set()
        for divisor in (None, 1, 2, 8):  # None: the loader's decoder
            try:
                decode_jpeg(damaged) if divisor is None else reduced_jpeg(damaged, header, divisor)
                refused.add(False)
            except DecodeError as error:
                assert str(error)
                refused.add(True)
        assert len(refused) == 1
        num_refused += refused.pop()
    assert num_refused >= 40


def test_files_that_are_not_jpegs():
    for content in (b"", b"\xff\xd8\xff", b"text" * 100):
        with pytest.raises(DecodeError):
            jpeg_header(content)
