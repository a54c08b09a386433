"""A measured loader in a process of its own: `Process` starts it and asks, `serve` answers, in lines of JSON.

Only the standard library and NumPy, so that loaders in another virtual environment (other_peers.py) can use it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def serve(peer: Any) -> None:
    """Main loop of a measured process: runs one epoch at once, then whatever is requested on its standard input."""
    for number, num_images in enumerate(peer.epoch(0)):
        if number == 0:
            answer({"images": num_images})
    answer({})
    for line in sys.stdin:
        question = json.loads(line)
        if question["do"] == "drain":
            peer.drain()
            answer({})
        elif question["do"] == "epoch":
            answer({"images": sum(peer.epoch(question["number"]))})
        else:
            boxes = np.array(question["boxes"])
            crops = [peer.cut(index, box) for index, box in zip(question["index"], boxes, strict=True)]
            np.save(question["path"], np.stack(crops))
            answer({})


def answer(facts: dict[str, Any]) -> None:
    print(json.dumps(facts), flush=True)


class Process:
    """A peer in a fresh process that has run its first epoch.

    first_batch_s: seconds from the start of the process to its first batch
    most_memory: megabytes, the peak until the end of the first epoch
    """

    def __init__(self, command: Sequence[str]) -> None:
        start = time.perf_counter()
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.most_memory = 0.0
        is_over = threading.Event()
        watch = threading.Thread(target=self.watch_memory, args=[is_over], daemon=True)  # daemon: in case the peer dies
        watch.start()
        self.answer()
        self.first_batch_s = time.perf_counter() - start
        self.answer()
        is_over.set()
        watch.join()

    def rates(self, number: int) -> tuple[float, float]:
        """(images per second of wall-clock time, images per second of CPU time incl. workers) in one round."""
        self.ask({"do": "drain"})
        wall, processor = time.perf_counter(), self.processor_s()
        num_images = self.ask({"do": "epoch", "number": number})["images"]
        rates = num_images / (time.perf_counter() - wall), num_images / (self.processor_s() - processor)
        self.wait_until_idle()
        return rates

    def wait_until_idle(self) -> None:
        """Wait while the process prepares batches of its next epoch, at most 10 s: the next peer needs the cores."""
        for _ in range(50):
            before = self.processor_s()
            time.sleep(0.2)
            if self.processor_s() - before < 0.02:
                return

    def cut(self, index: Sequence[int], boxes: np.ndarray) -> np.ndarray:
        """Crops uint8 [N, H, W, 3] of these images by the code that the peer crops with, at boxes int32 [N, 4]."""
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "crops.npy")
            self.ask({"do": "cut", "index": list(index), "boxes": boxes.tolist(), "path": path})
            return np.load(path)

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(map(str, self.process.args))}: died")  # type: ignore[arg-type]
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def watch_memory(self, is_over: threading.Event) -> None:
        while not is_over.wait(0.05):
            self.most_memory = max(self.most_memory, sum(self.of_each(memory_mb)))

    def processor_s(self) -> float:
        return sum(self.of_each(lambda pid, _: processor_s(pid)))

    def of_each(self, measure: Callable[[int, bool], float]) -> list[float]:
        """`measure(pid, is_worker)` of the process and of its workers that are still alive."""
        values, pid = [], self.process.pid
        try:
            workers = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in task_children(task)]
        except OSError:
            workers = []
        for one in (pid, *workers):
            try:
                values.append(measure(one, one != pid))
            except OSError:  # it has ended
                continue
        return values


def task_children(task: Path) -> list[str]:
    return (task / "children").read_text().split()


def processor_s(pid: int) -> float:
    """User and system time of all threads so far, including finished ones; in steps of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mb(pid: int, is_worker: bool) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    # Workers share pages with their parent through fork, so count only their private ones.
    kilobytes = {line.split()[0]: int(line.split()[1]) for line in lines}
    return (kilobytes["Private_Clean:"] + kilobytes["Private_Dirty:"] if is_worker else kilobytes["Rss:"]) / 1000
