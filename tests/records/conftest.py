"""Fixtures for tests of records: a small configuration with runs in a temporary folder, and a manifest of its data."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tencrop.config import Config


@pytest.fixture
def make_config(composed: Callable[..., Config], tmp_path: Path) -> Callable[..., Config]:
    """make_config("seed=1", ...): LeNet-5 on the digits with overrides."""
    return partial(composed, "experiment=lenet5_digits", "tracker=none", f"runs={tmp_path}/runs")


@pytest.fixture
def data_manifest() -> dict[str, Any]:
    """A prepared folder's manifest, without its format."""
    sizes = {"beton": "x", "beton_bytes": 1, "tables_sha256": "x", "files": "x", "files_bytes": 1, "files_sha256": "x"}
    splits = {
        name: {"num_samples": number, "source_fingerprint": name * 8, "store_fingerprint": name * 9, **sizes}
        | {"store": {}, "skipped": []}
        for name, number in (("train", 1297), ("val", 500))
    }
    triple = [1.0, 1.0, 1.0]
    statistics = {"mean": triple, "std": triple, "eigenvalues": triple, "num_images": 1297, "num_pixels": 1297}
    statistics |= {"covariance": [triple] * 3, "eigenvectors": [triple] * 3}
    place = {"path": None, "splits": {"train": "", "val": ""}, "routes": {"train": "made", "val": "made"}}
    rest = {"statistics": statistics, "mean_image": "x", "mean_image_sha256": "x", "source": place | {"archives": {}}}
    options: dict[str, str | int | None] = {f"store.{key}": None for key in ("short_side", "max_side", "jpeg_fraction")}
    options |= {"store.mode": "raw", "store.quality": 95}
    classes = [str(digit) for digit in range(10)]
    return {"name": "digits", "options": options, "classes": classes, "splits": splits, **rest}
