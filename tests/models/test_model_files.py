"""Files of conf/model: published errors, resolutions, initial BatchNorm scales, the labels of DeiT's two heads."""

import pytest
import timm
import torch
import yaml
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from tencrop.cli.choices import CONF
from tencrop.models.factory import build_model

FILES = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))


@pytest.fixture
def network_of(composed):
    def build(name, num_classes=1000):
        return build_model(composed(f"model={name}").model, num_classes=num_classes)

    return build


SIDES = {"b0": 224, "b1": 240, "b2": 260, "b3": 300, "b4": 380, "b5": 456, "b6": 528, "b7": 600}


@pytest.mark.parametrize("name", [name for name in FILES if "efficientnet" in name or name.endswith("384")])
def test_images_of_the_papers_resolution(name, composed):
    config = composed(f"model={name}")
    assert config.image_size == SIDES.get(name[-2:], 384)
    assert config.augmentation.size == config.protocol.size == config.image_size
    if "efficientnet" in name:
        assert config.short_side == config.image_size + 32


@pytest.mark.parametrize("name", FILES)
def test_pixels_are_normalized_as_for_the_weights_that_timm_publishes(name):
    """The papers' recipes, too: pixels from -1 to 1 for the ViT of Dosovitskiy et al. and of Beyer et al., ImageNet's
    mean for DeiT."""
    file = yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text())
    network = file.get("model", file)["name"]
    cfg = timm.get_pretrained_cfg(network) if timm.is_model(network) else None
    if cfg is not None and (cfg.url or cfg.hf_hub_id):
        wanted = {"mean": cfg.mean, "std": cfg.std}
    elif network == "vit_small_patch16_plain":
        wanted = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    else:
        return
    ours = file.get("normalization", {"mean": "imagenet", "std": "imagenet"})
    known = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
    ours = {key: known[key] if value == "imagenet" else [v / 255 for v in value] for key, value in ours.items()}
    for key in wanted:
        assert ours[key] == pytest.approx(wanted[key], abs=1e-6)


def test_the_normalization_of_a_model_file_reaches_the_configuration(composed):
    assert composed("model=vit_base_patch16_384").normalization.mean == [127.5] * 3
    assert composed("model=vit_base_patch16_384", "normalization.mean=imagenet").normalization.mean == "imagenet"
    assert composed("model=deit_base_patch16_384").normalization.mean == "imagenet"


@pytest.mark.parametrize("name", ["regnetx_002", "resnext50_32x4d", "wide_resnet50_2"])
def test_no_batch_norm_starts_at_0(name, network_of):
    for module in network_of(name).modules():
        if isinstance(module, nn.BatchNorm2d):
            assert torch.all(module.weight == 1)


@pytest.mark.parametrize("is_training", [True, False])
def test_both_heads_of_a_distilled_deit_learn_from_the_labels(is_training, network_of):
    """timm gives the mean of their logits, one tensor, in training too: our loss takes it."""
    torch.manual_seed(0)
    network = network_of("deit_tiny_distilled_patch16_224", num_classes=4).train(is_training)
    logits = network(torch.randn(2, 3, 224, 224))
    assert isinstance(logits, torch.Tensor) and logits.shape == (2, 4)
    nn.functional.cross_entropy(logits, torch.tensor([0, 3])).backward()
    for parameter in (network.head.weight, network.head_dist.weight, network.cls_token, network.dist_token):
        assert parameter.grad is not None and parameter.grad.any()
