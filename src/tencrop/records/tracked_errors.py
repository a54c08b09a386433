"""Logs the error rates of an evaluation to the run's tracker, once, however often it is repeated or interrupted.

`tracking/errors.json` in the run folder lists the results that have been logged.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from pytorch_lightning.loggers import Logger

from tencrop.config import Config
from tencrop.config.documents import Document
from tencrop.evaluation.results import result_name
from tencrop.files import atomic_write
from tencrop.records.tracker import Tracker
from tencrop.records.tracking import build_logger, close_logger

KEYS = ("top1_error", "top5_error")


def track_result(
    config: Config,
    run_dir: Path,
    result: Document,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    logger: Logger | None = None,
) -> None:
    """Log a result (the content of result.json) and the error table, unless the tracker has them already.

    After a training, its report.html is logged as well.

    logger: the one still open after a training; None opens a new one. Either is closed here. errors.json is written
    last, so an interruption before that logs the result again rather than never. Does nothing in a read-only folder.
    """
    folder, name, is_after_training = run_dir / "tracking", result_name(result), logger is not None
    if logger is None:
        if not os.access(run_dir, os.W_OK) or _logged(folder).get(name) == _fingerprint(result):
            return
        logger = build_logger(config, run_dir)
    log_errors(logger, result)
    log_error_table(logger, columns, rows)
    # The page of the training lacks what a later evaluation has found.
    if isinstance(logger, Tracker) and is_after_training and (page := run_dir / "report.html").is_file():
        logger.log_page(page)
    close_logger(logger)
    if logger is None or (isinstance(logger, Tracker) and logger.has_failed):
        return  # nothing was logged: the next evaluation tries again
    # Read again just before writing: another evaluation of the run may have logged its own result meanwhile.
    noted = _logged(folder) | {name: _fingerprint(result)}
    atomic_write(folder / "errors.json", (json.dumps(noted, indent=1) + "\n").encode())


def log_errors(logger: Logger | None, result: Document) -> None:
    """Log NAME/top1_error and NAME/top5_error of an evaluation (NAME.result.json) at the step of its weights."""
    if logger is not None:
        # Named by the evaluation, so that center and ten_crop of one run are separate curves.
        errors = {f"{result_name(result)}/{key}": result[key] for key in KEYS}
        logger.log_metrics(errors, step=result["step"])


def log_error_table(logger: Logger | None, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Log the final error table as printed; tencrop.report.tables produces columns and rows."""
    if isinstance(logger, Tracker):
        logger.log_rows("error_table", columns, rows)


def _fingerprint(result: Document) -> list[object]:
    """Values that identify a result: if all of them are equal, it has been logged."""
    return [result["weights_sha256"], result["source_fingerprint"], *(result[key] for key in KEYS)]


def _logged(folder: Path) -> dict[str, object]:
    """Fingerprints of logged results by name; empty if errors.json is missing or damaged, so all are logged again."""
    path = folder / "errors.json"
    try:
        found = json.loads(path.read_text() if path.is_file() else "{}")  # reading a named pipe would block forever
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
