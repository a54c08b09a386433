import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tencrop.config import StoreOptions, UserError
from tencrop.data.preparation import estimate
from tencrop.data.preparation import prepare as module
from tencrop.data.preparation.prepare import prepare
from tencrop.data.preparation.statistics import ColorSums
from tencrop.data.sources.digits import permutation
from tencrop.data.sources.simulate import simulate
from tencrop.data.store.beton import JPEG, RAW
from tencrop.data.store.encode import encode
from tencrop.data.store.manifest import open_split, read_manifest
from typed import present

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def spoiled(photo_folder, tmp_path) -> Path:
    """A copy of the photographs, with train/flower/05.JPEG truncated."""
    folder = Path(shutil.copytree(photo_folder, tmp_path / "spoiled"))
    path = folder / "train/flower/05.JPEG"
    os.truncate(path, path.stat().st_size // 2)
    return folder


def contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(root.iterdir())}


def test_contents_of_the_manifest(prepared_photos, photo_folder):
    manifest = read_manifest(prepared_photos)
    assert manifest["classes"] == ["china", "flower", "mirrored"]
    assert manifest["source"] == {
        "path": str(photo_folder),
        "splits": {"train": "train", "val": "val"},
        "routes": {"train": "tree", "val": "tree"},
        "archives": {},
    }
    assert manifest["options"]["store.mode"] == "jpeg"
    for split, num_samples in (("train", 24), ("val", 12)):
        facts = manifest["splits"][split]
        assert facts["num_samples"] == num_samples
        assert facts["per_class"] == [num_samples // 3] * 3
        assert facts["kinds"] == {"jpeg": num_samples - 5, "gray jpeg": 3, "cmyk jpeg": 1, "png": 1}
        assert facts["converted"] == [
            {"name": "china/02.JPEG", "kind": "cmyk jpeg"},
            {"name": "flower/02.JPEG", "kind": "png"},
        ]
        assert len(facts["grayscale"]) == 3 and "china/01.JPEG" in facts["grayscale"]
        assert facts["skipped"] == []
    assert sorted(contents(prepared_photos)) == [
        "manifest.json",
        "mean_image.npy",
        "train.beton",
        "train.files.npy",
        "val.beton",
        "val.files.npy",
    ]


def test_statistics_are_of_the_training_split(prepared_photos, photo_folder):
    sums = ColorSums()
    for path in sorted((photo_folder / "train").rglob("*.JPEG")):
        encoded = encode(path.read_bytes(), 0, StoreOptions("jpeg", None, None, 95))
        sums.add(present(encoded.pixels), encoded.height, encoded.width)
    assert read_manifest(prepared_photos)["statistics"] == sums.statistics()
    assert np.array_equal(np.load(prepared_photos / "mean_image.npy"), sums.mean_image())


@pytest.mark.parametrize("mode", ["jpeg", "raw"])
def test_same_bytes_for_any_number_of_workers(photo_folder, data_config, tmp_path, mode):
    roots = [tmp_path / str(workers) for workers in (1, 2)]
    for workers, root in enumerate(roots, start=1):
        prepare(data_config(photo_folder, root, mode=mode, short_side=48), workers=workers, progress=False)
    assert contents(roots[0]) == contents(roots[1])


def test_evaluation_keeps_the_original_bytes(photo_folder, data_config, tmp_path):
    root = prepare(data_config(photo_folder, tmp_path / "root", mode="raw", short_side=48), workers=1, progress=False)
    train, val = open_split(root, "train"), open_split(root, "val")
    assert (train.beton.modes == RAW).all()
    assert train.stored_sizes.min(axis=1).tolist() == [min(48, side) for side in train.original_sizes.min(axis=1)]
    assert (val.stored_sizes == val.original_sizes).all()
    assert (val.beton.modes == JPEG).sum() == 10
    assert val.beton.payload(0).tobytes() == val.read_original(0)


def test_fingerprints(prepared_photos, photo_folder, data_config, tmp_path):
    """The source's fingerprint does not depend on store options; both depend on every file."""
    reduced = prepare(data_config(photo_folder, tmp_path / "reduced", max_side=60), workers=1, progress=False)
    photos = Path(shutil.copytree(photo_folder, tmp_path / "photos"))
    shutil.copy(photos / "train/china/00.JPEG", photos / "train/china/07.JPEG")
    changed = prepare(data_config(photos, tmp_path / "changed"), workers=1, progress=False)
    first, second, third = (open_split(root, "train") for root in (prepared_photos, reduced, changed))
    assert first.source_fingerprint == second.source_fingerprint != third.source_fingerprint
    assert len({first.store_fingerprint, second.store_fingerprint, third.store_fingerprint}) == 3
    assert open_split(changed, "val").store_fingerprint == open_split(prepared_photos, "val").store_fingerprint


def test_digits(prepared_digits):
    manifest = read_manifest(prepared_digits)
    assert manifest["source"] == {
        "path": None,
        "splits": {"train": "train", "val": "val"},
        "routes": {"train": "made", "val": "made"},
        "archives": {},
    }
    assert manifest["permutation"] == permutation()
    assert manifest["classes"] == [str(digit) for digit in range(10)]
    assert [manifest["splits"][split]["num_samples"] for split in ("train", "val")] == [1297, 500]
    assert manifest["splits"]["train"]["converted"] == []
    for name in ("train", "val"):
        split = open_split(prepared_digits, name)
        assert (split.beton.modes == RAW).all()
        assert (split.stored_sizes == 32).all()
        pixels = split.beton.payload(0).reshape(32, 32, 3)
        assert (pixels == pixels[..., :1]).all()


def test_a_second_preparation_reports_already_prepared(prepared_photos, photo_folder, data_config, capsys):
    before = contents(prepared_photos)
    assert prepare(data_config(photo_folder, prepared_photos)) == prepared_photos
    assert capsys.readouterr().out == f"{prepared_photos}: already prepared\n"
    assert prepare(data_config(None, prepared_photos), progress=False) == prepared_photos
    assert contents(prepared_photos) == before
    assert capsys.readouterr().out == ""


def test_printed_summary(photo_folder, data_config, tmp_path, capsys):
    prepare(data_config(photo_folder, tmp_path / "root"), workers=2)
    out = capsys.readouterr().out
    assert "24 train and 12 val images of 3 classes" in out
    assert "kB to write (" in out
    assert re.search(r"B free\), about 0:\d\d:\d\d with 2 threads", out)
    assert "\ntrain: 24 of 24 images" in out
    assert "train.beton: 24 images, 3 gray jpeg, 1 cmyk jpeg converted, 1 png converted" in out


def test_other_options_are_refused(prepared_photos, prepared_digits, photo_folder, data_config, tmp_path):
    with pytest.raises(UserError, match=r"data\.store\.short_side=256: .* prepared with data\.store\.short_side=None"):
        prepare(data_config(photo_folder, prepared_photos, short_side=256), progress=False)
    with pytest.raises(UserError, match=r"data\.splits\.val=train: .* prepared with data\.splits\.val=val"):
        prepare(data_config(photo_folder, prepared_photos, splits=("train", "train")), progress=False)
    with pytest.raises(UserError, match="holds prepared digits, not imagefolder"):
        prepare(data_config(photo_folder, prepared_digits), progress=False)
    photos = Path(shutil.copytree(photo_folder, tmp_path / "photos"))
    (photos / "val/china/00.JPEG").unlink()
    with pytest.raises(UserError, match=r"not the files that .* was prepared from \(val\)"):
        prepare(data_config(photos, prepared_photos), progress=False)


def test_truncated_jpeg_stops_with_its_name(spoiled, data_config, tmp_path):
    with pytest.raises(UserError, match=r"flower/05\.JPEG of the train split cannot be decoded \(.*truncated"):
        prepare(data_config(spoiled, tmp_path / "root"), workers=2, progress=False)
    assert os.listdir(tmp_path / "root") == []


def test_truncated_jpeg_is_skipped_and_listed(spoiled, data_config, tmp_path, capsys):
    data = data_config(spoiled, tmp_path / "root", undecodable="skip")
    root = prepare(data, workers=2)
    assert "23 images, 3 gray jpeg, 1 cmyk jpeg converted, 1 png converted, 1 skipped" in capsys.readouterr().out
    facts = read_manifest(root)["splits"]["train"]
    assert [entry["name"] for entry in facts["skipped"]] == ["flower/05.JPEG"]
    assert "truncated" in facts["skipped"][0]["reason"]
    assert facts["per_class"] == [8, 7, 8]
    split = open_split(root, "train")
    names = [split.names(index) for index in range(split.num_samples)]
    assert len(names) == 23
    assert "flower/05.JPEG" not in names
    assert read_manifest(root)["statistics"]["num_images"] == 23
    assert prepare(data, progress=False) == root  # the skipped file does not count as a changed source


def test_class_of_undecodable_images(photo_folder, data_config, tmp_path):
    photos = Path(shutil.copytree(photo_folder, tmp_path / "photos"))
    for path in (photos / "val/mirrored").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="class mirrored of the val split: no image can be decoded"):
        prepare(data_config(photos, tmp_path / "root", undecodable="skip"), progress=False)
    assert os.listdir(tmp_path / "root") == []


