import gzip
import io
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from PIL import Image

from tencrop.config import UserError
from tencrop.data.preparation.prepare import prepare
from tencrop.data.sources.mnist import FILES, MnistSource
from tencrop.data.store.manifest import open_split

NUM_IMAGES = {"train": 50, "val": 20}  # 60,000 and 10,000 in the original


def idx(array: np.ndarray) -> bytes:
    """The file of an array of bytes, as MNIST's page describes it."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    """By file name: images [N, 28, 28] and labels [N]."""
    generator = np.random.default_rng(0)
    made = {}
    for split, (images, labels) in FILES.items():
        made[images] = generator.integers(256, size=(NUM_IMAGES[split], 28, 28), dtype=np.uint8)
        made[labels] = generator.permutation(np.arange(NUM_IMAGES[split], dtype=np.uint8) % 10)
    return made


def write(
    folder: Path,
    arrays: dict[str, np.ndarray],
    *,
    compressed: bool = True,
    damaged: Mapping[str, bytes] = MappingProxyType({}),
) -> Path:
    """Write the four files; `damaged` replaces the bytes of one, named by its first two words."""
    for name, array in arrays.items():
        content = damaged.get("-".join(name.split("-")[:2]), idx(array))
        file = folder / (f"{name}.gz" if compressed else name)
        file.write_bytes(gzip.compress(content) if compressed else content)
    return folder


@pytest.mark.parametrize("compressed", [True, False])
def test_images_and_labels(arrays, tmp_path, compressed):
    source = MnistSource(write(tmp_path, arrays, compressed=compressed), subset=True)
    assert source.classes == list("0123456789")
    for split, (images, labels) in FILES.items():
        files = source.files[split]
        assert len(files) == NUM_IMAGES[split]
        assert [file.name for file in files] == sorted(file.name for file in files)
        for file in files:
            number = int(file.name[-9:-4])
            assert file.label == int(file.name[0]) == arrays[labels][number]
            content = source.read(split, file)
            image = np.asarray(Image.open(io.BytesIO(content)))
            assert len(content) == file.num_bytes and image.shape == (32, 32)
            assert np.array_equal(image[2:30, 2:30], arrays[images][number])
            assert image.sum() == arrays[images][number].sum(), "the margin is 0"


def test_prepared(arrays, data_config, tmp_path):
    data = data_config(write(tmp_path, arrays), tmp_path / "root", name="mnist", mode="raw", num_classes=10)
    data.subset = True
    root = prepare(data, workers=2, progress=False)
    source = MnistSource(tmp_path, subset=True)
    for name, num_samples in NUM_IMAGES.items():
        split = open_split(root, name)
        assert split.num_samples == num_samples and (split.stored_sizes == 32).all()
        for index in (0, num_samples - 1):
            content = source.read(name, source.files[name][index])
            assert split.read_original(index) == content
            rgb = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
            assert split.beton.payload(index).tobytes() == rgb.tobytes()
    data.check_md5 = True
    for folder in (root, tmp_path / "other"):  # prepared already, and not yet
        data.root = str(folder)
        with pytest.raises(UserError, match=r"its MD5 is .*, but f68b3c2dcbeaaa9fbdd348bbdeb94873 was published"):
            prepare(data, progress=False)
    data.root, data.source = str(root), None
    with pytest.raises(UserError, match=r"root is already prepared, and the archives to check are not known; give"):
        prepare(data, progress=False)


def test_missing_files_are_named(arrays, tmp_path):
    write(tmp_path, arrays)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match=r"has neither t10k-labels-idx1-ubyte\.gz nor t10k-labels-idx1-ubyte; put"):
        MnistSource(tmp_path, subset=True)


def test_another_number_of_images_needs_consent(arrays, tmp_path):
    with pytest.raises(UserError, match=r"50 images, but MNIST has 60,000 there; set data\.subset=true"):
        MnistSource(write(tmp_path, arrays))


DAMAGED = {
    "labels in place of images": (
        {"train-images": idx(np.zeros(50, np.uint8))},
        r"train-images-idx3-ubyte\.gz: begins with 00000801, not with 00000803, as an idx file of images does",
    ),
    "empty": ({"train-labels": b""}, "begins with nothing, not with 00000801, as an idx file of labels does"),
    "truncated": (
        {"t10k-images": idx(np.zeros((20, 28, 28), np.uint8))[:-1]},
        r"15,695 bytes, but its header of 20 x 28 x 28 values needs 15,696; download it again",
    ),
    "a header cut off": ({"t10k-labels": bytes([0, 0, 8, 1, 0])}, "5 bytes, but its header of 0 values needs 8"),
    "other images": ({"train-images": idx(np.zeros((50, 32, 32), np.uint8))}, "images of 32 x 32 pixels, but"),
    "too few labels": ({"train-labels": idx(np.zeros(49, np.uint8))}, "49 labels for the 50 images of train-images"),
    "letters": ({"t10k-labels": idx(np.arange(20, dtype=np.uint8))}, "a label is 19, but MNIST's are the digits"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_refused(arrays, tmp_path, case):
    damaged, message = DAMAGED[case]
    with pytest.raises(UserError, match=message):
        MnistSource(write(tmp_path, arrays, damaged=damaged), subset=True)


@pytest.mark.parametrize("content", [b"no gzip", gzip.compress(b"x" * 10_000)[:-9]], ids=["no gzip", "truncated"])
def test_a_damaged_gzip_file_is_refused(arrays, tmp_path, content):
    write(tmp_path, arrays)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"train-labels-idx1-ubyte\.gz: not a gzip file, or damaged \(.*\); download"):
        MnistSource(tmp_path, subset=True)
