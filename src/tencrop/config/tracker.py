"""Checks the tracker's settings before training starts, rather than when wandb is opened.

Only the user's mistakes stop a command. If wandb fails to start for any other reason, the run is tracked offline or not
at all (records/wandb_tracker.py).
"""

from __future__ import annotations

import os
from importlib.util import find_spec

from tencrop.config.schema import Tracker, UserError

MODES = ("online", "offline", "shared", "disabled", "dryrun", "run")  # valid WANDB_MODE, as in wandb's settings
REFUSED = "\\#?%:"  # characters that wandb refuses in the name of a project, besides the slash
MAX_PROJECT = 128  # characters
REMOVED = "csv"  # a tracker of earlier versions; its rows repeated those of metrics.jsonl
USE_INSTEAD = "the CSV tracker was removed; set tracker=none and read metrics.jsonl in the run folder"


def without_removed_tracker(tracker: object) -> object:
    """The `tracker` section of a run's config.yaml, with `none` in place of the removed CSV tracker."""
    if isinstance(tracker, dict) and tracker.get("name") == REMOVED:
        return tracker | {"name": "none"}
    return tracker


def check_tracker(tracker: Tracker) -> None:
    """Raise UserError for an invalid wandb project or mode, and for MLflow if it is not installed."""
    if tracker.name == "mlflow" and find_spec("mlflow") is None:
        remedy = "install it with pip install 'tencrop[mlflow]', or choose tracker=tensorboard, wandb or none"
        raise UserError(f"tracker=mlflow: MLflow is not installed; {remedy}")
    if tracker.name != "wandb":
        return
    entity_and_project(tracker.project)
    mode = os.environ.get("WANDB_MODE")
    if mode and mode not in MODES:
        near = f"write {mode.lower()}" if mode.lower() in MODES else f"must be one of {', '.join(MODES)}"
        raise UserError(f"WANDB_MODE={mode}: {near}, or unset it")


def entity_and_project(project: str | None) -> tuple[str | None, str | None]:
    """Split "team/imagenet" into ("team", "imagenet"), and "imagenet" into (None, "imagenet"); UserError if invalid."""
    entity, slash, name = (project or "").rpartition("/")
    if "/" in entity or (slash and not (entity and name)):
        raise UserError(f"tracker.project={project}: must be PROJECT or ENTITY/PROJECT")
    if found := sorted(set(REFUSED) & {*entity, *name}):
        raise UserError(f"tracker.project={project}: wandb does not allow {' '.join(found)}; choose another name")
    if len(name) > MAX_PROJECT:
        raise UserError(
            f"tracker.project={project}: has {len(name)} characters, and wandb allows {MAX_PROJECT}; shorten it"
        )
    return entity or None, name if slash else project
