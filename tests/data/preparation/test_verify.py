import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tencrop.config import UserError
from tencrop.data.preparation.prepare import prepare
from tencrop.data.preparation.verify import verified, verify
from tencrop.data.store.beton import Beton
from tencrop.data.store.manifest import open_split


@pytest.fixture
def copy(prepared_photos, tmp_path) -> Path:
    return Path(shutil.copytree(prepared_photos, tmp_path / "copy"))


def flip_bit(path: Path, position: int) -> None:
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)
        file.seek(position)
        file.write(bytes([byte[0] ^ 8]))


def test_an_undamaged_folder_is_confirmed(prepared_photos, prepared_digits, capsys):
    verify(prepared_photos, num_threads=2)
    assert capsys.readouterr().out.endswith(f"{prepared_photos}: as it was prepared\n")
    verify(prepared_digits, progress=False)


@pytest.mark.parametrize("index", [0, 2, 11, 23])
def test_one_flipped_bit_is_named(copy, index):
    beton = Beton(copy / "train.beton")
    flip_bit(copy / "train.beton", int(beton.pointers[index]) + int(beton.payload_bytes[index]) // 2)
    name = open_split(copy, "train").names(index)
    with pytest.raises(
        UserError, match=rf"train\.beton: 1 of 24 images are not what was written: {name} \(sample {index}\)"
    ):
        verify(copy, progress=False)


def test_batches_are_verified_while_they_are_used(copy):
    split, batches = open_split(copy, "val"), [np.array([0, 5]), np.array([7, 2])]
    assert list(verified(batches, split, index_of=lambda batch: batch)) == batches
    flip_bit(copy / "val.beton", int(split.beton.pointers[7]) + 40)
    found = verified(batches, split, index_of=lambda batch: batch)
    assert next(found) is batches[0] and next(found) is batches[1]
    with pytest.raises(
        UserError, match=rf"val\.beton: 1 of 12 images are not .*: {split.names(7)} \(sample 7\); delete"
    ):
        next(found)
    assert list(verified(batches[:1], split, index_of=lambda batch: batch)) == batches[:1]  # others are not read


def test_many_flipped_bits(copy):
    beton = Beton(copy / "val.beton")
    for pointer in beton.pointers[:7]:
        flip_bit(copy / "val.beton", int(pointer) + 40)
    with pytest.raises(UserError, match=r"val\.beton: 7 of 12 images .*, .*, .*, .*, .* and 2 more"):
        verify(copy, progress=False)


@pytest.mark.parametrize("name", ["train.files.npy", "mean_image.npy", "val.beton"])
def test_damage_in_every_file_is_found(copy, name):
    """Flips the last bit of the file table, the mean image and the tables of the .beton file."""
    flip_bit(copy / name, (copy / name).stat().st_size - 4)
    with pytest.raises(UserError, match=name):
        verify(copy, progress=False)


def test_changed_statistics(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["statistics"]["std"][1] += 1e-9
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest\.json: was changed or damaged"):
        verify(copy, progress=False)


def test_a_manifest_without_a_digest_is_reported_as_unchecked(copy, capsys):
    verify(copy)
    assert "could not be checked" not in capsys.readouterr().out
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["sha256"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    verify(copy)
    said = capsys.readouterr().out.splitlines()
    assert said[-1].endswith("as it was prepared")
    assert said[-2].endswith("its statistics, class names and options could not be checked")


def test_truncated(copy):
    os.truncate(copy / "val.beton", (copy / "val.beton").stat().st_size - 8)
    with pytest.raises(UserError, match=r"val\.beton: has \d+ bytes and not"):
        verify(copy, progress=False)


def test_a_beton_of_another_preparation_is_refused_at_opening(photo_folder, copy, data_config, tmp_path):
    """The file has the same size: two images of a class, or two labels, are swapped."""
    photos = Path(shutil.copytree(photo_folder, tmp_path / "photos"))
    first, second = photos / "train/china/00.JPEG", photos / "train/china/05.JPEG"
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])
    other = prepare(data_config(photos, tmp_path / "other"), workers=1, progress=False)
    assert (other / "train.beton").stat().st_size == (copy / "train.beton").stat().st_size
    shutil.copy(other / "train.beton", copy / "train.beton")
    with pytest.raises(UserError, match=r"train\.beton: its tables do not match the manifest: .* another"):
        open_split(copy, "train")
