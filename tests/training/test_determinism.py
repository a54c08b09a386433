"""Networks that cannot be trained deterministically on a GPU are found on the CPU, from their autograd graphs."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tencrop.cli.choices import CONF
from tencrop.config import Model, UserError, derive_batches
from tencrop.data.store.manifest import read_manifest
from tencrop.models.factory import create_network
from tencrop.training.determinism import NONDETERMINISTIC, check_deterministic, nondeterministic_layers
from tencrop.training.fit import build

MODEL_FILES = sorted(path.stem for path in (CONF / "model").glob("*.yaml") if path.stem != "timm")
QUICK = {  # the others in make test-long
    "alexnet_2012", "alexnet_2012_figure1", "allcnn", "bn_inception", "convnext_tiny", "deit_tiny_patch16_224",
    "fractalnet34", "googlenet_2014", "lenet5", "mobilenet_v1_025", "nin", "regnety_002", "resnet18_a",
    "squeezenet_1_0", "swin_tiny_patch4_window7_224", "tf_efficientnet_b0", "vgg_a_lrn", "zfnet",
}  # fmt: skip
GPU = ("hardware=gpu1", "deterministic=true")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.long) for name in MODEL_FILES]
)
def test_our_networks_can_be_trained_deterministically(name, composed):
    config = composed(f"model={name}", *GPU)
    with torch.device("meta"):
        network = create_network(config.model, num_classes=10).train()
    check_deterministic(network, config)


class Applied(nn.Module):
    """Applies a function to feature maps [2, 3, 8, 8] that depend on a weight."""

    def __init__(self, function):
        super().__init__()
        self.weight, self.function = nn.Parameter(torch.ones(())), function

    def forward(self, images):
        return self.function(self.weight * images)


def pooled_back(maps):
    maxima, positions = F.max_pool2d(maps, 2, return_indices=True)
    return F.max_unpool2d(maxima, positions, [2, 2])


# torch computes interpolations, but for those against aliasing, in another way where it is to be deterministic
OPERATIONS = {
    "AdaptiveAvgPool2DBackward0": lambda x: F.adaptive_avg_pool2d(x, 3),
    "AdaptiveAvgPool3DBackward0": lambda x: F.adaptive_avg_pool3d(x, (2, 2, 2)),
    "AdaptiveMaxPool2DBackward0": lambda x: F.adaptive_max_pool2d(x, 1),
    "AdaptiveMaxPool3DBackward0": lambda x: F.adaptive_max_pool3d(x, (2, 2, 2)),
    "AvgPool3DBackward0": lambda x: F.local_response_norm(x, 5),
    "FractionalMaxPool2DBackward0": lambda x: F.fractional_max_pool2d(x, 2, output_size=3),
    "MaxUnpool2DBackward0": pooled_back,
    "ReflectionPad1DBackward0": lambda x: F.pad(x.flatten(2), (1, 1), mode="reflect"),
    "ReflectionPad2DBackward0": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "UpsampleLinear1DBackward0": lambda x: F.interpolate(x.flatten(2), 9, mode="linear"),
    "UpsampleBilinear2DAaBackward0": lambda x: F.interpolate(x, 5, mode="bilinear", antialias=True),
    "UpsampleBicubic2DAaBackward0": lambda x: F.interpolate(x, 5, mode="bicubic", antialias=True),
    "GridSampler2DBackward0": lambda x: F.grid_sample(x, torch.empty(2, 3, 3, 2, device="meta"), align_corners=False),
    "NllLoss2DBackward0": lambda x: F.nll_loss(x, torch.zeros(2, 8, 8, dtype=torch.int64, device="meta")),
    "ScatterReduceBackward0": lambda x: x.scatter_reduce(0, torch.zeros_like(x, dtype=torch.int64), x, "amax"),
}


@pytest.mark.parametrize("node", OPERATIONS)
def test_an_operation_without_a_deterministic_gradient_is_found_in_its_layer(node):
    network = nn.Sequential(nn.Identity(), nn.Sequential(Applied(OPERATIONS[node])))
    assert nondeterministic_layers(network, 8) == {"1.0": NONDETERMINISTIC[node]}


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.adaptive_avg_pool2d(x, 1),
        lambda x: F.max_pool2d(x, 2),
        lambda x: F.avg_pool2d(x, 2),
        lambda x: F.interpolate(x, 9, mode="bilinear"),
        lambda x: x[:, [0, 0, 1]].cumsum(1),
        lambda x: F.adaptive_avg_pool2d(x.detach(), 3) * x.mean(),  # no gradient comes by
    ],
)
def test_an_operation_with_a_deterministic_gradient_is_not_reported(function):
    assert nondeterministic_layers(Applied(function), 8) == {}


class Between(nn.Module):
    """Pools in its own forward(), between two layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 1)

    def forward(self, images):
        return self.second(F.adaptive_avg_pool2d(self.first(images), 3))


def test_an_operation_between_layers_belongs_to_the_layer_around_them():
    expected = {"0": NONDETERMINISTIC["AdaptiveAvgPool2DBackward0"]}
    assert nondeterministic_layers(nn.Sequential(Between()), 8) == expected


def test_the_network_and_torch_settings_are_not_changed():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    before, drawn = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    nondeterministic_layers(network, 8)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn) and not torch.are_deterministic_algorithms_enabled()
    assert not network[0]._forward_hooks and not network[0]._forward_pre_hooks


def test_build_refuses_a_network_that_is_not_deterministic_on_a_gpu(composed, prepared_photos, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    words = ["data=imagefolder", f"data.root={prepared_photos}", "model=timm", "model.name=torchvision/alexnet"]
    words += ["model.bn_group=null", "image_size=64", "short_side=64", "training.global_batch=8", *GPU]
    sentence = r"deterministic=true: layer avgpool of torchvision/alexnet is adaptive average pooling .* choose"
    config, manifest = composed(*words), read_manifest(prepared_photos)
    with pytest.raises(UserError, match=sentence):
        build(config, batches=derive_batches(config), manifest=manifest)
    for allowed in ("deterministic=false", "deterministic=null"):
        config = composed(*words, allowed)
        data, _ = build(config, batches=derive_batches(config), manifest=manifest)
        data.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["torchvision/alexnet", "alexnet_2012", "googlenet_2014", "vgg_a_lrn", "resnet18"])
def test_torch_on_a_gpu_refuses_the_operations_in_the_table(name):
    model = Model(name=name, kwargs={}, channels_last=False, bn_group=None)
    network = create_network(model, num_classes=10).train()
    is_refused = bool(nondeterministic_layers(network, 224))
    torch.use_deterministic_algorithms(True)
    try:
        outputs = network.cuda()(torch.rand(2, 3, 224, 224, device="cuda"))
        (outputs[0] if isinstance(outputs, tuple) else outputs).sum().backward()
    except RuntimeError as error:
        assert is_refused and "does not have a deterministic implementation" in str(error)
    else:
        assert not is_refused
    finally:
        torch.use_deterministic_algorithms(False)
