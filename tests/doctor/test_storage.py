"""Reading and writing speeds: measured on real files, judged on planted ones."""

import os

import pytest

from tencrop.config import UserError
from tencrop.data.store.manifest import open_split
from tencrop.doctor.storage import (
    CHECKPOINT_BYTES,
    ROOM_BYTES,
    Reads,
    available_memory,
    examine_runs,
    judge_reads,
    judge_runs,
    measure_reads,
)


def test_every_sample_of_a_small_store_is_read(prepared_digits, monkeypatch):
    split, sizes = open_split(prepared_digits, "train"), []
    pread = os.pread

    def counting_pread(descriptor: int, size: int, offset: int) -> bytes:
        sizes.append(size)
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", counting_pread)
    found = measure_reads(split)
    assert len(sizes) == split.num_samples and sum(sizes) == int(split.beton.payload_bytes.sum())
    assert found.bytes_per_s / found.images_per_s == pytest.approx(sum(sizes) / len(sizes))


@pytest.mark.parametrize(
    ("images_per_s", "store_bytes", "state"), [(5000, 1, "ok"), (1000, 10, "ok"), (1000, 1000, "warning")]
)
def test_a_disk_that_is_slower_than_the_decoder(images_per_s, store_bytes, state):
    reads = Reads(images_per_s, 100.0 * images_per_s, store_bytes)
    (found,) = judge_reads(reads, loader_images_per_s=2000, memory_bytes=100)
    assert found.state == state and (found.remedy is None) == (state == "ok")
    assert judge_reads(reads, loader_images_per_s=None, memory_bytes=0)[0].state == "ok"


@pytest.mark.parametrize(
    ("seconds", "free", "state"),
    [
        (1, ROOM_BYTES, "ok"),
        (1, None, "ok"),
        (30, ROOM_BYTES, "warning"),
        (200, ROOM_BYTES, "error"),
        (1, ROOM_BYTES - 1, "error"),
    ],
)
def test_the_runs_folder(seconds, free, state):
    (found,) = judge_runs(CHECKPOINT_BYTES / seconds, free)
    assert found.state == state and (found.remedy is None) == (state == "ok")


def test_nothing_is_left_in_a_runs_folder_that_does_not_exist_yet(tmp_path):
    assert examine_runs(tmp_path / "runs" / "x")[0].check == "runs folder"
    assert list(tmp_path.iterdir()) == []


def test_a_small_disk_is_an_error_and_a_read_only_one_too(small_disk, read_only):
    assert examine_runs(small_disk)[0].state == "error" and list(small_disk.iterdir()) == []
    with pytest.raises(UserError, match="the file system is read-only"):
        examine_runs(read_only(small_disk))


def test_the_memory_for_the_page_cache(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       100 kB\nMemAvailable:       40 kB\n")
    assert available_memory(meminfo) == 40 * 1024 and available_memory(tmp_path / "none") == 0
