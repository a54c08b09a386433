"""A short run of bench/damaged_files.py, which damages more files, and what its outcomes mean."""

import random
import shutil
from pathlib import Path

import pytest
from damaged_files import WRONG, read_all, read_damaged, table
from damages import DAMAGES, damaged
from file_kinds import Kind, kinds, train_and_evaluate

# By kind; of all others, damage is refused, or is where nothing is read from.
INSTEAD = {"last.ckpt, resumed": "previous", "scores, evaluated": "recomputed"}


def test_every_kind_of_damage_to_every_kind_of_file_is_detected(prepared_digits, tmp_path, capsys):
    shutil.copytree(prepared_digits, tmp_path / "digits")
    planned = kinds(train_and_evaluate(tmp_path))
    found = read_all(planned, len(DAMAGES) * len(planned), seed=0)
    assert not any(counts[outcome] for counts in found.values() for outcome in WRONG), capsys.readouterr().err
    for kind in planned:
        counts = found[kind.name]
        assert counts.total() == len(DAMAGES)
        if kind.has_checksum:
            assert counts.keys() <= {INSTEAD.get(kind.name, "refused"), "identical"}
            assert counts["identical"] < len(DAMAGES) / 2
        assert kind.has_checksum or counts["refused"] >= 3, f"{kind.name}: no content, another kind's, and code"


@pytest.fixture
def read_file(tmp_path):
    """read_file(read, ...): the outcomes of eight damages to a file of 64 bytes."""
    path, other = tmp_path / "file", tmp_path / "other"
    path.write_bytes(bytes(range(64)))
    other.write_bytes(b"another file")

    def read(reader, **options):
        counts = read_damaged(Kind("file", path, reader, **options), len(DAMAGES), others=[path, other], seed=0)
        assert path.read_bytes() == bytes(range(64))
        return counts

    return read


def fail(path: Path) -> bytes:
    if path.read_bytes() != bytes(range(64)):
        raise KeyError("damaged")
    return path.read_bytes()


def obey(path: Path) -> int:
    if b"mkdir" in path.read_bytes():
        path.with_name("executed").mkdir()
    return 0


def test_the_outcomes(read_file):
    assert read_file(Path.read_bytes) == {"silent": 8}
    assert read_file(Path.read_bytes, has_checksum=False) == {"unchecked": 8}
    assert read_file(lambda path: path.read_bytes() == bytes(range(64)), previous=False) == {"previous": 8}
    assert read_file(lambda path: 0) == {"identical": 8}
    assert read_file(lambda path: 0 if path.read_bytes() == bytes(range(64)) else None) == {"recomputed": 8}
    assert read_file(fail) == {"traceback": 8}
    assert read_file(obey) == {"identical": 7, "executed": 1}


def test_each_damage_changes_the_content(tmp_path):
    content = bytes(range(256)) * 40
    changed = list(damaged(content, [b"foreign"], tmp_path / "marker", 4 * len(DAMAGES), random.Random(0)))
    assert [name for name, _ in changed] == [*DAMAGES] * 4
    for name, one in changed:
        bits = sum((a ^ b).bit_count() for a, b in zip(content, one, strict=False))
        assert one != content and (name != "flip" or bits == 1)
        assert name not in ("flip", "swap", "overwrite") or len(one) == len(content)
        assert name != "swap" or sorted(one) == sorted(content)
    assert next(one for name, one in changed if name == "cut") == b""


def test_the_table(read_file):
    lines = table({"a": read_file(fail), "b": read_file(obey)})
    assert [line.split() for line in lines[1:]] == [
        ["a", "8", *"00000008"], ["b", "8", *"00070010"], ["all", "16", *"00070018"],
    ]  # fmt: skip
