import copy
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import nn

from tencrop.config import Batches
from tencrop.models.alexnet import ScaledDropout
from tencrop.models.fractalnet import FractalNet
from tencrop.training.dropout import MAX_FACTORS, GlobalBatchDraws, draws_of
from typed import present


class Windows(nn.Module):
    """Three rows for each image, one after the other, and dropout that is not a layer."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = images.flatten(1).repeat_interleave(3, dim=0)
        return F.dropout(rows, 0.5, self.training).unflatten(0, (len(images), 3))


LAYERS = {
    "Dropout": nn.Dropout(0.5), "in place": nn.Dropout(0.5, inplace=True), "2d": nn.Dropout2d(0.5),
    "scaled": ScaledDropout(0.5), "DropPath": DropPath(0.3), "windows": Windows(),
}  # fmt: skip


def divided(num_devices: int, accumulate: int, *, global_batch: int = 8) -> Batches:
    per_device = global_batch // num_devices
    return Batches(num_devices, per_device, per_device // accumulate, accumulate, "none", 1)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_parts_of_a_batch_get_the_draws_of_the_whole(name, layout):
    """Two layers in sequence, so that the second one's numbers come after the first one's."""
    size = 3 * 75 if name == "windows" else 75
    network = nn.Sequential(copy.deepcopy(LAYERS[name]), nn.Flatten(), nn.Linear(size, 4), nn.Dropout(0.5))
    images = torch.randn(8, 3, 5, 5).contiguous(memory_format=layout)
    torch.manual_seed(1)
    whole = network(images.clone())
    for first in range(0, 8, 2):
        torch.manual_seed(1)
        with GlobalBatchDraws(global_batch=8, micro_batch=2, first_row=first):
            part = network(images[first : first + 2].clone())
        torch.testing.assert_close(part, whole[first : first + 2], rtol=1e-5, atol=1e-6)
    network.eval()
    with GlobalBatchDraws(global_batch=8, micro_batch=2, first_row=0):
        assert torch.equal(network(images[:2]), network(images[:2]))


def test_gradients_pass_through_the_kept_numbers_only():
    images = torch.ones(4, 6, requires_grad=True)
    with GlobalBatchDraws(global_batch=8, micro_batch=4, first_row=4):
        dropped = F.dropout(images, 0.5)
    dropped.sum().backward()
    assert torch.equal(present(images.grad), dropped) and set(dropped.unique().tolist()) == {0.0, 2.0}


def test_numbers_for_the_whole_batch_are_drawn_as_always():
    torch.manual_seed(1)
    expected = torch.empty(()).bernoulli_(0.5), torch.rand(2)
    torch.manual_seed(1)
    with GlobalBatchDraws(global_batch=8, micro_batch=2, first_row=2):
        assert torch.equal(torch.empty(()).bernoulli_(0.5), expected[0]) and torch.equal(torch.rand(2), expected[1])


VIT, SWIN = "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"
NETWORKS: dict[str, tuple[str, dict[str, Any], str]] = {
    "nothing is drawn": ("vgg11", {"drop_rate": 0.0}, "plain"),
    "a layer": ("vgg11", {"drop_rate": 0.5}, "global"),
    "a call": ("test_efficientnet", {"drop_rate": 0.2}, "global"),
    "drop-path": (VIT, {"drop_path_rate": 0.1}, "global"),
    "windows": (SWIN, {"proj_drop_rate": 0.1, "drop_path_rate": 0.1}, "global"),
    "attention": (VIT, {"attn_drop_rate": 0.1}, "separate"),
    "patches": (VIT, {"patch_drop_rate": 0.5}, "separate"),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_how_networks_draw(kind):
    name, kwargs, expected = NETWORKS[kind]
    network = timm.create_model(name, **kwargs)
    size = 160 if name == "test_efficientnet" else 224
    assert draws_of(network, divided(2, 1), image_size=size) == expected
    assert draws_of(network, divided(1, 2), image_size=size) == expected
    assert draws_of(network, divided(1, 1), image_size=size) == "plain"
    compiled = draws_of(network, divided(2, 1), image_size=size, is_compiled=True)
    assert compiled == ("plain" if expected == "plain" else "separate")
    assert all(layer.training for layer in network.modules())


def test_networks_that_draw_for_the_whole_batch_are_plain():
    network = FractalNet(10, num_maps=(8,), num_columns=2, width=0.25)
    assert draws_of(network, divided(2, 1), image_size=32) == "plain"
    assert all(layer.training for layer in network.modules())


class Noise(nn.Module):
    """Draws for the channels of all samples together, or for tokens, which come first."""

    def __init__(self, dims: tuple[int, ...]):
        super().__init__()
        self.dims = dims

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean() * images.new_empty(self.dims).bernoulli_(0.5)


@pytest.mark.parametrize("dims", [(1, 3, 1, 1), (16, 3)], ids=str)
def test_draws_that_are_not_for_samples_are_separate(dims):
    assert draws_of(Noise(dims), divided(2, 1), image_size=8) == "separate"


def test_too_many_numbers_are_not_drawn_for_a_global_batch():
    network = timm.create_model(VIT, proj_drop_rate=0.1)
    most = MAX_FACTORS // (197 * 4 * 192)  # tokens and hidden numbers of a sample
    assert draws_of(network, divided(2, 1, global_batch=most // 2 * 2), image_size=224) == "global"
    assert draws_of(network, divided(2, 1, global_batch=most // 2 * 2 + 2), image_size=224) == "separate"
