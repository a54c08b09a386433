"""The order of copies and waits, on streams that only write down what they are asked for; there is no GPU here."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tencrop.data.augmentation.batch import Batch
from tencrop.data.loading import copy_ahead
from tencrop.data.loading.copy_ahead import copied_ahead, tensors_of
from tencrop.training.data_module import DataModule

CUDA = torch.device("cuda", 0)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Streams named copying and computing; what is asked of them, in order."""
    lines: list[str] = []
    events: list[str] = []

    class Stream:
        def __init__(self, device: Any = None, name: str = "copying"):
            self.name = name

        def record_event(self) -> str:
            events.append(f"event {len(events)}")
            lines.append(f"{events[-1]} on {self.name}")
            return events[-1]

        def wait_event(self, event: str) -> None:
            lines.append(f"{self.name} waits for {event}")

    current = [Stream(name="computing")]

    @contextmanager
    def stream(one: Stream) -> Iterator[None]:
        current.append(one)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: current[-1])
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: lines.append(f"kept for {stream.name}"))
    return lines


def batches(log: list[str], count: int) -> Generator[Batch, None, None]:
    for number in range(count):
        log.append(f"load {number} on {torch.cuda.current_stream().name}")  # type: ignore[attr-defined]
        index = np.array([number])
        params = {"partners": torch.tensor([0]), "erased_boxes": index}
        yield Batch(torch.zeros(1), torch.tensor([number]), index, index, index, index, params, index)


def move_of(log: list[str]):
    def move(batch: Batch) -> Batch:
        log.append(f"copy {batch.index[0]} on {torch.cuda.current_stream().name}")  # type: ignore[attr-defined]
        return batch

    return move


def test_the_next_copy_is_queued_before_a_batch_is_used(log):
    for batch in copied_ahead(batches(log, 3), CUDA, move_of(log), copying=torch.cuda.Stream()):
        log.append(f"step {batch.index[0]}")
    kept = ["kept for computing"] * 3  # images, labels and the parameter that is a tensor
    assert log == [
        "load 0 on copying", "copy 0 on copying", "event 0 on copying",
        "load 1 on copying", "copy 1 on copying", "event 1 on copying",
        "computing waits for event 0", *kept, "step 0",
        "load 2 on copying", "copy 2 on copying", "event 2 on copying",
        "computing waits for event 1", *kept, "step 1",
        "computing waits for event 2", *kept, "step 2",
    ]  # fmt: skip


def test_closing_it_closes_the_loaders_iterator(log):
    source = batches(log, 5)
    ahead = copied_ahead(source, CUDA, move_of(log), copying=torch.cuda.Stream())
    next(ahead)
    ahead.close()
    assert next(source, None) is None and "load 2 on copying" not in log


def test_no_batches(log):
    assert list(copied_ahead(batches(log, 0), CUDA, move_of(log), copying=torch.cuda.Stream())) == []


def test_only_tensors_are_copied(log):
    assert [len(tensor) for tensor in tensors_of(next(batches(log, 1)))] == [1, 1, 1]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_data_module_copies_ahead_on_a_gpu_only(device, log, monkeypatch):
    data = DataModule.__new__(DataModule)
    data.copying_stream = cache(lambda device: torch.cuda.Stream(device))
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))  # type: ignore[assignment]
    monkeypatch.setattr(data, "transfer_batch_to_device", lambda batch, device, _: move_of(log)(batch))
    source = batches(log, 2)
    found = data._on_device(source)
    if device == "cpu":
        assert found is source and not log
    else:
        assert [batch.index[0] for batch in found] == [0, 1]
        assert found is not source and "copy 1 on copying" in log
        assert len(list(data._on_device(batches(log, 2)))) == 2
        assert data.copying_stream.cache_info().misses == 1  # one for all epochs
    assert copy_ahead.torch.cuda.current_stream().name == "computing"  # type: ignore[attr-defined]
