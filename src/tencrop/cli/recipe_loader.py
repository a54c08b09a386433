"""Composes configurations as Hydra does, and gives the chosen model its own recipe (`experiment: auto`).

It differs from Hydra's loader in three ways, all for files of conf/experiment:

- `experiment=auto` loads the experiment that lists the chosen model in recipe.models. `experiment: ${model}` cannot
  replace it, because Hydra allows no overrides in a file that is chosen by interpolation.
- `experiment=MODEL` loads the same file and chooses this model.
- If the user chooses another option of a group than the experiment does, the experiment's values for that group are
  dropped: the learning rate of SGD, for example, does not suit AdamW.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import hydra._internal.hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
from hydra._internal.defaults_list import create_defaults_list
from hydra.core.default_element import ConfigDefault, GroupDefault, InputDefault, ResultDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf, open_dict

from tencrop.cli.recipes import own_experiment
from tencrop.config.documents import check_shape
from tencrop.config.schema import Recipe, UserError

GROUP, AUTO = "experiment", "auto"
PROVIDER = "recipe"  # marks an experiment that is generated here and is not a file
# Keys of the section `recipe` in an experiment file: fields of Recipe, and the models whose own recipe the file is.
# `models` is a list of names, or a table with the values that differ by model: {NAME: {KEY: VALUE}}.
# Checked here and not with the schema, because `models` is removed before the section is composed.
SHAPE = {
    "source?": str,
    "models?": ([str], {str: {str: object}}),
    "guesses?": [str],
    "differs?": [str],
    "note?": str,
}


class RecipeLoader(ConfigLoaderImpl):
    """Hydra's loader, with `_Experiments` as its repository of files."""

    def _parse_overrides_and_create_caching_repo(
        self, config_name: str | None, overrides: list[str]
    ) -> tuple[list[Override], CachingConfigRepository]:
        parsed, files = super()._parse_overrides_and_create_caching_repo(config_name, overrides)
        accepted = [_without_experiment() if _is_null(override) else override for override in parsed]
        return accepted, _Experiments(files, config_name, accepted)

    def _compose_config_from_defaults_list(self, defaults: list[ResultDefault], repo: IConfigRepository) -> DictConfig:
        assert isinstance(repo, _Experiments)
        repo.chosen_model = next((name for group, name in map(_group_and_option, defaults) if group == "model"), None)
        return super()._compose_config_from_defaults_list(defaults, repo)

    def _load_single_config(self, default: ResultDefault, repo: IConfigRepository) -> ConfigResult:
        loaded = super()._load_single_config(default, repo)
        group, name = _group_and_option(default)
        if group == GROUP and loaded.provider != PROVIDER and name != AUTO:
            assert isinstance(repo, _Experiments)
            # A copy: the repository caches the original, and may be asked for this file again.
            loaded = copy.copy(loaded)
            loaded.config = repo.adapted(name, loaded)
        return loaded


def register_recipe_loader() -> None:
    """Make hydra.main compose with RecipeLoader."""
    hydra._internal.hydra.ConfigLoaderImpl = RecipeLoader  # type: ignore[misc]


