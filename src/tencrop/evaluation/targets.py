"""Which weights are to be evaluated, under which configuration: what evaluate.py's command line means.

Imports no torch, so that a mistake is answered at once. An ensemble has several members, all else one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tencrop.cli.choices import CONF
from tencrop.cli.command_line import for_shell, keys_typed, parse, typed_word, verb
from tencrop.cli.run_overrides import (
    config_of_run,
)
from tencrop.config import (
    Config,
    UserError,
    check_data,
    check_preparation,
    run_path,
)
from tencrop.config.documents import read_json
from tencrop.config.loader import check_loader
from tencrop.config.rules import check_protocol
from tencrop.data.store.manifest import RUN_DATA_SHAPE, read_manifest
from tencrop.evaluation.preprocessing import Preprocessing, prepared_as

EVALUATIONS = Path("evaluations")  # holds a folder for weights that no run folder here has trained
CHOSEN_HERE = ("protocol", "checkpoint", "weights", "ema", "save_views", "output")  # no training knows these keys


@dataclass(frozen=True)
class EvaluationTarget:
    """Weights, and how to evaluate them."""

    config: Config
    path: Path  # a checkpoint, or a plain state dict
    manifest: dict[str, Any]  # of the prepared data
    out: Path | None  # folder of its score files; null: evaluations/<model>-<hash of weights and data>
    typed: frozenset[str] | None = None  # keys typed, for weights whose publisher says the rest of the preprocessing

    @property
    def num_classes(self) -> int:
        return len(self.manifest["classes"])


def evaluation_targets(config: Config, typed: list[str]) -> list[EvaluationTarget]:
    """The members that a command names; `typed` is what stood behind evaluate.py, as KEY=VALUE.

    A checkpoint in a run folder brings the run's configuration, changed by `typed`; weights from elsewhere are
    evaluated in float32 unless a precision is typed, and on images prepared as their publisher says. Raises UserError
    where a file or the prepared data are missing, or the data have other classes than the run's.
    """
    members = _evaluation_targets(config, typed)
    for member in members:
        check_preparation(member.config, member.manifest, keys_typed(typed))
    return members


def _evaluation_targets(config: Config, typed: list[str]) -> list[EvaluationTarget]:
    if (weights := config.weights) is not None:
        _check_file("weights", Path(weights))
        return [_from_elsewhere(config, Path(weights), typed, _given_output(config))]
    if config.checkpoint is None:
        path = run_path(config) / "checkpoints" / "last.ckpt"
        if not path.exists():
            keys = (override.key_or_group.split(".")[0] for override in parse(typed))
            words = [for_shell(word) for word, key in zip(typed, keys, strict=True) if key not in CHOSEN_HERE]
            mend = f"name one with checkpoint=PATH, or train it with: {' '.join([verb('train'), *words])}"
            raise UserError(f"{path}: there is no such checkpoint; {mend}")
        return [_of_run(config, path, path.parent.parent, alone=True)]
    paths = [Path(path) for path in (config.checkpoint if isinstance(config.checkpoint, list) else [config.checkpoint])]
    if not paths:
        raise UserError("checkpoint=[]: names no checkpoint; give checkpoint=PATH or checkpoint=[PATH,PATH]")
    for path in paths:
        _check_file("checkpoint", path)
    if not any((path.absolute().parent.parent / "config.yaml").exists() for path in paths):
        _check_named(paths[0], typed)
    members = []
    for path in paths:
        run_dir, alone = path.absolute().parent.parent, len(paths) == 1
        if (run_dir / "config.yaml").exists():
            members.append(_of_run(config_of_run(run_dir, typed, conf=CONF), path, run_dir, alone=alone))
        else:
            members.append(_from_elsewhere(config, path, typed, _given_output(config, alone)))
    return members


def check_ensemble(members: Sequence[EvaluationTarget]) -> None:
    """Raises UserError where several members make no ensemble: one stands twice, or they average differently."""
    paths = [member.path.resolve() for member in members]
    for number, path in enumerate(paths):
        if path in paths[:number]:
            raise UserError(f"checkpoint: {path} stands twice in the list; name each member of an ensemble once")
    averages = {member.config.protocol.average for member in members}
    if len(averages) > 1:
        raise UserError(f"protocol.average: the members differ ({', '.join(sorted(averages))}); choose one of them")


def _check_file(key: str, path: Path) -> None:
    if path.is_dir():
        raise UserError(f"{key}={path}: is a folder; name a file such as RUN/checkpoints/last.ckpt")
    if not path.is_file():
        raise UserError(f"{key}={path}: there is no such file")


def _check_named(path: Path, typed: Sequence[str]) -> None:
    """UserError where no run folder says which network a checkpoint is of, and the command does not either."""
    if not keys_typed(typed) & {"model", "model.name", "experiment"}:
        raise UserError(
            f"checkpoint={path}: lies in no run folder (RUN/config.yaml and RUN/checkpoints/), which would say of which"
            " network and data it is; name them with model=NAME data=NAME data.root=FOLDER, or experiment=NAME"
        )


def _from_elsewhere(config: Config, path: Path, words: Sequence[str], out: Path | None) -> EvaluationTarget:
    """Of weights that are not named as the checkpoint of a run; `words` as typed.

    Images are prepared as the run says whose folder the weights lie in, or as the experiment that is typed, or else as
    the publisher says, which is known when timm is imported.
    """
    typed = {override.key_or_group: override.value() for override in parse(words)}
    if "training.precision" not in typed:
        config = dataclasses.replace(config, training=dataclasses.replace(config.training, precision="fp32"))
    files = ("config.yaml", "manifest.json")  # others write a config.yaml, too
    run_dir = next((dir for dir in path.absolute().parents[:2] if all((dir / file).exists() for file in files)), None)
    if run_dir is not None:
        config = prepared_as(config, _of_images(config_of_run(run_dir, [], conf=CONF)), typed)
    is_published = run_dir is None and typed.get("experiment") in (None, "auto")
    return _member(config, path, out, frozenset(typed) if is_published else None)


def _of_images(run: Config) -> Preprocessing:
    normalization, filter = run.normalization, run.augmentation.filter
    return Preprocessing(
        "the run", normalization.mean, normalization.std, filter, run.image_size, lambda _: run.short_side
    )


def _of_run(config: Config, path: Path, run_dir: Path, *, alone: bool) -> EvaluationTarget:
    """Score files lie in the run's folder unless the data are not those it was trained beside."""
    member = _member(config, path, _given_output(config, alone))
    data = _data_of(run_dir)
    if data.get("classes", member.manifest["classes"]) != member.manifest["classes"]:
        raise UserError(
            f"data.root={config.data.root}: its classes are not those that {path} was trained on; name other data,"
            f" or evaluate the plain weights with {typed_word('weights', path)}"
        )
    trained_beside = data.get("splits", {}).get("val", {}).get("source_fingerprint")
    if member.out is None and trained_beside in (None, source_fingerprint(member.manifest)):
        member = dataclasses.replace(member, out=run_dir / "predictions")
    return member


def _member(config: Config, path: Path, out: Path | None, typed: frozenset[str] | None = None) -> EvaluationTarget:
    # a publisher's sizes are not known yet, and a crop of one pixel fits all sides; publishers.py checks them then
    check_protocol(config.protocol if typed is None else dataclasses.replace(config.protocol, size=1))
    manifest = read_manifest(config.data.root, config.data.name)
    check_loader(config.data)
    check_data(config, manifest)
    return EvaluationTarget(config, path, manifest, out, typed)


def _given_output(config: Config, alone: bool = True) -> Path | None:
    return Path(config.output) if config.output is not None and alone else None


def _data_of(run_dir: Path) -> dict[str, Any]:
    """What a run folder says of its data; nothing where it has no manifest. UserError where that is broken."""
    path, mend = run_dir / "manifest.json", "bring it back from a copy, or evaluate the plain weights with weights=PATH"
    if not path.exists():
        return {}
    return read_json(path, {"data": RUN_DATA_SHAPE}, what="the manifest of a run folder", mend=mend)["data"]


def source_fingerprint(manifest: dict[str, Any]) -> str:
    """Of the evaluated images and labels."""
    return manifest["splits"]["val"]["source_fingerprint"]
