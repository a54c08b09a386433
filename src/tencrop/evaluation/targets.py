"""Turn evaluate.py's command line into evaluation targets: which weights to evaluate, under which configuration.

An ensemble gives several targets, anything else one. Imports no torch, so that a wrong command is refused at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tencrop.cli.choices import CONF, options_of
from tencrop.cli.command_line import command_prefix, for_shell, keys_typed, parse, typed_word
from tencrop.cli.run_overrides import config_of_run
from tencrop.config import (
    Config,
    UserError,
    check_data,
    check_preparation,
    run_path,
)
from tencrop.config.documents import read_json
from tencrop.config.loader import check_loader
from tencrop.config.protocol_rules import check_mean_image, check_protocol
from tencrop.data.sources.imagenet_test_sets import check_has_training_split
from tencrop.data.store.manifest import RUN_DATA_SHAPE, open_split, read_manifest
from tencrop.evaluation.preprocessing import Preprocessing, apply_preprocessing
from tencrop.evaluation.subsets import evaluated_index

EVALUATIONS = Path("evaluations")  # parent of the folders for weights that no run folder has trained
# The default precision belongs to the default recipe, which did not train plain weights; float32 suits all.
PLAIN_PRECISION: Literal["fp32"] = "fp32"
# Keys that train.py does not have: they are left out of the train command in an error message.
EVALUATION_KEYS = ("protocol", "checkpoint", "weights", "weights_by", "ema", "save_views", "output")


@dataclass(frozen=True)
class EvaluationTarget:
    """A file of weights, and how to evaluate it."""

    config: Config
    path: Path  # a checkpoint, or a plain state dict
    manifest: dict[str, Any]  # that of the prepared data
    out: Path | None  # folder for its score files; None: evaluations/<model>-<hash of weights and data>
    typed: frozenset[str] = frozenset()  # keys on the command line
    is_published: bool = False  # the preprocessing comes from the publisher of the weights
    own_precision: str | None = None  # without an override on the command line; None: the configuration's

    @property
    def num_classes(self) -> int:
        return len(self.manifest["classes"])


def evaluation_targets(config: Config, typed: list[str]) -> list[EvaluationTarget]:
    """The targets that a command selects. typed: the overrides after `evaluate.py`, each KEY=VALUE.

    A checkpoint in a run folder is evaluated with the run's configuration, changed by `typed`. Other weights are
    evaluated in float32 unless `typed` has a precision, on images prepared as their publisher specifies. Raises
    UserError if a file or the prepared data is missing, or the data has other classes than the run's.
    """
    targets = _evaluation_targets(config, typed)
    for target in targets:
        check_preparation(target.config, target.manifest, keys_typed(typed))
    return targets


def _evaluation_targets(config: Config, typed: list[str]) -> list[EvaluationTarget]:
    if not isinstance(config.checkpoint, list):
        _overrides_of_members(typed, 1)  # refuses several protocols
    if (weights := config.weights) is not None:
        _check_file("weights", Path(weights))
        return [_target_of_plain_weights(config, Path(weights), typed, _given_output(config))]
    if config.checkpoint is None:
        check_has_training_split(config.data.name)
        path = run_path(config) / "checkpoints" / "last.ckpt"
        if not path.exists():
            keys = (override.key_or_group.split(".")[0] for override in parse(typed))
            overrides = [for_shell(word) for word, key in zip(typed, keys, strict=True) if key not in EVALUATION_KEYS]
            remedy = (
                f"name one with checkpoint=PATH, or train it with: {' '.join([command_prefix('train'), *overrides])}"
            )
            raise UserError(f"{path}: there is no such checkpoint; {remedy}")
        return [_target_of_run(config, path, path.parent.parent, alone=True)]
    paths = [Path(path) for path in (config.checkpoint if isinstance(config.checkpoint, list) else [config.checkpoint])]
    if not paths:
        raise UserError("checkpoint=[]: names no checkpoint; give checkpoint=PATH or checkpoint=[PATH,PATH]")
    overrides_of_members = _overrides_of_members(typed, len(paths))
    for path in paths:
        _check_file("checkpoint", path)
    if not any((path.absolute().parent.parent / "config.yaml").exists() for path in paths):
        _check_named(paths[0], typed)
    targets = []
    for path, overrides in zip(paths, overrides_of_members, strict=True):
        run_dir, alone = path.absolute().parent.parent, len(paths) == 1
        if (run_dir / "config.yaml").exists():
            # With the configuration that the run recorded: conf/ may have changed since.
            targets.append(_target_of_run(config_of_run(run_dir, overrides, conf=CONF), path, run_dir, alone=alone))
        elif overrides != typed:  # `config` has one protocol for all
            raise UserError(
                f"checkpoint={path}: is not in a run folder, so a list of protocols does not apply; evaluate it under"
                " each protocol, then average the score files with scores=[FILE,FILE]"
            )
        else:
            targets.append(_target_of_plain_weights(config, path, typed, _given_output(config, alone)))
    return targets


def check_ensemble(members: Sequence[EvaluationTarget]) -> None:
    """Raises UserError if targets cannot form an ensemble: one is listed twice, or their averages differ.

    The same checkpoint under two protocols is two members, as in VGG's "multi-crop & dense".
    """
    # resolve: a link to a checkpoint would otherwise count the same network twice.
    pairs = [(target.path.resolve(), target.config.protocol) for target in members]
    for number, (path, protocol) in enumerate(pairs):
        if (path, protocol) in pairs[:number]:
            raise UserError(
                f"checkpoint: {path} is listed twice with the protocol {protocol.name}; name each member of an ensemble"
                " once, or give the members different protocols: protocol=[dense,grid_crop]"
            )
    # A mean of some members' softmax and others' logits has no meaning.
    averages = {target.config.protocol.average for target in members}
    if len(averages) > 1:
        raise UserError(f"protocol.average: the members differ ({', '.join(sorted(averages))}); choose one of them")


def score_files(files: Sequence[str], typed: Sequence[str]) -> list[Path]:
    """The files of scores=[FILE,FILE]. Raises UserError if one is missing or listed twice, or for keys without effect.

    typed: the overrides after `evaluate.py`.
    """
    for word, override in zip(typed, parse(typed), strict=True):
        if override.key_or_group not in ("scores", "output", "protocol.average"):
            raise UserError(
                f"{word}: scores=[FILE,FILE] averages saved scores, to which it does not apply; leave it out"
            )
    paths = [Path(path) for path in files]
    if len(paths) < 2:
        raise UserError("scores: needs at least two score files, scores=[A.safetensors,B.safetensors]")
    for number, path in enumerate(paths):
        _check_file("scores", path)
        if path.resolve() in [other.resolve() for other in paths[:number]]:
            raise UserError(f"scores: {path} is listed twice; name each member of an ensemble once")
    return paths


def check_one_protocol(typed: Sequence[str]) -> None:
    """Raises UserError for a list of protocols, of which Hydra would take the last one."""
    for word, protocols in _lists_of_protocols(typed):
        raise UserError(
            f"{word}: only evaluate.py takes several protocols, one for each checkpoint; choose one, such as"
            f" protocol={protocols[0] if protocols else 'center'}"
        )


def _overrides_of_members(typed: list[str], num_members: int) -> list[list[str]]:
    """The overrides of the command line for each member: from protocol=[A,B], each gets a protocol of its own."""
    members = [list(typed) for _ in range(num_members)]
    for word, protocols in _lists_of_protocols(typed):
        if len(protocols) != num_members:
            raise UserError(
                f"{word}: names {len(protocols)} protocols for {num_members} checkpoint{'s'[: num_members != 1]}; name"
                " one for each, and a checkpoint once for each of its protocols: checkpoint=[A,A]"
                " protocol=[dense,grid_crop]"
            )
        for overrides, protocol in zip(members, protocols, strict=True):
            if protocol not in options_of("protocol"):
                raise UserError(
                    f"{word}: there is no protocol {protocol}; choose among {', '.join(options_of('protocol'))}"
                )
            overrides[typed.index(word)] = f"protocol={protocol}"
    return members


def _lists_of_protocols(typed: Sequence[str]) -> list[tuple[str, list[Any]]]:
    read = zip(typed, parse(typed), strict=True)
    found = [(word, override.value()) for word, override in read if override.key_or_group == "protocol"]
    return [(word, protocols) for word, protocols in found if isinstance(protocols, list)]


def _check_file(key: str, path: Path) -> None:
    if path.is_dir():
        example = "predictions/center.safetensors" if key == "scores" else "checkpoints/last.ckpt"
        raise UserError(f"{key}={path}: is a folder; name a file such as RUN/{example}")
    if not path.is_file():
        raise UserError(f"{key}={path}: there is no such file")


def _check_named(path: Path, typed: Sequence[str]) -> None:
    """Raises UserError if neither a run folder nor the command names the network of a checkpoint."""
    if not keys_typed(typed) & {"model", "model.name", "experiment"}:
        raise UserError(
            f"checkpoint={path}: is not in a run folder (RUN/config.yaml and RUN/checkpoints/), so its network and data"
            " are not known; name them with model=NAME data=NAME data.root=FOLDER, or experiment=NAME"
        )


def _target_of_plain_weights(
    config: Config, path: Path, overrides: Sequence[str], out: Path | None
) -> EvaluationTarget:
    """The target for plain weights, or for a checkpoint outside a run folder. overrides: those of the command line.

    Preprocessing comes from the run in whose folder the weights are, or else from the experiment on the command line,
    or else from the publisher. The last is looked up later, because it needs timm.
    """
    typed = {override.key_or_group: override.value() for override in parse(overrides)}
    if "training.precision" not in typed:
        config = dataclasses.replace(config, training=dataclasses.replace(config.training, precision=PLAIN_PRECISION))
    # Two parents: RUN/weights.pth or RUN/checkpoints/weights.pth.
    files = ("config.yaml", "manifest.json")  # other programs write a config.yaml, too
    run_dir = next((dir for dir in path.absolute().parents[:2] if all((dir / file).exists() for file in files)), None)
    if run_dir is not None:
        config = apply_preprocessing(config, _preprocessing_of_run(config_of_run(run_dir, [], conf=CONF)), typed)
    # An experiment on the command line states the preprocessing itself.
    is_published = run_dir is None and typed.get("experiment") in (None, "auto")
    target = _make_target(config, path, out, frozenset(typed), is_published=is_published)
    return dataclasses.replace(target, own_precision=PLAIN_PRECISION)


def _preprocessing_of_run(run: Config) -> Preprocessing:
    normalization, filter = run.normalization, run.augmentation.filter
    return Preprocessing(
        "the run", normalization.mean, normalization.std, filter, run.image_size, lambda _: run.short_side
    )


def _target_of_run(config: Config, path: Path, run_dir: Path, *, alone: bool) -> EvaluationTarget:
    """The target for a checkpoint in a run folder.

    Score files go to the run's folder, unless the evaluated images are not the val split of the run's own data: the
    report would mix errors on different images.
    """
    target = _make_target(config, path, _given_output(config, alone))
    if (run_dir / "config.yaml").exists():  # else `config` is what the command line makes of the run's name
        own = config_of_run(run_dir, [], conf=CONF).training.precision
        target = dataclasses.replace(target, own_precision=own)
    # Names of the classes, not their number: label 5 must mean the same class as in training.
    data = _recorded_data(run_dir)
    if data.get("classes", target.manifest["classes"]) != target.manifest["classes"]:
        raise UserError(
            f"data.root={config.data.root}: its classes are not those that {path} was trained on; name other data,"
            f" or evaluate the plain weights with {typed_word('weights', path)}"
        )
    # None: a manifest that records no fingerprint, or no manifest at all.
    trained_beside = data.get("splits", {}).get("val", {}).get("source_fingerprint")
    if target.out is None and trained_beside in (None, source_fingerprint(target.manifest)):
        target = dataclasses.replace(target, out=run_dir / "predictions")
    return target


def _make_target(
    config: Config,
    path: Path,
    out: Path | None,
    typed: frozenset[str] = frozenset(),
    *,
    is_published: bool = False,
) -> EvaluationTarget:
    # A publisher's sizes are not known yet: check with a crop of one pixel, which fits all. publishers.py checks again.
    check_protocol(dataclasses.replace(config.protocol, size=1) if is_published else config.protocol)
    if not is_published:
        check_mean_image(config.protocol, config.normalization)
    # The cheap checks of train.py, all before torch is imported.
    manifest = read_manifest(config.data.root, config.data.name)
    check_loader(config.data)
    check_data(config, manifest)
    if config.data.subset_of_val is not None:
        evaluated_index(config, open_split(config.data.root, "val", data=config.data.name))
    return EvaluationTarget(config, path, manifest, out, typed, is_published)


def _given_output(config: Config, alone: bool = True) -> Path | None:
    # With several checkpoints, output=DIR is the folder of the ensemble, and its members keep their own folders.
    return Path(config.output) if config.output is not None and alone else None


def _recorded_data(run_dir: Path) -> dict[str, Any]:
    """The "data" part of a run's manifest; empty if there is no manifest. Raises UserError if it is broken."""
    path, remedy = run_dir / "manifest.json", "restore it from a copy, or evaluate the plain weights with weights=PATH"
    if not path.exists():
        return {}
    return read_json(path, {"data": RUN_DATA_SHAPE}, what="the manifest of a run folder", remedy=remedy)["data"]


def source_fingerprint(manifest: dict[str, Any]) -> str:
    """The hash of the evaluated images and labels, from the manifest of prepared data."""
    return manifest["splits"]["val"]["source_fingerprint"]
