"""Fixtures for the tests of networks."""

from collections.abc import Callable

import pytest
from torch import nn

from tencrop.models.factory import build_model


@pytest.fixture
def build(composed) -> Callable[..., nn.Module]:
    """build(name, num_classes=10, width=0.5): the network of conf/model/NAME.yaml with further arguments."""

    def build_with(name: str, *, num_classes: int = 10, **kwargs) -> nn.Module:
        model = composed(f"model={name}").model
        model.kwargs.update(kwargs)
        return build_model(model, num_classes=num_classes)

    return build_with


@pytest.fixture(scope="session")
def switch_off_drops() -> Callable[[nn.Module], nn.Module]:
    """switch_off_drops(network): the same network with every probability of dropout, drop-path and their like at 0."""

    def switched_off(network: nn.Module) -> nn.Module:
        for module in network.modules():
            # `p` of torch's, drop_prob, drop_rate, ... of others
            rates = ["p"] if isinstance(module, nn.modules.dropout._DropoutNd) else []
            rates += [key for key, value in vars(module).items() if key.startswith("drop") and isinstance(value, float)]
            for key in rates:
                setattr(module, key, 0.0)
        return network

    return switched_off