def test_original_larger_than_a_page(photographs, data_config, tmp_path):
    for split in ("train", "val"):
        folder = tmp_path / "large" / split / "class"
        folder.mkdir(parents=True)
        photographs["china"].resize((1920, 1600)).save(folder / "a.png", compress_level=1)  # 9.2 MB of pixels
        photographs["china"].save(folder / "b.jpg")
    root = prepare(data_config(tmp_path / "large", tmp_path / "root"), progress=False)
    beton = open_split(root, "val").beton
    assert beton.page_size == 1 << 24
    assert beton.payload_bytes[0] == 1920 * 1600 * 3
    assert beton.payload(0).tobytes() == photographs["china"].resize((1920, 1600)).tobytes()


def test_jpeg_larger_than_a_page(data_config, tmp_path):
    """Its bytes are stored unchanged; ffcv's writer refuses more than 8 MB."""
    noise = np.random.default_rng(0).integers(256, size=(2400, 2400, 3), dtype=np.uint8)
    for split in ("train", "val"):
        folder = tmp_path / "large" / split / "class"
        folder.mkdir(parents=True)
        Image.fromarray(noise[: 2400 if split == "train" else 64]).save(folder / "a.jpg", quality=100, subsampling=0)
    root = prepare(data_config(tmp_path / "large", tmp_path / "root"), progress=False)
    beton = open_split(root, "train").beton
    content = (tmp_path / "large/train/class/a.jpg").read_bytes()
    assert len(content) > 1 << 23
    assert beton.page_size >= len(content)
    assert beton.payload(0).tobytes() == content


