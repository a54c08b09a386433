"""Computes the learning hash of each row's configuration, by which report/row_runs.py finds the runs of the row.

Composing a configuration takes about 0.04 s, so the hashes are cached in a file in the report's folder until a file of
conf/ or the code that reads it changes. Does not import torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from tencrop.cli.choices import CONF
from tencrop.cli.compose import Composer, compose_training
from tencrop.config import Config, UserError, learning_hash, learning_keys
from tencrop.config.code import PACKAGE, code_sha256
from tencrop.config.documents import Document, read_json
from tencrop.tables.schema import Overrides, RowTraining

INIT = "training.init.checkpoint"
ANY_PATH = "any"  # stands for the path of initial weights, which differs between machines


def composed(training: RowTraining) -> Config:
    """The configuration of a row's training. If it starts from a run, the path of that run is ANY_PATH.

    Raises UserError if the words do not compose.
    """
    source = () if training.init is None else (f"{INIT}={ANY_PATH}",)
    return compose_training((*training.overrides, *source), CONF)


def row_learning_keys(config: Config) -> Document:
    """The learning keys of a run or a row, without the path of the initial weights: their digest decides instead."""
    init = config.training.init
    if init.checkpoint is None:
        return learning_keys(config)
    init = replace(init, checkpoint=ANY_PATH)
    return learning_keys(replace(config, training=replace(config.training, init=init)))


def learning_hashes(recipes: Iterable[Overrides], cache: Path) -> dict[Overrides, str]:
    """The learning hash of each recipe; `cache` is the file with the hashes computed before.

    Raises UserError if the overrides of a recipe do not compose.
    """
    digest = _digest()  # reads all of conf/, which is far cheaper than composing one recipe
    known = _read_cache(cache, digest)
    composer = Composer(CONF)
    found = {
        overrides: known.get(" ".join(overrides)) or learning_hash(composer.compose(overrides))
        for overrides in dict.fromkeys(recipes)
    }
    if new := {" ".join(overrides): hash for overrides, hash in found.items() if " ".join(overrides) not in known}:
        _write_cache(cache, {"digest": digest, "hashes": known | new})
    return found


def _digest() -> str:
    """Digest of everything that a learning hash depends on: the files of conf/ and the code that composes them."""
    # conf/errors is left out: it names configurations, but is not part of any.
    digest = hashlib.sha256(code_sha256(PACKAGE, ["cli", "config"]).encode())
    for path in sorted(path for path in CONF.rglob("[!.]*.yaml") if path.parent.name != "errors"):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(CONF).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _read_cache(cache: Path, digest: str) -> dict[str, str]:
    try:
        content = read_json(cache, {"digest": str, "hashes": {str: str}}, what="hashes", remedy="")
    except UserError:  # not written yet, or damaged: compute the hashes again
        return {}
    return content["hashes"] if content["digest"] == digest else {}


def _write_cache(cache: Path, content: dict[str, object]) -> None:
    from tencrop.files import atomic_write

    cache.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(cache, (json.dumps(content, indent=1) + "\n").encode())
