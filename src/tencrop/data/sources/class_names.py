"""Readable class names for figures and reports."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from tencrop.printable import printable


def label_names(classes: Sequence[str]) -> list[str]:
    """Readable names: WordNet ids are looked up in timm's table for ImageNet, others get spaces for underscores.

    All results are printable; names of folders need not even be valid UTF-8.
    """
    lemmas: dict[str, str] = {}
    if all(re.fullmatch(r"n\d{8}", name) for name in classes):
        spec = find_spec("timm")  # to read its file without importing timm, which takes seconds
        assert spec is not None and spec.origin is not None
        table = Path(spec.origin).parent / "data" / "_info" / "imagenet_synset_to_lemma.txt"
        if table.exists():
            lemmas = dict(
                line.split("\t", 1) for line in table.read_text(encoding="utf-8").splitlines() if "\t" in line
            )
    return [printable(lemmas.get(name, name.replace("_", " ")).split(",")[0]) for name in classes]
