"""Networks by name: timm's, torchvision's and ours; what does not fit is refused."""

import pytest
import timm
import torch

from tencrop.config import Model, UserError
from tencrop.config.rules import MODEL_NAMES
from tencrop.config.verbs import CONF
from tencrop.models.factory import build_model
from tencrop.models.names import installed_names

TIMM_OF_THE_LIST = "1.0.31"


def model(name, bn_group=None, **kwargs):
    return Model(name=name, kwargs=kwargs, channels_last=False, bn_group=bn_group)


@pytest.mark.parametrize("named", [model("resnet18", 32), model("torchvision/resnet18", 32), model("lenet5_dense")])
def test_builds_by_name(named):
    network = build_model(named, num_classes=10).eval()
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "model").glob("*.yaml") if path.stem != "timm"))
def test_every_model_file_builds_what_it_names(name, composed):
    chosen = composed(f"model={name}").model
    assert chosen.name == name
    with torch.device("meta"):
        build_model(chosen, num_classes=10)


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
def test_what_does_not_fit_is_refused(named, words):
    with pytest.raises(UserError, match=words):
        build_model(named, num_classes=10)


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
