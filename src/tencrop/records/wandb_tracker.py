"""Weights & Biases: online if logged in and reachable, otherwise offline, in files that `wandb sync` uploads.

wandb is configured not to collect anything by itself: no console output, code, git remote or command line.
"""

from __future__ import annotations

import json
import logging
import netrc
import os
import shlex
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pytorch_lightning.loggers import WandbLogger

from tencrop.config import Config, UserError
from tencrop.config.launcher import is_first_process
from tencrop.config.tracker import entity_and_project
from tencrop.records.redaction import redact_text
from tencrop.records.tracker import Tracker, answers, reason_of, tracked_id

if TYPE_CHECKING:
    import wandb

INIT_SECONDS = 10.0  # time for opening the run on a server that answers
UPLOAD_SECONDS = 30.0  # time for uploads at the end of a job; the rest stays on disk for `wandb sync`
DATA_DIR_IS_SET = "WANDB_DATA_DIR" in os.environ  # by the user, as later runs of this process find ours
GLOBAL_STEP = "trainer/global_step"  # Lightning's name of the optimizer step


class WandbTracker(Tracker, WandbLogger):
    """A wandb logger whose failure does not stop the run, for example when wandb's service process is killed."""

    package = "wandb"

    def __init__(self, run: wandb.Run, folder: Path, last_steps: Mapping[str, int], next_row: int):
        """next_row: the number of rows that earlier sessions have logged."""
        Tracker.__init__(self, last_steps)
        WandbLogger.__init__(self, experiment=run, save_dir=folder)
        self._next_row = next_row

    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        self.attempt(super().log_hyperparams, params)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if not (new := self.select_new(metrics, step)):
            return
        if step is not None:
            new[GLOBAL_STEP] = step
        # Offline, wandb would number the rows of each session from 0, and `wandb sync` uploads all sessions to one run.
        self.attempt(self.experiment.log, new, step=self._next_row, commit=True)
        self._next_row += 1

    def log_pictures(self, key: str, pixels: NDArray[np.uint8], step: int) -> None:
        self.attempt(self.log_image, key, list(pixels), step=step)

    def log_rows(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self.attempt(self.log_table, key, columns=list(columns), data=[list(row) for row in rows])

    def log_page(self, path: Path) -> None:
        self.attempt(self._log_page, path)

    def _log_page(self, path: Path) -> None:
        import wandb

        page = wandb.Html(path.read_text(encoding="utf-8"))
        self.log_metrics({path.stem: page})  # type: ignore[dict-item]

    def close(self, *, is_complete: bool) -> None:
        if is_first_process():
            self.attempt(self.experiment.finish)


def open_wandb(config: Config, run_dir: Path, *, for_training: bool, say: Callable[[str], None]) -> WandbTracker | None:
    """None if wandb is disabled or fails to start; `say` receives the reason."""
    try:
        return _started_tracker(config, run_dir, for_training, say)
    except UserError:  # invalid project, or damaged id of the tracked run
        raise
    except Exception as error:  # from pydantic, wandb, or the standard library (a user id without a name)
        say(f"wandb: not tracked ({reason_of(error)}); the run continues without it")
        return None


def _started_tracker(
    config: Config, run_dir: Path, for_training: bool, say: Callable[[str], None]
) -> WandbTracker | None:
    _stage_files_in(run_dir / "tracking")
    import wandb

    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # without network, wandb's telemetry logs errors
    # Resolves environment variables and settings files as wandb does, without opening a run.
    settings = wandb.setup(settings=wandb.Settings(silent=True)).settings
    if settings.mode == "disabled":
        say("wandb: disabled (WANDB_MODE)")
        return None
    rows = _logged_rows(run_dir)  # before a new file is begun
    reason = why_offline(settings)
    run = None
    if reason is None:
        try:
            run = _open_run(config, run_dir, mode="online")
            say(f"wandb: {run.url}")
        except Exception as error:  # wandb's exceptions have no common base class
            wandb.teardown()  # otherwise the id stays in use, and the offline run below fails too
            reason = f"the server did not take the run: {redact_text(str(error)).splitlines()[0]}"
    if run is None:
        run = _open_run(config, run_dir, mode="offline")
        # The folder of all sessions: wandb uploads those of one run in order, and skips those that it has uploaded.
        folder = shlex.quote(os.path.relpath(Path(run.dir).parent.parent))
        why = redact_text(reason or "")
        say(f"wandb: offline ({why}); upload with: wandb sync {folder}; or look: wandb leet {folder}")
    # All charts over optimizer steps. wandb's default x-axis counts its own log calls.
    run.define_metric(GLOBAL_STEP)
    run.define_metric("*", step_metric=GLOBAL_STEP, step_sync=True)
    last_steps: dict[str, int] = {}
    for row in rows if for_training else []:
        # Images have several keys each: input._type, input.count and others.
        last_steps |= dict.fromkeys((key.split(".")[0] for key in row), row.get(GLOBAL_STEP, -1))
    next_row = max([run.starting_step, *(row["_step"] + 1 for row in rows)])
    return WandbTracker(run, run_dir / "tracking", last_steps, next_row)


def _stage_files_in(folder: Path) -> None:
    """Have wandb stage the tables that it uploads in `folder`, unless the user has chosen a place.

    Its own is the home folder, where it fails at the first table if that cannot be written. A temporary one would not
    do: an offline run names the staged files, and `wandb sync` uploads them from there.
    """
    if not DATA_DIR_IS_SET:
        os.environ["WANDB_DATA_DIR"] = str(folder.absolute() / "staged")


def _open_run(config: Config, run_dir: Path, *, mode: Literal["online", "offline"]) -> wandb.Run:
    import wandb
    from wandb.sdk.lib.import_hooks import unregister_all_post_import_hooks

    entity, project = entity_and_project(config.tracker.project)
    # Most of these switch off collection: console output, git remote and diff, source code, job and notebook metadata,
    # the command line with its arguments, and the list of packages. Our own records have these, redacted.
    settings = wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        label_disable=True,
        save_code=False,
        x_disable_meta=True,
        x_save_requirements=False,
        init_timeout=INIT_SECONDS,
        finish_timeout=UPLOAD_SECONDS,
    )
    run = wandb.init(
        dir=run_dir / "tracking",
        id=tracked_id(run_dir),
        entity=entity,
        project=project,
        name=f"{run_dir.parent.name}-{run_dir.name}",
        group=run_dir.parent.name,
        mode=mode,
        # Offline, wandb would ignore it with a warning.
        resume="allow" if mode == "online" else None,
        settings=settings,
    )
    # wandb's import hooks report which packages are imported later, and raise in a forked process that imports one.
    unregister_all_post_import_hooks()
    return run


