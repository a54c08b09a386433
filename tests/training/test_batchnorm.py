import copy
from contextlib import nullcontext

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d, EvoNorm2dB0
from torch import nn

from operations import Operations
from tencrop.config import Batches, UserError
from tencrop.training.batchnorm import GroupStatistics, check_single_samples, set_groups
from typed import layer_at


def layout(*, micro_batch: int, group: int, accumulate: int = 1) -> Batches:
    per_device = micro_batch * accumulate
    return Batches(1, per_device, micro_batch, accumulate, "ghost", micro_batch // group)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU())
    return layers.double()


def step(model: nn.Module, images: torch.Tensor, micro_batch: int) -> torch.Tensor:
    parts = images.split(micro_batch)
    statistics, outputs = GroupStatistics(model, num_micro_batches=len(parts)), []
    for part in parts:
        outputs.append(model(part))
        statistics.collect()
    (torch.cat(outputs) ** 2).mean().backward()
    statistics.update()
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
    torch.testing.assert_close(step(ghost, images, 6), expected, rtol=1e-12, atol=1e-12)
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


def widths() -> nn.Sequential:
    """Layers of one width and of several, some of them not a multiple of a vector register, where sums differ."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width)) for width in (5, 40, 5, 64, 3)))


@pytest.mark.parametrize(("group", "micro_batch"), [(48, 48), (16, 16), (4, 16), (3, 48)])
def test_statistics_have_the_bits_of_an_update_of_each_layer_alone(group, micro_batch):
    """As torch computes a group's statistics, then the plain mean over the step's groups, for one layer at a time."""
    branches = set_groups(widths(), layout(micro_batch=micro_batch, group=group, accumulate=48 // micro_batch))
    statistics = GroupStatistics(branches, num_micro_batches=48 // micro_batch)
    images, expected = torch.randn(48, 3, 5, 5), {}
    for name, branch in branches.named_children():
        convolution, norm = layer_at(branch, "0", nn.Conv2d), layer_at(branch, "1", nn.BatchNorm2d)
        torn = [nn.BatchNorm2d(norm.num_features, momentum=1.0) for _ in range(48 // group)]
        maps = [part for micro in images.split(micro_batch) for part in convolution(micro).split(group)]
        for alone, part in zip(torn, maps, strict=True):
            alone(part)
        for key in ("running_mean", "running_var"):
            mean = torch.stack([getattr(alone, key) for alone in torn]).mean(0)
            expected[f"{name}.1.{key}"] = torch.lerp(getattr(norm, key), mean, 0.1)
    for part in images.split(micro_batch):
        for branch in branches.children():
            branch(part)
        statistics.collect()
    statistics.update()
    for key, value in expected.items():
        assert torch.equal(branches.state_dict()[key], value), key


def test_a_layer_that_has_not_run_or_ran_twice_is_noticed():
    for num_passes in (0, 2):
        model = set_groups(nn.Sequential(nn.BatchNorm2d(3)), layout(micro_batch=4, group=2))
        for _ in range(num_passes):
            model(torch.randn(4, 3, 2, 2))
        with pytest.raises(AssertionError, match="every group of the device once"):
            GroupStatistics(model, num_micro_batches=1).collect()
    with pytest.raises(AssertionError, match="every micro-batch once"):
        GroupStatistics(model, num_micro_batches=2).update()


def test_bookkeeping_takes_a_few_operations_whatever_the_depth():
    """ResNet-50: 53 layers of 6 widths. A loop over layers took 106 means, 109 selections, 53 splits and 53 copies."""
    model = timm.create_model("resnet50", num_classes=2)
    images = torch.randn(4, 3, 32, 32)
    with Operations() as plain:
        model(images)
    for group, most in (
        (4, 0),
        (2, 53 * 6),
    ):  # two groups: split, two unbinds, cat, and a second call with its workspace
        ghost = set_groups(copy.deepcopy(model), layout(micro_batch=4, group=group))
        statistics = GroupStatistics(ghost, num_micro_batches=1)
        with Operations() as forward:
            ghost(images)
        # torch counts the batches of each layer with an addition of its own, which here is one for all layers
        assert forward.counts.total() <= plain.counts.total() - 53 + most
        with Operations() as update:
            statistics.collect()
            statistics.update()
        assert update.counts.total() <= (2 if group == 4 else 2 + 6 * 5), update.counts


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
        step(model, images, 4)
        assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_tokens_of_a_sample_stay_in_its_group():
    """LeViT normalizes [batch * tokens, channels]: a group's result is that of a batch of its own."""
    torch.manual_seed(0)
    reference = timm.create_model("levit_128s", num_classes=3, img_size=64).double().train()
    model = set_groups(copy.deepcopy(reference), layout(micro_batch=4, group=2))
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    expected = torch.cat([reference(half) for half in images.split(2)])
    assert torch.allclose(step(model, images, 4), expected, rtol=0, atol=1e-12)
    assert not torch.allclose(expected, reference(images), rtol=0, atol=1e-3), "the groups matter"


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


@pytest.mark.parametrize(("size", "is_refused"), [(32, True), (64, False)])
def test_a_single_value_per_channel_is_refused(size, is_refused):
    """At 32 pixels, the maps of ResNet's last stage are 1 x 1: torch refuses them in the first training step."""
    model = timm.create_model("resnet18", num_classes=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match="normalizes maps of 1 x 1 at 32 x 32") if is_refused else nullcontext():
        check_single_samples(model, "resnet18", size)
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    set_groups(model, layout(micro_batch=4, group=1))
    with pytest.raises(ValueError, match="more than 1 value per channel") if is_refused else nullcontext():
        model(torch.randn(4, 3, size, size))
