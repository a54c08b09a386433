"""What tests of several parts share: small real photographs, prepared folders, coordinate-coded images.

The photographs are crops of scikit-learn's two bundled JPEGs, so no test needs anything outside the repository.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
from PIL import Image

from tencrop.cli.choices import CONF
from tencrop.cli.compose import compose_training
from tencrop.config import Config, Data
from tencrop.config.build import build
from tencrop.data.preparation.prepare import prepare
from tencrop.signals import SIGNALS

CLASSES = ("china", "flower", "mirrored")
NUM_IMAGES = {"train": 8, "val": 4}  # of a class
SIZES = ((96, 128), (128, 96), (64, 64), (120, 161), (75, 50), (240, 320), (33, 97), (100, 100))  # height, width


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    """train.py, where a test runs it in this process, leaves signals handled or ignored: not for the next test."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    # A shell that starts the tests with & makes them ignore Ctrl-C, and a test that waits for it would never end.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def composed() -> Callable[..., Config]:
    """conf/ composed with overrides, as train.py does it: composed("model=resnet50", "seed=1")."""

    def compose_typed(*overrides: str) -> Config:
        return compose_training(overrides, CONF)

    return compose_typed


@pytest.fixture(scope="session")
def photographs() -> dict[str, Image.Image]:
    """Two photographs of 427 x 640 pixels, RGB: "china" and "flower"."""
    folder = Path(sklearn.datasets.__file__).parent / "images"
    return {name: Image.open(folder / f"{name}.jpg").convert("RGB") for name in ("china", "flower")}


@pytest.fixture(scope="session")
def photo_folder(photographs: dict[str, Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageFolder tree: train/ of 24 and val/ of 12 images in three classes, JPEGs of many sizes.

    In each class of either split 01.JPEG is grayscale; china/02.JPEG is CMYK and flower/02.JPEG is a PNG.
    """
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for split, num_images in NUM_IMAGES.items():
        for name in CLASSES:
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(num_images):
                image = _photograph_crop(photographs, name, SIZES[number], generator)
                (folder / f"{number:02d}.JPEG").write_bytes(_encoded(image, name, number))
    return root


def _photograph_crop(photographs, name: str, size: tuple[int, int], generator) -> Image.Image:
    photograph = photographs["flower" if name == "flower" else "china"]
    scale = generator.uniform(0.5, 1.0)
    height, width = size
    side = int(photograph.height * scale * min(1, width / height))
    box_width, box_height = side, int(side * height / width)
    box_height, box_width = min(box_height, photograph.height), min(box_width, photograph.width)
    left = int(generator.integers(photograph.width - box_width + 1))
    top = int(generator.integers(photograph.height - box_height + 1))
    image = photograph.resize((width, height), box=(left, top, left + box_width, top + box_height))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if name == "mirrored" else image


def _encoded(image: Image.Image, name: str, number: int) -> bytes:
    buffer = io.BytesIO()
    if number == 1:
        image.convert("L").save(buffer, "JPEG", quality=90)
    elif number == 2 and name == "china":
        image.convert("CMYK").save(buffer, "JPEG", quality=90)
    elif number == 2 and name == "flower":
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=90, progressive=number == 3, subsampling=("4:2:0", "4:4:4")[number % 2])
    return buffer.getvalue()


@pytest.fixture(scope="session")
def data_config() -> Callable[..., Data]:
    """data_config(source, root, ...) -> Data, with the defaults of conf/data/imagefolder.yaml."""

    def data(
        source: Path | str | None,
        root: Path | str,
        *,
        name: str = "imagefolder",
        mode: str = "jpeg",
        short_side: int | None = None,
        max_side: int | None = None,
        splits: tuple[str, str] = ("train", "val"),
        undecodable: str = "stop",
        loader: str = "beton",
        num_classes: int | None = None,
    ) -> Data:
        values = {
            "name": name,
            "root": str(root),
            "source": None if source is None else str(source),
            "splits": dict(zip(("train", "val"), splits, strict=True)),
            "num_classes": num_classes,
            "loader": loader,
            "store": {"mode": mode, "short_side": short_side, "max_side": max_side, "quality": 95},
            "undecodable": undecodable,
        }
        return build(Data, values)

    return data


@pytest.fixture(scope="session")
def prepared_photos(photo_folder: Path, data_config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`photo_folder`, prepared: original bytes where the JPEG allows. Not to be written to."""
    return prepare(data_config(photo_folder, tmp_path_factory.mktemp("prepared_photos")), workers=2, progress=False)


@pytest.fixture(scope="session")
def prepared_digits(data_config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits, prepared: 1,297 train and 500 val images, 32 x 32, raw. Not to be written to."""
    root = tmp_path_factory.mktemp("prepared_digits")
    return prepare(data_config(None, root, name="digits", mode="raw"), workers=2, progress=False)


@pytest.fixture
def words(prepared_digits: Path, tmp_path: Path) -> list[str]:
    """Arguments of train.py and submit.py for one step on the digits. The runs' folder has a space in its name."""
    return [
        "experiment=lenet5_digits", "hardware=cpu", "hardware.workers=1", "tracker=none", "training.max_steps=1",
        f"data.root={prepared_digits}", f"runs={tmp_path}/the runs",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def coordinate_image() -> Callable[[int, int, int], np.ndarray]:
    """coordinate_image(height, width, index): uint8 [height, width, 3] whose pixels say where they are.

    Red is the column, green the row, blue the sample index (each modulo 256).
    """

    def build(height: int, width: int, index: int) -> np.ndarray:
        rows, columns = np.mgrid[:height, :width]
        return np.stack([columns, rows, np.full_like(rows, index)], axis=2).astype(np.uint8)

    return build


@pytest.fixture(scope="session")
def coordinate_store(coordinate_image, data_config, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """coordinate_store([(height, width), ...]) -> a prepared folder of coordinate-coded images, stored raw.

    Both splits hold the same images, PNG files of one class, sample i of size i. Keywords are `data_config`'s.
    """

    def build(sizes: list[tuple[int, int]], **options) -> Path:
        source, root = tmp_path_factory.mktemp("coordinates"), tmp_path_factory.mktemp("prepared_coordinates")
        (source / "class").mkdir()
        for index, (height, width) in enumerate(sizes):
            image = Image.fromarray(coordinate_image(height, width, index))
            image.save(source / "class" / f"{index:04d}.png", compress_level=1)
        data = data_config(source, root, splits=(".", "."), **{"mode": "raw", **options})
        return prepare(data, workers=1, progress=False)

    return build


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of 1 MB (mode bits do not stop root, so a full disk has to be a real one)."""
    folder = tmp_path / "small_disk"
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder))
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Callable[[Path], Path]]:
    """read_only(folder) -> a second path of the folder, through which nothing can be written, by root either."""
    mounted: list[Path] = []

    def mount(folder: Path) -> Path:
        place = tmp_path / f"read_only{len(mounted)}"
        place.mkdir()
        _mount("--bind", str(folder), str(place))
        mounted.append(place)
        _mount("-o", "remount,bind,ro", str(place))
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)


def _mount(*arguments: str) -> None:
    is_able = os.geteuid() == 0 and shutil.which("mount") is not None
    if not is_able or subprocess.run(["mount", *arguments], capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