def _logged_rows(run_dir: Path) -> list[dict[str, Any]]:
    """The rows that earlier sessions have logged, read from wandb's local files, also those of online sessions.

    A killed session loses rows: wandb writes its file late (all rows of a first minute were lost by kill -9).
    """
    run_id = tracked_id(run_dir)
    rows = []
    found = (run_dir / "tracking" / "wandb").glob(f"*run-*-{run_id}/run-{run_id}.wandb")
    for path in sorted(found, key=lambda path: path.parent.name.removeprefix("offline-")):  # then by time
        # wandb's own reader; it reads an incomplete file up to its end. -P: not the modules of the current folder.
        command = [sys.executable, "-P", "-m", "wandb", "leet", "inspect", "--json", str(path)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:  # without its rows, the run would be logged twice
            raise OSError(f"{path} cannot be read: {result.stderr.strip().splitlines()[-1:]}")
        records = [json.loads(line) for line in result.stdout.splitlines()]
        rows += [record["history"]["item"] for record in records if record["type"] == "history"]
    return rows


def why_offline(settings: wandb.Settings) -> str | None:
    """None if the run can be online, otherwise the reason in a few words."""
    if settings.mode in ("offline", "dryrun"):
        return "set in WANDB_MODE or wandb's settings"
    if not _is_logged_in(settings):
        return "not logged in"
    # Checked first, since wandb.init would wait INIT_SECONDS for a server that does not answer.
    if not answers(settings.base_url):
        return f"{settings.base_url} does not answer"
    return None


def _is_logged_in(settings: wandb.Settings) -> bool:
    # wandb.login() would ask for a key on a terminal, and wait.
    if settings.api_key or settings.identity_token_file:
        return True
    host = settings.base_url.split("://")[-1].split("/")[0]
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
