"""Opens the experiment tracker: wandb (the default), TensorBoard, or none.

All files of a tracker are in tracking/ of the run folder. The id of the tracked run is stored there too, so that a
resumed run continues it. Credentials are redacted before anything is tracked (redaction.py), and wandb is configured
not to collect anything by itself: no console output, code, git remote or command line.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import netrc
import os
import re
import shlex
import sys
import threading
import urllib.error
import urllib.request
import uuid
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from torch import Tensor, nn

from tencrop.config import Config, UserError
from tencrop.config.documents import read_json
from tencrop.config.launcher import is_first_process
from tencrop.config.tracker import entity_and_project
from tencrop.config.writable import check_writable
from tencrop.files import atomic_write
from tencrop.records.redaction import redact_text, redact_values
from tencrop.records.run_folder import read_run_manifest

if TYPE_CHECKING:
    import wandb

ANSWER_SECONDS = 3.0  # time for the server to answer, before the run is tracked offline
INIT_SECONDS = 10.0  # time for opening the run on a server that answers
MAX_REASON = 200  # characters
UPLOAD_SECONDS = 30.0  # time for uploads at the end of a job; the rest stays on disk for `wandb sync`


def build_logger(config: Config, run_dir: Path, say: Callable[[str], None] = print) -> Logger | None:
    """Open the logger named by `config.tracker` and log the run's configuration; None for `none`.

    wandb is online if there is an API key and the server answers within ANSWER_SECONDS, otherwise offline. If it does
    not start at all, nothing is tracked (None): a tracker must never stop a training. `say` receives one line with the
    run's location and how to upload it, or the reason. WANDB_MODE and wandb's own settings apply.
    """
    folder = run_dir / "tracking"
    if config.tracker.name == "none":
        return None
    logger: Logger | None
    if not is_first_process():
        return WandbLogger(save_dir=folder, offline=True)  # never opened, since Lightning logs on rank 0 only
    folder.mkdir(parents=True, exist_ok=True)
    if config.tracker.name == "wandb":
        logger = _wandb_logger(config, run_dir, say)
    else:
        assert config.tracker.name == "tensorboard", config.tracker.name
        # Lightning's default would create a new folder version_N at every resume.
        logger = TensorBoardLogger(save_dir=run_dir, name="tracking", version="")
        say(f"tensorboard: tensorboard --logdir {folder}")
    if logger is not None:
        logger.log_hyperparams(_facts(config, run_dir))
    return logger


class FaultTolerantWandbLogger(WandbLogger):
    """A wandb logger whose failure does not stop the run.

    If wandb's service process is killed, for example when memory runs out, prints one line and tracks nothing more.
    """

    has_failed = False

    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        self._attempt(super().log_hyperparams, params)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._attempt(super().log_metrics, metrics, step)

    def log_image(self, key: str, images: list[Any], step: int | None = None, **options: Any) -> None:
        self._attempt(super().log_image, key, images, step, **options)

    def log_table(self, key: str, *args: Any, **options: Any) -> None:
        self._attempt(super().log_table, key, *args, **options)

    def finish(self) -> None:
        self._attempt(self.experiment.finish)

    def _attempt(self, call: Callable[..., object], *args: object, **options: object) -> None:
        if self.has_failed:
            return
        try:
            call(*args, **options)
        except Exception as error:  # wandb's exceptions have no common base class
            self.has_failed = True
            reason = redact_text(str(error) or type(error).__name__)
            print(f"wandb: failed ({reason}); the run continues without it", file=sys.stderr)


class InputImages(Callback):
    """Logs the first images of a run as the network receives them, after augmentation and normalization.

    Taken from the network's input in the first forward pass, not from the loader: part of the augmentation runs on the
    device. A wrong crop, channel order or normalization is visible at a glance.
    """

    def __init__(self, num_images: int = 16):
        self.num_images = num_images

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not after a resume, which would repeat the images at a later step.
        if trainer.is_global_zero and trainer.logger is not None and trainer.global_step == 0:
            assert isinstance(pl_module.model, nn.Module)
            handle = pl_module.model.register_forward_pre_hook(lambda _, inputs: log_once(inputs[0]))

            def log_once(images: Tensor) -> None:
                handle.remove()  # first, so that the hook costs nothing in later steps
                log_images(trainer.logger, images[: self.num_images].detach().float(), key="input")


def log_images(logger: Logger | None, images: Tensor, *, key: str, step: int = 0) -> None:
    """Log float images [N, C, H, W] of any range, mapped to 0..255 by one linear map for all images and channels.

    With one map, a wrong normalization is visible as a difference between images or channels.
    """
    low, high = images.amin(), images.amax()
    # clamp: all images may be equal, as with a broken pipeline
    pixels = ((images - low) * (255 / (high - low).clamp(min=1e-12))).round().byte().cpu()
    if isinstance(logger, WandbLogger):
        logger.log_image(key, [image.permute(1, 2, 0).numpy() for image in pixels], step=step)
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_images(key, pixels, global_step=step)


def close_logger(logger: Logger | None) -> None:
    """Flush and close a logger. A wandb run is finished, but can be resumed."""
    if isinstance(logger, FaultTolerantWandbLogger):
        if is_first_process():
            logger.finish()
    elif logger is not None:
        logger.finalize("success")


def _facts(config: Config, run_dir: Path) -> dict[str, object]:
    """The configuration and, if there is one, the run's manifest without its long lists (classes, packages)."""
    facts = redact_values(dataclasses.asdict(config))
    if (run_dir / "manifest.json").exists():
        manifest = read_run_manifest(run_dir)
        facts["code"] = manifest["sessions"][-1]["code"]
        facts["machine"] = manifest["sessions"][-1]["hardware"]
        facts["data_splits"] = manifest["data"]["splits"]
    return facts


