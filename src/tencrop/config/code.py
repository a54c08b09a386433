"""Hashes of the package's own code, by which a run or saved scores know that another version of it wrote them.

Called by records/provenance.py (what decides what is learned) and evaluation/evaluate.py (what decides a score).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import tencrop

PACKAGE = Path(tencrop.__file__).resolve().parent


def code_sha256(package: Path, stages: Iterable[str]) -> str:
    """SHA-256 in hex over the source files of some stages (folders of `package`), with git or without."""
    digest = hashlib.sha256()
    found = (path.relative_to(package) for stage in stages for path in (package / stage).rglob("*"))
    # hidden files are an editor's or macOS'; nothing of them is imported
    visible = (path for path in found if not any(part.startswith(".") for part in path.parts))
    for path in sorted(path for path in visible if path.suffix in (".py", ".c", ".h")):
        content = (package / path).read_bytes()
        digest.update(f"{path.as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()
