"""Occlusion of a classifier that reads one known position finds that position."""

import pytest
import torch
from torch import Tensor, nn

from tencrop.visualization.drawing import save_figure
from tencrop.visualization.occlusion import occlusion, occlusion_figure
from tencrop.visualization.record import Record
from tencrop.visualization.trained_model import Images


class Spot(nn.Module):
    """Predicts class 1 if the 4 x 4 pixels at (row, column) are bright."""

    def __init__(self, row: int, column: int):
        super().__init__()
        self.row, self.column = row, column

    def forward(self, images: Tensor) -> Tensor:
        spot = images[:, :, self.row : self.row + 4, self.column : self.column + 4].mean((1, 2, 3))
        return torch.stack([torch.zeros_like(spot), 8 * spot - 4], dim=1)


@pytest.mark.parametrize(("row", "column"), [(4, 20), (24, 8), (0, 0)])
def test_the_planted_patch_is_found(row: int, column: int) -> None:
    image = torch.ones(3, 32, 32)
    found = occlusion(Spot(row, column), image, 1, positions=16)
    assert found.square == 8 and found.probabilities.shape == (16, 16)
    assert found.whole == pytest.approx(float(torch.tensor(4.0).sigmoid()))
    centers = [round(place * 31 / 15) for place in range(16)]
    for top, line in zip(centers, found.probabilities, strict=True):
        for left, probability in zip(centers, line, strict=True):
            covers = (top - 4 <= row < row + 4 <= top + 4) and (left - 4 <= column < column + 4 <= left + 4)
            misses = top + 4 <= row or top - 4 >= row + 4 or left + 4 <= column or left - 4 >= column + 4
            if covers:
                assert probability == pytest.approx(float(torch.tensor(-4.0).sigmoid()))
            if misses:
                assert probability == pytest.approx(found.whole)
    assert found.probabilities.min() < 0.1 < found.probabilities.max()


def test_a_square_over_everything() -> None:
    found = occlusion(Spot(8, 8), torch.ones(3, 16, 16), 0, square=64, positions=2)
    assert found.probabilities.flatten().tolist() == pytest.approx([float(torch.tensor(4.0).sigmoid())] * 4)


def test_the_figure_states_the_occluded_probabilities(tmp_path, texts_of) -> None:
    images = Images(torch.arange(1), torch.tensor([1]), torch.full((1, 32, 32, 3), 200, dtype=torch.uint8))
    found = occlusion(Spot(4, 20), torch.ones(3, 32, 32), 1)
    svg, _ = save_figure(
        occlusion_figure(images, [found], names=["a", "b"], title="T"), tmp_path, "o", Record("", "", "")
    )
    texts = texts_of(svg)
    assert {"T", "b", "whole 0.98", "occluded 0.02 – 0.98"} <= set(texts)
    assert "probability with the 8 px square at this position" in texts
