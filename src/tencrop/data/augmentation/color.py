"""Color on the device: normalization, and AlexNet's noise along the principal components of RGB (PCA noise).

The alphas of the noise are drawn on the host, in the plan, so that they do not depend on the device.
All constants are on the scale of the pixels, [0, 255], channels in the order R, G, B.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tencrop.config import Normalization, Pca

# torchvision's 0.485, 0.456, 0.406 and 0.229, 0.224, 0.225 times 255
IMAGENET = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
# fb.resnet.torch, datasets/imagenet.lua: rows R, G, B; columns are the eigenvectors
TORCH_VECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
TORCH_VALUES = (0.2175, 0.0188, 0.0045)  # variances of pixels on [0, 1]
# cuda-convnet2, make-data/input_meta; here too rows are R, G, B and columns the eigenvectors
CUDA_CONVNET_VECTORS = (
    (-0.563510, -0.712579, 0.417955),
    (-0.576184, -0.023542, -0.816981),
    (-0.592003, 0.701196, 0.397311),
)
CUDA_CONVNET_STDS = (121.780061, 37.093889, 19.720833)  # standard deviations on [0, 255]


class ColorNoise(NamedTuple):
    """pixel -> mean + (pixel - mean + axes @ alphas) * scale, with alphas [3] drawn for each image."""

    axes: Tensor  # [3, 3], gray levels on [0, 255] for a unit of alpha: row = channel, column = component
    scale: float


def normalize(
    images: Tensor,
    mean: Tensor,
    std: Tensor,
    *,
    shift: Tensor | None = None,
    scale: float = 1.0,
    channels_last: bool = False,
) -> Tensor:
    """(pixel - mean + shift) * scale / std: uint8 [B, H, W, 3] -> [B, 3, H, W] in the dtype of `mean`.

    mean, std: [3] on [0, 255]. shift: [B, 3], gray levels. channels_last keeps the memory order of the images and
    costs no copy.
    """
    # Written as pixel * factor + offset, so that it is one fused pass over the batch instead of three.
    factor = (scale / std)[:, None, None]
    offset = ((-mean if shift is None else shift - mean) * scale / std)[..., None, None]
    pixels = images.permute(0, 3, 1, 2).to(mean.dtype)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.addcmul(offset, pixels, factor).contiguous(memory_format=layout)


def mean_and_std(choice: Normalization, statistics: dict[str, Any]) -> tuple[list[float], list[float]]:
    """(mean, std) per channel on [0, 255]: ImageNet's, the prepared data's, or the configuration's own numbers.

    statistics: `statistics` of the data's manifest, on [0, 255].
    """
    published = {"imagenet": IMAGENET, "dataset": statistics}
    mean, std = (
        [float(value) for value in (published[given][key] if isinstance(given, str) else given)]
        for key, given in (("mean", choice.mean), ("std", choice.std))
    )
    return mean, std


def color_noise(pca: Pca, statistics: dict[str, Any]) -> ColorNoise:
    """The noise of Krizhevsky et al. 2012, section 4.1, in the convention that `pca.source` names.

    The paper adds [p1 p2 p3][a1 l1, a2 l2, a3 l3] and calls l the eigenvalues, but does not state the pixels' scale.
    torch: fb.resnet.torch's vectors; l are its variances of pixels on [0, 1], added to pixels on [0, 1] (255 l here).
    cuda_convnet: the author's code (convdata.py, add_color_noise). l are standard deviations on [0, 255], and the
        noisy pixel minus the mean is multiplied by 1 / (1 + pca.std) to keep the scale of the test images.
    dataset: the prepared data's own vectors, l their standard deviations on [0, 255], without that factor.
    An alpha of 0.1 moves a pixel along the first axis by 5.5 gray levels (torch) or 12.2 (cuda_convnet).
    """
    if pca.source == "torch":
        return ColorNoise(torch.tensor(TORCH_VECTORS) * torch.tensor(TORCH_VALUES) * 255, 1.0)
    if pca.source == "cuda_convnet":
        axes = torch.tensor(CUDA_CONVNET_VECTORS) * torch.tensor(CUDA_CONVNET_STDS)
        return ColorNoise(axes, 1 / (1 + pca.std) if pca.std > 0 else 1.0)  # off: evaluation must not rescale
    assert pca.source == "dataset", pca.source
    variances = torch.tensor(statistics["eigenvalues"], dtype=torch.get_default_dtype())
    vectors = torch.tensor(statistics["eigenvectors"], dtype=torch.get_default_dtype())
    return ColorNoise(vectors * variances.clamp(min=0).sqrt(), 1.0)


def pca_shift(alphas: Tensor, axes: Tensor) -> Tensor:
    """Gray levels [B, 3] (R, G, B) to add to every pixel of each image; alphas [B, 3], axes as in `ColorNoise`."""
    return alphas.to(axes.dtype) @ axes.T
