"""What the trackers of a run have in common: each metric is logged once per step, and a failure stops no training.

A resumed run computes the steps after its checkpoint again, and a killed one may have lost what its tracker had not yet
written. So training logs all rows of metrics.jsonl again when it resumes, and the tracker skips those that it has.
"""

from __future__ import annotations

import json
import re
import ssl
import sys
import threading
import urllib.error
import urllib.request
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tencrop.config import UserError
from tencrop.config.documents import read_json
from tencrop.files import atomic_write
from tencrop.records.redaction import redact_text

ANSWER_SECONDS = 3.0  # time for a server to answer, before the run is tracked without it
MAX_REASON = 200  # characters


class Tracker(ABC):
    """Base of our loggers, beside a class of Lightning's."""

    package: str
    has_failed = False

    def __init__(self, last_steps: Mapping[str, int]):
        self._last_steps = dict(last_steps)  # by metric: the last step that the tracked run has

    def select_new(self, metrics: Mapping[str, float], step: int | None) -> dict[str, float]:
        """The metrics that the tracked run lacks at `step`; they count as logged from now on."""
        if step is None:
            return dict(metrics)
        new = {key: value for key, value in metrics.items() if step > self._last_steps.get(key, -1)}
        self._last_steps |= dict.fromkeys(new, step)
        return new

    def attempt(self, call: Callable[..., object], *args: object, **options: object) -> None:
        """Call unless an earlier call failed. The first failure prints one line; nothing is tracked afterwards."""
        if self.has_failed:
            return
        try:
            call(*args, **options)
        except Exception as error:  # from the tracker's package, or any that it uses
            self.has_failed = True
            print(f"{self.package}: failed ({reason_of(error)}); the run continues without it", file=sys.stderr)

    @abstractmethod
    def log_pictures(self, key: str, pixels: NDArray[np.uint8], step: int) -> None:
        """pixels: [N, H, W, 3]."""

    @abstractmethod
    def log_rows(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Log a table of text, in place of an earlier one of the same key."""

    @abstractmethod
    def log_page(self, path: Path) -> None:
        """Log an HTML page."""

    @abstractmethod
    def close(self, *, is_complete: bool) -> None:
        """Write what is pending. A resumed run can be tracked further afterwards."""


def reason_of(error: Exception) -> str:
    """The message of an error in one line, without credentials."""
    # pydantic appends the value, which may be a secret
    text = re.sub(r" \[type=.*", "", " ".join(str(error).split()))
    return redact_text(text or type(error).__name__)[:MAX_REASON]


def tracked_id(run_dir: Path) -> str:
    """The id of the tracked run: drawn once, then read from the run folder, so that a resumed run continues it."""
    path = run_dir / "tracking" / "run.json"
    if not path.exists():
        atomic_write(path, (json.dumps({"id": uuid.uuid4().hex[:12]}) + "\n").encode())
    what, remedy = "the id of a tracked run", "delete it to begin another tracked run"
    run_id = read_json(path, {"id": str}, what=what, remedy=remedy)["id"]
    if not re.fullmatch("[A-Za-z0-9]{1,64}", run_id):  # becomes part of URLs and folder names
        raise UserError(f"{path}: contains no valid run id; {remedy}")
    return run_id


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots as on the command line."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def answers(url: str, seconds: float = ANSWER_SECONDS) -> bool:
    """Whether an HTTP server answers, through the proxy if one is set. Any HTTP status counts as an answer.

    Runs in a thread, since `timeout` does not cover the DNS lookup.
    """
    answered = threading.Event()
    url = re.sub("://[^/@]*@", "://", url)  # urllib would take user:password for a part of the host's name

    def ask() -> None:
        try:
            urllib.request.urlopen(url, timeout=seconds).close()
            answered.set()
        except urllib.error.HTTPError:  # such as 403: a server is there
            answered.set()
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLError):  # of a certificate that the tracker's package may accept
                answered.set()
        except (OSError, ValueError):  # no connection, or an invalid URL
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()
