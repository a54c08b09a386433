import hashlib
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tencrop.config import UserError
from tencrop.data.store.beton import JPEG, RAW
from tencrop.data.store.encode import KINDS
from tencrop.data.store.manifest import manifest_sha256, open_split, read_manifest, source_fingerprint, write_manifest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def copy(prepared_photos, tmp_path) -> Path:
    """A prepared folder that a test may damage."""
    return Path(shutil.copytree(prepared_photos, tmp_path / "copy"))


def test_a_split_knows_its_samples(prepared_photos, photo_folder):
    split = open_split(prepared_photos, "train")
    assert split.num_samples == 24
    assert split.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert split.labels.dtype == np.int64
    assert split.stored_sizes.dtype == np.uint16 and split.original_sizes.dtype == np.int32
    assert np.shares_memory(split.stored_sizes, split.beton.data)
    assert [split.names(index) for index in (0, 8, 23)] == ["china/00.JPEG", "flower/00.JPEG", "mirrored/07.JPEG"]
    for index in range(split.num_samples):
        content = (photo_folder / "train" / split.names(index)).read_bytes()
        image = Image.open(io.BytesIO(content))
        assert split.read_original(index) == content
        assert (image.height, image.width) == tuple(split.original_sizes[index]) == tuple(split.stored_sizes[index])
        payload = split.beton.payload(index).tobytes()
        if image.format == "JPEG" and image.mode != "CMYK":
            assert split.beton.modes[index] == JPEG
            assert payload == content
        else:
            assert split.beton.modes[index] == RAW
            assert payload == image.convert("RGB").tobytes()
        row = split.files[index]
        assert row["sha256"].tobytes() == hashlib.sha256(content).digest()
        assert row["bytes"] == len(content)
    assert [KINDS[kind] for kind in split.files["kind"][:4]] == ["jpeg", "gray jpeg", "cmyk jpeg", "jpeg"]


def test_source_fingerprint_follows_its_definition(prepared_photos):
    split = open_split(prepared_photos, "val")
    digest = hashlib.sha256()
    for index in range(split.num_samples):
        sha256 = hashlib.sha256(split.read_original(index)).digest()
        digest.update(f"{split.names(index)}\0{split.labels[index]}\0".encode() + sha256)
    assert split.source_fingerprint == digest.hexdigest() == source_fingerprint(split.files)


def test_original_files_may_be_moved(prepared_photos, photo_folder, tmp_path):
    moved = Path(shutil.copytree(photo_folder, tmp_path / "moved"))
    split = open_split(prepared_photos, "train", source=str(moved))
    assert split.read_original(0) == (photo_folder / "train/china/00.JPEG").read_bytes()
    (moved / "train/china/00.JPEG").write_bytes(b"other")
    with pytest.raises(UserError, match=r"china/00\.JPEG is no longer the file that was prepared"):
        split.read_original(0)
    (moved / "train/china/00.JPEG").unlink()
    with pytest.raises(UserError, match="the original file is gone"):
        split.read_original(0)


def test_digits_need_no_source(prepared_digits):
    split = open_split(prepared_digits, "val")
    image = Image.open(io.BytesIO(split.read_original(3)))
    assert image.convert("RGB").tobytes() == split.beton.payload(3).tobytes()


def test_unprepared_folder(tmp_path):
    with pytest.raises(UserError, match=r"python prepare\.py data=imagenet data\.source=FOLDER_OF_IMAGES data\.root="):
        read_manifest(tmp_path / "missing", "imagenet")
    with pytest.raises(UserError, match=r"python prepare\.py data=digits data\.root="):
        open_split(tmp_path, "train", data="digits")


def test_an_unprepared_folder_names_the_store_of_the_recipe(tmp_path, composed):
    store = "data.store.mode=proportion data.store.max_side=500 data.store.quality=90 data.store.jpeg_fraction=0.5"
    for experiment, words in (("ffcv_rn50", f" {store}"), ("resnet50", "")):
        config = composed(f"experiment={experiment}")
        with pytest.raises(UserError) as refusal:
            read_manifest(tmp_path, config.data.name, store=config.data.store)
        command = f"prepare.py data=imagenet data.source=FOLDER_OF_IMAGES{words} data.root={tmp_path}"
        assert str(refusal.value).endswith(command)


LIST_AS_NAME = '{"format": "tencrop-data-2", "name": ["digits"]}'


@pytest.mark.parametrize("content", ["", "[]", "{}", "not JSON", '{"format": "tencrop-data-0"}', LIST_AS_NAME])
def test_foreign_manifest(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json: (not a manifest|format tencrop-data-0)"):
        read_manifest(tmp_path)


def changed_manifest(root: Path, *keys, value) -> None:
    """Write another value at these keys of manifest.json, without updating its digest."""
    manifest = json.loads((root / "manifest.json").read_text())
    *outer, last = keys
    parent = manifest
    for key in outer:
        parent = parent[key]
    parent[last] = value
    (root / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("statistics", "mean", 0), 100.0),
        (("statistics", "eigenvectors", 2, 1), 0.5),
        (("classes", 1), "flowers"),
        (("options", "store.quality"), 94),
        (("source", "path"), "/elsewhere"),
        (("splits", "train", "num_samples"), 23),
        (("splits", "val", "per_class"), [4, 4, 5]),
        (("mean_image_sha256",), "0" * 64),
        (("sha256",), "0" * 64),
    ],
)
def test_every_changed_value_of_a_manifest_is_found(copy, keys, value):
    changed_manifest(copy, *keys, value=value)
    with pytest.raises(UserError, match=r"manifest\.json: was changed or damaged"):
        read_manifest(copy)


