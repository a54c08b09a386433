"""Readable names of classes for people. Called by the report and by the figures of seeing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from tencrop.printable import printable


def label_names(classes: Sequence[str]) -> list[str]:
    """Readable names of classes: WordNet ids by timm's table of ImageNet's, others with spaces for underscores.
    Each can be drawn and written: names of folders need not be UTF-8."""
    lemmas: dict[str, str] = {}
    if all(re.fullmatch(r"n\d{8}", name) for name in classes):
        spec = find_spec("timm")  # its file is read without importing timm, which takes seconds
        assert spec is not None and spec.origin is not None
        table = Path(spec.origin).parent / "data" / "_info" / "imagenet_synset_to_lemma.txt"
        if table.exists():
            lemmas = dict(
                line.split("\t", 1) for line in table.read_text(encoding="utf-8").splitlines() if "\t" in line
            )
    return [printable(lemmas.get(name, name.replace("_", " ")).split(",")[0]) for name in classes]
