"""Composes a configuration of train.py inside another command, for example to find the runs of a table's row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import create_config_search_path
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import open_dict
from omegaconf.errors import OmegaConfBaseException

from tencrop.cli.errors import hydra_error_sentence
from tencrop.cli.recipe_loader import RecipeLoader
from tencrop.config.rules import validate
from tencrop.config.schema import Config, UserError


def compose_training(words: Sequence[str], conf: Path) -> Config:
    """The configuration that `python train.py WORDS` composes from the files of `conf`. Takes 0.3 s.

    Raises UserError if the words do not compose.
    """
    # hydra.compose() does the same, but refuses to run inside a command that Hydra has started.
    loader = RecipeLoader(create_config_search_path(str(conf)))
    try:
        node = loader.load_configuration("train", list(words), run_mode=RunMode.RUN)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"train.py {' '.join(words)}: {hydra_error_sentence(error, Config)}") from error
    with open_dict(node):  # Hydra returns a read-only structure
        del node["hydra"]
    return validate(node, Config)


def sweep_jobs(words: Sequence[str]) -> list[list[str]]:
    """The words of each run of `python train.py -m WORDS`; without a sweep in them, these words."""
    batches = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(list(words)), None)
    return [list(job) for batch in batches for job in batch]
