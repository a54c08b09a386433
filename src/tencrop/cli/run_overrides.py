"""Applies the user's overrides for an evaluation to the configuration of a finished run."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

from tencrop.cli.command import own_folders
from tencrop.cli.command_line import PATHS, expand_home, parse
from tencrop.config.documents import literal
from tencrop.config.rules import validate
from tencrop.config.run_config import CONFIG, REMEDY, read_config
from tencrop.config.schema import Config, UserError
from tencrop.config.yaml_files import yaml_mapping

# Keys that an evaluation may override. All others define the trained network and its data, and stay those of the run.
EVALUATION_KEYS = (
    "protocol", "hardware", "tracker", "data", "normalization", "training.precision",
    "checkpoint", "ema", "save_views", "output", "deterministic",
)  # fmt: skip


def config_of_run(run_dir: Path, overrides: list[str], *, conf: Path) -> Config:
    """The configuration that `run_dir` was trained with, with the user's overrides for an evaluation applied.

    `overrides` are KEY=VALUE or GROUP=NAME. A group is read from `conf` or the folder given by --config-dir, and its
    interpolations use the run's image_size and short_side. Raises UserError for keys that the run fixes.
    """
    # literal(): a stranger's run must not read environment variables through ${oc.env:...}.
    node = OmegaConf.create(literal(read_config(run_dir)))
    try:
        validate(node, Config)
    except UserError as error:
        problem = str(error)[:300]  # quotes the value, which may be of any length
        raise UserError(f"{run_dir / 'config.yaml'}: not {CONFIG} ({problem}); {REMEDY}") from error
    changes = [(override.input_line, override.key_or_group, override.value()) for override in parse(overrides)]
    is_group = {key: (conf / key).is_dir() for _, key, _ in changes}
    for text, key, value in sorted(changes, key=lambda change: not is_group[change[1]]):  # groups first, as Hydra does
        if not any(key == name or key.startswith(f"{name}.") for name in EVALUATION_KEYS):
            raise UserError(f"{text}: the run of the checkpoint fixes this key; leave it out")
        if is_group[key]:
            OmegaConf.update(node, key, yaml_mapping(_option(conf, key, value)), merge=False)
        else:
            OmegaConf.update(node, key, expand_home(value) if key in PATHS else value, force_add=True)
    return validate(node, Config)


def _option(conf: Path, group: str, name: object) -> Path:
    """The file of an option; a folder given by --config-dir comes first, as in Hydra."""
    paths = [folder / group / f"{name}.yaml" for folder in (*own_folders(), conf)]
    return next((path for path in paths if path.exists()), paths[-1])
