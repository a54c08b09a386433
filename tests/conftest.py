"""What tests of several parts share."""

from collections.abc import Callable

import pytest
from hydra import compose, initialize_config_dir

from tencrop.config import Config, typed
from tencrop.config.verbs import CONF


@pytest.fixture
def composed() -> Callable[..., Config]:
    """conf/ composed with overrides, as train.py does it: composed("model=resnet50", "seed=1")."""

    def compose_typed(*overrides: str) -> Config:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return typed(compose("train", list(overrides)), Config)

    return compose_typed
