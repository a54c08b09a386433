"""Files written by stock ffcv are checked, described and used in place."""

import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tencrop.cli.choices import CONF
from tencrop.config import Protocol, UserError
from tencrop.data.augmentation.plan import evaluation_plan
from tencrop.data.loading.ffcv_loader import FfcvLoader, torch_threads_kept
from tencrop.data.loading.loader import Loader
from tencrop.data.loading.reference import TorchLoader
from tencrop.data.preparation.prepare import prepare
from tencrop.data.preparation.verify import verify
from tencrop.data.sampling.sampler import evaluation_batches
from tencrop.data.store.beton import INT_FIELD, JPEG, METADATA_START, RAW, SAMPLE, Beton, BetonWriter, EncodedSample
from tencrop.data.store.encode import decode_rgb
from tencrop.data.store.manifest import open_split

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ffcv") is None, reason="ffcv is not installed")
MODES = {
    "jpg": {"write_mode": "jpg", "jpeg_quality": 50},
    "raw": {"write_mode": "raw", "max_resolution": 60},
    "smart": {"write_mode": "smart", "smart_threshold": 60_000},
    "proportion": {"write_mode": "proportion", "compress_probability": 0.5, "jpeg_quality": 90},
}
LABELS = {"train": [2, 0, 1] * 8, "val": [1, 2, 0, 0]}


def fields(batch) -> dict:
    """All arrays of a batch by name, the parameters of its transforms included."""
    return {name: value for name, value in (batch._asdict() | batch.params).items() if name != "params"}


@pytest.fixture(scope="module")
def images(photo_folder: Path) -> list[np.ndarray]:
    """24 photographs of many sizes, [height, width, 3]."""
    return [np.asarray(decode_rgb(path.read_bytes())) for path in sorted(photo_folder.glob("train/*/*"))]


@pytest.fixture(scope="module")
def written(images, tmp_path_factory) -> dict[str, Path]:
    """Folders with train_ffcv.beton and val.beton by mode of ffcv's; the smart ones have the label before the image."""
    with torch_threads_kept():
        from ffcv.fields import IntField, RGBImageField
        from ffcv.writer import DatasetWriter
    folders = {mode: tmp_path_factory.mktemp(mode) for mode in MODES}
    for mode, folder in folders.items():
        for split, name in (("train", "train_ffcv.beton"), ("val", "val.beton")):
            fields = {"image": RGBImageField(**MODES[mode]), "label": IntField()}
            samples = list(zip(images, LABELS[split], strict=False))
            if mode == "smart":
                fields, samples = {"y": fields["label"], "x": fields["image"]}, [(y, x) for x, y in samples]
            np.random.seed(0)  # noqa: NPY002  which ffcv's worker, a fork, draws from
            writer = DatasetWriter(str(folder / name), fields, num_workers=1)
            writer.from_indexed_dataset(samples)
    return folders


@pytest.fixture
def adopt(data_config, tmp_path):
    """adopt(folder, root=..., ...) -> the prepared folder; keywords are `data_config`'s."""

    def build(folder: Path, root: Path | None = None, **options) -> Path:
        data = data_config(folder, root or tmp_path / "prepared", name="beton", **options)
        return prepare(data, workers=2, progress=False)

    return build


def loader(kind, split, **options):
    protocol = Protocol("center", side=40, size=32, region="whole", filter="bilinear", average="softmax")
    parts = evaluation_batches(np.arange(split.num_samples), micro_batch=5, rank=0, num_ranks=1)
    plan = partial(evaluation_plan, stored_sizes=split.stored_sizes, protocol=protocol)
    return kind(split, lambda _: parts, lambda index, _: plan(index), filter="bilinear", **options)


