"""What wandb would refuse of what the user typed, found before the work. Called by train.py and evaluate.py.

Whatever else keeps wandb from starting ends no run: it is tracked offline, or not at all (records/tracking.py).
"""

from __future__ import annotations

import os
from typing import Any

from tencrop.config.schema import Tracker, UserError

MODES = ("online", "offline", "shared", "disabled", "dryrun", "run")  # of WANDB_MODE, as wandb's settings have them
REFUSED = "\\#?%:"  # in the name of a project, beside the slash
MAX_PROJECT = 128  # characters
REMOVED = "csv"  # a tracker of earlier versions; its rows repeated those of metrics.jsonl
USE_INSTEAD = "the CSV tracker was removed; set tracker=none and read metrics.jsonl in the run folder"


def without_removed_tracker(tracker: Any) -> Any:
    """The `tracker` section of a run's config.yaml, with `none` in place of the removed CSV tracker."""
    if isinstance(tracker, dict) and tracker.get("name") == REMOVED:
        return tracker | {"name": "none"}
    return tracker


def check_tracker(tracker: Tracker) -> None:
    """Raises UserError for a project or a mode that wandb does not know; other trackers use neither."""
    if tracker.name != "wandb":
        return
    entity_and_project(tracker.project)
    mode = os.environ.get("WANDB_MODE")
    if mode and mode not in MODES:
        near = f"write {mode.lower()}" if mode.lower() in MODES else f"must be one of {', '.join(MODES)}"
        raise UserError(f"WANDB_MODE={mode}: {near}, or unset it")


def entity_and_project(project: str | None) -> tuple[str | None, str | None]:
    """ "team/imagenet" as ("team", "imagenet"), "imagenet" as (None, "imagenet"); UserError where it is neither."""
    entity, slash, name = (project or "").rpartition("/")
    if "/" in entity or (slash and not (entity and name)):
        raise UserError(f"tracker.project={project}: must be PROJECT or ENTITY/PROJECT")
    if found := sorted(set(REFUSED) & {*entity, *name}):
        raise UserError(f"tracker.project={project}: wandb takes no {' '.join(found)} in it; choose another name")
    if len(name) > MAX_PROJECT:
        raise UserError(f"tracker.project={project}: has {len(name)} characters, and wandb takes {MAX_PROJECT}")
    return entity or None, name if slash else project
