"""Hashes the package's own source code, to detect that a run or saved scores come from another version of it.

records/provenance.py hashes the code that affects training, evaluation/evaluate.py the code that affects scores.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import tencrop

PACKAGE = Path(tencrop.__file__).resolve().parent


def code_sha256(package: Path, stages: Iterable[str]) -> str:
    """SHA-256, hexadecimal, of the source files in `stages` (subfolders of `package`).

    Reads the files rather than git, which an installed package and a container's copy do not have.
    """
    digest = hashlib.sha256()
    found = (path.relative_to(package) for stage in stages for path in (package / stage).rglob("*"))
    # Hidden files (.#plan.py, ._plan.py) are left behind by editors and macOS; Python imports none of them.
    visible = (path for path in found if not any(part.startswith(".") for part in path.parts))
    for path in sorted(path for path in visible if path.suffix in (".py", ".c", ".h")):
        content = (package / path).read_bytes()
        # With name and length in front of each file, moving lines between files changes the digest.
        digest.update(f"{path.as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()