@pytest.mark.parametrize("mode", MODES)
def test_files_of_every_mode_are_adopted(written, adopt, images, mode):
    root = adopt(written[mode])
    train, val = open_split(root, "train"), open_split(root, "val")
    manifest = train.manifest
    assert (root / "train.beton").readlink() == written[mode] / "train_ffcv.beton"
    assert sum(path.stat().st_size for path in root.iterdir() if not path.is_symlink() and path.suffix != ".npy") < 1e5
    assert train.labels.tolist() == LABELS["train"] and val.labels.tolist() == LABELS["val"]
    assert manifest["classes"] == ["0", "1", "2"] and manifest["splits"]["val"]["per_class"] == [2, 1, 1]
    assert train.names(1) == "0/00000001" and "their sizes" in manifest["not_known"]
    is_jpeg = train.beton.modes == JPEG
    expected = {"jpg": [True], "raw": [False], "smart": [True, False], "proportion": [True, False]}[mode]
    assert set(is_jpeg.tolist()) == set(expected)
    assert manifest["splits"]["train"]["kinds"] == {
        kind: count for kind, count in (("jpeg", is_jpeg.sum()), ("raw", (~is_jpeg).sum())) if count
    }
    for index in np.flatnonzero(~is_jpeg).tolist():
        stored = train.beton.payload(index).reshape(*train.stored_sizes[index], 3)
        if stored.shape == images[index].shape:
            assert np.array_equal(stored, images[index])
            assert np.array_equal(np.asarray(decode_rgb(train.read_original(index))), images[index])
    assert (train.original_sizes == train.stored_sizes).all() and (train.stored_sizes.max() <= 60) == (mode == "raw")
    mean = np.mean([image.mean() for image in images])  # by image and not by pixel, and of whole images
    assert abs(np.mean(manifest["statistics"]["mean"]) - mean) < 15 and manifest["statistics"]["num_images"] == 24
    with loader(Loader, train, num_threads=1) as ours, loader(TorchLoader, train, num_threads=0) as reference:
        for batch, other in zip(ours.batches(0), reference.batches(0), strict=True):
            assert all(np.array_equal(value, fields(other)[name]) for name, value in fields(batch).items())
    verify(root, "beton", progress=False)
    assert adopt(written[mode]) == root  # already prepared


def test_ffcv_reads_adopted_files_in_any_order_of_fields(written, adopt):
    split = open_split(adopt(written["smart"]), "train")
    assert (split.beton.image_field, split.beton.label_field) == ("x", "y")
    with loader(Loader, split, num_threads=1) as ours, loader(FfcvLoader, split, num_threads=1) as theirs:
        for batch, other in zip(ours.batches(0), theirs.batches(0), strict=True):
            same = {name for name, value in fields(batch).items() if np.array_equal(value, fields(other)[name])}
            assert same >= fields(batch).keys() - {"images"}
            assert np.abs(batch.images.numpy().astype(int) - other.images.numpy()).mean() < 5


def test_a_step_of_training_and_an_evaluation(written, tmp_path):
    words = {
        "prepare": ["data.source=" + str(written["proportion"])],
        "train": ["model=lenet5_dense", "image_size=32", "short_side=40", "training.max_steps=1",
                  "training.global_batch=8", "hardware=cpu", "hardware.workers=1", "tracker=none"],
    }  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3] / "src")}
    for verb, own in words.items():
        command = [sys.executable, str(CONF.parent / f"{verb}.py"), "data=beton", "data.root=prepared", *own]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert verb != "prepare" or "such files do not record" in " ".join(done.stdout.split())
    (result,) = tmp_path.glob("runs/*-beton/*/predictions/center.result.json")
    assert json.loads(result.read_text())["num_images"] == 4


