import copy

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d, EvoNorm2dB0
from torch import nn

from tencrop.config import Batches, UserError
from tencrop.training.batchnorm import set_groups, update_running_statistics
from typed import layer_at


def layout(*, micro_batch: int, group: int, accumulate: int = 1) -> Batches:
    per_device = micro_batch * accumulate
    return Batches(1, per_device, micro_batch, accumulate, "ghost", micro_batch // group)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU())
    return layers.double()


def step(model: nn.Module, images: torch.Tensor, micro_batch: int) -> torch.Tensor:
    outputs = [model(part) for part in images.split(micro_batch)]
    (torch.cat(outputs) ** 2).mean().backward()
    update_running_statistics(model)
    return torch.cat(outputs)


def test_one_group_equals_torch_batchnorm():
    plain, images = network(), torch.randn(8, 3, 9, 9, dtype=torch.float64)
    ghost = set_groups(copy.deepcopy(plain), layout(micro_batch=8, group=8))
    for _ in range(3):
        expected = plain(images)
        torch.testing.assert_close(step(ghost, images, 8), expected, rtol=1e-12, atol=1e-12)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(ghost.state_dict()[name], value, rtol=1e-12, atol=1e-12)
    assert list(ghost.state_dict()) == list(plain.state_dict())
    assert ghost.state_dict()["1.num_batches_tracked"] == 3
    torch.testing.assert_close(ghost.eval()(images), plain.eval()(images), rtol=1e-12, atol=1e-12)


def test_groups_are_normalized_separately():
    layer = nn.BatchNorm2d(3).double()
    ghost = set_groups(nn.Sequential(copy.deepcopy(layer)), layout(micro_batch=6, group=2))
    images = torch.randn(6, 3, 4, 4, dtype=torch.float64)
    expected = torch.cat([layer(part) for part in images.split(2)])
    torch.testing.assert_close(ghost(images), expected, rtol=1e-12, atol=1e-12)
    update_running_statistics(ghost)
    means = torch.stack([part.mean((0, 2, 3)) for part in images.split(2)])
    variances = torch.stack([part.var((0, 2, 3)) for part in images.split(2)])
    norm = layer_at(ghost, "0", nn.BatchNorm2d)
    torch.testing.assert_close(norm.running_mean, 0.1 * means.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * variances.mean(0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("micro_batch", "accumulate"), [(12, 1), (4, 3), (2, 6)])
def test_the_layout_does_not_change_the_result(micro_batch, accumulate):
    images = torch.randn(12, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    whole = set_groups(network(), layout(micro_batch=12, group=2))
    parts = set_groups(network(), layout(micro_batch=micro_batch, group=2, accumulate=accumulate))
    for _ in range(2):
        torch.testing.assert_close(step(whole, images, 12), step(parts, images, micro_batch), rtol=1e-12, atol=1e-12)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-12, atol=1e-12)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-11, atol=1e-13)


def test_eval_mode_does_not_change_the_statistics():
    model = set_groups(network(), layout(micro_batch=4, group=2)).eval()
    before = copy.deepcopy(model.state_dict())
    model(torch.randn(5, 3, 9, 9, dtype=torch.float64))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_timm_networks_can_be_grouped():
    for name in ("resnet18", "mobilenetv2_050"):  # BatchNorm2d, BatchNormAct2d
        model = timm.create_model(name, num_classes=3)
        images = torch.randn(4, 3, 64, 64)
        model = set_groups(model, layout(micro_batch=4, group=2))
        model(images).sum().backward()
        update_running_statistics(model)
        assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_a_batchnorm_that_cannot_be_grouped_is_refused():
    with pytest.raises(UserError, match=r"model\.bn_group: layer 0 .* momentum=None"):
        set_groups(nn.Sequential(nn.BatchNorm2d(2, momentum=None)), layout(micro_batch=4, group=2))
    with pytest.raises(UserError, match="SyncBatchNorm"):
        set_groups(nn.Sequential(nn.SyncBatchNorm(2)), layout(micro_batch=4, group=2))


class Renormalized(nn.BatchNorm2d):
    """Any subclass that computes something else; torch's conversion would silently make a plain layer of it."""


@pytest.mark.parametrize("kind", ["ghost", "sync"])
def test_a_subclass_of_batchnorm_is_refused(kind):
    model = nn.Sequential(nn.Conv2d(3, 2, 1), Renormalized(2))
    with pytest.raises(UserError, match=r"model\.bn_group: layer 1 of the model is a Renormalized"):
        set_groups(model, Batches(2, 4, 4, 1, kind, 1))


@pytest.mark.parametrize("bn", ["none", "ghost", "sync"])
def test_other_running_statistics_are_refused_where_the_batch_is_divided(bn):
    def model() -> nn.Module:
        return nn.Sequential(EvoNorm2dB0(2))

    for num_devices, accumulate in ((2, 1), (1, 2)):
        with pytest.raises(UserError, match="layer 0 of the model is a EvoNorm2dB0, whose running_var would depend"):
            set_groups(model(), Batches(num_devices, 4 * accumulate, 4, accumulate, bn, 1))
    assert set_groups(model(), Batches(1, 4, 4, 1, "none", 1)) is not None


def test_sync_converts_the_layers_and_none_returns_the_model():
    model = network()
    assert set_groups(model, Batches(1, 8, 8, 1, "none", 1)) is model
    names = {type(layer).__name__ for layer in set_groups(model, Batches(2, 8, 8, 1, "sync", 1)).modules()}
    assert {"SyncBatchNorm", "SyncBatchNormAct"} <= names
