"""Retrieval by features: a duplicate comes first."""

import pytest
import torch
from timm import create_model
from torch import nn

import tencrop.models.factory  # noqa: F401  registers our names
from tencrop.visualization.drawing import BLUE, ORANGE, save_figure, shortened
from tencrop.visualization.record import Record
from tencrop.visualization.retrieval import hidden_features, nearest, retrieval_figure
from tencrop.visualization.trained_model import Images


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return create_model("lenet5_dense").eval()


def test_features_are_the_last_hidden_layer(network) -> None:
    images = torch.randn(40, 3, 32, 32)  # more than one batch
    features = hidden_features(network, images)
    assert features.shape == (40, 84)
    with torch.no_grad():
        torch.testing.assert_close(network.output(features), network(images))


def test_features_of_maps_are_averaged() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(hidden_features(network, images), network[0](images).mean((2, 3)))


def test_duplicates_are_found_first(network) -> None:
    torch.manual_seed(1)
    candidates = torch.randn(50, 3, 32, 32)
    queries = candidates[[17, 3]].clone()
    found = nearest(hidden_features(network, queries), hidden_features(network, candidates), num=6)
    assert found.positions[:, 0].tolist() == [17, 3] and found.positions.shape == (2, 6)
    assert (found.distances[:, 0] < 1e-5).all() and (found.distances.diff(dim=1) >= 0).all()


def test_distances_are_euclidean() -> None:
    queries, candidates = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, -1.0], [9.0, 9.0]])
    found = nearest(queries, candidates, num=3)
    assert found.positions.tolist() == [[1, 2, 0]] and found.distances.tolist() == [[1.0, 1.0, 5.0]]


def test_frame_colors_mark_neighbors_of_the_same_class(tmp_path, texts_of) -> None:
    pixels = torch.zeros(4, 8, 8, 3, dtype=torch.uint8)
    queries = Images(torch.arange(1), torch.tensor([1]), pixels[:1])
    candidates = Images(torch.arange(4), torch.tensor([1, 0, 1, 0]), pixels)
    found = nearest(torch.zeros(1, 2), torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0]]), num=3)
    figure = retrieval_figure(queries, candidates, found, names=["academic gowns", "fish"], title="Nearest")
    svg, _ = save_figure(figure, tmp_path, "retrieval", Record("", "", ""))
    assert texts_of(svg) == ["fish", "1", "academic g…: 2", "3", "Nearest"]
    text = svg.read_text()
    assert text.count(f"stroke: {BLUE}") == 2 * 4 and text.count(f"stroke: {ORANGE}") == 4  # four sides a frame


def test_names_are_shortened() -> None:
    assert shortened("goldfish", 11) == "goldfish" and shortened("walking stick", 11) == "walking st…"
