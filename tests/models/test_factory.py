"""Networks by name: timm's, torchvision's and ours; names and options that do not fit are refused."""

import dataclasses

import pytest
import timm
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from tencrop.config import Model, UserError
from tencrop.config.rules import MODEL_NAMES
from tencrop.models.factory import build_model, check_image_size
from tencrop.models.names import installed_names
from typed import present

TIMM_OF_THE_LIST = "1.0.31"


def model(name, bn_group=None, **kwargs):
    return Model(name=name, kwargs=kwargs, channels_last=False, bn_group=bn_group)


@pytest.mark.parametrize("named", [model("resnet18", 32), model("torchvision/resnet18", 32), model("lenet5_dense")])
def test_builds_by_name(named):
    network = build_model(named, num_classes=10).eval()
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("named", "words"),
    [
        (model("resnet18", 32, depth=3), "depth"),
        (model("resnet18"), "has BatchNorm"),
        (model("lenet5_dense", 32), "has no BatchNorm"),
        (model("no_such_net"), "no_such_net"),
        (model("torchvision/no_such_net"), "no_such_net"),
    ],
)
def test_names_and_options_that_do_not_fit_are_refused(named, words):
    with pytest.raises(UserError, match=words):
        build_model(named, num_classes=10, image_size=32)


def test_a_network_that_is_only_evaluated_needs_no_group_of_batch_norm():
    assert build_model(model("resnet18"), num_classes=10).eval()(torch.randn(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_050"])  # BatchNorm2d, and timm's BatchNormAct2d
def test_momentum_and_epsilon_of_batch_norm(name):
    config = dataclasses.replace(model(name, 32), bn_momentum=0.0003, bn_eps=0.001)
    layers = [layer for layer in build_model(config, num_classes=10).modules() if isinstance(layer, _BatchNorm)]
    assert {(layer.momentum, layer.eps) for layer in layers} == {(0.0003, 0.001)}
    first, images = layers[0].train(), torch.randn(8, layers[0].num_features, 5, 5)
    running = present(first.running_mean).clone()
    first(images)
    torch.testing.assert_close(first.running_mean, 0.9997 * running + 0.0003 * images.mean((0, 2, 3)))
    own = [layer for layer in build_model(model(name, 32), num_classes=10).modules() if isinstance(layer, _BatchNorm)]
    assert {(layer.momentum, layer.eps) for layer in own} == {(0.1, 1e-5)}


@pytest.mark.skipif(timm.__version__ != TIMM_OF_THE_LIST, reason=f"the committed names are timm {TIMM_OF_THE_LIST}'s")
def test_the_committed_names_are_the_installed_ones():
    assert MODEL_NAMES.read_text().split() == installed_names()


def test_images_of_a_size_that_does_not_fit_are_refused():
    with pytest.raises(UserError, match="image_size=64: lenet5_dense does not take images of 64 x 64"):
        build_model(model("lenet5_dense"), num_classes=10, image_size=64)
    with pytest.raises(UserError, match="image_size=192: vit_tiny_patch16_224 does not take"):
        build_model(model("vit_tiny_patch16_224"), num_classes=10, image_size=192)
    network = build_model(model("vit_tiny_patch16_224", img_size=32), num_classes=10, image_size=32)
    assert network.training


def test_checking_an_image_size_has_no_side_effects():
    """Weights, running statistics and torch's generator are the same as without the check."""
    heads = {"img_size": 80, "width": 0.0625}
    for named, size in ((model("resnet18", 32), 64), (model("googlenet_2014", **heads), 80)):
        built = []
        for image_size in (None, size):
            torch.manual_seed(0)
            network = build_model(named, num_classes=10, image_size=image_size)
            assert all(module.training for module in network.modules())
            built.append((network.state_dict(), torch.get_rng_state()))
        (weights, state), (tried_weights, tried_state) = built
        assert torch.equal(state, tried_state)
        assert all(torch.equal(tried_weights[key], value) for key, value in weights.items())


def test_auxiliary_heads_fix_the_size_in_training_only():
    named = model("googlenet_2014", width=0.0625)
    with pytest.raises(UserError, match="image_size=80: googlenet_2014 does not take"):
        build_model(named, num_classes=10, image_size=80)
    check_image_size(build_model(named, num_classes=10), named.name, 80, key="protocol.size")
    with pytest.raises(UserError, match=r"protocol\.size=40: lenet5 does not take"):
        check_image_size(build_model(model("lenet5"), num_classes=10), "lenet5", 40, key="protocol.size")


def test_auxiliary_heads_of_unknown_weight_are_not_trained():
    named = model("inception_v3", 32, aux_logits=True)
    with torch.device("meta"):
        with pytest.raises(UserError, match=r"has auxiliary heads.*inception_v3_aux"):
            build_model(named, num_classes=10, image_size=299)
        assert build_model(named, num_classes=10).aux_logits  # it may be evaluated