def test_skipped_files_give_the_same_manifest_every_time(spoiled, data_config, tmp_path):
    """Pillow's message for a file that is not an image has the address of an object."""
    (spoiled / "train/china/08.JPEG").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n")
    (spoiled / "train/china/09.JPEG").write_bytes(b"<html>404 Not Found</html>")
    kept = [bytearray(1 << 12)]  # so that objects lie elsewhere the second time
    roots = [tmp_path / name for name in ("first", "second")]
    for root in roots:
        prepare(data_config(spoiled, root, undecodable="skip"), workers=2, progress=False)
        kept += [bytearray(1 << 12) for _ in range(100)]
    assert contents(roots[0]) == contents(roots[1])
    skipped = read_manifest(roots[0])["splits"]["train"]["skipped"]
    assert [entry["name"] for entry in skipped] == ["china/08.JPEG", "china/09.JPEG", "flower/05.JPEG"]
    assert not any("0x" in entry["reason"] for entry in skipped)


def test_files_that_are_left_out_are_reported(photo_folder, data_config, tmp_path, capsys):
    """Thumbnails by a file server do not change the store; they and files with other extensions are counted."""
    source = Path(shutil.copytree(photo_folder, tmp_path / "photos"))
    shutil.copytree(source / "train/china", source / "train/china/@eaDir")
    for name in ("train/flower/a.jfif", "train/flower/b.jfif", "val/flower/c"):
        shutil.copy(source / "val/china/00.JPEG", source / name)
    root = prepare(data_config(source, tmp_path / "root"), workers=1)
    assert "left out: 2 .jfif, 1 @eaDir of train; 1 without an ending of val (image files end in .jpg" in (
        capsys.readouterr().out
    )
    assert read_manifest(root)["left_out"] == {"train": {".jfif": 2, "@eaDir": 1}, "val": {"without an ending": 1}}
    assert open_split(root, "train").num_samples == 24


def test_the_same_folder_by_another_path(photo_folder, data_config, tmp_path):
    """data.source one folder lower or higher, data.splits accordingly."""
    root = prepare(data_config(photo_folder, tmp_path / "root"), workers=1, progress=False)
    parent, name = photo_folder.parent, photo_folder.name
    assert prepare(data_config(parent, root, splits=(f"{name}/train", f"{name}/val")), progress=False) == root
    with pytest.raises(UserError, match=r"data\.splits\.train=.*val: .* was prepared with data\.splits\.train=train"):
        prepare(data_config(parent, root, splits=(f"{name}/val", f"{name}/val")), progress=False)


