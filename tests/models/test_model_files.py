"""Files of conf/model for timm's networks: parameters as printed, resolutions, what DeiT's two heads learn from."""

import pytest
import torch
from torch import nn

from tencrop.config.verbs import CONF
from tencrop.models.factory import build_model

FILES = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
# Millions of parameters as papers, READMEs and model zoos print them.
PRINTED = {
    "tf_efficientnet_b0": "5.3", "tf_efficientnet_b1": "7.8", "tf_efficientnet_b2": "9.2", "tf_efficientnet_b3": "12",
    "tf_efficientnet_b4": "19", "tf_efficientnet_b5": "30", "tf_efficientnet_b6": "43", "tf_efficientnet_b7": "66",
    "regnetx_002": "2.7", "regnetx_004": "5.2", "regnetx_006": "6.2", "regnetx_008": "7.3", "regnetx_016": "9.2",
    "regnetx_032": "15.3", "regnetx_040": "22.1", "regnetx_064": "26.2", "regnetx_080": "39.6", "regnetx_120": "46.1",
    "regnetx_160": "54.3", "regnetx_320": "107.8",
    "regnety_002": "3.2", "regnety_004": "4.3", "regnety_006": "6.1", "regnety_008": "6.3", "regnety_016": "11.2",
    "regnety_032": "19.4", "regnety_040": "20.6", "regnety_064": "30.6", "regnety_080": "39.2", "regnety_120": "51.8",
    "regnety_160": "83.6", "regnety_320": "145.0",
    "deit_tiny_patch16_224": "5", "deit_small_patch16_224": "22", "deit_base_patch16_224": "86",
    "deit_tiny_distilled_patch16_224": "6", "deit_small_distilled_patch16_224": "22",
    "deit_base_distilled_patch16_224": "87",
    "swin_tiny_patch4_window7_224": "29", "swin_small_patch4_window7_224": "50", "swin_base_patch4_window7_224": "88",
    "swin_base_patch4_window12_384": "88",
    "convmixer_1536_20": "51.6", "convmixer_768_32": "21.1",
    "convnext_tiny": "28", "convnext_small": "50", "convnext_base": "89", "convnext_large": "198",
}  # fmt: skip
# What ours rounds to where the printed number is not its rounding.
ROUNDED_OTHERWISE = {
    "tf_efficientnet_b2": "9.1",  # 9,109,994
    "deit_tiny_patch16_224": "6",  # 5,717,416, printed cut
    "deit_base_patch16_224": "87",  # 86,567,656, printed cut
    "swin_tiny_patch4_window7_224": "28",  # 28,288,354; the authors' README prints 28
    "convnext_tiny": "29",  # 28,589,128, printed cut
}


@pytest.fixture
def network_of(composed):
    def build(name, num_classes=1000):
        return build_model(composed(f"model={name}").model, num_classes=num_classes)

    return build


@pytest.mark.parametrize("name", PRINTED)
def test_parameters_as_printed(name, network_of):
    with torch.device("meta"):
        millions = sum(parameter.numel() for parameter in network_of(name).parameters()) / 1e6
    printed = PRINTED[name]
    decimals = len(printed.partition(".")[2])
    assert f"{millions:.{decimals}f}" == ROUNDED_OTHERWISE.get(name, printed)
    assert abs(millions - float(printed)) < 10**-decimals


SIDES = {"b0": 224, "b1": 240, "b2": 260, "b3": 300, "b4": 380, "b5": 456, "b6": 528, "b7": 600}


@pytest.mark.parametrize("name", [name for name in FILES if "efficientnet" in name or name.endswith("384")])
def test_images_of_the_papers_resolution(name, composed):
    config = composed(f"model={name}")
    assert config.image_size == SIDES.get(name[-2:], 384)
    assert config.augmentation.size == config.protocol.size == config.image_size
    if "efficientnet" in name:
        assert config.short_side == config.image_size + 32


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
