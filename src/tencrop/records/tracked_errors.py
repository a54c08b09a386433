"""The errors of an evaluation in the run's tracker: once, however often the evaluation is asked for or interrupted.

Called by train.py and evaluate.py. `tracking/errors.json` of the run folder lists what has been logged.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from tencrop.config import Config
from tencrop.evaluation.results import result_name
from tencrop.files import atomic_write
from tencrop.records.tracking import LastingWandbLogger, build_logger, close_logger
from tencrop.text_tables import markdown_table

KEYS = ("top1_error", "top5_error")


def track_result(
    config: Config,
    run_dir: Path,
    result: dict[str, Any],
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    logger: Logger | None = None,
) -> None:
    """Log a result (the content of result.json) and the error table, unless the run's tracker has them already.

    logger: the one that is still open after a training, else one is opened here; either is closed. What was logged is
    noted last, so that an interruption before that logs it once more. In a read-only folder nothing happens.
    """
    folder, name = run_dir / "tracking", result_name(result)
    if logger is None:
        if not os.access(run_dir, os.W_OK) or _logged(folder).get(name) == _fingerprint(result):
            return
        logger = build_logger(config, run_dir)
    log_errors(logger, result)
    log_error_table(logger, columns, rows)
    close_logger(logger)
    if logger is None or (isinstance(logger, LastingWandbLogger) and logger.has_failed):
        return
    noted = _logged(folder) | {name: _fingerprint(result)}
    atomic_write(folder / "errors.json", (json.dumps(noted, indent=1) + "\n").encode())


def log_errors(logger: Logger | None, result: dict[str, Any]) -> None:
    """NAME/top1_error and NAME/top5_error of an evaluation (the content of NAME.result.json), at the weights' step."""
    if logger is not None:
        errors = {f"{result_name(result)}/{key}": result[key] for key in KEYS}
        logger.log_metrics(errors, step=result["step"])


def log_error_table(logger: Logger | None, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The final error table, as printed (tencrop.report.tables gives columns and rows)."""
    if isinstance(logger, WandbLogger):
        logger.log_table("error_table", columns=list(columns), data=[list(row) for row in rows])
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_text("error_table", markdown_table(columns, rows, left=range(len(columns))))


def _fingerprint(result: dict[str, Any]) -> list[Any]:
    """What must be the same for a result to be the one that was logged."""
    return [result["weights_sha256"], result["source_fingerprint"], *(result[key] for key in KEYS)]


def _logged(folder: Path) -> dict[str, Any]:
    """By the name of the result; empty where nothing was logged, or the note is damaged: then it is logged again."""
    try:
        found = json.loads((folder / "errors.json").read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
