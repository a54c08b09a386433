"""Attention maps: rows sum to 1, logits do not change, rollout agrees with a computation by hand."""

import pytest
import torch
from timm import create_model
from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer

from tencrop.visualization.attention import attention_figure, attention_maps, patch_map, rollout
from tencrop.visualization.drawing import save_figure
from tencrop.visualization.record import Record
from tencrop.visualization.trace import NotApplicable
from tencrop.visualization.trained_model import Images

SMALL = {"img_size": 48, "patch_size": 16, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 5}


def vit(name: str = "vit_tiny_patch16_224", **options) -> VisionTransformer:
    torch.manual_seed(0)
    network = create_model(name, **(SMALL | options)).double()
    for parameter in network.parameters():  # far from the even attention of small weights
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    assert isinstance(network, VisionTransformer)
    return network


def attentions(network: VisionTransformer) -> list[Attention]:
    return [module for module in network.modules() if isinstance(module, Attention)]


@pytest.mark.parametrize(("name", "prefix"), [("vit_tiny_patch16_224", 1), ("deit_tiny_distilled_patch16_224", 2)])
def test_rows_sum_to_one_and_logits_stay(name: str, prefix: int, monkeypatch) -> None:
    network = vit(name).eval()
    images = torch.randn(2, 3, 48, 48, dtype=torch.float64)
    with torch.no_grad():
        before = network(images)
    found = attention_maps(network, images)
    assert found.shape == (3, 2, 2, 9 + prefix, 9 + prefix) and network.num_prefix_tokens == prefix
    torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]))
    assert found.min() >= 0 and found.std() > 0.01
    assert all(attention.fused_attn for attention in attentions(network)), "fused attention is on again"
    with torch.no_grad():
        assert torch.equal(network(images), before)
        for attention in attentions(network):
            monkeypatch.setattr(attention, "fused_attn", False)
        torch.testing.assert_close(network(images), before, rtol=1e-10, atol=1e-10)


def test_attention_is_the_formula() -> None:
    """softmax(q k / sqrt(d)) of the first layer, from its weights."""
    network = vit().eval()
    images = torch.randn(1, 3, 48, 48, dtype=torch.float64)
    with torch.no_grad():
        tokens = network._pos_embed(network.patch_embed(images))
        norm, qkv = (network.get_submodule(f"blocks.0.{name}") for name in ("norm1", "attn.qkv"))
        q, k, _ = qkv(norm(tokens)).view(1, 10, 3, 2, 12).permute(2, 0, 3, 1, 4)
        expected = (q @ k.transpose(-2, -1) / 12**0.5).softmax(-1)
    torch.testing.assert_close(attention_maps(network, images)[0], expected.float())


def test_rollout_of_two_layers_by_hand() -> None:
    torch.manual_seed(0)
    attention = torch.rand(2, 1, 3, 4, 4, dtype=torch.float64).softmax(-1)
    first, second = (0.5 * layer[0].mean(0) + 0.5 * torch.eye(4, dtype=torch.float64) for layer in attention)
    torch.testing.assert_close(rollout(attention)[0], second @ first)
    torch.testing.assert_close(rollout(attention).sum(-1), torch.ones(1, 4, dtype=torch.float64))
    alone = torch.eye(4, dtype=torch.float64).expand(5, 2, 3, 4, 4)
    torch.testing.assert_close(rollout(alone), torch.eye(4, dtype=torch.float64).expand(2, 4, 4))


def test_map_of_the_class_token_and_without_one() -> None:
    rows = torch.zeros(1, 5, 5)
    rows[0, 0] = torch.tensor([9.0, 1.0, 2.0, 3.0, 4.0])
    assert patch_map(rows, num_prefix=1).tolist() == [[[1.0, 2.0], [3.0, 4.0]]]
    without = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 2.0], [0.0] * 4, [0.0] * 4])[None]
    assert patch_map(without, num_prefix=0).tolist() == [[[0.5, 0.0], [0.0, 0.5]]]


def test_networks_without_attention_are_refused() -> None:
    with pytest.raises(NotApplicable, match=r"resnet18 has no layer of timm's Attention .* choose a ViT or DeiT"):
        attention_maps(create_model("resnet18"), torch.zeros(1, 3, 32, 32), name="resnet18")


def test_figure(tmp_path, texts_of) -> None:
    images = Images(torch.arange(2), torch.tensor([0, 1]), torch.zeros(2, 48, 48, 3, dtype=torch.uint8))
    attention = attention_maps(vit(), torch.randn(2, 3, 48, 48, dtype=torch.float64))
    figure = attention_figure(images, attention, num_prefix=1, names=["cat", "dog"], title="Attention")
    svg, _ = save_figure(figure, tmp_path, "attention", Record("", "", ""))
    assert texts_of(svg) == ["cat", "rollout", "head 1", "head 2", "dog", "Attention"]
