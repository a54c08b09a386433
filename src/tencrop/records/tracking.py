"""Opens the experiment tracker: wandb (the default), TensorBoard, MLflow, or none.

All local files of a tracker are in tracking/ of the run folder. The id of the tracked run is stored there too, so that
a resumed run continues it. Credentials are redacted before anything is tracked (redaction.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import Logger, WandbLogger
from torch import Tensor, nn

from tencrop.config import Config
from tencrop.config.launcher import is_first_process
from tencrop.records.redaction import redact_values
from tencrop.records.run_folder import read_run_manifest
from tencrop.records.tracker import Tracker


def build_logger(
    config: Config, run_dir: Path, say: Callable[[str], None] = print, *, for_training: bool = False
) -> Logger | None:
    """Open the logger named by `config.tracker` and log the run's configuration; None for `none`.

    wandb is online if there is an API key and the server answers, otherwise offline. A tracker that does not start at
    all gives None: it must never stop a training. `say` receives one line with the run's location, or the reason. The
    trackers' own settings apply (WANDB_MODE, MLFLOW_TRACKING_URI). for_training: metrics that the tracked run already
    has at a step are not logged again (records/tracker.py).
    """
    folder = run_dir / "tracking"
    if config.tracker.name == "none":
        return None
    if not is_first_process():
        return WandbLogger(save_dir=folder, offline=True)  # never opened, since Lightning logs on rank 0 only
    folder.mkdir(parents=True, exist_ok=True)
    logger = _open_tracker(config, run_dir, say, for_training=for_training)
    if logger is not None:
        logger.log_hyperparams(_facts(config, run_dir))
    return logger


def _open_tracker(config: Config, run_dir: Path, say: Callable[[str], None], *, for_training: bool) -> Logger | None:
    # Imported here, because each imports its tracker's package, and MLflow is optional.
    if config.tracker.name == "wandb":
        from tencrop.records.wandb_tracker import open_wandb

        return open_wandb(config, run_dir, for_training=for_training, say=say)
    if config.tracker.name == "mlflow":
        from tencrop.records.mlflow_tracker import open_mlflow

        return open_mlflow(config, run_dir, for_training=for_training, say=say)
    assert config.tracker.name == "tensorboard", config.tracker.name
    from tencrop.records.tensorboard_tracker import open_tensorboard

    return open_tensorboard(run_dir, for_training=for_training, say=say)


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
    if isinstance(logger, Tracker):
        logger.log_pictures(key, pixels.permute(0, 2, 3, 1).numpy(), step)


def close_logger(logger: Logger | None, *, is_complete: bool = True) -> None:
    """Flush and close a logger. The tracked run can be continued, and one that is not complete will be."""
    if isinstance(logger, Tracker):
        logger.close(is_complete=is_complete)
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
