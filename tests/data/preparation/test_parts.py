"""An interrupted preparation continues from its parts and writes the same bytes as an uninterrupted one."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from tencrop.config import StoreOptions, UserError
from tencrop.data.preparation import parts, writer
from tencrop.data.preparation.prepare import prepare
from tencrop.data.store.encode import encode


class Interrupted(BaseException):
    """Simulates a kill: only clean-up code runs after it, which a real kill would skip."""


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Six training parts of four files, three validation parts."""
    monkeypatch.setattr(parts, "PART_FILES", 4)
    monkeypatch.setattr(writer, "CHUNK_FILES", 2)


def contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(root.iterdir())}


def interrupt_after(monkeypatch, num_encoded: int, error: BaseException, seen: list[bytes]) -> None:
    def encode_and_count(content: bytes, *arguments, **keywords):
        seen.append(content)
        if len(seen) > num_encoded:
            raise error
        return encode(content, *arguments, **keywords)

    monkeypatch.setattr(writer, "encode", encode_and_count)


@pytest.mark.parametrize("mode", ["jpeg", "raw"])
@pytest.mark.parametrize("num_encoded", [0, 3, 9, 22, 24, 27, 35])
def test_interrupted_anywhere(photo_folder, data_config, tmp_path, monkeypatch, num_encoded, mode):
    data = data_config(photo_folder, tmp_path / "root", mode=mode)
    whole = prepare(data_config(photo_folder, tmp_path / "whole", mode=mode), workers=1, progress=False)
    first: list[bytes] = []
    interrupt_after(monkeypatch, num_encoded, Interrupted(), first)
    with pytest.raises(Interrupted):
        prepare(data, workers=1, progress=False)
    assert not (tmp_path / "root" / "manifest.json").exists()
    second: list[bytes] = []
    interrupt_after(monkeypatch, 1000, Interrupted(), second)
    root = prepare(data, workers=2, progress=False)
    assert contents(root) == contents(whole)
    num_safe = num_encoded // 4 * 4 if num_encoded < 24 else 24 + (num_encoded - 24) // 4 * 4
    assert len(second) <= 36 - num_safe + 4  # the chunk of the interruption was not yet handed over, or was


def test_only_missing_parts_are_encoded(photo_folder, data_config, tmp_path, monkeypatch):
    seen: list[bytes] = []
    interrupt_after(monkeypatch, 22, Interrupted(), seen)
    with pytest.raises(Interrupted):
        prepare(data_config(photo_folder, tmp_path / "root"), workers=1, progress=False)
    assert sorted(path.name for path in (tmp_path / "root").glob("*.npz"))[:4] == [
        f"train.part{number:05d}.npz" for number in range(4)
    ]
    seen.clear()
    interrupt_after(monkeypatch, 1000, Interrupted(), seen)
    prepare(data_config(photo_folder, tmp_path / "root"), workers=1, progress=False)
    assert 36 - 20 <= len(seen) <= 36 - 16


