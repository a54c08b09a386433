"""What the tests of records share: a small configuration whose runs lie in a temporary folder, and its data's manifest."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from tencrop.config import Config, typed
from tencrop.config.verbs import CONF


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., Config]:
    """make_config("seed=1", ...): LeNet-5 on the digits with overrides."""

    def make(*overrides: str) -> Config:
        with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
            node = compose("train", ["experiment=lenet5_digits", "tracker=none", f"runs={tmp_path}/runs", *overrides])
        return typed(node, Config)

    return make


@pytest.fixture
def data_manifest() -> dict[str, Any]:
    """The parts of a prepared folder's manifest that records read."""
    splits = {
        name: {"num_samples": number, "source_fingerprint": name * 8, "store_fingerprint": name * 9, "files": "x"}
        for name, number in (("train", 1297), ("val", 500))
    }
    return {"name": "digits", "classes": [str(digit) for digit in range(10)], "splits": splits}
