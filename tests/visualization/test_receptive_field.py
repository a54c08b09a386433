"""Fields of stacks of known convolutions, where the receptive field is arithmetic."""

import math

import pytest
import torch
from timm import create_model
from torch import nn

from tencrop.visualization.drawing import save_figure
from tencrop.visualization.receptive_field import Field, effective_field, field_figure, seen_box, theoretical_side
from tencrop.visualization.record import Record
from typed import present

# kernel, stride of each layer
STACKS = [((3, 1),), ((3, 1), (3, 1), (3, 1)), ((7, 2), (3, 2)), ((11, 4), (3, 2), (5, 1)), ((5, 1), (2, 2), (3, 1))]


def stack(layers, *, weights: str = "ones") -> nn.Sequential:
    """Convolutions without padding whose weights are all above 0, so that nothing cancels."""
    convolutions = [nn.Conv2d(3, 3, kernel, stride) for kernel, stride in layers]
    for layer in convolutions:
        nn.init.ones_(layer.weight) if weights == "ones" else nn.init.uniform_(layer.weight, 0.1, 1)
        nn.init.zeros_(present(layer.bias))
    return nn.Sequential(*convolutions)


def arithmetic(layers) -> tuple[int, int]:
    """Size and stride of a unit's receptive field after the layers."""
    size, jump = 1, 1
    for kernel, stride in layers:
        size += (kernel - 1) * jump
        jump *= stride
    return size, jump


@pytest.mark.parametrize("layers", STACKS)
def test_the_box_is_the_theoretical_field(layers) -> None:
    size, jump = arithmetic(layers)
    side = size + 4 * jump  # five units along a side
    field = effective_field(stack(layers), torch.rand(2, 3, side, side))
    assert field.layer == str(len(layers) - 1)
    assert seen_box(field) == (2 * jump, 2 * jump, 2 * jump + size, 2 * jump + size)
    assert field.strength.max() == 1 and field.strength.shape == (side, side)


@pytest.mark.parametrize("layers", STACKS)
def test_the_theoretical_side_is_arithmetic(layers) -> None:
    size, jump = arithmetic(layers)
    assert theoretical_side(stack(layers), str(len(layers) - 1), image_size=size + 4 * jump) == size


def test_the_theoretical_side_of_a_stage_of_blocks() -> None:
    network = create_model("resnet18")
    names = ("conv1", "layer1", "layer2", "layer3", "layer4")
    assert [theoretical_side(network, name, image_size=64) for name in names] == [7, 43, 99, 211, 435]


def test_equal_weights_give_the_binomial_shape_of_the_paper() -> None:
    """Section 2.2: with weights of 1 the gradient is the k-fold convolution of the kernel with itself."""
    field = effective_field(stack([(3, 1)] * 4), torch.rand(1, 3, 13, 13))
    kernel = torch.ones(1, dtype=torch.float64)
    for _ in range(4):
        kernel = torch.nn.functional.conv1d(kernel[None, None], torch.ones(1, 1, 3, dtype=torch.float64), padding=2)[
            0, 0
        ]
    expected = torch.outer(kernel, kernel) / kernel.max() ** 2
    torch.testing.assert_close(field.strength[2:11, 2:11], expected)
    assert field.side == pytest.approx(math.sqrt(int((expected > 0.0455).sum())))
    assert 3 < field.side < 9, "the strong part is smaller than the whole field"


def test_a_named_layer_and_images_are_averaged() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 5)).double()
    images = torch.randn(3, 3, 9, 9, dtype=torch.float64)
    assert seen_box(effective_field(network, images, layer="0")) == (3, 3, 6, 6)
    total = torch.zeros(9, 9, dtype=torch.float64)
    for image in images:
        one = image[None].clone().requires_grad_()
        network(one)[0, :, 1, 1].sum().backward()
        total += present(one.grad).abs().sum((0, 1))
    torch.testing.assert_close(effective_field(network, images).strength, total / total.max())


def test_a_field_without_gradient() -> None:
    layer = nn.Conv2d(3, 2, 3)
    nn.init.zeros_(layer.weight)
    field = effective_field(nn.Sequential(layer), torch.rand(1, 3, 5, 5))
    assert seen_box(field) is None and field.side == 0


def test_the_figure_names_sizes(tmp_path, texts_of) -> None:
    strength = torch.zeros(16, 16, dtype=torch.float64)
    strength[4:9, 5:12] = 0.01
    strength[6:8, 6:8] = 1
    fields = [("before training", Field(strength, "layer4")), ("after", Field(torch.zeros(16, 16), "layer4"))]
    figure = field_figure(fields, title="What the center of layer4 sees", theoretical=35)
    svg, _ = save_figure(figure, tmp_path, "field", Record("", "", ""))
    texts = texts_of(svg)
    assert {"What the center of layer4 sees", "before training", "after"} <= set(texts)
    assert "theoretical 35 px, strong 2 px" in texts and "extent 5 × 7 of 16 × 16" in texts
    assert "extent 0 of 16 × 16" in texts


def test_the_last_call_of_a_repeated_layer_counts() -> None:
    torch.manual_seed(0)
    network = create_model("lenet5_dense")  # 5 x 5, pool, 5 x 5, the same pool: 1, 5, 6, 14, 16 pixels
    field = effective_field(network, torch.rand(4, 3, 32, 32))
    assert field.layer == "pool" and theoretical_side(network, field.layer, image_size=32) == 16
    top, left, bottom, right = present(seen_box(field))
    assert (bottom - top, right - left) == (16, 16)
