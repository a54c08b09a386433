"""Fixtures that train in separate processes, forked from a server that has imported torch, so that each starts fast."""

from __future__ import annotations

import json
import multiprocessing
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tencrop.training.metric_rows import read_rows
from training import runs

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["tencrop.training.fit", "timm"])


@dataclass
class Run:
    """A run folder, and the exit codes of the processes that trained in it."""

    folder: Path
    exit_codes: list[int | None]  # of each rank; minus the signal that killed it

    @property
    def exit_code(self) -> int | None:
        return self.exit_codes[0]

    @property
    def last(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def best(self) -> Path:
        return self.folder / "checkpoints" / "best.ckpt"

    def result(self, rank: int = 0) -> dict[str, Any]:
        return json.loads((self.folder / f"result{rank}.json").read_text())

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl without images_per_s, which varies, and without the digests, which cover it."""
        rows = read_rows(self.folder / "metrics.jsonl")
        return [{key: value for key, value in row.items() if key != "images_per_s"} for row in rows]


def start(root: Path, folder: Path, *overrides: str, num_ranks: int = 1, **options: Any) -> Run:
    """Run fit() on the prepared data `root` in `folder`, in `num_ranks` processes started as by a launcher.

    A second call resumes the run. Keywords are those of `runs.train`."""
    port, ranks = str(_free_port()), []
    for rank in range(num_ranks):
        environment = {"OMP_NUM_THREADS": "1"}
        if num_ranks > 1:
            environment |= {"LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks), "NODE_RANK": "0"}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        keywords = {"environment": environment, **options}
        ranks.append(processes.Process(target=runs.train, args=(root, folder, overrides), kwargs=keywords))
        ranks[-1].start()
    for process in ranks:
        process.join()
    return Run(folder, [process.exitcode for process in ranks])


@pytest.fixture
def train(prepared_photos: Path, tmp_path: Path) -> Callable[..., Run]:
    """train("name", *overrides, ...): train on the photographs in tmp_path/name; see `start`."""
    return lambda name, *overrides, **options: start(prepared_photos, tmp_path / name, *overrides, **options)


@pytest.fixture(scope="session")
def uninterrupted(prepared_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The recipe of `runs`, trained from start to end in one process."""
    return start(prepared_photos, tmp_path_factory.mktemp("runs") / "uninterrupted")


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
