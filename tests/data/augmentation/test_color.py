import numpy as np
import pytest
import torch

from tencrop.config import Normalization, Pca
from tencrop.data.augmentation.color import color_noise, mean_and_std, normalize, pca_shift

STATISTICS = {
    "mean": [120.0, 110.0, 100.0],
    "std": [60.0, 61.0, 62.0],
    "eigenvalues": [10_000.0, 400.0, 100.0],
    "eigenvectors": [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]],
}


def test_normalize_by_hand():
    images = torch.randint(256, (2, 4, 5, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    shift = torch.tensor([[5.0, -3.0, 0.0], [0.0, 1.0, 2.0]])
    out = normalize(images, mean, std, shift=shift, scale=0.5)
    pixel = images.double()
    expected = (pixel - mean + shift[:, None, None]) * 0.5 / std
    torch.testing.assert_close(out.double(), expected.permute(0, 3, 1, 2), rtol=1e-5, atol=1e-5)
    assert out.dtype == torch.float32 and out.is_contiguous()


def test_channels_last_keeps_the_values_and_the_order_in_memory():
    images = torch.randint(256, (2, 4, 5, 3), dtype=torch.uint8)
    mean, std = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0])
    out = normalize(images, mean, std, channels_last=True)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, normalize(images, mean, std), rtol=0, atol=0)


def test_mean_and_std_may_come_from_different_sources():
    assert mean_and_std(Normalization("imagenet", "imagenet"), {})[0] == pytest.approx([123.675, 116.28, 103.53])
    mean, std = mean_and_std(Normalization("dataset", [1, 2, 3]), STATISTICS)
    assert mean == [120.0, 110.0, 100.0] and std == [1.0, 2.0, 3.0]


def test_torchs_imagenet_constants_on_pixels_of_255():
    mean, std = mean_and_std(Normalization("imagenet", "imagenet"), {})
    np.testing.assert_allclose(np.array(mean) / 255, [0.485, 0.456, 0.406])
    np.testing.assert_allclose(np.array(std) / 255, [0.229, 0.224, 0.225])


@pytest.mark.parametrize(("source", "levels"), [("torch", 5.5), ("cuda_convnet", 12.2)])
def test_amplitude_of_the_first_axis(source, levels):
    noise = color_noise(Pca(0.1, source), STATISTICS)
    shift = pca_shift(torch.tensor([[0.1, 0.0, 0.0]]), noise.axes)
    assert shift.norm().item() == pytest.approx(levels, rel=0.01)
    assert (shift < 0).all()  # the first component is brightness, with its published sign
    assert noise.scale == (1.0 if source == "torch" else pytest.approx(1 / 1.1))


def test_the_published_conventions_agree_on_the_axes():
    torch_axes, convnet_axes = (color_noise(Pca(0.1, source), {}).axes for source in ("torch", "cuda_convnet"))
    cosines = torch.nn.functional.cosine_similarity(torch_axes, convnet_axes, dim=0).abs()
    assert cosines.min() > 0.99
    variances = (convnet_axes.norm(dim=0) / 255) ** 2
    torch.testing.assert_close(variances, torch.tensor([0.2175, 0.0188, 0.0045]), rtol=0.35, atol=0)


def test_fb_resnet_torch_by_hand():
    alphas = torch.tensor([[0.05, -0.1, 0.2]])
    shift = pca_shift(alphas, color_noise(Pca(0.1, "torch"), {}).axes)
    red = 255 * (-0.5675 * 0.05 * 0.2175 + 0.7192 * -0.1 * 0.0188 + 0.4009 * 0.2 * 0.0045)
    assert shift[0, 0].item() == pytest.approx(red, rel=1e-5)


def test_axes_of_the_data_set_are_standard_deviations():
    noise = color_noise(Pca(0.1, "dataset"), STATISTICS)
    shift = pca_shift(torch.tensor([[0.1, 0.0, 0.0], [0.0, 0.1, 0.0], [0.0, 0.0, 0.1]]), noise.axes)
    torch.testing.assert_close(shift, torch.tensor([[10.0, 0.0, 0.0], [0.0, 0.0, 2.0], [0.0, 1.0, 0.0]]))
    assert noise.scale == 1.0
