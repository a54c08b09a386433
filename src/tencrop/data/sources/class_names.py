"""ImageNet's classes in the order of their labels, and readable class names for figures and reports."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from tencrop.printable import printable


def label_names(classes: Sequence[str]) -> list[str]:
    """Readable names: WordNet ids are looked up in timm's table for ImageNet, others get spaces for underscores.

    All results are printable; names of folders need not even be valid UTF-8.
    """
    lemmas: dict[str, str] = {}
    if all(re.fullmatch(r"n\d{8}", name) for name in classes):
        table = _timm_info("imagenet_synset_to_lemma.txt")
        if table.exists():
            lemmas = dict(
                line.split("\t", 1) for line in table.read_text(encoding="utf-8").splitlines() if "\t" in line
            )
    return [printable(lemmas.get(name, name.replace("_", " ")).split(",")[0]) for name in classes]


@cache
def imagenet_wnids(of: str = "imagenet") -> tuple[str, ...]:
    """The sorted WNIDs of ImageNet's 1,000 classes, whose ranks are the labels; of "imagenet_a" or "_r", its 200."""
    wnids = tuple(_timm_info(f"{of}_synsets.txt").read_text().split())
    assert list(wnids) == sorted(wnids) and len(wnids) == (1000 if of == "imagenet" else 200), of
    return wnids


def _timm_info(name: str) -> Path:
    spec = find_spec("timm")  # to read its files without importing timm, which takes seconds
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "data" / "_info" / name
