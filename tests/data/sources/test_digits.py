import hashlib
import io

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from tencrop.data.sources.digits import DigitsSource, digit_image, permutation

GOLDEN_START = [1486, 168, 347, 1140, 566]
GOLDEN_DIGEST = "2f4772082b8cf0b0ab8e20c35fcb405db33ec58ec49ea5416623a2d4d385763e"


def test_split_is_fixed():
    """1,797 digits, 1,297 to train and 500 to test, always the same ones."""
    order = permutation()
    assert sorted(order) == list(range(1797))
    assert order[:5] == GOLDEN_START
    assert hashlib.sha256(",".join(map(str, order)).encode()).hexdigest() == GOLDEN_DIGEST
    source = DigitsSource()
    numbers = {split: [int(file.name[2:6]) for file in files] for split, files in source.files.items()}
    assert sorted(numbers["train"]) == sorted(order[:1297])
    assert sorted(numbers["val"]) == sorted(order[1297:])


def test_names_are_class_and_number_in_bytewise_order():
    target = load_digits().target
    for files in DigitsSource().files.values():
        names = [file.name for file in files]
        assert names == sorted(names)
        for file in files:
            assert file.name[:2] == f"{file.label}/"
            assert target[int(file.name[2:6])] == file.label


def test_values_are_rounded():
    """v of 0..16 becomes round(255 v / 16); the half at v = 8 goes to the even 128."""
    for value in range(17):
        image = np.asarray(digit_image(np.full((8, 8), float(value))))
        assert (image[2:30, 2:30] == round(255 * value / 16)).all()
        assert image[0].max() == image[:, 31].max() == 0
    assert digit_image(np.full((8, 8), 8.0)).getpixel((16, 16)) == (128, 128, 128)


def test_bilinear_to_28_padded_to_32():
    """Against the formula: pixel centers at (i + 0.5) * 8 / 28 - 0.5, clamped at the border."""
    values = load_digits().images[0]
    pixels = np.rint(255 * values / 16)
    position = np.clip((np.arange(28) + 0.5) * 8 / 28 - 0.5, 0, 7)
    low = np.minimum(position.astype(int), 6)
    weights = np.zeros((28, 8))
    weights[range(28), low] = 1 - (position - low)
    weights[range(28), low + 1] = position - low
    expected = np.pad(weights @ pixels @ weights.T, 2)
    image = np.asarray(digit_image(values))
    assert image.shape == (32, 32, 3)
    assert (image == image[..., :1]).all()
    assert np.abs(image[..., 0] - expected).max() <= 1.01  # Pillow rounds after each of the two passes


def test_read_gives_a_png_of_the_digit():
    source = DigitsSource()
    file = source.files["val"][17]
    image = Image.open(io.BytesIO(source.read("val", file)))
    assert image.format == "PNG"
    number = int(file.name[2:6])
    assert np.array_equal(np.asarray(image), np.asarray(digit_image(load_digits().images[number])))
