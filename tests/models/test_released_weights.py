"""Weights under the key names of published files, rebuilt from small networks: applied completely, or refused."""

import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual
from timm.models.convnext import ConvNeXt
from timm.models.convnext import checkpoint_filter_fn as timms_convnext_names
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer import checkpoint_filter_fn as timms_swin_names
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tencrop.config import UserError
from tencrop.models.mappings import pair_by_order, pair_lines, to_own_names
from tencrop.models.weights import apply_weights, load_weights

State = dict[str, Tensor]


def swin() -> nn.Module:
    return SwinTransformer(
        img_size=28, patch_size=2, window_size=7, embed_dim=8, depths=(2, 2), num_heads=(1, 2), num_classes=3
    )


def convnext() -> nn.Module:
    return ConvNeXt(depths=(1, 2, 1, 1), dims=(4, 8, 8, 8), num_classes=3)


def deit() -> nn.Module:
    sizes = {"img_size": 32, "patch_size": 16, "embed_dim": 8, "depth": 2, "num_heads": 2}
    return VisionTransformerDistilled(num_classes=3, **sizes)


def efficientnet() -> nn.Module:
    """EfficientNet-B0: its first block has no expansion."""
    return timm.create_model("tf_efficientnet_b0", num_classes=3)


def of_swins_authors(state: State) -> State:
    """As swin_tiny_patch4_window7_224.pth: merging belongs to the stage before, and computed buffers are saved."""
    renamed = {
        re.sub(r"layers\.1\.down", "layers.0.down", key).replace("head.fc", "head"): value
        for key, value in state.items()
    }
    for block in (0, 1):
        renamed[f"layers.0.blocks.{block}.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
    return {"layers.0.blocks.1.attn_mask": torch.zeros(4, 49, 49), **renamed}


def of_convnexts_authors(state: State) -> State:
    """As convnext_tiny_1k_224_ema.pth."""
    renamed = {}
    for key, value in state.items():
        key = re.sub(r"^stem\.", "downsample_layers.0.", key)
        key = re.sub(r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1.", key)
        key = key.replace(".blocks.", ".").replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        renamed[key.replace("head.norm", "norm").replace("head.fc", "head")] = value
    return renamed


def unchanged(state: State) -> State:
    return state


@pytest.mark.parametrize(
    "build, release, timms_names",
    [
        (swin, of_swins_authors, timms_swin_names),
        (convnext, of_convnexts_authors, timms_convnext_names),
        (deit, unchanged, None),  # as deit_tiny_distilled_patch16_224-b40b3cf7.pth
    ],
)
def test_a_release_of_the_authors_is_applied(
    build: Callable[[], nn.Module], release: Callable[[State], State], timms_names: Callable | None, tmp_path: Path
) -> None:
    trained, network = build(), build()
    state = release(trained.state_dict())
    torch.save({"model": {f"module.backbone.{key}": value for key, value in state.items()}}, tmp_path / "release.pth")
    apply_weights(network, load_weights(tmp_path / "release.pth").state, source="release.pth", name="it")
    assert all(torch.equal(value, trained.state_dict()[key]) for key, value in network.state_dict().items())
    if timms_names is not None:
        assert state.keys() != network.state_dict().keys()
        assert to_own_names(state, network.state_dict(), name="it").keys() == timms_names(state, network).keys()


def test_a_release_of_another_size_is_refused() -> None:
    """timm's own conversion would interpolate the table of relative positions."""
    state = of_swins_authors(swin().state_dict())
    other = SwinTransformer(
        img_size=16, patch_size=2, window_size=4, embed_dim=8, depths=(2, 2), num_heads=(1, 2), num_classes=3
    )
    with pytest.raises(UserError, match=r"relative_position_bias_table is \[169, 1\] instead of \[49, 1\]"):
        apply_weights(other, state, source="swin.pth", name="swin")


def efficientnet_pytorchs(network: nn.Module) -> OrderedDict[str, Tensor]:
    """The network's weights under the names, and in the order, of the package efficientnet_pytorch."""
    blocks = [block for block in network.modules() if isinstance(block, (DepthwiseSeparableConv, InvertedResidual))]
    layers = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    number = {id(block): index for index, block in enumerate(blocks)}
    for name, block in network.named_modules():
        if id(block) in number:
            has_expansion = hasattr(block, "conv_pwl")
            parts = {"conv_dw": "_depthwise_conv", "se.conv_reduce": "_se_reduce", "se.conv_expand": "_se_expand"}
            if has_expansion:
                parts |= {
                    "conv_pw": "_expand_conv",
                    "bn1": "_bn0",
                    "bn2": "_bn1",
                    "conv_pwl": "_project_conv",
                    "bn3": "_bn2",
                }
            else:
                parts |= {"bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
            layers |= {f"{name}.{part}": f"_blocks.{number[id(block)]}.{its}" for part, its in parts.items()}
    names = [key.rpartition(".") for key in network.state_dict()]
    return OrderedDict((f"{layers[layer]}.{role}", network.state_dict()[f"{layer}.{role}"]) for layer, _, role in names)


SWAPPED = {"_bn0.running_mean": "_bn0.running_var", "_bn0.running_var": "_bn0.running_mean"}


def scattered() -> nn.Module:
    torch.manual_seed(0)
    network = efficientnet()
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)
    return network.eval()


def test_a_file_of_efficientnet_pytorch_is_applied_by_order(tmp_path: Path) -> None:
    trained, network = scattered(), efficientnet().eval()
    state = efficientnet_pytorchs(trained)
    assert list(state)[:7:6] == ["_conv_stem.weight", "_blocks.0._depthwise_conv.weight"]
    torch.save(state, tmp_path / "efficientnet-b0.pth")
    weights = load_weights(tmp_path / "efficientnet-b0.pth").state
    with pytest.raises(UserError, match=r"missing: conv_stem\.weight"):
        apply_weights(network, weights, source="f", name="efficientnet_b0")
    pairs = apply_weights(network, weights, source="f", name="efficientnet_b0", by="order")
    assert pairs["blocks.1.0.bn3.running_mean"] == "_blocks.1._bn2.running_mean"
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(network(images), trained(images), rtol=0, atol=0)
    lines = pair_lines(pairs, "efficientnet-b0.pth", "efficientnet_b0")
    assert lines[0] == "efficientnet-b0.pth: 360 tensors matched by their order; efficientnet_b0 <- the file:"
    assert "  conv_stem <- _conv_stem (weight)" in lines and "  classifier <- _fc (weight, bias)" in lines
    assert pair_lines({}, "f", "n") == []


def test_by_order_counters_of_batches_may_be_missing() -> None:
    trained, network = scattered(), efficientnet().eval()
    state = {key: value for key, value in efficientnet_pytorchs(trained).items() if "num_batches" not in key}
    apply_weights(network, state, source="f", name="efficientnet_b0", by="order")
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(network(images), trained(images), rtol=0, atol=0)


@pytest.mark.parametrize(
    "change, told",
    [
        (
            lambda state: {**state, "_fc.weight": torch.zeros(5, 1280)},
            r"tensor 359 is _fc\.weight \[5, 1280\], and the network has classifier\.weight \[3, 1280\]",
        ),
        (lambda state: dict(reversed(state.items())), r"tensor 1 is _fc\.bias \[3\], and the network has conv_stem"),
        (lambda state: dict(list(state.items())[:-1]), r"has 359 tensors, and efficientnet_b0 has 360"),
        # of the same shape, but a variance in the place of a mean
        (
            lambda state: {SWAPPED.get(key, key): value for key, value in state.items()},
            r"tensor 4 is _bn0\.running_var \[32\], and the network has bn1\.running_mean",
        ),
    ],
)  # fmt: skip
def test_by_order_other_shapes_or_roles_are_refused(change: Callable[[State], State], told: str) -> None:
    network = efficientnet()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(UserError, match=told):
        apply_weights(
            network, change(efficientnet_pytorchs(scattered())), source="f", name="efficientnet_b0", by="order"
        )
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_safetensors_file_does_not_keep_the_order(tmp_path: Path) -> None:
    """Hence the refusal of weights_by=order for it."""
    save_file({"b": torch.zeros(1), "a": torch.zeros(1)}, tmp_path / "w.safetensors")
    assert list(load_weights(tmp_path / "w.safetensors").state) == ["a", "b"]


def test_pairs_are_complete() -> None:
    own = efficientnet().state_dict()
    assert pair_by_order(own, own, source="f", name="n") == dict(zip(own, own, strict=True))
