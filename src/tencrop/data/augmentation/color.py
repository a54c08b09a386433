"""Color: jitter, AlexNet's noise along the principal components of RGB (PCA noise), and normalization.

All constants are on the scale of the pixels, [0, 255], channels in the order R, G, B.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tencrop.config import Augmentation, Config, Jitter, Normalization, Pca, UserError
from tencrop.config.schema import MEAN_IMAGES
from tencrop.data.augmentation.mean_image import mean_crops, mean_image_of
from tencrop.data.augmentation.pixel_statistics import IMAGENET
from tencrop.data.augmentation.transform import Params, Samples, Transform
from tencrop.data.sampling.rng import Float64, Index, Stream, integers_below, normals, random_uint64, uniforms

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
LUMA = (0.299, 0.587, 0.114)  # weights of R, G and B in gray (ITU-R BT.601), in fb.resnet.torch and torchvision
NEUTRAL = (1.0, 1.0, 1.0, 0.0)  # factors of brightness, contrast, saturation and the hue shift that change nothing
ORDERS = np.array(list(permutations(range(4))), np.int64)  # [24, 4]


class ColorJitter(Transform):
    """Random brightness, contrast, saturation and hue."""

    device_params = frozenset({"jitter"})
    neutral_factors: Tensor

    @staticmethod
    def is_on(augmentation: Augmentation) -> bool:
        jitter = augmentation.jitter
        return max(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) > 0

    @staticmethod
    def draw(samples: Samples, augmentation: Augmentation) -> Params:
        """jitter: [B, 4], factors of brightness, contrast and saturation, and the hue shift.
        jitter_orders: int64 [B, 4], the order in which these four are applied.
        """
        key = samples.key
        return {"jitter": jitter_factors(key, augmentation.jitter), "jitter_orders": jitter_orders(key)}

    @staticmethod
    def neutral(num_samples: int) -> Params:
        orders = np.tile(np.arange(4), (num_samples, 1))
        return {"jitter": np.tile(NEUTRAL, (num_samples, 1)), "jitter_orders": orders}

    def __init__(self, config: Config, statistics: dict[str, Any]):
        super().__init__(config, statistics)
        self.settings = config.augmentation.jitter
        self.register_buffer("neutral_factors", torch.tensor(NEUTRAL), persistent=False)

    def forward(self, images: Tensor, params: dict[str, Any]) -> Tensor:
        dtype = self.neutral_factors.dtype  # that of the network's weights
        return apply_jitter(images, params["jitter"], params["jitter_orders"], self.settings, dtype=dtype)


class Normalize(Transform):
    """Normalization, with PCA noise. The noise is a constant per image and channel, so it costs no pass of its own."""

    device_params = frozenset({"pca_alphas", "mean_crop_params"})
    mean: Tensor
    std: Tensor
    axes: Tensor
    mean_image: Tensor | None

    @staticmethod
    def is_on(augmentation: Augmentation) -> bool:
        return True

    @staticmethod
    def draw(samples: Samples, augmentation: Augmentation) -> Params:
        """pca_alphas [B, 3]: the alphas of the RGB principal components."""
        if augmentation.pca.std == 0:
            return Normalize.neutral(len(samples.index))
        return {"pca_alphas": normals(**samples.key, stream=Stream.PCA, count=3) * augmentation.pca.std}

    @staticmethod
    def neutral(num_samples: int) -> Params:
        return {"pca_alphas": np.zeros((num_samples, 3))}

    def __init__(self, config: Config, statistics: dict[str, Any]):
        super().__init__(config, statistics)
        mean, std = mean_and_std(config.normalization, statistics)
        noise = color_noise(config.augmentation.pca, statistics)
        self.scale, self.channels_last = noise.scale, config.model.channels_last
        self.is_noisy = config.augmentation.pca.std > 0
        for name, constant in (("mean", torch.tensor(mean)), ("std", torch.tensor(std)), ("axes", noise.axes)):
            self.register_buffer(name, constant, persistent=False)
        image = mean_image_of(config, statistics, size=config.augmentation.size)
        self.register_buffer("mean_image", image, persistent=False)

    def forward(self, images: Tensor, params: dict[str, Any]) -> Tensor:
        shift, mean = pca_shift(params["pca_alphas"], self.axes) if self.is_noisy else None, self.mean
        if self.mean_image is not None:
            mean = mean_crops(self.mean_image, params["mean_crop_params"], size=images.shape[1])
        return normalize(images, mean, self.std, shift=shift, scale=self.scale, channels_last=self.channels_last)


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

    mean, std: [3] on [0, 255]; mean may be crops of the mean image, [B or 1, 3, H, W]. shift: [B, 3], gray levels.
    channels_last keeps the memory order of the images and costs no copy.
    """
    # Written as pixel * factor + offset, so that it is one fused pass over the batch instead of three.
    factor = (scale / std)[:, None, None]
    if mean.ndim == 1:
        offset = ((-mean if shift is None else shift - mean) * scale / std)[..., None, None]
    else:
        offset = (-mean if shift is None else shift[..., None, None] - mean) * factor
    pixels = images.permute(0, 3, 1, 2).to(mean.dtype)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.addcmul(offset, pixels, factor).contiguous(memory_format=layout)


def mean_and_std(choice: Normalization, statistics: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """(mean, std) per channel on [0, 255]: ImageNet's, the prepared data's, or the configuration's own numbers.

    For a mean image, the mean is the data's mean color, which fills pixels that RandAugment leaves uncovered.

    statistics: `statistics` of the data's manifest, on [0, 255]; empty for a test set. Raises UserError if they are
    needed and empty.
    """
    if not statistics and (choice.mean in MEAN_IMAGES or "dataset" in (choice.mean, choice.std)):
        raise UserError(
            "normalization=dataset: a test set has no training images to take mean and std of; name those that the"
            " weights were trained with, such as normalization.mean=imagenet normalization.std=imagenet"
        )
    published = {"imagenet": IMAGENET} | dict.fromkeys(("dataset", *MEAN_IMAGES), statistics)
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


def jitter_factors(key: dict[str, Any], jitter: Jitter) -> Float64:
    """Factors of brightness, contrast and saturation, and the hue shift, [B, 4]; `key`: arguments of `uniforms`."""
    low_to_high = 2 * uniforms(**key, stream=Stream.JITTER, count=4) - 1
    return NEUTRAL + low_to_high * (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)


def jitter_orders(key: dict[str, Any]) -> Index:
    """Order in which brightness (0), contrast (1), saturation (2) and hue (3) are applied, int64 [B, 4]."""
    # Draw 4: the first four are the factors.
    return ORDERS[integers_below(random_uint64(**key, stream=Stream.JITTER, count=5)[:, 4], len(ORDERS))]


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
        # A factor of strength 0 is 1 for every image; its step would only cost a pass.
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
