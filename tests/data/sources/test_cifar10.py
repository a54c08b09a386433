import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tencrop.config import UserError
from tencrop.data.preparation.prepare import prepare
from tencrop.data.sources.cifar10 import BATCHES, Cifar10Source
from tencrop.data.store.manifest import open_split

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
NUM_IMAGES = 20  # of a batch; 10,000 in the original


@pytest.fixture(scope="module")
def batches() -> dict[str, tuple[np.ndarray, list[int]]]:
    generator = np.random.default_rng(0)
    names = [name for split in BATCHES.values() for name in split]
    return {
        name: (
            generator.integers(256, size=(NUM_IMAGES, 3072), dtype=np.uint8),
            [(number * 7 + position) % 10 for position in range(NUM_IMAGES)],
        )
        for number, name in enumerate(names)
    }


def write_archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path.parent


def python_version(batches, protocol: int = 2) -> dict[str, bytes]:
    """Keys are bytes, as Python 2 wrote them."""
    files = {
        f"cifar-10-batches-py/{name}": pickle.dumps({b"data": pixels, b"labels": labels}, protocol)
        for name, (pixels, labels) in batches.items()
    }
    meta = {b"label_names": [name.encode() for name in NAMES], b"num_vis": 3072}
    return {**files, "cifar-10-batches-py/batches.meta": pickle.dumps(meta, protocol)}


def binary_version(batches) -> dict[str, bytes]:
    files = {
        f"cifar-10-batches-bin/{name}.bin": np.hstack([np.array(labels, np.uint8)[:, None], pixels]).tobytes()
        for name, (pixels, labels) in batches.items()
    }
    return {**files, "cifar-10-batches-bin/batches.meta.txt": ("\n".join(NAMES) + "\n\n").encode()}


def images_of(source: Cifar10Source) -> dict:
    return {
        split: [(file, np.asarray(Image.open(io.BytesIO(source.read(split, file))))) for file in files]
        for split, files in source.files.items()
    }


@pytest.mark.parametrize("version", ["python", "binary", "extracted"])
def test_images_and_labels(batches, tmp_path, version):
    files = python_version(batches) if version == "python" else binary_version(batches)
    if version == "extracted":
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(content)
    else:
        write_archive(tmp_path / f"cifar-10-{version}.tar.gz", files)
    source = Cifar10Source(tmp_path, subset=True)
    assert source.classes == NAMES
    for split, images in images_of(source).items():
        pixels = np.concatenate([batches[name][0] for name in BATCHES[split]])
        labels = np.concatenate([batches[name][1] for name in BATCHES[split]])
        assert len(images) == len(labels) == NUM_IMAGES * len(BATCHES[split])
        assert [file.name for file, _ in images] == sorted(file.name for file, _ in images)
        for file, image in images:
            number = int(file.name[-9:-4])
            assert file.label == labels[number]
            assert file.name.startswith(NAMES[file.label] + "/")
            assert np.array_equal(image, pixels[number].reshape(3, 32, 32).transpose(1, 2, 0))


def test_prepared(batches, data_config, tmp_path):
    write_archive(tmp_path / "cifar-10-python.tar.gz", python_version(batches))
    data = data_config(tmp_path, tmp_path / "root", name="cifar10", mode="raw", num_classes=10)
    data.subset = True
    root = prepare(data, workers=2, progress=False)
    source = Cifar10Source(tmp_path, subset=True)
    for name, num_samples in (("train", 100), ("val", 20)):
        split = open_split(root, name)
        assert split.num_samples == num_samples
        assert (split.stored_sizes == 32).all()
        for index in (0, num_samples - 1):
            content = source.read(name, source.files[name][index])
            assert split.read_original(index) == content
            assert split.beton.payload(index).tobytes() == np.asarray(Image.open(io.BytesIO(content))).tobytes()
    data.check_md5 = True
    data.root = str(tmp_path / "other")
    with pytest.raises(UserError, match=r"its MD5 is .*, but c58f30108f718f92721af3b95e74349a was published"):
        prepare(data, progress=False)


def test_a_pickle_executes_nothing(batches, tmp_path):
    marker = tmp_path / "executed"

    class Malicious:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    files = python_version(batches)
    files["cifar-10-batches-py/data_batch_3"] = pickle.dumps({b"data": Malicious()}, 2)
    write_archive(tmp_path / "cifar-10-python.tar.gz", files)
    with pytest.raises(UserError, match=r"refused \(it names \w+\.open\)"):
        Cifar10Source(tmp_path)
    assert not marker.exists()


def test_missing_or_damaged_files_are_refused(batches, tmp_path):
    with pytest.raises(UserError, match=r"has neither cifar-10-python\.tar\.gz nor cifar-10-binary\.tar\.gz"):
        Cifar10Source(tmp_path)
    files = binary_version(batches)
    write_archive(tmp_path / "cifar-10-binary.tar.gz", files)
    with pytest.raises(
        UserError, match=r"data_batch_1: 20 images, but CIFAR-10 has 10,000 there; set data\.subset=true"
    ):
        Cifar10Source(tmp_path)
    del files["cifar-10-batches-bin/data_batch_5.bin"]
    write_archive(tmp_path / "cifar-10-binary.tar.gz", files)
    with pytest.raises(UserError, match=r"has no data_batch_5\.bin"):
        Cifar10Source(tmp_path)
    write_archive(tmp_path / "cifar-10-binary.tar.gz", {**files, "cifar-10-batches-bin/data_batch_5.bin": b"x" * 100})
    with pytest.raises(UserError, match=r"data_batch_5\.bin: 100 bytes are not whole images"):
        Cifar10Source(tmp_path)