def small_store(path: Path, labels: list[int], *, height: int = 4) -> Path:
    path.parent.mkdir(exist_ok=True)
    with BetonWriter(path, len(labels)) as writer:
        for label in labels:
            writer.add(EncodedSample(bytes(3 * 4 * 5), RAW, height, 60 // 3 // height, label))
        writer.finish()
    return path


def test_damaged_images_are_named(written, adopt, tmp_path):
    source = shutil.copytree(written["jpg"], tmp_path / "source")
    beton = Beton(source / "train_ffcv.beton")
    start, size = int(beton.pointers[7]), int(beton.payload_bytes[7])
    whole = beton.path.read_bytes()
    content = bytearray(whole)
    content[start + size // 2 : start + size] = bytes(size - size // 2)
    beton.path.write_bytes(content)
    with pytest.raises(UserError, match=r"train_ffcv\.beton: image 7 \(label 0\) .*; write it again with ffcv's"):
        adopt(source)
    content = bytearray(whole)
    content[METADATA_START + 7 * SAMPLE.itemsize + 1] += 1  # its width
    beton.path.write_bytes(content)
    with pytest.raises(UserError, match=r"image 7 \(label 0\) has \d+ x \d+ pixels, but its table entry \d+ x \d+"):
        adopt(source)
    beton.path.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"truncated or damaged; write it again with ffcv's"):
        adopt(source)
    assert not list((tmp_path / "prepared").iterdir()) and beton.path.is_file()  # nothing half made, nothing lost
    beton.path.write_bytes(whole)
    root = adopt(source)
    shutil.move(source, tmp_path / "moved")
    with pytest.raises(UserError, match=r"train\.beton: links to .*train_ffcv\.beton, which is gone"):
        open_split(root, "train")


@pytest.mark.parametrize(
    ("train", "val", "words"),
    [
        ([0, 2], [0], r"train\.beton: no image has label 1"),
        ([0, 1], [2], r"val\.beton: has label 2, but .*train\.beton has 0 to 1"),
        ([0, -1], [0], r"labels are -1 to 0, but must be classes 0 to K - 1"),
        ([0], [], r"val\.beton: holds no image"),
    ],
)
def test_labels_that_are_not_classes_are_refused(adopt, tmp_path, train, val, words):
    for split, labels in (("train", train), ("val", val)):
        small_store(tmp_path / "source" / f"{split}.beton", labels)
    with pytest.raises(UserError, match=words):
        adopt(tmp_path / "source")


def test_files_are_found_by_their_names(adopt, tmp_path):
    source = tmp_path / "source"
    small_store(source / "train_500.ffcv", [0, 1])
    with pytest.raises(UserError, match=r"holds no file val\*\.beton or val\*\.ffcv; name the file of the val split"):
        adopt(source)
    small_store(source / "valid.beton", [0])
    small_store(source / "val_2.beton", [1])
    with pytest.raises(UserError, match=r"holds val_2\.beton, valid\.beton; name the file of the val split with"):
        adopt(source)
    root = adopt(source, splits=("train", "valid.beton"))
    assert open_split(root, "val").labels.tolist() == [0]


def test_options_that_need_a_store_or_endanger_the_files_are_refused(adopt, data_config, tmp_path):
    source = tmp_path / "source"
    paths = [small_store(source / f"{split}.beton", [0, 1]) for split in ("train", "val")]
    with pytest.raises(UserError, match=r"data\.store\.short_side=48: data=beton uses the images as they are stored"):
        adopt(source, short_side=48)
    with pytest.raises(UserError, match=r"data\.undecodable=skip: data=beton cannot skip images"):
        adopt(source, undecodable="skip")
    with pytest.raises(UserError, match=r"holds train\.beton itself; choose a separate folder"):
        adopt(source, source)
    other = small_store(tmp_path / "other" / "val.beton", [0]).parent
    with pytest.raises(UserError, match=r"holds val\.beton itself"):
        adopt(source, other)
    data = data_config(source, tmp_path / "md5", name="beton")
    with pytest.raises(UserError, match=r"data\.check_md5=true: there is no MD5 of train\.beton"):
        prepare(dataclasses.replace(data, check_md5=True), progress=False)
    assert all(path.is_file() for path in (*paths, other / "val.beton"))


def test_two_image_fields_are_refused(adopt, tmp_path):
    for split in ("train", "val"):
        path = small_store(tmp_path / "source" / f"{split}.beton", [0])
        content = bytearray(path.read_bytes())
        content[24] = INT_FIELD  # the image's type
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"not an image and an integer label; write it again with ffcv's"):
        adopt(tmp_path / "source")