class _Experiments(CachingConfigRepository):
    """The files of one composition, and the overrides, which decide what `experiment/auto` is."""

    def __init__(self, files: CachingConfigRepository, config_name: str | None, overrides: Sequence[Override]) -> None:
        # no super().__init__(), which would copy the sources a second time: `files` has copied them
        self.delegate, self.cache = files, {}
        self.config_name, self.overrides = config_name, overrides
        self.chosen_model: str | None = None  # known once the defaults list is complete
        self.replaced: dict[str, str] = {}  # group -> the override that replaced an experiment's choice

    def load_config(self, config_path: str) -> ConfigResult | None:
        group, name = config_path.rpartition("/")[::2]
        if group != GROUP:
            return self.delegate.load_config(config_path)
        if config_path not in self.cache:
            loaded = self.delegate.load_config(config_path)
            # If a file and a model have the same name, experiment=NAME means the file.
            model = self._named_model if name == AUTO else name if loaded is None else None
            # Otherwise experiment=auto is conf/experiment/auto.yaml.
            if model is not None and (own := own_experiment(model, self._folders())) is not None:
                loaded = _recipe_of(model, own)
            self.cache[config_path] = loaded
        return self.cache[config_path]

    def adapted(self, name: str, loaded: ConfigResult) -> DictConfig:
        """The content of an experiment file for the chosen model, without the values of groups that were replaced."""
        config = copy.deepcopy(loaded.config)
        assert isinstance(config, DictConfig)
        # Taken out, and put back without the keys that concern files only.
        section = config.pop("recipe", None)
        recipe: Any = {} if section is None else _checked(name, section)
        models = recipe.pop("models", [])
        values = models.get(self.chosen_model, {}) if isinstance(models, dict) else {}
        for key, value in values.items():
            OmegaConf.update(config, key, value, force_add=True)
        parents, chosen = _defaults(loaded)
        # A fixed name or data set would give model=X and experiment=X different run folders.
        if models and (fixed := {"data", "name"} & {*config, *chosen}):
            raise UserError(
                f"experiment={name}: sets {min(fixed)}, which is left to the user where recipe.models lists models;"
                f" remove one of the two from {loaded.path}"
            )
        for group, option in self._typed_options.items():
            is_own_model = group == "model" and self.chosen_model in models
            # Choosing the option that the experiment chooses itself changes nothing, so its values are kept.
            if group in (*config, *chosen) and not is_own_model and option != self._own_options.get(group):
                self.replaced[group] = f"{group}={option}"
                config.pop(group, None)
        # A file without a section `recipe` that starts from another file keeps that file's section.
        if section is not None or not parents:
            recipe = dataclasses.asdict(Recipe()) | recipe
            recipe["guesses"] = [key for key in recipe["guesses"] if key.partition(".")[0] not in self.replaced]
        recipe["experiment"] = self.chosen_model if self.chosen_model in models else name
        recipe["replaced"] = list(self.replaced.values())
        with open_dict(config):
            config["recipe"] = recipe
        return config

    @cached_property
    def _named_model(self) -> str | None:
        """The file of conf/model whose recipe `auto` loads; None if it loads none.

        It loads none if model.name chooses another network, or with weights=FILE of evaluate.py: the preprocessing of
        such weights comes from their publisher, because the recipe has not trained them.
        """
        values = {override.key_or_group: override.value() for override in self.overrides if not override.is_delete()}
        if "model.name" in values or values.get("weights") is not None:
            return None
        model: Any = values.get("model")
        if isinstance(model, ChoiceSweep):  # Hydra composes a sweep once before its jobs, and the first model will do
            model = model.list[0]
        if model is None:
            # Not with `self`, which would need this property to load `auto`. In `delegate`, `auto` chooses no model.
            overrides = [override for override in self.overrides if override.key_or_group != GROUP]
            model = self._choices(overrides, self.delegate).get("model")
        return model if isinstance(model, str) else None

    @cached_property
    def _typed_options(self) -> dict[str, Any]:
        """The options that the user typed, by group."""
        overrides = [
            override
            for override in self.overrides
            if override.key_or_group != GROUP and not override.is_sweep_override()
        ]
        return {
            override.key_or_group: override.value()
            for override in overrides
            if self.group_exists(override.key_or_group)
        }

    @cached_property
    def _own_options(self) -> dict[str, str | None]:
        """The option of each group without the typed options: that of the experiment, or of train.yaml."""
        return self._choices(
            [override for override in self.overrides if override.key_or_group not in self._typed_options], self
        )

    def _choices(self, overrides: list[Override], files: IConfigRepository) -> dict[str, str | None]:
        """The option of every group under these overrides."""
        found = create_defaults_list(files, self.config_name, overrides, prepend_hydra=True, skip_missing=True)
        return found.overrides.known_choices

    def _folders(self) -> list[Path]:
        return [Path(source.path) / GROUP for source in self.get_sources() if source.scheme() == "file"]


def _is_null(override: Override) -> bool:
    return override.key_or_group == GROUP and not override.is_delete() and override.value() is None


def _without_experiment() -> Override:
    """The override `~experiment`, which removes the group. Hydra does not accept experiment=null."""
    override = OverridesParser.create().parse_override(f"~{GROUP}")
    override.input_line = f"{GROUP}=null"  # as the user typed it, for messages and the run's records
    return override


def _recipe_of(model: str, experiment: str) -> ConfigResult:
    """A generated experiment that consists of a defaults list: the file `experiment`, with this model."""
    defaults: list[InputDefault] = [
        ConfigDefault(path=experiment),
        GroupDefault(group="/model", value=model, override=True),
    ]
    return ConfigResult(PROVIDER, GROUP, OmegaConf.create(), {"package": "_global_"}, defaults)


def _checked(name: str, section: Any) -> dict[str, Any]:
    content = OmegaConf.to_container(section) if OmegaConf.is_config(section) else section
    try:
        check_shape(content, SHAPE, "recipe")
    except ValueError as error:
        raise UserError(f"experiment={name}: {error}; correct it in its file") from error
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def _defaults(loaded: ConfigResult) -> tuple[list[str], list[str]]:
    """From a file's defaults list: the files that it starts from, and the groups in which it chooses an option."""
    defaults = loaded.defaults_list or []
    parents = [
        default.path or "" for default in defaults if isinstance(default, ConfigDefault) and not default.is_self()
    ]
    groups = [default.group.lstrip("/") for default in defaults if isinstance(default, GroupDefault) and default.group]
    return parents, groups


def _group_and_option(default: ResultDefault) -> tuple[str, str]:
    group, _, name = (default.config_path or "").rpartition("/")
    return group, name