def test_training_refuses_a_changed_mean(copy):
    changed_manifest(copy, "statistics", "mean", 0, value=100.0)
    words = ["data=imagefolder", f"data.root={copy}", "data.num_classes=3", "normalization.mean=dataset"]
    finished = subprocess.run([sys.executable, ROOT / "train.py", *words], capture_output=True, text=True, cwd=copy)
    assert finished.returncode == 2 and "was changed or damaged" in finished.stderr
    assert finished.stderr.count("\n") == 1 and not (copy / "runs").exists()


@pytest.mark.parametrize(
    ("keys", "value", "problem"),
    [
        (("splits", "train"), {}, "splits.train.num_samples is missing"),
        (("splits",), [], "splits must be a mapping, not a list"),
        (("statistics", "mean"), [1.0, 2.0], "statistics.mean is a list of 2 and must be a list of 3"),
        (("classes",), [], "classes is a list of 0 and must be a list that is not empty"),
        (("source", "routes", "val"), "ftp", "source.routes.val must be beton or flat or made or tar or tree or zip"),
        (("mean_image",), None, "mean_image must be text, not null"),
    ],
)
def test_a_manifest_of_another_shape(copy, keys, value, problem):
    changed_manifest(copy, *keys, value=value)
    with pytest.raises(UserError, match=re.escape(f"manifest.json: not a manifest of prepared data ({problem}")):
        read_manifest(copy)


def without_digest(root: Path) -> None:
    manifest = json.loads((root / "manifest.json").read_text())
    del manifest["sha256"]
    (root / "manifest.json").write_text(json.dumps(manifest))


def test_a_manifest_of_earlier_code_has_no_digest(copy):
    without_digest(copy)
    assert open_split(copy, "train").num_samples == 24


def test_the_mean_image_is_compared_whenever_a_split_is_opened(copy):
    content = bytearray((copy / "mean_image.npy").read_bytes())
    content[-4] ^= 1
    (copy / "mean_image.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"mean_image\.npy: is not the file that was written"):
        open_split(copy, "val")


@pytest.mark.parametrize("route", ["tree", "made"])
def test_a_damaged_original_of_unchanged_length(
    prepared_digits, prepared_photos, photo_folder, tmp_path, route, monkeypatch
):
    if route == "made":
        split = open_split(prepared_digits, "val")
        monkeypatch.setattr(split._maker, "read", lambda name, file: bytes(file.num_bytes))
        with pytest.raises(UserError, match="is no longer the file that was prepared"):
            split.read_original(3)
        return
    moved = Path(shutil.copytree(photo_folder, tmp_path / "moved"))
    path = moved / "train/china/00.JPEG"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(UserError, match=r"china/00\.JPEG is no longer the file that was prepared"):
        open_split(prepared_photos, "train", source=str(moved)).read_original(0)


@pytest.mark.filterwarnings("ignore:Data type alias:DeprecationWarning")
def test_a_damaged_header_of_the_table_of_files(copy):
    """Each bit of the bytes that describe the table; verify compares the rows after them."""
    path = copy / "val.files.npy"
    written, changed = path.read_bytes(), 0
    for place in range(written.index(b"\n")):
        path.write_bytes(written[:place] + bytes([written[place] ^ 1 << place % 8]) + written[place + 1 :])
        try:
            open_split(copy, "val")
        except UserError as error:
            assert "not a table of files" in str(error) or "not the table of the 12 files" in str(error)
            changed += 1
    assert changed > 300  # not where a blank became another


@pytest.mark.parametrize("name", ["train.beton", "train.files.npy"])
def test_files_of_another_size(copy, name):
    os.truncate(copy / name, (copy / name).stat().st_size - 1)
    with pytest.raises(UserError, match=rf"{name}: has \d+ bytes and not the \d+ that were written"):
        open_split(copy, "train")
    open_split(copy, "val")
    (copy / name).unlink()
    with pytest.raises(UserError, match=f"{name}: is missing"):
        open_split(copy, "train")


def test_a_table_is_never_unpickled(copy):
    """A file table that is a pickle of the right size is refused without executing it."""
    size = (copy / "train.files.npy").stat().st_size
    marker = copy / "executed"

    class Malicious:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    content = pickle.dumps(Malicious())
    (copy / "train.files.npy").write_bytes(content + bytes(size - len(content)))
    with pytest.raises(UserError, match=r"train\.files\.npy: not a table of files"):
        open_split(copy, "train")
    assert not marker.exists()


def test_unknown_split(prepared_photos):
    with pytest.raises(UserError, match="without a split test; it has train, val"):
        open_split(prepared_photos, "test")


def test_a_manifest_is_written_whole_or_not_at_all(tmp_path):
    write_manifest(tmp_path, {"format": "a"})
    with pytest.raises(TypeError):
        write_manifest(tmp_path, {"format": object()})
    assert os.listdir(tmp_path) == ["manifest.json"]
    written = json.loads((tmp_path / "manifest.json").read_text())
    assert written == {"format": "a", "sha256": manifest_sha256({"format": "a"})}


def test_import_is_light():
    """The commands read the manifest before they import torch."""
    program = "import sys, tencrop.data.store.manifest; print({'torch', 'timm', 'sklearn', 'ffcv'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    finished = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert finished.stdout.strip() == "set()", finished.stderr
