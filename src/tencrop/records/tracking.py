"""The experiment tracker: wandb (the default), TensorBoard, or none.

Called by train.py and evaluate.py. All files of a tracker lie in the run folder's tracking/; a run
that is continued goes on in the same tracked run, whose id is kept there. Credentials never get
into what is tracked (masking.py), nor does wandb collect anything by itself here: no console, no
code, no git remote, no command line.
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
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from torch import Tensor, nn

from tencrop.config import Config, UserError
from tencrop.config.documents import read_json
from tencrop.config.launcher import is_first_process
from tencrop.config.tracker import entity_and_project
from tencrop.files import atomic_write
from tencrop.records.redaction import redact_text, redact_values
from tencrop.records.run_folder import read_run_manifest

if TYPE_CHECKING:
    import wandb

ANSWER_SECONDS = 3.0  # that a server may take to answer before the run is tracked offline
INIT_SECONDS = 10.0  # that opening the run on a server that answers may take
MAX_REASON = 200  # characters
UPLOAD_SECONDS = 30.0  # that the end of a job waits for uploads; the rest stays on disk for `wandb sync`


def build_logger(config: Config, run_dir: Path, say: Callable[[str], None] = print) -> Logger | None:
    """The logger that `config.tracker` names, with the run's configuration logged; None for `none`.

    wandb is online when an API key is there and the server answers within ANSWER_SECONDS, otherwise offline, and where
    it does not start at all nothing is tracked (None); `say` gets one line: where to look, and how to upload, or why
    not. WANDB_MODE and wandb's own settings are obeyed.
    """
    folder = run_dir / "tracking"
    if config.tracker.name == "none":
        return None
    logger: Logger | None
    if not is_first_process():
        return WandbLogger(save_dir=folder, offline=True)  # never opened: Lightning logs on rank 0 only
    folder.mkdir(parents=True, exist_ok=True)
    if config.tracker.name == "wandb":
        logger = _wandb_logger(config, run_dir, say)
    else:
        assert config.tracker.name == "tensorboard", config.tracker.name
        logger = TensorBoardLogger(save_dir=run_dir, name="tracking", version="")
        say(f"tensorboard: tensorboard --logdir {folder}")
    if logger is not None:
        logger.log_hyperparams(_facts(config, run_dir))
    return logger


class LastingWandbLogger(WandbLogger):
    """wandb's logger for a run that outlasts it: where wandb's own process is killed, for memory or with the job's
    others, that is said once and nothing more is tracked."""

    has_failed = False

    def log_hyperparams(self, params: Any) -> None:
        self._attempt(super().log_hyperparams, params)

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self._attempt(super().log_metrics, metrics, step)

    def log_image(self, key: str, images: list[Any], step: int | None = None, **options: Any) -> None:
        self._attempt(super().log_image, key, images, step, **options)

    def log_table(self, key: str, *args: Any, **options: Any) -> None:
        self._attempt(super().log_table, key, *args, **options)

    def finish(self) -> None:
        self._attempt(self.experiment.finish)

    def _attempt(self, call: Callable[..., Any], *args: Any, **options: Any) -> None:
        if self.has_failed:
            return
        try:
            call(*args, **options)
        except Exception as error:  # wandb has several bases of errors, and none may stop a run
            self.has_failed = True
            reason = redact_text(str(error) or type(error).__name__)
            print(f"wandb: failed ({reason}); the run goes on without it", file=sys.stderr)


class InputImages(Callback):
    """Logs the first images of a run as the network sees them: after augmentation and normalization, in its input.

    Watches the first forward pass of the training and changes nothing.
    """

    def __init__(self, num_images: int = 16):
        self.num_images = num_images

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and trainer.logger is not None and trainer.global_step == 0:
            assert isinstance(pl_module.model, nn.Module)
            handle = pl_module.model.register_forward_pre_hook(lambda _, inputs: see(inputs[0]))

            def see(images: Tensor) -> None:
                handle.remove()
                log_images(trainer.logger, images[: self.num_images].detach().float(), key="input")


def log_images(logger: Logger | None, images: Tensor, *, key: str, step: int = 0) -> None:
    """Images float [N, C, H, W] of any range, stretched to 0..255 by one stretch for all.

    So a wrong normalization shows as a difference between images or channels.
    """
    low, high = images.amin(), images.amax()
    pixels = ((images - low) * (255 / (high - low).clamp(min=1e-12))).round().byte().cpu()
    if isinstance(logger, WandbLogger):
        logger.log_image(key, [image.permute(1, 2, 0).numpy() for image in pixels], step=step)
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_images(key, pixels, global_step=step)


def close_logger(logger: Logger | None) -> None:
    """Write what is pending; with wandb, end the run (it may be opened again)."""
    if isinstance(logger, LastingWandbLogger):
        if is_first_process():
            logger.finish()
    elif logger is not None:
        logger.finalize("success")


def _facts(config: Config, run_dir: Path) -> dict[str, Any]:
    """The configuration and, where the run folder has one, the manifest without its long lists."""
    facts = redact_values(dataclasses.asdict(config))
    if (run_dir / "manifest.json").exists():
        manifest = read_run_manifest(run_dir)
        facts["code"] = manifest["sessions"][-1]["code"]
        facts["machine"] = manifest["sessions"][-1]["hardware"]
        facts["data_splits"] = manifest["data"]["splits"]
    return facts


def _wandb_logger(config: Config, run_dir: Path, say: Callable[[str], None]) -> LastingWandbLogger | None:
    """None where wandb is switched off, or where something of its own keeps it from starting: `say` gets the reason."""
    try:
        return _started_logger(config, run_dir, say)
    except UserError:  # the id of the tracked run, or its project
        raise
    except Exception as error:  # of pydantic, wandb, and the standard library, for a user whom the system does not know
        text = re.sub(r" \[type=.*", "", " ".join(str(error).split()))  # pydantic's, with the value
        reason = redact_text(text or type(error).__name__)[:MAX_REASON]
        say(f"wandb: not tracked ({reason}); the run goes on without it")
        return None


def _started_logger(config: Config, run_dir: Path, say: Callable[[str], None]) -> LastingWandbLogger | None:
    import wandb

    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # wandb's telemetry reports its failures there
    settings = wandb.setup(settings=wandb.Settings(silent=True)).settings
    if settings.mode == "disabled":
        say("wandb: disabled (WANDB_MODE)")
        return None
    reason = _why_offline(settings)
    run = None
    if reason is None:
        try:
            run = _open_run(config, run_dir, mode="online")
            say(f"wandb: {run.url}")
        except Exception as error:  # of several bases
            wandb.teardown()  # or the id stays in use
            reason = f"the server did not take the run: {redact_text(str(error)).splitlines()[0]}"
    if run is None:
        run = _open_run(config, run_dir, mode="offline")
        folder = shlex.quote(os.path.relpath(Path(run.dir).parent))
        why = redact_text(reason or "")
        say(f"wandb: offline ({why}); upload with: wandb sync {folder}; or look: wandb leet {folder}")
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return LastingWandbLogger(experiment=run, save_dir=run_dir / "tracking", project=run.project)


def _open_run(config: Config, run_dir: Path, *, mode: Literal["online", "offline"]) -> wandb.Run:
    import wandb
    from wandb.sdk.lib.import_hooks import unregister_all_post_import_hooks

    entity, project = entity_and_project(config.tracker.project)
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
        resume="allow" if mode == "online" else None,
        settings=settings,
    )
    # they report what is imported later, and raise in a forked loader process that imports such a module
    unregister_all_post_import_hooks()
    return run


def _tracked_id(run_dir: Path) -> str:
    """The id under which the tracker knows this run: drawn once, then read from the run folder."""
    path = run_dir / "tracking" / "run.json"
    if not path.exists():
        atomic_write(path, (json.dumps({"id": uuid.uuid4().hex[:12]}) + "\n").encode())
    what, mend = "the id of a tracked run", "delete it to begin another tracked run"
    identity = read_json(path, {"id": str}, what=what, mend=mend)["id"]
    if not re.fullmatch("[A-Za-z0-9]{1,64}", identity):
        raise UserError(f"{path}: holds no run id; {mend}")
    return identity


def _why_offline(settings: wandb.Settings) -> str | None:
    """None when the run can be online, otherwise the reason in a few words."""
    if settings.mode in ("offline", "dryrun"):
        return "as wandb is set"
    if not _is_logged_in(settings):
        return "not logged in"
    if not _answers(settings.base_url):
        return f"{settings.base_url} does not answer"
    return None


def _is_logged_in(settings: wandb.Settings) -> bool:
    if settings.api_key or settings.identity_token_file:
        return True
    host = settings.base_url.split("://")[-1].split("/")[0]
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _answers(url: str, seconds: float = ANSWER_SECONDS) -> bool:
    """Whether an HTTP server answers, through the proxy if one is set; any status is an answer.

    In a thread, since looking up a host name has no time limit of its own.
    """
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(url, timeout=seconds).close()
            answered.set()
        except urllib.error.HTTPError:
            answered.set()
        except (OSError, ValueError):
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()
