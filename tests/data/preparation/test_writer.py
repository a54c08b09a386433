import time

import pytest

from tencrop.data.preparation import writer
from tencrop.data.preparation.prepare import prepare
from tencrop.data.preparation.writer import CHUNK_BYTES, CHUNK_FILES, _tasks, map_in_order
from tencrop.data.sources.source import SourceFile


def test_results_come_in_order_whatever_the_threads_do():
    def slow_first(number: int) -> int:
        time.sleep(0.02 if number % 7 == 0 else 0)
        return number * number

    expected = [(number, number * number) for number in range(40)]
    for num_threads in (1, 3):
        assert list(map_in_order(slow_first, range(40), num_threads=num_threads)) == expected
    assert list(map_in_order(slow_first, [], num_threads=2)) == []


def test_threads_run_only_so_far_ahead():
    started: list[int] = []
    results = map_in_order(started.append, range(1000), num_threads=2)
    for _ in range(3):
        next(results)
    assert len(started) <= 3 + 4 * 2
    results.close()
    assert len(started) < 20


def test_an_error_is_raised_in_the_order_of_the_items():
    results = map_in_order(lambda number: 1 // (3 - number), range(100), num_threads=2)
    assert [result for _, result in (next(results), next(results), next(results))] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_a_task_has_few_files_if_they_are_large():
    sizes = [1000] * 40 + [CHUNK_BYTES + 1] * 3 + [CHUNK_BYTES // 3] * 7 + [1000]
    files = [SourceFile(f"a/{rank}", 0, num_bytes) for rank, num_bytes in enumerate(sizes)]
    tasks = list(_tasks(files, range(5, len(files))))
    assert [rank for task in tasks for rank in task] == list(range(5, len(files)))
    assert max(map(len, tasks)) == CHUNK_FILES == 16
    for task in tasks:
        assert len(task) == 1 or sum(sizes[rank] for rank in task) <= CHUNK_BYTES
    assert [len(task) for task in tasks] == [16, 16, 3, 1, 1, 1, 3, 3, 2]


def test_a_store_does_not_depend_on_its_tasks(photo_folder, data_config, prepared_photos, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "CHUNK_BYTES", 5000)
    root = prepare(data_config(photo_folder, tmp_path / "root"), workers=2, progress=False)
    for name in ("train.beton", "val.beton", "mean_image.npy", "manifest.json"):
        assert (root / name).read_bytes() == (prepared_photos / name).read_bytes()
