"""Whether the tracker can be used from here."""

from __future__ import annotations

import os

from tencrop.config import Tracker
from tencrop.config.tracker import check_tracker
from tencrop.doctor.finding import Finding, ok, warning
from tencrop.records.redaction import redact_text
from tencrop.records.tracker import answers

OFFLINE = (
    "wandb login, or copy tracking/ to a machine with network and type the wandb sync command that train.py prints"
)
NO_SERVER = "start the server, or unset MLFLOW_TRACKING_URI to track into the run folder"


def examine_tracker(tracker: Tracker) -> list[Finding]:
    """Raises UserError for an invalid project or WANDB_MODE."""
    check_tracker(tracker)
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if tracker.name == "mlflow" and uri.startswith("http"):
        if not answers(uri):
            return [warning("tracker", redact_text(f"mlflow: {uri} does not answer"), NO_SERVER)]
        return [ok("tracker", redact_text(f"mlflow: {uri} answers"))]
    if tracker.name != "wandb":
        return [ok("tracker", "none" if tracker.name == "none" else f"{tracker.name} writes into the run folder")]
    import wandb

    from tencrop.records.wandb_tracker import why_offline

    # This reads WANDB_* and wandb's settings files, as a training would; it creates no run.
    settings = wandb.setup(settings=wandb.Settings(silent=True)).settings
    if settings.mode == "disabled":
        return [ok("tracker", "wandb is disabled (WANDB_MODE)")]
    return judge_wandb(why_offline(settings), settings.base_url, is_chosen=settings.mode in ("offline", "dryrun"))


def judge_wandb(reason: str | None, url: str, *, is_chosen: bool) -> list[Finding]:
    """reason: why a run would be tracked offline, None if it would not; is_chosen: the user asked for it."""
    if reason is None:
        return [ok("tracker", f"wandb: {url} answers")]
    if is_chosen:
        return [ok("tracker", f"wandb: offline, {reason}")]
    return [warning("tracker", f"wandb: would be offline ({reason})", OFFLINE)]