def test_the_prepared_folder_must_not_be_inside_a_split(photo_folder, data_config):
    with pytest.raises(UserError, match="is inside the train split"):
        prepare(data_config(photo_folder, photo_folder / "train" / "prepared"), progress=False)
    assert not (photo_folder / "train" / "prepared").exists()


def test_root_that_is_a_file(photo_folder, data_config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.root=.*file: is a file"):
        prepare(data_config(photo_folder, tmp_path / "file"), progress=False)


def test_a_disk_that_reports_no_size_is_not_treated_as_full(photo_folder, data_config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(total=0, used=0, free=0))
    prepare(data_config(photo_folder, tmp_path), workers=1)
    assert "(free space not known)" in capsys.readouterr().out


def test_too_little_space_is_refused_beforehand(photo_folder, data_config, small_disk):
    with pytest.raises(UserError, match=r"about .* MB would be written, but only 1\.05 MB is free"):
        prepare(data_config(photo_folder, small_disk / "root", mode="raw"), progress=False)
    assert os.listdir(small_disk / "root") == []


def test_a_disk_that_fills_up_leaves_nothing(photo_folder, data_config, small_disk, monkeypatch):
    """Other programs may write to the disk too. Here the estimate is patched."""
    monkeypatch.setattr(estimate, "estimate", lambda *_: (0.0, 0.0))
    with pytest.raises(OSError, match="No space left"):
        prepare(data_config(photo_folder, small_disk / "root", mode="raw"), progress=False)
    assert os.listdir(small_disk / "root") == []


def test_a_killed_preparation_can_be_run_again(photo_folder, prepared_photos, tmp_path):
    """SIGKILL in the middle of writing, after the first split, and before the manifest."""
    root = tmp_path / "root"
    arguments = ["data=imagefolder", f"data.source={photo_folder}", f"data.root={root}", "workers=2"]
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    places = (
        ("tencrop.data.preparation.writer", "table_row"),
        ("tencrop.data.preparation.writer", "write_npy"),
        ("tencrop.data.preparation.prepare", "write_manifest"),
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    for place, name in places:
        program = (
            f"import sys, importlib; sys.argv = ['prepare.py'] + {arguments!r}; import tencrop.data.preparation.prepare"
            ";"
            f" setattr(importlib.import_module({place!r}), {name!r}, lambda *_, **__: exec({kill!r}));"
            " import runpy; runpy.run_path('prepare.py', run_name='__main__')"
        )
        finished = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True)
        assert finished.returncode == -signal.SIGKILL, finished.stderr.decode()
        with pytest.raises(UserError, match="holds no prepared data"):
            open_split(root, "train")
    finished = subprocess.run([sys.executable, "prepare.py", *arguments], cwd=ROOT, env=environment, timeout=900)
    assert finished.returncode == 0
    assert contents(root) == contents(prepared_photos)


def test_one_preparation_at_a_time(photo_folder, data_config, tmp_path, monkeypatch):
    root, entered, leave = tmp_path / "root", threading.Event(), threading.Event()
    original = module.announce

    def announce(*arguments, **keywords):
        entered.set()
        assert leave.wait(30)
        original(*arguments, **keywords)

    monkeypatch.setattr(module, "announce", announce)
    first = threading.Thread(target=prepare, args=(data_config(photo_folder, root),), kwargs={"progress": False})
    first.start()
    assert entered.wait(30)
    with pytest.raises(UserError, match="another preparation is writing there"):
        prepare(data_config(photo_folder, root), progress=False)
    leave.set()
    first.join()
    assert open_split(root, "train").num_samples == 24


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["data=imagefolder", "data.source=/nowhere"], "data.source=/nowhere: there is no such folder"),
        (["data=mnist", "data.check_md5=true", "verify=true"], "check_md5=true: verify=true reads the prepared files,"),
        (["data=imagefolder"], "data.source: where are the images? Run: python prepare.py data=imagefolder"),
        (["data=digits", "workers=0"], "workers=0: must be auto or a whole number above 0"),
        (["data=digits", "data.rot=x"], "data.rot: there is no such key"),
    ],
)
def test_the_command_reports_errors_in_one_sentence(arguments, sentence, tmp_path):
    (tmp_path / "stubs").mkdir()
    (tmp_path / "stubs" / "torch.py").write_text("raise ImportError('torch takes seconds: refuse before')")
    finished = subprocess.run(
        [sys.executable, "prepare.py", f"data.root={tmp_path / 'root'}", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{tmp_path / 'stubs'}:{ROOT / 'src'}"},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 2
    assert sentence in finished.stderr
    assert finished.stderr.count("\n") == 1
    assert not (tmp_path / "root").exists()


def test_a_root_that_cannot_be_written_is_found_before_the_source_is_read(
    photo_folder, data_config, tmp_path, read_only, monkeypatch
):
    (tmp_path / "root").mkdir()
    data = data_config(photo_folder, read_only(tmp_path / "root") / "photos")

    def fail(*_, **__):
        raise AssertionError("the source was read")

    monkeypatch.setattr(module, "open_source", fail)
    monkeypatch.setattr("tencrop.data.sources.simulate.FolderSource", fail)
    for write in (prepare, simulate):
        with pytest.raises(UserError, match=r"cannot be written \(the file system is read-only\); .* data\.root=DIR$"):
            write(data, progress=False)


def test_the_manifest_is_small_and_plain(prepared_photos):
    content = (prepared_photos / "manifest.json").read_text()
    assert len(content) < 5000
    assert json.loads(content)["format"] == "tencrop-data-2"


def test_a_folder_that_another_process_prepares_meanwhile_is_kept(photo_folder, data_config, tmp_path, monkeypatch):
    data = data_config(photo_folder, tmp_path / "root")
    open_source = module.open_source
    written: list[tuple[Path, os.stat_result]] = []

    def open_slowly(data):
        monkeypatch.setattr(module, "open_source", open_source)
        path = prepare(data, progress=False) / "train.beton"  # the other is done before this has the lock
        written.append((path, path.stat()))
        return open_source(data)

    monkeypatch.setattr(module, "open_source", open_slowly)
    assert prepare(data, progress=False) == tmp_path / "root"
    ((path, before),) = written
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert {"manifest.json", "val.beton"} <= set(contents(tmp_path / "root"))


def test_other_data_than_the_folder_holds(photo_folder, data_config, tmp_path):
    prepare(data_config(photo_folder, tmp_path / "root"), progress=False)
    with pytest.raises(UserError, match="holds prepared imagefolder, not imagenet"):
        prepare(data_config(photo_folder, tmp_path / "root", name="imagenet"), progress=False)


def test_a_subset_whose_val_split_lacks_a_class_is_prepared(photo_folder, data_config, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(photo_folder, source)
    shutil.rmtree(source / "val" / "china")
    data = data_config(source, tmp_path / "root")
    data.subset = True
    split = open_split(str(prepare(data, workers=1, progress=False)), "val", data="imagefolder")
    assert sorted(set(split.labels.tolist())) == [1, 2] and split.num_samples == 8


@pytest.mark.parametrize("name", ["train.beton", "val.beton", "train.files.npy", "mean_image.npy"])
def test_files_of_the_user_in_the_folder_are_kept(spoiled, photo_folder, data_config, tmp_path, name):
    """ffcv's users name their files train.beton, too."""
    root = tmp_path / "root"
    root.mkdir()
    (root / name).write_bytes(b"the user's own")
    for source in (photo_folder, spoiled):  # the second one fails before its first part
        with pytest.raises(UserError, match=f"{root}: holds {name}, but no manifest, .* data.root=DIR"):
            prepare(data_config(source, root), progress=False)
    assert contents(root) == {name: b"the user's own"}


def test_a_preparation_with_other_options_replaces_an_interrupted_one(photo_folder, data_config, tmp_path, monkeypatch):
    """Also if it is killed itself before its first part: what the first one has left is not the user's."""
    root = tmp_path / "root"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "write_manifest", interrupted)
        prepare(data_config(photo_folder, root), progress=False)
    assert {"train.beton", "train.part00000.npz"} <= set(contents(root))
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(module, "_cleaned_up_after_failure", lambda root: contextlib.nullcontext())  # as after a kill
        patch.setattr("tencrop.data.preparation.writer.BetonWriter", killed)
        prepare(data_config(photo_folder, root, mode="raw"), progress=False)
    assert prepare(data_config(photo_folder, root, mode="raw"), progress=False) == root
    assert open_split(root, "train").beton.modes[0] == RAW


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def killed(*_: object) -> None:
    raise SystemExit
