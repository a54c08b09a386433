"""The plain vision transformer of Beyer, Zhai and Kolesnikov (2022). Registered with timm: `vit_small_patch16_plain`.

Dosovitskiy et al.'s own (2021) are timm's, `vit_base_patch16_224` and its like. Built by factory.py.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from timm.layers import lecun_normal_
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tencrop.models.registry import register


def plain_vit(num_classes: int, *, pre_logits: bool = True, **options) -> VisionTransformer:
    """[N, 3, img_size, img_size] -> logits [N, K]: timm's transformer as the authors' code (big_vision) has it.

    No class token: the mean of all patches behind the last normalization is classified. Positions are fixed sines and
    cosines. GELU is the one by tanh. `pre_logits`: a hidden layer with tanh before the output, as in the authors'
    configuration of ImageNet. First weights as there: Glorot's for the transformer (queries, keys and values each by
    its own fans), LeCun's for the patches and the hidden layer, zeros for the output.
    """
    network = VisionTransformer(
        num_classes=num_classes,
        global_pool="avg",
        fc_norm=False,
        class_token=False,
        pos_embed="none",
        act_layer="gelu_tanh",
        weight_init="jax",
        **options,
    )
    for name, parameter in network.named_parameters():
        if name.endswith("qkv.weight"):
            for weights in parameter.detach().chunk(3):
                nn.init.xavier_uniform_(weights)
    rows, columns = network.patch_embed.grid_size
    del network.pos_embed  # timm's None
    network.register_buffer("pos_embed", positions(rows, columns, network.embed_dim), persistent=False)
    if pre_logits:
        hidden = nn.Linear(network.embed_dim, network.embed_dim)
        lecun_normal_(hidden.weight)
        nn.init.zeros_(hidden.bias)
        network.head = nn.Sequential(OrderedDict(pre_logits=hidden, tanh=nn.Tanh(), fc=network.head))  # type: ignore[assignment]
    return network


def positions(rows: int, columns: int, width: int, *, temperature: float = 10_000.0) -> Tensor:
    """[1, rows * columns, width]: sines, then cosines of a patch's column, then of its row, in width / 4 frequencies.

    Frequency k of n is temperature^(-k / (n - 1)), as MoCo v3 has it. Raises ValueError for a width that 4 does not
    divide.
    """
    if width % 4 or width < 8:
        raise ValueError(f"embed_dim={width} is not a multiple of 4 from 8 on")
    frequencies = temperature ** -torch.linspace(0, 1, width // 4)
    angles = (
        index.flatten()[:, None] * frequencies
        for index in torch.meshgrid(torch.arange(columns), torch.arange(rows), indexing="xy")
    )
    return torch.cat([function(angle) for angle in angles for function in (torch.sin, torch.cos)], dim=1)[None]


@register
def vit_small_patch16_plain(num_classes: int = 1000, **options) -> VisionTransformer:
    """S/16: 12 layers of 384 with 6 heads, patches of 16 x 16 pixels."""
    return plain_vit(num_classes, **{"patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6, **options})
