"""Plain ViT of Beyer, Zhai and Kolesnikov (2022, "Better plain ViT baselines"): `vit_small_patch16_plain` in timm.

The original networks of Dosovitskiy et al. (2021) are timm's own, such as `vit_base_patch16_224`.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from timm.layers import lecun_normal_
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tencrop.models.registry import register


def plain_vit(num_classes: int, *, pre_logits: bool = True, **options) -> VisionTransformer:
    """Build timm's transformer with big_vision's settings: [N, 3, img_size, img_size] -> logits [N, K].

    No class token: the mean over patches after the last normalization is classified. Position embeddings are fixed
    sines and cosines. GELU uses the tanh approximation. `pre_logits` adds a hidden layer with tanh before the output,
    as in the authors' ImageNet configuration. Initialization follows big_vision: Glorot in the transformer, with the
    fans of queries, keys and values counted separately; LeCun in the patch embedding and the hidden layer; zeros in
    the output layer.
    """
    network = VisionTransformer(
        num_classes=num_classes,
        global_pool="avg",
        fc_norm=False,  # normalize before the mean over patches; timm's default for "avg" is after it
        class_token=False,
        pos_embed="none",
        act_layer="gelu_tanh",
        weight_init="jax",
        **options,
    )
    for name, parameter in network.named_parameters():
        # timm stacks the three matrices; as one matrix their fan-out would be three times too large
        if name.endswith("qkv.weight"):
            for weights in parameter.detach().chunk(3):
                nn.init.xavier_uniform_(weights)
    rows, columns = network.patch_embed.grid_size
    del network.pos_embed  # None in timm; register_buffer refuses the name of an existing attribute
    # not persistent: the state dict holds only what is learned
    network.register_buffer("pos_embed", positions(rows, columns, network.embed_dim), persistent=False)
    if pre_logits:
        hidden = nn.Linear(network.embed_dim, network.embed_dim)
        lecun_normal_(hidden.weight)
        nn.init.zeros_(hidden.bias)
        network.head = nn.Sequential(OrderedDict(pre_logits=hidden, tanh=nn.Tanh(), fc=network.head))  # type: ignore[assignment]
    return network


def positions(rows: int, columns: int, width: int, *, temperature: float = 10_000.0) -> Tensor:
    """Fixed position embeddings [1, rows * columns, width] with width / 4 frequencies.

    In order: sine and cosine of a patch's column, sine and cosine of its row. Frequency k of n is
    temperature^(-k / (n - 1)), as in MoCo v3. Raises ValueError for a width that is not a multiple of 4.
    """
    if width % 4 or width < 8:
        raise ValueError(f"embed_dim={width} is not a multiple of 4, 8 or more")
    frequencies = temperature ** -torch.linspace(0, 1, width // 4)
    angles = (
        index.flatten()[:, None] * frequencies
        for index in torch.meshgrid(torch.arange(columns), torch.arange(rows), indexing="xy")
    )
    return torch.cat([function(angle) for angle in angles for function in (torch.sin, torch.cos)], dim=1)[None]


@register
def vit_small_patch16_plain(num_classes: int = 1000, **options) -> VisionTransformer:
    """ViT-S/16: 12 layers of width 384 with 6 heads, patches of 16 x 16 pixels."""
    return plain_vit(num_classes, **{"patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6, **options})
