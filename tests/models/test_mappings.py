"""One network in two libraries: the same weights give the same outputs, whatever the names."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import tencrop.models.factory  # noqa: F401  registers our names
from tencrop.models.mappings import SAME_IN_TORCHVISION, to_own_names
from tencrop.models.weights import apply_weights


class Pair(NamedTuple):
    """A network of ours or timm's, and torchvision's version with the tensors in the same order."""

    own: str
    kwargs: dict[str, Any]
    theirs: str
    their_kwargs: dict[str, Any]
    side: int = 96  # pixels
    batch: int = 3  # of two images BatchNorm leaves nothing but signs on 1 x 1 maps


PAIRS = [
    Pair("vgg_d", {"drop_rate": 0.0}, "vgg16", {"dropout": 0.0}, side=224, batch=1),
    Pair("resnet50", {}, "resnet50", {}),
    Pair("densenet121", {}, "densenet121", {}),
    Pair("squeezenet_1_0", {"class_padding": 0, "drop_rate": 0.0}, "squeezenet1_0", {"dropout": 0.0}),
    Pair("squeezenet_1_1", {"drop_rate": 0.0}, "squeezenet1_1", {"dropout": 0.0}),
    Pair("inception_v3", {"aux_logits": True}, "inception_v3", {"dropout": 0.0, "init_weights": False}, side=299),
    Pair("resnext50_32x4d", {}, "resnext50_32x4d", {}),
    Pair("wide_resnet50_2", {}, "wide_resnet50_2", {}),
]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.own)
def test_the_same_weights_give_the_same_outputs(pair):
    """In training mode in float64, auxiliary logits and running statistics included, then in eval mode in float32."""
    torch.manual_seed(0)
    own = timm.create_model(pair.own, **pair.kwargs)
    with torch.device("meta"):
        theirs = torchvision.models.get_model(pair.theirs, weights=None, **pair.their_kwargs)
    scatter_norms(own)
    images = torch.randn(pair.batch, 3, pair.side, pair.side)
    for is_training, dtype in ((True, torch.float64), (False, torch.float32)):
        own.train(is_training).to(dtype)
        mapped = dict(zip(theirs.state_dict(), own.state_dict().values(), strict=True))
        theirs.train(is_training).load_state_dict(mapped, assign=True)  # the same weights in memory
        for module in theirs.modules():
            module._buffers = {key: value.clone() for key, value in module._buffers.items() if value is not None}
        with torch.no_grad():
            outputs, expected = tensors(own(images.to(dtype))), tensors(theirs(images.to(dtype)))
        assert len(outputs) >= len(expected)  # timm's Inception gives its auxiliary logits in eval mode too
        for logits, their_logits in zip(outputs, expected, strict=is_training):
            assert logits.dtype == dtype and logits.std() > 0
            torch.testing.assert_close(logits, their_logits, rtol=1e-5, atol=1e-5 * float(logits.std()))
        for value, its in zip(own.buffers(), theirs.buffers(), strict=True):
            torch.testing.assert_close(value, its, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", SAME_IN_TORCHVISION)
def test_torchvisions_state_dict_maps_to_our_names(name):
    with torch.device("meta"):
        own = timm.create_model(name).state_dict()
        theirs = torchvision.models.get_model(SAME_IN_TORCHVISION[name], weights=None).state_dict()
    renamed = to_own_names(dict(reversed(theirs.items())), own, name=name)
    assert renamed.keys() == own.keys()
    assert all(renamed[mine] is its for mine, its in zip(own, theirs.values(), strict=True))
    assert all(renamed[key].shape == own[key].shape for key in own)
    assert to_own_names(own, own, name=name) is own


def test_a_file_of_torchvisions_is_applied():
    torch.manual_seed(0)
    theirs = torchvision.models.squeezenet1_1(num_classes=5).eval()
    own = timm.create_model("squeezenet_1_1", num_classes=5).eval()
    apply_weights(own, theirs.state_dict(), source="squeezenet1_1.pth", name="squeezenet_1_1")
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(own(images), theirs(images))


def test_dotted_names_of_densenets_files():
    own = timm.create_model("densenet121", num_classes=5)
    dotted = {
        key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2.") if "denselayer" in key else key: value
        for key, value in own.state_dict().items()
        if "num_batches" not in key
    }
    other = timm.create_model("densenet121", num_classes=5)
    apply_weights(other, dotted, source="densenet121-a639ec97.pth", name="densenet121")
    assert all(torch.equal(value, own.state_dict()[key]) for key, value in other.state_dict().items())


def scatter_norms(network: nn.Module) -> None:
    """Scales and shifts of BatchNorm that differ, so that no branch is hidden by a scale of 0."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)


def tensors(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)
