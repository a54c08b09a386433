"""Color jitter: draws factors of brightness, contrast, saturation and hue on the host, applies them on the device."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tencrop.config import Jitter
from tencrop.data.sampling.rng import Float64, Index, Stream, integers_below, random_uint64, uniforms

LUMA = (0.299, 0.587, 0.114)  # weights of R, G and B in gray (ITU-R BT.601), in fb.resnet.torch and torchvision
NEUTRAL = (1.0, 1.0, 1.0, 0.0)  # factors of brightness, contrast, saturation and the hue shift that change nothing
ORDERS = np.array(list(permutations(range(4))), np.int64)  # [24, 4]


def jitter_factors(key: dict[str, Any], jitter: Jitter) -> Float64:
    """Factors of brightness, contrast and saturation, and the hue shift, [B, 4]; `key`: arguments of `uniforms`."""
    low_to_high = 2 * uniforms(**key, stream=Stream.JITTER, count=4) - 1
    return NEUTRAL + low_to_high * (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)


def jitter_orders(key: dict[str, Any]) -> Index:
    """Order in which brightness (0), contrast (1), saturation (2) and hue (3) are applied, int64 [B, 4]."""
    # Draw 4: the first four are the factors.
    return ORDERS[integers_below(random_uint64(**key, stream=Stream.JITTER, count=5)[:, 4], len(ORDERS))]


def is_jittered(jitter: Jitter) -> bool:
    """Whether the recipe uses color jitter."""
    return max(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) > 0


def apply_jitter(images: Tensor, factors: Tensor, orders: Index, jitter: Jitter, *, dtype: torch.dtype) -> Tensor:
    """Apply color jitter to images [B, H, W, 3] on [0, 255] (uint8 or float); returns [B, H, W, 3] of `dtype`.

    factors, orders: [B, 4] as drawn; the factors are on the images' device.
    torch: fb.resnet.torch (datasets/transforms.lua). Each step is x <- f x + (1 - f) y, where y is black for
        brightness, the mean gray level of the image for contrast, its gray image for saturation. Nothing is clipped, so
        the three steps commute: a factor scales gray and mean alike, and saturation changes neither. The random order
        has no effect, and one formula applies all three.
    torchvision: ColorJitter on floats. The same steps and the hue shift, in the drawn order, each clipped to [0, 255].
        (On Pillow images torchvision also rounds to whole gray levels after each step.)
    """
    pixels, factors = images.to(dtype), factors.to(dtype)
    if jitter.source == "torch":
        gray = _gray(pixels)
        brightness, contrast, saturation = (factors[:, part, None, None, None] for part in range(3))
        levels = gray.mean((1, 2, 3), keepdim=True)
        flat = brightness * (contrast * (1 - saturation) * gray + (1 - contrast) * levels)
        return torch.addcmul(flat, pixels, brightness * contrast * saturation)
    assert jitter.source == "torchvision", jitter.source
    pixels = pixels.clone()
    strengths = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    # At each of the four places of the order, group the images by the step that is due and process each group at once.
    for order in orders.T:
        for kind in [kind for kind in range(4) if strengths[kind] > 0]:
            rows = torch.from_numpy(np.flatnonzero(order == kind)).to(pixels.device, non_blocking=True)
            pixels.index_copy_(0, rows, _torchvision_step(pixels[rows], factors[rows, kind, None, None, None], kind))
    return pixels


def _torchvision_step(pixels: Tensor, factor: Tensor, kind: int) -> Tensor:
    if kind == 3:
        return _shift_hue(pixels, factor[..., 0])
    gray = _gray(pixels)
    target = (torch.zeros_like(gray), gray.mean((1, 2, 3), keepdim=True), gray)[kind]
    return (factor * pixels + (1 - factor) * target).clamp(0, 255)


def _gray(pixels: Tensor) -> Tensor:
    red, green, blue = pixels.split(1, dim=-1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def _shift_hue(pixels: Tensor, turn: Tensor) -> Tensor:
    """Shift the hue of pixels [B, H, W, 3] by `turn` [B, 1, 1], in turns; HSV value and saturation stay."""
    value, low = pixels.amax(-1), pixels.amin(-1)
    chroma = value - low
    red, green, blue = pixels.unbind(-1)
    divisor = torch.where(chroma == 0, 1.0, chroma)  # gray has no hue; any will do, as chroma multiplies it below
    sixths = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sixths = sixths + 6 * turn
    # Each channel equals `value` over a third of the circle, `low` over another third, and is linear in between (Smith
    # 1978, "Color gamut transform pairs"). This needs no branch per sextant, as the textbook conversion does.
    channels = [value - chroma * _hue_ramp(sixths + offset) for offset in (5, 3, 1)]
    return torch.stack(channels, dim=-1)


def _hue_ramp(sixths: Tensor) -> Tensor:
    angle = sixths.remainder(6)
    return torch.minimum(angle, 4 - angle).clamp(0, 1)