def _wandb_logger(config: Config, run_dir: Path, say: Callable[[str], None]) -> FaultTolerantWandbLogger | None:
    """None if wandb is disabled or fails to start; `say` receives the reason."""
    try:
        return _started_logger(config, run_dir, say)
    except UserError:  # invalid project, or damaged id of the tracked run
        raise
    except Exception as error:  # from pydantic, wandb, or the standard library (a user id without a name)
        text = re.sub(r" \[type=.*", "", " ".join(str(error).split()))  # pydantic appends the value, maybe a secret
        reason = redact_text(text or type(error).__name__)[:MAX_REASON]
        say(f"wandb: not tracked ({reason}); the run continues without it")
        return None


def _started_logger(config: Config, run_dir: Path, say: Callable[[str], None]) -> FaultTolerantWandbLogger | None:
    _stage_files_in(run_dir / "tracking")
    import wandb

    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # without network, wandb's telemetry logs errors
    # Resolves environment variables and settings files as wandb does, without opening a run.
    settings = wandb.setup(settings=wandb.Settings(silent=True)).settings
    if settings.mode == "disabled":
        say("wandb: disabled (WANDB_MODE)")
        return None
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
        folder = shlex.quote(os.path.relpath(Path(run.dir).parent))
        why = redact_text(reason or "")
        say(f"wandb: offline ({why}); upload with: wandb sync {folder}; or look: wandb leet {folder}")
    # All charts over optimizer steps. wandb's default x-axis counts its own log calls.
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return FaultTolerantWandbLogger(experiment=run, save_dir=run_dir / "tracking", project=run.project)


def _stage_files_in(folder: Path) -> None:
    """Have wandb stage the tables that it uploads in `folder` if the home folder cannot be written.

    Otherwise it fails at the first table. Not in a temporary folder: an offline run names the staged files, and
    `wandb sync` uploads them from there.
    """
    try:
        check_writable(Path.home() / ".local" / "share" / "wandb" / "trial", remedy="")
    except (UserError, RuntimeError):  # RuntimeError: a user without a home folder
        os.environ.setdefault("WANDB_DATA_DIR", str(folder.absolute() / "staged"))


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
        id=_tracked_id(run_dir),
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


def _tracked_id(run_dir: Path) -> str:
    """The id of the tracked run: drawn once, then read from the run folder, so that a resumed run continues it."""
    path = run_dir / "tracking" / "run.json"
    if not path.exists():
        atomic_write(path, (json.dumps({"id": uuid.uuid4().hex[:12]}) + "\n").encode())
    what, remedy = "the id of a tracked run", "delete it to begin another tracked run"
    tracked_id = read_json(path, {"id": str}, what=what, remedy=remedy)["id"]
    if not re.fullmatch("[A-Za-z0-9]{1,64}", tracked_id):  # becomes part of URLs and folder names
        raise UserError(f"{path}: contains no valid run id; {remedy}")
    return tracked_id


def why_offline(settings: wandb.Settings) -> str | None:
    """None if the run can be online, otherwise the reason in a few words."""
    if settings.mode in ("offline", "dryrun"):
        return "set in WANDB_MODE or wandb's settings"
    if not _is_logged_in(settings):
        return "not logged in"
    # Checked first, since wandb.init would wait INIT_SECONDS for a server that does not answer.
    if not _answers(settings.base_url):
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


def _answers(url: str, seconds: float = ANSWER_SECONDS) -> bool:
    """Whether an HTTP server answers, through the proxy if one is set. Any HTTP status counts as an answer.

    Runs in a thread, since `timeout` does not cover the DNS lookup.
    """
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(url, timeout=seconds).close()
            answered.set()
        except urllib.error.HTTPError:  # such as 403: a server is there
            answered.set()
        except (OSError, ValueError):  # no connection, or an invalid URL
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()
