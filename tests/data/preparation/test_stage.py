"""Prepared data are copied to a node's disk once, completely or not at all, and read from there."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tencrop.config import Data, UserError, learning_hash
from tencrop.config.loader import upgrade_config
from tencrop.data.preparation import stage as staging
from tencrop.data.preparation.stage import stage_folder, staged
from tencrop.data.store.manifest import open_split, read_manifest
from tencrop.evaluation.predictions import load_scores

ROOT = Path(__file__).parents[3]
SPLITS = ["train", "val"]


@pytest.fixture
def data(prepared_digits, data_config, tmp_path) -> Data:
    """The digits, to be copied to tmp_path/disk."""
    return replace(data_config(None, prepared_digits, name="digits"), stage=str(tmp_path / "disk"))


def copy_of(data: Data) -> Path:
    assert data.stage is not None
    return stage_folder(data.stage, read_manifest(data.root))


def test_the_copy_is_the_prepared_folder_and_is_made_once(data, prepared_digits, capsys):
    with staged(data, SPLITS) as local:
        assert local == replace(data, root=str(copy_of(data)))
        for name in ("train.beton", "val.beton", "train.files.npy", "mean_image.npy", "manifest.json"):
            assert Path(local.root, name).read_bytes() == (prepared_digits / name).read_bytes()
    assert "copying 6.6 MB" in capsys.readouterr().err
    with staged(data, SPLITS):
        pass
    assert capsys.readouterr().err == "" and not (copy_of(data) / "partial").exists()


def test_without_stage_nothing_is_copied(data):
    plain = replace(data, stage=None)
    with staged(plain, SPLITS) as local:
        assert local is plain


def test_a_split_that_is_missing_in_the_copy_is_added(data):
    with staged(data, ["val"]):
        assert not (copy_of(data) / "train.beton").exists()
    before = (copy_of(data) / "val.beton").stat().st_ino
    with staged(data, SPLITS) as local:
        assert open_split(local.root, "train").num_samples == 1297
    assert (copy_of(data) / "val.beton").stat().st_ino == before


def in_child(function) -> int:
    """Run the function in a forked process; returns its exit code."""
    child = multiprocessing.get_context("fork").Process(target=function)
    child.start()
    child.join()
    assert child.exitcode is not None
    return child.exitcode


# fsync is called for the trial of check_writable and for each of five files; replace for each file and the manifest
@pytest.mark.parametrize(
    ("call", "number"), [("fsync", 2), ("fsync", 5), ("replace", 0), ("replace", 3), ("replace", 5)]
)
def test_a_killed_copy_leaves_nothing_that_is_taken_for_whole(data, call, number, capfd):
    def die_at_the_call() -> None:
        real, done = getattr(os, call), list[object]()

        def count_or_die(*arguments) -> None:
            if len(done) == number:
                os._exit(9)
            done.append(real(*arguments))

        setattr(os, call, count_or_die)
        with staged(data, SPLITS):
            pass

    assert in_child(die_at_the_call) == 9
    with pytest.raises(UserError):
        open_split(copy_of(data), "train")
    with staged(data, SPLITS) as local:
        assert open_split(local.root, "train").num_samples == 1297
    assert capfd.readouterr().err.count("copying 6.6 MB") == 2 and not (copy_of(data) / "partial").exists()


def test_two_processes_at_once_copy_once(data, tmp_path, monkeypatch):
    def slow_copy(*arguments) -> None:
        (tmp_path / f"copied_by_{os.getpid()}").touch()
        time.sleep(0.5)
        copy(*arguments)

    def use() -> None:
        with staged(data, SPLITS) as local:
            os._exit(open_split(local.root, "val").num_samples == 500)

    copy = staging._copy
    monkeypatch.setattr(staging, "_copy", slow_copy)
    children = [multiprocessing.get_context("fork").Process(target=use) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [1, 1, 1] and len(list(tmp_path.glob("copied_by_*"))) == 1


def test_a_byte_that_changes_on_the_way_is_found(data, monkeypatch):
    def damaging(source: Path, target: Path, advance) -> None:
        shutil.copyfile(source, target)
        if target.name == "train.beton":
            with open(target, "r+b") as file:
                file.seek(1_000_000)  # a pixel
                file.write(bytes([file.read(1)[0] ^ 1]))

    monkeypatch.setattr(staging, "_copy_file", damaging)
    with pytest.raises(UserError, match="is not what was prepared"), staged(data, SPLITS):
        pass
    assert not copy_of(data).exists()


def test_a_file_that_a_cleaner_removed_is_copied_again(data):
    with staged(data, SPLITS):
        (copy_of(data) / "val.files.npy").unlink()
    with staged(data, SPLITS) as local:
        assert open_split(local.root, "val").num_samples == 500


def test_space_is_checked_before(data, small_disk):
    small = replace(data, stage=str(small_disk))
    message = r"6.6 MB of .* would be copied, but only 1.05 MB is free"
    with pytest.raises(UserError, match=message), staged(small, SPLITS):
        pass
    assert list(small_disk.iterdir()) == []


def test_the_last_process_deletes_a_copy_that_is_not_kept(data):
    data = replace(data, keep_stage=False)
    with staged(data, SPLITS):
        with staged(data, SPLITS):
            pass
        assert (copy_of(data) / "train.beton").exists()
    assert not copy_of(data).exists()


def test_other_data_get_another_copy(data, prepared_photos):
    photos = replace(data, root=str(prepared_photos), name="imagefolder")
    assert copy_of(data).parent == copy_of(photos).parent and copy_of(data) != copy_of(photos)


def test_variables_are_those_of_the_node(data, tmp_path, monkeypatch):
    monkeypatch.setenv("NODE_DISK", str(tmp_path))
    assert stage_folder("$NODE_DISK/x", read_manifest(data.root)).parent == tmp_path / "x"
    monkeypatch.delenv("NODE_DISK")
    with pytest.raises(UserError, match=r"data.stage=\$NODE_DISK: the environment variable is not set here"):
        stage_folder("$NODE_DISK", read_manifest(data.root))


def test_a_copy_changes_neither_the_hash_nor_what_others_read(composed):
    plain, copied = composed("data.root=x"), composed("data.root=x", "data.stage=y", "data.keep_stage=false")
    assert copied.data.stage == "y" and learning_hash(plain) == learning_hash(copied)
    assert upgrade_config({"config_format": 2, "data": {"name": "digits", "stage": "/x", "keep_stage": True}}) == {
        "data": {"name": "digits"}
    }


def run(script: str, *words: str) -> None:
    command = [sys.executable, script, "experiment=lenet5_digits", "hardware=cpu", "training.max_steps=1", *words]
    done = subprocess.run([*command, "tracker=none"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_training_and_evaluation_read_the_copy_alone(data, prepared_digits, tmp_path):
    run("train.py", f"data.root={prepared_digits}", f"runs={tmp_path}/plain")
    root = Path(shutil.copytree(prepared_digits, tmp_path / "prepared"))
    with staged(replace(data, root=str(root)), SPLITS):
        pass
    for split in SPLITS:  # all images of the original turn black
        beton = open_split(root, split).beton
        with open(beton.path, "r+b") as file:
            for pointer, size in zip(beton.pointers, beton.payload_bytes, strict=True):
                file.seek(pointer)
                file.write(bytes(size))
    words = [f"data.root={root}", f"data.stage={data.stage}", f"runs={tmp_path}/staged"]
    run("train.py", *words)
    plain, copied = (
        [
            json.loads(path.read_text())["result"]["weights_sha256"]
            for path in tmp_path.glob(f"{runs}/*/*/manifest.json")
        ]
        for runs in ("plain", "staged")
    )
    assert len(plain) == 1 and plain == copied
    run("evaluate.py", *words, "protocol=five_crop")
    (path,) = tmp_path.glob("staged/*/*/predictions/five_crop*.safetensors")
    assert len(load_scores(path).logits.unique(dim=0)) > 400  # black images would have equal scores
