"""A resumable CSV logger with one number per row. Lightning's CSVLogger starts a new file when a run is resumed."""

from __future__ import annotations

import csv
import io
import re
from argparse import Namespace
from pathlib import Path
from typing import Any, TextIO

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from tencrop.files import atomic_write, name_oserror

COLUMNS = ("step", "name", "value")
STEP = re.compile("[0-9]{1,18}")  # int() of a damaged row could raise, or take long


class CsvLogger(Logger):
    """Writes rows (step, name, value).

    The first value of a name removes all rows that an earlier process wrote under this name from this step on. A killed
    run repeats the steps after its last checkpoint, and a checkpoint may be evaluated again; no step appears twice.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self._names: set[str] = set()  # names that this process has logged
        # Stays open: on NFS, close() waits for the server, which would stall a training step.
        self._file: TextIO | None = None

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: config.yaml in the run folder contains them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        step = 0 if step is None else step
        # Rewrites the file once per name and process: at the first step, and at the first evaluation.
        if new := metrics.keys() - self._names:
            self._drop(new, step)
            self._names |= new
        if self._file is None:
            self._file = self.path.open("a", newline="")
        with name_oserror(self.path):
            csv.writer(self._file).writerows([step, name, float(value)] for name, value in sorted(metrics.items()))
            self._file.flush()  # visible to `tail -f`; no fsync, which would cost milliseconds in every logged step

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            with name_oserror(self.path):
                file.close()

    def _drop(self, names: set[str], step: int) -> None:
        self.finalize("rewritten")
        rows: list[list[str]] = []
        if self.path.exists():
            # Line by line, since a power cut may leave a damaged last line with an open quote or NULs.
            with self.path.open(newline="", errors="replace") as file:
                rows = [row for line in file if len(line) < 1000 for row in csv.reader([line])]
        rows = [row for row in rows if len(row) == len(COLUMNS) and STEP.fullmatch(row[0])]
        kept = [row for row in rows if int(row[0]) < step or row[1] not in names]
        text = io.StringIO(newline="")
        csv.writer(text).writerows([COLUMNS, *kept])
        atomic_write(self.path, text.getvalue().encode())
