"""A unit that detects one pattern is shown with that pattern; projections follow the deconvnet equations."""

import torch
from torch import nn

from tencrop.visualization.drawing import save_figure
from tencrop.visualization.patches import Activation, patch_box, patches_figure, projection, top_activations
from tencrop.visualization.record import Record
from typed import present


def cross_finder() -> nn.Sequential:
    """Unit 1 is most active on a bright cross of 3 x 3 pixels, unit 0 on darkness."""
    first, last = nn.Conv2d(3, 2, 3), nn.Conv2d(2, 2, 1)
    cross = torch.tensor([[-1.0, 1.0, -1.0], [1.0, 1.0, 1.0], [-1.0, 1.0, -1.0]])
    with torch.no_grad():
        first.weight.copy_(torch.stack([-cross.abs(), cross])[:, None].expand(2, 3, 3, 3))
        present(first.bias).zero_()
        last.weight.copy_(torch.eye(2)[..., None, None])
        present(last.bias).zero_()
    return nn.Sequential(first, nn.ReLU(), last)


def test_the_planted_pattern_is_found() -> None:
    torch.manual_seed(0)
    images = torch.rand(40, 3, 12, 12) * 0.2
    images[33, :, 5, 6:9] = images[33, :, 4:7, 7] = 1  # a cross at rows 4 to 6, columns 6 to 8
    images[7, :, 2, 2:5] = images[7, :, 1:4, 3] = 0.6
    network = cross_finder()
    _, best = top_activations(network, images, "2", num=3)
    assert [(one.image, one.row, one.column) for one in best[:2]] == [(33, 4, 6), (7, 1, 2)]
    assert best[0].value > best[1].value > best[2].value
    projected = projection(network, images[33], "2", 1, best[0])
    assert patch_box(projected) == (4, 6, 7, 9)
    assert (projected[:, 5, 6:9] > 0).all() and (projected[:, 4, [6, 8]] < 0).all()


def test_every_relu_rectifies_the_gradient() -> None:
    """The equations written out for a net of two convolutions: transposed kernels, ReLU, transposed kernels."""
    torch.manual_seed(0)
    first, last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)
    network = nn.Sequential(first, nn.ReLU(inplace=True), last, nn.ReLU(inplace=True)).double()
    image = torch.randn(3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        maps = network(image[None])
    unit = int(maps[0].amax((1, 2)).argmax())
    row, column = divmod(int(maps[0, unit].argmax()), 4)
    answer = float(maps[0, unit, row, column])
    top = torch.zeros_like(maps)
    top[0, unit, row, column] = answer
    middle = nn.functional.conv_transpose2d(top.relu(), last.weight).relu()
    expected = nn.functional.conv_transpose2d(middle, first.weight)[0]
    found = projection(network, image, "3", unit, Activation(0, row, column, answer))
    torch.testing.assert_close(found, expected.detach())
    one = image[None].clone().requires_grad_()
    network(one)[0, unit, row, column].square().mul(0.5).backward()
    assert not torch.allclose(present(one.grad)[0], found), "afterwards gradients are gradients again"
    assert network[1].inplace and not network[1]._forward_hooks


def test_an_inactive_unit_shows_the_whole_image() -> None:
    network = cross_finder()
    projected = projection(network, torch.zeros(3, 6, 6), "2", 0, Activation(0, 0, 0, 0.0))
    assert patch_box(projected) == (0, 0, 6, 6)


def test_figure(tmp_path, texts_of) -> None:
    pair = (torch.zeros(3, 3, 3, dtype=torch.uint8), torch.randn(3, 3, 3))
    figure = patches_figure([(4, [pair, pair]), (7, [pair, pair])], title="What excites")
    svg, _ = save_figure(figure, tmp_path, "patches", Record("", "", ""))
    assert texts_of(svg) == ["4", "7", "What excites"]
    assert svg.read_text().count("<image") == 8
