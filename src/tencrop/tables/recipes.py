"""The learning hashes of the configurations that rows name, by which the runs of a row are found.

Composing a configuration takes 0.3 s, so hashes are kept in a file of the report's folder until a file of conf/ or the
code that reads it changes. Called by report/matching.py; imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from tencrop.cli.choices import CONF
from tencrop.cli.compose import compose_training
from tencrop.cli.errors import sentence
from tencrop.config import Config, UserError, learning_hash
from tencrop.config.code import PACKAGE, code_sha256
from tencrop.config.documents import read_json

Words = tuple[str, ...]  # what stands behind train.py


def learning_hashes(recipes: Iterable[Words], kept: Path) -> dict[Words, str]:
    """The learning hash of each recipe; `kept` is the file that holds those computed before.

    Raises UserError where words compose no configuration.
    """
    digest = _digest()
    known = _known(kept, digest)
    found = {words: known.get(" ".join(words)) or _learning_hash(words) for words in dict.fromkeys(recipes)}
    if new := {" ".join(words): hash for words, hash in found.items() if " ".join(words) not in known}:
        _keep(kept, {"digest": digest, "hashes": known | new})
    return found


def _learning_hash(words: Words) -> str:
    try:
        return learning_hash(compose_training(words, CONF))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"train.py {' '.join(words)}: {sentence(error, Config)}") from error


def _digest() -> str:
    """Of all that a hash depends on: the files of conf/ and the code that composes them."""
    digest = hashlib.sha256(code_sha256(PACKAGE, ["config"]).encode())
    for path in sorted(path for path in CONF.rglob("[!.]*.yaml") if path.parent.name != "errors"):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(CONF).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _known(kept: Path, digest: str) -> dict[str, str]:
    try:
        said = read_json(kept, {"digest": str, "hashes": {str: str}}, what="hashes", mend="")
    except UserError:  # not written yet, or damaged: computed anew
        return {}
    return said["hashes"] if said["digest"] == digest else {}


def _keep(kept: Path, content: dict[str, object]) -> None:
    from tencrop.files import atomic_write

    kept.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(kept, (json.dumps(content, indent=1) + "\n").encode())
