"""What the tests of records share: a small configuration whose runs lie in a temporary folder, its data's manifest."""

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
    """The parts of a prepared folder's manifest that records read."""
    splits = {
        name: {"num_samples": number, "source_fingerprint": name * 8, "store_fingerprint": name * 9, "files": "x"}
        for name, number in (("train", 1297), ("val", 500))
    }
    options = {f"store.{key}": None for key in ("short_side", "max_side", "jpeg_fraction")}
    options |= {"store.mode": "raw", "store.quality": 95}
    return {"name": "digits", "options": options, "classes": [str(digit) for digit in range(10)], "splits": splits}