@pytest.mark.parametrize("damage", ["header", "middle", "directory", "cut", "empty"])
def test_a_damaged_part_is_written_again(photo_folder, data_config, prepared_photos, tmp_path, monkeypatch, damage):
    interrupt_after(monkeypatch, 12, Interrupted(), [])
    with pytest.raises(Interrupted):
        prepare(data_config(photo_folder, tmp_path / "root"), workers=1, progress=False)
    path = tmp_path / "root" / "train.part00001.npz"
    content = path.read_bytes()
    place = {"header": 8, "middle": len(content) // 2, "directory": len(content) - 12, "cut": 9, "empty": 0}[damage]
    changed = content[:place] + bytes([content[place] ^ 7]) + content[place + 1 :]
    path.write_bytes(content[:place] if damage in ("cut", "empty") else changed)
    monkeypatch.undo()
    monkeypatch.setattr(parts, "PART_FILES", 4)
    monkeypatch.setattr(writer, "CHUNK_FILES", 2)
    root = prepare(data_config(photo_folder, tmp_path / "root"), workers=1, progress=False)
    assert contents(root) == contents(prepared_photos)


def test_parts_of_other_options_or_files_are_discarded(photo_folder, data_config, tmp_path, monkeypatch):
    """Parts of another preparation are not used; after a change of a file only its part and later ones are redone."""
    photos = Path(shutil.copytree(photo_folder, tmp_path / "photos"))
    interrupt_after(monkeypatch, 20, Interrupted(), [])
    with pytest.raises(Interrupted):
        prepare(data_config(photos, tmp_path / "root"), workers=1, progress=False)
    shutil.copy(photos / "train/china/00.JPEG", photos / "train/flower/00.JPEG")
    for options in ({"short_side": 48}, {}):
        root = Path(shutil.copytree(tmp_path / "root", tmp_path / f"root{len(options)}"))
        seen: list[bytes] = []
        interrupt_after(monkeypatch, 1000, Interrupted(), seen)
        prepare(data_config(photos, root, **options), workers=1, progress=False)
        monkeypatch.undo()
        monkeypatch.setattr(parts, "PART_FILES", 4)
        monkeypatch.setattr(writer, "CHUNK_FILES", 2)
        whole = prepare(data_config(photos, tmp_path / f"whole{len(options)}", **options), workers=1, progress=False)
        assert contents(root) == contents(whole)
        assert len(seen) == (36 if options else 36 - 8)


def test_a_preparation_continues_after_an_undecodable_file_is_replaced(photo_folder, data_config, tmp_path):
    photos = Path(shutil.copytree(photo_folder, tmp_path / "photos"))
    content = (photos / "train/flower/05.JPEG").read_bytes()
    os.truncate(photos / "train/flower/05.JPEG", 1000)
    data = data_config(photos, tmp_path / "root")
    with pytest.raises(UserError, match=r"flower/05\.JPEG of the train split cannot be decoded"):
        prepare(data, workers=1, progress=False)
    assert {path.name for path in (tmp_path / "root").iterdir()} >= {"train.part00000.npz", "train.beton.partial"}
    (photos / "train/flower/05.JPEG").write_bytes(content)
    root = prepare(data, workers=1, progress=False)
    whole = prepare(data_config(photos, tmp_path / "whole"), workers=1, progress=False)
    assert contents(root) == contents(whole)


def test_a_full_disk_is_left_empty(photo_folder, data_config, tmp_path, monkeypatch):
    interrupt_after(monkeypatch, 30, OSError(errno.ENOSPC, "No space left on device"), [])
    with pytest.raises(OSError, match="No space left"):
        prepare(data_config(photo_folder, tmp_path / "root"), workers=1, progress=False)
    assert os.listdir(tmp_path / "root") == []


def test_mixed_store_is_the_same_at_every_preparation(photo_folder, data_config, tmp_path):
    roots = []
    for workers in (1, 2):
        data = data_config(photo_folder, tmp_path / str(workers), max_side=60)
        data.store.mode, data.store.jpeg_fraction = "proportion", 0.5
        roots.append(prepare(data, workers=workers, progress=False))
    assert contents(roots[0]) == contents(roots[1])


def test_share_of_a_mixed_store():
    from tencrop.data.store.encode import is_jpeg

    options = StoreOptions("proportion", None, None, 90, jpeg_fraction=0.3)
    chosen = [is_jpeg(index, options) for index in range(4000)]
    assert abs(sum(chosen) / 4000 - 0.3) < 3 * (0.3 * 0.7 / 4000) ** 0.5
    assert not any(is_jpeg(index, StoreOptions("proportion", None, None, 90, jpeg_fraction=0.0)) for index in range(99))
    assert all(is_jpeg(index, StoreOptions("proportion", None, None, 90, jpeg_fraction=1.0)) for index in range(99))
