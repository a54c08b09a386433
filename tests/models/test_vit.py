"""The plain vision transformer: fixed position embeddings against a loop, the classified mean, the initialization."""

import math

import pytest
import torch
from torch import nn

from tencrop.models import vit
from typed import layer_at, present


def small(**options):
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return vit.plain_vit(5, **{**sizes, **options})


def test_positions_against_a_loop():
    rows, columns, width = 3, 5, 12
    embedding = vit.positions(rows, columns, width)
    assert embedding.shape == (1, rows * columns, width)
    for row in range(rows):
        for column in range(columns):
            angles = [[index / 10_000 ** (k / 2) for k in range(3)] for index in (column, row)]
            expected = [f(a) for axis in angles for f in (math.sin, math.cos) for a in axis]
            torch.testing.assert_close(embedding[0, row * columns + column], torch.tensor(expected))


def test_positions_are_added_and_are_not_parameters():
    network = small().eval()
    names = {name for name, _ in network.named_parameters()} | set(network.state_dict())
    assert not {name for name in names if "pos" in name or "cls" in name}
    without = small().eval()
    without.pos_embed = torch.zeros_like(without.pos_embed)
    images = torch.randn(2, 3, 32, 32)
    patches = network.patch_embed(images)
    assert torch.equal(network.blocks[0](patches + network.pos_embed), network.blocks[0](network._pos_embed(patches)))
    assert not torch.allclose(network.forward_features(images), without.forward_features(images))


def test_the_mean_of_all_normalized_patches_is_classified():
    network, images = small().eval(), torch.randn(2, 3, 32, 32)
    nn.init.normal_(network.head.fc.weight)
    patches = network.norm(network.blocks(network.patch_embed(images) + network.pos_embed))
    assert patches.shape == (2, 16, 16)
    hidden = torch.tanh(network.head.pre_logits(patches.mean(1)))
    torch.testing.assert_close(network(images), network.head.fc(hidden))
    linear = small(pre_logits=False).eval()
    assert isinstance(linear.head, nn.Linear) and linear(images).shape == (2, 5)


def test_initial_weights():
    torch.manual_seed(0)
    network = vit.vit_small_patch16_plain()

    def weight(name):
        return layer_at(network, name, nn.Linear).weight

    assert not weight("head.fc").any() and not present(layer_at(network, "head.fc", nn.Linear).bias).any()
    for weights in (*weight("blocks.3.attn.qkv").chunk(3), weight("blocks.3.attn.proj")):
        assert abs(weights.abs().max() / math.sqrt(6 / (2 * 384)) - 1) < 0.01
    assert abs(weight("blocks.3.mlp.fc1").abs().max() / math.sqrt(6 / (5 * 384)) - 1) < 0.01
    assert abs(weight("head.pre_logits").std() * math.sqrt(384) - 1) < 0.02
    assert abs(layer_at(network, "patch_embed.proj", nn.Conv2d).weight.std() * math.sqrt(3 * 16 * 16) - 1) < 0.02


def test_parameters_and_other_resolutions():
    with torch.device("meta"):
        network = vit.vit_small_patch16_plain()
        assert network(torch.empty(2, 3, 224, 224)).shape == (2, 1000)
        other = vit.vit_small_patch16_plain(num_classes=7, img_size=96)
        assert other(torch.empty(2, 3, 96, 96)).shape == (2, 7)
    layer = 4 * 384 * 384 + 4 * 384 + 2 * 4 * 384 * 384 + 5 * 384 + 4 * 384
    rest = 3 * 256 * 384 + 384 + 2 * 384 + 384 * 384 + 384 + 384 * 1000 + 1000
    assert sum(parameter.numel() for parameter in network.parameters()) == 12 * layer + rest == 22_122_472


def test_a_width_without_four_equal_parts_is_refused():
    with pytest.raises(ValueError, match="embed_dim=18"):
        small(embed_dim=18)
