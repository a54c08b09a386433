"""Blur pooling against ffcv-imagenet's way to do it: a module around each strided convolution."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from tencrop.config import Model, UserError
from tencrop.models.blur_pool import add_blur_pool
from tencrop.models.factory import build_model
from tencrop.models.weights import apply_weights, check_weights, load_weights


class Blurred(nn.Module):
    """The reference: blur with a written-out kernel, then the convolution. Its names are those of ffcv-imagenet."""

    blur_filter: Tensor

    def __init__(self, convolution: nn.Conv2d):
        super().__init__()
        self.conv = convolution
        kernel = torch.tensor([[1, 2, 1], [2, 4, 2], [1, 2, 1]], dtype=convolution.weight.dtype) / 16
        self.register_buffer("blur_filter", kernel.expand(convolution.in_channels, 1, 3, 3).clone())

    def forward(self, maps: Tensor) -> Tensor:
        kernel = self.blur_filter[0, 0]
        padded = F.pad(maps, (1, 1, 1, 1))
        height, width = maps.shape[2:]
        blurred = sum(
            kernel[row, column] * padded[:, :, row : row + height, column : column + width]
            for row in range(3)
            for column in range(3)
        )
        return self.conv(blurred)


def blur_as_ffcv_imagenet(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d) and max(child.stride) > 1 and child.in_channels >= 16:
            setattr(module, name, Blurred(child))
        else:
            blur_as_ffcv_imagenet(child)


def network(name: str, blur_pool: bool) -> nn.Module:
    torch.manual_seed(0)
    kwargs = {} if name.startswith("torchvision") else {"zero_init_last": False}  # else no branch would count
    model = Model(name, kwargs, channels_last=False, bn_group=2, blur_pool=blur_pool)
    return build_model(model, num_classes=10, image_size=64).double()


RESNET18 = {f"layer{stage}.0.{layer}" for stage in (2, 3, 4) for layer in ("conv1", "downsample.0")}
RESNET50 = {f"layer{stage}.0.{layer}" for stage in (2, 3, 4) for layer in ("conv2", "downsample.0")}


@pytest.mark.parametrize(
    ("name", "layers"), [("resnet18", RESNET18), ("resnet50", RESNET50), ("torchvision/resnet50", RESNET50)]
)
def test_outputs_and_gradients_of_ffcv_imagenet(name, layers):
    ours, theirs = network(name, True), network(name, False)
    kernels = ours.state_dict().keys() - theirs.state_dict().keys()
    assert kernels == {f"{layer}.blur.kernel" for layer in layers}  # not the first convolution, which reads pixels
    assert theirs.state_dict().keys() < ours.state_dict().keys()
    before = dict(theirs.named_parameters())
    blur_as_ffcv_imagenet(theirs)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for one in (ours, theirs):
        one.train()(images).square().sum().backward()
    for key, weight in ours.named_parameters():
        assert torch.equal(weight, before[key]), key
        torch.testing.assert_close(weight.grad, before[key].grad, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(ours(images), network(name, False).eval()(images))


def test_the_initial_weights_are_those_without_blurring():
    ours, plain = network("resnet18", True).state_dict(), network("resnet18", False).state_dict()
    assert all(torch.equal(ours[key], plain[key]) for key in plain)


def test_a_copy_blurs_too():
    ours = network("resnet18", True).eval()
    other, images = copy.deepcopy(ours), torch.randn(1, 3, 64, 64, dtype=torch.float64)
    assert torch.equal(other(images), ours(images))
    other.get_buffer("layer2.0.conv1.blur.kernel").zero_()  # its own kernel, not that of the original
    assert not torch.equal(other(images), ours(images))


def test_weights_with_and_without_blurring_do_not_fit_each_other():
    ours, plain = network("resnet18", True).state_dict(), network("resnet18", False).state_dict()
    with pytest.raises(UserError, match=r"missing: layer2.0.conv1.blur.kernel"):
        check_weights(plain, ours, source="a file", name="resnet18")
    with pytest.raises(UserError, match=r"unexpected: layer2.0.conv1.blur.kernel"):
        check_weights(ours, plain, source="a file", name="resnet18")


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_release_of_ffcv_imagenet_is_applied(name, tmp_path):
    """It saves the state dict of DistributedDataParallel."""
    theirs = network(name, False).eval()
    blur_as_ffcv_imagenet(theirs)
    for value in theirs.parameters():
        nn.init.uniform_(value, -0.1, 0.1)
    released = {f"module.{key}": value for key, value in theirs.state_dict().items()}
    assert {"module.layer2.0.downsample.0.conv.weight", "module.layer2.0.downsample.0.blur_filter"} < released.keys()
    torch.save(released, tmp_path / "final_weights.pt")
    state, ours = load_weights(tmp_path / "final_weights.pt").state, network(name, True).eval()
    apply_weights(ours, state, source="final_weights.pt", name=name)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-10, atol=1e-10)
    with pytest.raises(UserError, match=r"unexpected: layer2\.0\.conv\d\.blur_filter, .* model\.blur_pool=true"):
        apply_weights(network(name, False), state, source="final_weights.pt", name=name)


def test_convolutions_of_subclasses_are_blurred():
    assert add_blur_pool(torchvision.models.mobilenet_v2(num_classes=2)) == 4  # depthwise, groups above 1


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vgg11", "alexnet_2012"])
def test_a_network_without_such_a_convolution_is_refused(name):
    model = Model(name, {}, channels_last=False, bn_group=None, blur_pool=True)
    with pytest.raises(UserError, match=f"model.blur_pool=true: {name} has no convolution with a stride above 1"):
        build_model(model, num_classes=10)
