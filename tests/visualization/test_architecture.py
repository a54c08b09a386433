"""The overview names the stages and blocks that the papers' tables name."""

import pytest
import torch
from timm import create_model
from torch import nn

import tencrop.models.factory  # noqa: F401  registers our names
from tencrop.visualization.architecture import architecture_figure, stages
from tencrop.visualization.drawing import save_figure
from tencrop.visualization.record import Record
from typed import layer_at


def overview(name: str, *, image_size: int = 224, **options) -> dict[str, list[str]]:
    return {stage.size: stage.lines for stage in stages(create_model(name, **options), image_size=image_size)}


def test_resnet_50_is_table_1() -> None:
    assert overview("resnet50") == {
        "112 × 112 × 64": ["conv 7 × 7, 64 / 2"],
        "56 × 56 × 256": ["max pool 3 × 3 / 2", "3 × Bottleneck, 256"],
        "28 × 28 × 512": ["4 × Bottleneck, 512"],
        "14 × 14 × 1024": ["6 × Bottleneck, 1024"],
        "7 × 7 × 2048": ["3 × Bottleneck, 2048"],
        "1000": ["average pool", "linear, 1000"],
    }


def test_vgg_d_is_column_d() -> None:
    found = overview("vgg_d", width=0.25, img_size=32, image_size=32)
    assert list(found) == ["32 × 32 × 16", "16 × 16 × 32", "8 × 8 × 64", "4 × 4 × 128", "2 × 2 × 128", "1000"]
    assert found["8 × 8 × 64"] == ["max pool 2 × 2 / 2", "3 × conv 3 × 3, 64"]
    assert found["1000"] == ["max pool 2 × 2 / 2", "2 × linear, 1024", "linear, 1000"]


def test_lenet_5_ends_in_its_codes() -> None:
    found = overview("lenet5", image_size=32)
    assert found["10 × 10 × 16"] == ["SparseConvolution, 16"]
    assert found["10"] == ["conv 5 × 5, 120", "linear, 84", "RadialBasis, 10"]


def test_a_transformer_has_tokens() -> None:
    found = overview("vit_tiny_patch16_224")
    assert found == {
        "196 × 192": ["conv 16 × 16, 192 / 16"],
        "197 × 192": ["12 × Block, 192"],
        "1000": ["linear, 1000"],
    }


@pytest.mark.parametrize(
    ("name", "size", "block"),
    [
        ("densenet121", "7 × 7 × 1024", "16 × DenseLayer, 32"),
        ("regnetx_002", "7 × 7 × 368", "7 × Bottleneck, 368"),
        ("swin_tiny_patch4_window7_224", "14 × 14 × 384", "6 × SwinTransformerBlock, 384"),
        ("convnext_atto", "14 × 14 × 160", "6 × ConvNeXtBlock, 160"),
        ("efficientnet_lite0", "14 × 14 × 112", "3 × InvertedResidual, 112"),
    ],
)
def test_blocks_of_other_families(name: str, size: str, block: str) -> None:
    assert block in overview(name)[size]


def test_parameters_are_counted_once() -> None:
    shared = nn.Conv2d(3, 3, 3, padding=1)
    network = nn.Sequential(shared, nn.ReLU(), shared, nn.MaxPool2d(2), nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5))
    found = stages(network, image_size=8)
    assert [(stage.size, stage.num_parameters) for stage in found] == [("8 × 8 × 3", 84), ("4 × 4 × 5", 30)]
    assert found[0].lines == ["2 × conv 3 × 3, 3"]


def test_the_figure_names_the_stages(tmp_path, texts_of) -> None:
    network = create_model("resnet18", num_classes=10)
    figure = architecture_figure(network, image_size=64, title="resnet18")
    svg, png = save_figure(figure, tmp_path, "architecture", Record("Architecture", "Stages.", "resnet18"))
    texts = texts_of(svg)
    assert texts[:2] == ["resnet18", "input 64 × 64 × 3 · 11,181,642 parameters"]
    for stage in stages(network, image_size=64):
        assert stage.size in texts and set(stage.lines) <= set(texts)
    assert png.read_bytes()[:4] == b"\x89PNG"
    again = tmp_path / "again"
    save_figure(
        architecture_figure(network, image_size=64, title="resnet18"), again, "architecture", Record("", "", "")
    )
    assert (again / "architecture.svg").read_bytes() == svg.read_bytes(), "the same figure gives the same bytes"


def test_drawing_leaves_the_network_as_it_was() -> None:
    network = create_model("resnet18").train()
    before = torch.random.get_rng_state()
    stages(network, image_size=64)
    assert network.training and not any(module._forward_hooks for module in network.modules())
    assert torch.equal(before, torch.random.get_rng_state())
    assert layer_at(network, "bn1", nn.BatchNorm2d).num_batches_tracked == 0
